"""Replicas' jobs: started, told to drain, stopped, given less time. What planning decided, done.

Each step can be done again: a controller that died between any two of them leaves what the next one takes up.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launchers import facts, situations
from launchers.deployment_spec import spec_of
from launchers.job_facts import ref_of
from launchers.launch import launch_together, new_id, request_for
from launchers.planning.facts import StartReplica
from launchers.resources import engine_environment
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobState, SchedulerError, SchedulerUnavailable
from launchers.spec import Resources, ServeSpec
from launchers.vllm import pack
from registry import accounting, clock, deployments, revisions
from registry.db import transaction
from registry.deployments import Deployment, DeploymentState
from registry.replicas import Replica, ReplicaState, replicas_of_job, set_replica_state

if TYPE_CHECKING:
    from launchers.controller import Controller

log = logging.getLogger(__name__)

CANCEL_AGAIN_S = 60.0  # how much longer than its drain may take a job has, before it is cancelled outright
STOP = "stop"  # the switch that ends one member of a pack


class ReplicaJobs:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._cancelled: dict[JobRef, float] = {}  # when a job was last cancelled, by the monotonic clock
        self._shortened: dict[str, int] = {}  # replicas whose job was given less time: seconds

    def limits(self, replicas: Iterable[Replica]) -> dict[str, int]:
        """The time limits of their jobs, in seconds, where they are known."""
        found = {}
        for replica in replicas:
            spec = self._controller.specs.get(replica.id)
            if isinstance(spec, ServeSpec):
                found[replica.id] = self._shortened.get(replica.id, spec.resources.time_limit_s)
        return found

    async def start(self, deployment: str, wanted: Sequence[StartReplica]) -> None:
        """Those that may share jobs do, as many in each as the deployment packs."""
        controller = self._controller
        for together in _alike(wanted):
            found = await controller.write(deployments.get, controller.db, deployment)
            if situations.over(found):
                return  # stopped since this was planned
            size = spec_of(found).pack
            for at in range(0, len(together), size):
                await self._start(found, together[at : at + size])

    async def _start(self, deployment: Deployment, wanted: Sequence[StartReplica]) -> None:
        controller, site, first = self._controller, self._controller.site, wanted[0]
        try:
            specs = await controller.write(self._specs, deployment, wanted)
        except ValueError as e:
            await controller.write(self._cannot_start, deployment, first.revision, str(e))
            return
        await controller.write(self._note, specs, wanted)
        folders = [RunFolder(site.runs_dir.resolve() / spec.id) for spec in specs]
        request = pack.request(request_for(specs[0], folders[0]), folders)
        try:
            members = list(zip(specs, folders, strict=True))
            job = await controller.ask(launch_together, members, request, controller.scheduler)
        except SchedulerUnavailable as e:
            log.warning("%s: whether it was submitted will be asked by its key: %s", specs[0].id, e)
            return
        except (SchedulerError, OSError, ValueError) as e:
            # A file system that cannot be written now says nothing of the replica.
            state = ReplicaState.LOST if isinstance(e, OSError) else ReplicaState.FAILED
            for spec in specs:
                words = f"the replica could not be submitted: {e}"
                await controller.write(set_replica_state, controller.db, spec.id, state, words)
            return
        await controller.write(controller.record_job, specs[0].id, job)

    def _specs(self, deployment: Deployment, wanted: Sequence[StartReplica]) -> list[ServeSpec]:
        """Raises ValueError for what the site has not, or has no longer."""
        site, first = self._controller.site, wanted[0]
        revision = revisions.get(self._controller.db, deployment.name, first.revision)
        request = revision.request
        asks = situations.resources(site, request, overflow=first.overflow)
        if first.time_limit_s is not None:
            asks = dataclasses.replace(asks, time_limit_s=min(first.time_limit_s, asks.time_limit_s))
        if first.exclude:
            asks = _excluding(asks, first.exclude)
        ids = [new_id(deployment.name) for _ in wanted]
        return [
            ServeSpec(
                id=replica_id,
                name=deployment.name,
                owner=deployment.owner,
                created_at=clock.now(),
                resources=asks,
                environment=engine_environment(site),
                model_path=revision.model_path,
                listen=site.replicas.listen,
                tls=site.replicas.tls,
                engine_args=(*site.environment("engine").args, *(request.get("engine_args") or ())),
                shutdown_timeout_s=site.replicas.shutdown_timeout_s,
                start_timeout_s=site.replicas.start_timeout_s,
                revision=first.revision,
                runner=request.get("runner") or "generate",
                adapters=dict(request.get("adapters") or {}),
                stage_dir=site.replicas.stage_dir if request.get("stage") else None,
                multi_node=site.replicas.multi_node,
                pack=tuple(ids) if len(ids) > 1 else (),
                max_restarts=site.replicas.max_restarts,
                hang_timeout_s=site.replicas.hang_timeout_s,
            )
            for replica_id in ids
        ]

    def _cannot_start(self, deployment: Deployment, revision: int, cause: str) -> None:
        """A revision that cannot be asked of this site is given up for the stable one, where there is another."""
        db = self._controller.db
        if deployment.stable not in (None, revision):
            revisions.settle(db, deployment.name, revision, False, cause)
        else:
            deployments.set_state(db, deployment.name, DeploymentState.FAILED, cause)

    def _note(self, specs: Sequence[ServeSpec], wanted: Sequence[StartReplica]) -> None:
        controller = self._controller
        with transaction(controller.db):
            for spec, one in zip(specs, wanted, strict=True):
                deployments.add_replica(
                    controller.db,
                    spec.id,
                    spec.name,
                    spec.owner,
                    str(controller.site.runs_dir / spec.id),
                    revision=spec.revision,
                    reason=one.why,
                    replaces=one.replaces,
                    overflow=one.overflow,
                    pack=spec.pack[0] if spec.pack else None,
                )
        controller.specs.update((spec.id, spec) for spec in specs)

    async def stop(self, replica_id: str) -> None:
        """End a replica's job; one that was never submitted is over. What has begun drains as long as it may.

        One that shares its job is told alone; the job ends when the last of them was.
        """
        controller = self._controller
        try:
            subject = await controller.write(self._told_to_end, replica_id)
            if subject is not None:
                await self._end_job(subject)
        except (SchedulerError, OSError) as e:
            log.warning("%s: not stopped yet: %s", replica_id, e)

    def _told_to_end(self, replica_id: str) -> str | None:
        """The subject of the job that is to be ended; None while others need it."""
        db = self._controller.db
        (replica,) = [r for r in replicas_of_job(db, replica_id) if r.id == replica_id]
        if replica.pack is None:
            return replica.id
        switch = RunFolder(Path(replica.folder)).switches / STOP
        if switch.parent.is_dir():
            switch.touch()
        set_replica_state(db, replica_id, ReplicaState.DRAINING)
        others = [r for r in replicas_of_job(db, replica.pack) if not r.state.ended and r.id != replica_id]
        return None if any(not _switched_off(r) for r in others) else replica.pack

    async def _end_job(self, subject: str) -> None:
        controller = self._controller
        patience = controller.site.replicas.shutdown_timeout_s + CANCEL_AGAIN_S
        jobs = [j for j in await self.jobs_of(subject) if not JobState(j.state).ended]
        if not jobs:
            await controller.write(self._all, subject, ReplicaState.STOPPED)
        for job in map(ref_of, jobs):
            since = self._cancelled.get(job)
            if since is None or time.monotonic() - since >= patience:
                await controller.write(self._all, subject, ReplicaState.DRAINING)
                begun = job.job_id in await controller.write(facts.announced_jobs, controller.folder(subject))
                end = controller.scheduler.drain if begun and since is None else controller.scheduler.cancel
                await controller.ask(end, job)
                self._cancelled[job] = time.monotonic()

    def _all(self, subject: str, state: ReplicaState) -> None:
        for replica in replicas_of_job(self._controller.db, subject):
            set_replica_state(self._controller.db, replica.id, state)

    async def shorten(self, replica_id: str, time_limit_s: int) -> None:
        controller = self._controller
        try:
            for job in await self.jobs_of(await controller.write(self._subject, replica_id)):
                if not JobState(job.state).ended:
                    await controller.ask(controller.scheduler.shorten, ref_of(job), time_limit_s)
                    self._shortened[replica_id] = time_limit_s
        except SchedulerError as e:
            log.warning("%s: its time limit stays: %s", replica_id, e)

    def _subject(self, replica_id: str) -> str:
        return next(r.job_subject for r in replicas_of_job(self._controller.db, replica_id) if r.id == replica_id)

    async def jobs_of(self, subject: str) -> list[accounting.Job]:
        """The jobs of this subject, also one whose submission left no note."""
        controller = self._controller
        jobs = await controller.write(accounting.of_subject, controller.db, subject)
        if not jobs and subject in controller.specs:
            found = await controller.ask(controller.scheduler.find, subject)
            if found is not None:
                await controller.write(controller.note_job, subject, found)
                jobs = await controller.write(accounting.of_subject, controller.db, subject)
        return jobs


def _alike(wanted: Iterable[StartReplica]) -> list[list[StartReplica]]:
    """Those whose jobs would be alike, in the order of the first of each kind."""
    found: dict[object, list[StartReplica]] = {}
    for one in wanted:
        found.setdefault((one.revision, one.overflow, one.time_limit_s, one.exclude), []).append(one)
    return list(found.values())


def _excluding(asks: Resources, nodes: Iterable[str]) -> Resources:
    """sbatch goes by the last --exclude: one that was asked for is said again with it."""
    before = [option.partition("=")[2] for option in asks.options if option.startswith("--exclude=")]
    others = tuple(option for option in asks.options if not option.startswith("--exclude="))
    return dataclasses.replace(asks, options=(*others, f"--exclude={','.join([*before[-1:], *nodes])}"))


def _switched_off(replica: Replica) -> bool:
    return (RunFolder(Path(replica.folder)).switches / STOP).exists()
