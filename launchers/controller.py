"""Facts -> registry; desired -> actual. One turn: adopt, ingest, observe, settle, plan, act.

The registry has one writer thread, and the scheduler's commands run in another, so a slow `squeue` never keeps the
control API waiting. A scheduler that does not answer changes nothing: replicas keep serving, nothing is resubmitted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from launchers import facts, plan
from launchers.launch import launch, new_id, read_job, write_job
from launchers.resources import engine_environment, resources_from
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobState, JobStatus, JobUsage, Scheduler, SchedulerError, SchedulerUnavailable
from launchers.spec import ServeSpec, Spec, SpecError, load
from registry import accounting, clock, deployments, runs
from registry.db import Database, RegistryError
from registry.deployments import Deployment, DeploymentState, ReplicaState
from registry.site import Site

log = logging.getLogger(__name__)
T = TypeVar("T")

RUNNING_USAGE_TURNS = 15  # how many turns pass between two looks at the accounts of jobs that still run


class Controller:
    def __init__(self, site: Site, db: Database, scheduler: Scheduler) -> None:
        self.site, self.db, self.scheduler = site, db, scheduler
        self._writer = ThreadPoolExecutor(1, "registry")
        self._commands = ThreadPoolExecutor(1, "scheduler")
        self._poke = asyncio.Event()
        self._turns = 0
        self._specs: dict[str, Spec] = {}  # run folders seen, by id
        self._ignored: set[str] = set()  # folders that are not ours to adopt, by name
        self.scheduler_error: str | None = None  # why the last question to the scheduler went unanswered

    async def write(self, function: Callable[..., T], *args: object) -> T:
        """Run a function on the registry's one writer thread."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, function, *args)

    async def ask(self, function: Callable[..., T], *args: object) -> T:
        """Run a scheduler command on the scheduler's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._commands, function, *args)

    def poke(self) -> None:
        """Something changed: do not wait for the next poll."""
        self._poke.set()

    async def run(self) -> None:
        while True:
            self._poke.clear()
            try:
                await self.turn()
            except RegistryError as e:
                log.error("this turn was given up, the next one tries again: %s", e)
            try:
                await asyncio.wait_for(self._poke.wait(), self.site.controller.poll_s)
            except TimeoutError:
                pass

    async def turn(self) -> None:
        await self.write(self._adopt)
        await self.write(self._ingest)
        open_jobs = await self.write(accounting.unsettled, self.db)
        try:
            lost = await self._find_lost()
            statuses = await self.ask(self.scheduler.states, [ref_of(j) for j in open_jobs]) if open_jobs else {}
            await self.write(self._observe, statuses, lost)
            await self.settle(running=self._turns % RUNNING_USAGE_TURNS == 0)
            self.scheduler_error = None
        except SchedulerUnavailable as e:
            self.scheduler_error = str(e)
            log.warning("the scheduler did not answer, so nothing changes: %s", e)
        for action in await self.write(self._plan):
            await self._act(action)
        self._turns += 1

    async def settle(self, *, running: bool) -> None:
        """Bring the accounts of jobs up to date: ended ones always, those that still run when asked to."""
        asked = [job for job in await self.write(accounting.unsettled, self.db) if running or _ended(job.state)]
        if asked:
            usage = await self.ask(self.scheduler.usage, [ref_of(j) for j in asked])
            await self.write(self._settle, asked, usage)

    def close(self) -> None:
        self._commands.shutdown()
        self._writer.shutdown()
        self.db.close()

    # On the writer thread.

    def _adopt(self) -> None:
        """Take up run folders that were made without us: by `headgate train`, or before a crash."""
        try:
            found = sorted(e.name for e in os.scandir(self.site.runs_dir) if e.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return
        for name in found:
            if name in self._specs or name in self._ignored:
                continue
            folder = RunFolder(self.site.runs_dir / name)
            if not folder.spec.exists() or not folder.announcements.is_dir():
                continue  # being made right now
            try:
                spec = load(folder.spec)
                owner, _ = facts.owner_of(folder)
            except (SpecError, OSError) as e:
                log.warning("%s: not adopted: %s", folder.root, e)
                self._ignored.add(name)
                continue
            if spec.id != name:
                log.warning("%s: not adopted: its spec says it is %s", folder.root, spec.id)
                self._ignored.add(name)
                continue
            self._specs[name] = spec
            if not isinstance(spec, ServeSpec):
                runs.adopt(
                    self.db,
                    spec.id,
                    kind=spec.kind,
                    name=spec.name,
                    owner=owner,
                    folder=str(folder.root),
                    created_at=spec.created_at,
                )
            self._record_job(spec, folder)

    def _record_job(self, spec: Spec, folder: RunFolder) -> None:
        job = read_job(folder)
        if job is not None:
            accounting.record(
                self.db,
                cluster=job.cluster,
                job_id=job.job_id,
                submitted_at=clock.text(job.submitted_at),
                key=spec.id,
                subject=spec.id,
                purpose=spec.kind,
                owner=facts.owner_of(folder)[0],
            )

    def _ingest(self) -> None:
        for spec in self._live():
            facts.ingest(self.db, self._folder(spec), spec)

    def _live(self) -> list[Spec]:
        """Runs and replicas that have not ended, or whose books are still open."""
        live = {r.id for r in runs.everything(self.db) if not r.state.ended}
        live |= {r.id for r in deployments.replicas(self.db) if not r.state.ended}
        live |= {j.subject for j in accounting.unsettled(self.db)}
        return [self._specs[i] for i in sorted(live) if i in self._specs]

    def _observe(self, statuses: Mapping[JobRef, JobStatus], found: Mapping[str, JobRef | None]) -> None:
        accounting.observe(
            self.db,
            [
                (ref.cluster, ref.job_id, clock.text(ref.submitted_at), status.state.value, status.reason)
                for ref, status in statuses.items()
                if status.state is not JobState.UNKNOWN
            ],
        )
        for job in accounting.unsettled(self.db):
            status = statuses.get(ref_of(job))
            if status is None or not status.state.ended or job.subject not in self._specs:
                continue
            spec = self._specs[job.subject]
            facts.ingest(self.db, self._folder(spec), spec)  # its last words may have come after our last look
            self._ended_without_words(spec, status)
        for subject, ref in found.items():
            spec = self._specs[subject]
            if ref is not None:
                write_job(self._folder(spec), ref)
                self._record_job(spec, self._folder(spec))
            else:
                self._end(spec, JobState.FAILED, "its submission was lost: the scheduler knows no job of this key")

    def _ended_without_words(self, spec: Spec, status: JobStatus) -> None:
        """The job is over by its state; if its supervisor could not say why, the scheduler's word has to do."""
        reason = f" ({status.reason})" if status.reason and status.reason != "None" else ""
        self._end(
            spec, status.state, f"the job ended as {status.state.value}{reason} without a word from its supervisor"
        )

    def _end(self, spec: Spec, state: JobState, cause: str) -> None:
        stopped = state is JobState.CANCELLED
        if isinstance(spec, ServeSpec):
            deployments.set_replica_state(
                self.db, spec.id, ReplicaState.STOPPED if stopped else ReplicaState.FAILED, None if stopped else cause
            )
        elif stopped:
            runs.ended(self.db, spec.id, runs.RunState.STOPPED, None)
        else:
            done = state is JobState.COMPLETED
            runs.ended(
                self.db, spec.id, runs.RunState.COMPLETED if done else runs.RunState.FAILED, None if done else cause
            )

    def _settle(self, jobs: Iterable[accounting.Job], usage: Mapping[JobRef, JobUsage]) -> None:
        for job in jobs:
            books = usage.get(ref_of(job))
            if books is None:
                continue
            accounting.settle(
                self.db,
                dataclasses.replace(
                    job,
                    state=books.state.value if books.state is not JobState.UNKNOWN else job.state,
                    partition=books.partition,
                    account=books.account,
                    started_at=clock.text(books.started_at) if books.started_at else None,
                    ended_at=clock.text(books.ended_at) if books.ended_at else None,
                    elapsed_s=books.elapsed_s,
                    cpus=books.cpus,
                    gpus=books.gpus,
                    settled=books.state.ended and books.ended_at is not None,
                ),
            )

    def _plan(self) -> list[plan.Action]:
        actions: list[plan.Action] = []
        for deployment in deployments.everything(self.db):
            theirs = [
                r for r in deployments.replicas(self.db, deployment.name) if r.created_at >= deployment.created_at
            ]
            actions += plan.plan(deployment, theirs)
        return actions

    # The shell around the plan.

    async def _find_lost(self) -> dict[str, JobRef | None]:
        """Folders whose submission left no note: ask the scheduler for their key."""
        lost = await self.write(self._unsubmitted)
        return {spec_id: await self.ask(self.scheduler.find, spec_id) for spec_id in lost}

    def _unsubmitted(self) -> list[str]:
        """Live subjects without a job, old enough that their submitter cannot still be at it."""
        now = clock.parse(clock.now())
        return [
            spec.id
            for spec in self._live()
            if not accounting.of_subject(self.db, spec.id)
            and (now - clock.parse(spec.created_at)).total_seconds() > 2 * self.site.scheduler.command_timeout_s
        ]

    async def _act(self, action: plan.Action) -> None:
        match action:
            case plan.StartReplica(name):
                await self._start_replica(await self.write(deployments.get, self.db, name))
            case plan.Drain(replica):
                await self.write(deployments.set_replica_state, self.db, replica, ReplicaState.DRAINING)
            case plan.Cancel(replica):
                await self._cancel(replica)
            case plan.SetState(name, state, cause):
                await self.write(deployments.set_state, self.db, name, state, cause)

    async def _start_replica(self, deployment: Deployment) -> None:
        site = self.site
        request = deployment.request
        try:
            spec = ServeSpec(
                id=new_id(deployment.name),
                name=deployment.name,
                owner=deployment.owner,
                created_at=clock.now(),
                resources=resources_from(site.defaults.serve, request.get("resources") or {}),
                environment=engine_environment(site),
                model_path=deployment.model_path,
                listen=site.replicas.listen,
                engine_args=(*site.environment("engine").args, *(request.get("engine_args") or ())),
                shutdown_timeout_s=site.replicas.shutdown_timeout_s,
                start_timeout_s=site.replicas.start_timeout_s,
            )
        except ValueError as e:
            await self.write(deployments.set_state, self.db, deployment.name, DeploymentState.FAILED, str(e))
            return
        folder = str(site.runs_dir / spec.id)
        await self.write(deployments.add_replica, self.db, spec.id, deployment.name, deployment.owner, folder)
        self._specs[spec.id] = spec
        try:
            launched = await self.ask(launch, spec, site.runs_dir, self.scheduler)
        except (SchedulerError, OSError) as e:
            cause = f"the replica could not be submitted: {e}"
            await self.write(deployments.set_replica_state, self.db, spec.id, ReplicaState.FAILED, cause)
            return
        await self.write(self._record_job, spec, launched.folder)

    async def _cancel(self, replica: str) -> None:
        """Cancel a replica's jobs; one that was never submitted is simply over."""
        jobs = [j for j in await self.write(accounting.of_subject, self.db, replica) if not _ended(j.state)]
        if not jobs:
            await self.write(deployments.set_replica_state, self.db, replica, ReplicaState.STOPPED)
            return
        await self.write(deployments.set_replica_state, self.db, replica, ReplicaState.DRAINING)
        for job in jobs:
            try:
                await self.ask(self.scheduler.cancel, ref_of(job))
            except SchedulerError as e:
                log.warning("%s: not cancelled yet: %s", replica, e)

    def _folder(self, spec: Spec) -> RunFolder:
        return RunFolder(Path(self.site.runs_dir) / spec.id)


def ref_of(job: accounting.Job) -> JobRef:
    return JobRef(job.cluster, job.job_id, clock.parse(job.submitted_at))


def _ended(state: str) -> bool:
    return JobState(state).ended
