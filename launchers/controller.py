"""Facts -> registry; desired -> actual. One turn: adopt, ingest, observe, settle, plan, act.

The registry has one writer thread, and the scheduler's commands run in another, so a slow `squeue` never keeps the
control API waiting. A scheduler that does not answer changes nothing: replicas keep serving, nothing is resubmitted.
On Slurm one watch serves the turns and whoever else asks for its picture; what it sees of our jobs begins a turn.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from launchers import facts, job_facts, situations
from launchers.array_task import NAME as SWEEP
from launchers.deployment_plans import DeploymentPlans
from launchers.ended_runs import EndedRuns
from launchers.evaluation import adoption
from launchers.job_array import array_of
from launchers.job_facts import ref_of
from launchers.launch import read_job, write_job
from launchers.leadership import Lease
from launchers.planning import facts as planned
from launchers.replica_jobs import ReplicaJobs, subject_of
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobState, JobStatus, JobUsage, Scheduler, SchedulerError
from launchers.spec import ServeSpec, Spec, SpecError, TrainSpec, load
from registry import (
    accounting,
    clock,
    deployments,
    keys,
    own_steps,
    promotions,
    replicas,
    runs,
)
from registry.db import Database, RegistryError
from registry.deployments import ReplicaState
from registry.site import Site
from slurm.changes import JobChange
from slurm.watch import Watch, pause

log = logging.getLogger(__name__)
T = TypeVar("T")

RUNNING_USAGE_TURNS = 15  # how many turns pass between two looks at the accounts of jobs that still run
MAX_ARRAY = 4_000_000  # more than any Slurm's MaxArraySize


class Controller:
    def __init__(self, site: Site, db: Database, scheduler: Scheduler, watch: Watch | None = None) -> None:
        self.site, self.db, self.scheduler, self.watch = site, db, scheduler, watch
        self.key_secret = keys.secret_for(db, site.key_secret)
        self._book = partial(own_steps.add, site.ledger_db)
        self._writer = ThreadPoolExecutor(1, "registry")
        self._commands = ThreadPoolExecutor(1, "scheduler")
        self._poke = asyncio.Event()
        self._turns = 0
        self.specs: dict[str, Spec] = {}  # run folders seen, by id
        self._ignored: set[str] = set()  # folders that are not ours to adopt, by name
        # Runs and replicas of which no job is known, by id: since when we know of them, by the monotonic clock. Not by
        # their own time, which may be another host's. Those lost were looked for in vain; a late note still counts.
        self._jobless: dict[str, float] = {}
        self._lost: set[str] = set()
        self._ended = EndedRuns(site.runs_dir)
        self._unrecorded: dict[str, str] = {}  # runs that were submitted again by hand, by id: the job's id
        self.plans = DeploymentPlans(site, db, self.specs)
        self._jobs = ReplicaJobs(self)
        self._lease = Lease(site.shared_dir, site.registry_db)
        self.cluster: str | None = None  # the scheduler's, once it was heard of: nobody who asks us waits for that
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
            except (RegistryError, OSError) as e:
                log.error("this turn was given up, the next one tries again: %s", e)
            await pause(self._poke, self.site.controller.poll_s)

    async def follow(self, watch: Watch) -> None:
        """Begin a turn when one of our jobs changed, or whenever Slurm fell silent or answers again."""
        async for change in watch.changes():
            if not isinstance(change, JobChange) or change.job.comment in self.specs:
                self.poke()

    async def turn(self) -> None:
        if await self.other_leads():
            return
        await self.write(self._adopt)
        await self.write(self._ingest)
        open_jobs = await self.write(accounting.unsettled, self.db)
        cluster = planned.Cluster(known=False)
        try:
            self.cluster = self.cluster or await self.ask(lambda: self.scheduler.cluster)
            statuses = await self.ask(self.scheduler.states, [ref_of(j) for j in open_jobs]) if open_jobs else {}
            await self.write(self._observe, statuses)
            await self._jobs.end_left()
            cluster = await self._outlook()
            # Books that cannot be had keep nobody from being served: only the queue's silence does.
            await self.write(self._note_found, await self._find_lost())
            await self.settle(running=self._turns % RUNNING_USAGE_TURNS == 0)
            self.scheduler_error = None
        except SchedulerError as e:
            self.scheduler_error = str(e)
            if not cluster.known:
                cluster = planned.Cluster(known=False, silence=str(e))
            log.warning("the scheduler gave no full answer: %s", e)
        await self.write(promotions.advance, self.db)
        actions = await self.write(self.plans.make, cluster)
        await self.write(self._jobs.ask_adapters, self.plans.adapters)
        if await self.other_leads():  # this turn may have taken longer than a lease lasts
            return
        await self._act(actions)
        self._turns += 1

    async def other_leads(self) -> bool:
        """Whether another controller does, and nothing may be done here. Renews the lease otherwise."""
        if (other := await self.write(self._lease.other)) is None:
            return False
        self.scheduler_error = other
        log.warning("%s", other)
        return True

    async def settle(self, *, running: bool) -> None:
        """Bring the accounts of jobs up to date: ended ones always, those that still run when asked to."""
        asked = [job for job in await self.write(accounting.unsettled, self.db) if running or _ended(job.state)]
        if asked:
            usage = await self.ask(self.scheduler.usage, [ref_of(j) for j in asked])
            await self.write(self._settle, asked, usage)

    def close(self) -> None:
        self._commands.shutdown()
        self._writer.shutdown()
        self.plans.close()
        self.db.close()

    # On the writer thread.

    def _adopt(self) -> None:
        """Take up run folders that were made without us: by `headgate train`, or before a crash."""
        try:
            found = sorted(e.name for e in os.scandir(self.site.runs_dir) if e.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return
        for name in found:
            if name not in self.specs and name not in self._ignored:
                self._take_up(RunFolder(self.site.runs_dir / name))
        for replica in replicas.unended_replicas(self.db):  # also one whose folder was never made
            if not accounting.of_subject(self.db, replica.job_subject):
                self._jobless.setdefault(replica.job_subject, time.monotonic())
        for subject in self.specs.keys() & self._jobless.keys():  # their submitter may have noted the job since
            if (job := read_job(self._folder(subject))) is not None:
                self.record_job(subject, job)

    def _take_up(self, folder: RunFolder) -> None:
        try:
            spec = load(folder.spec)
            owner, uid = facts.owner_of(folder)
            if isinstance(spec, ServeSpec) and uid != os.getuid():
                raise SpecError(f"a replica's folder is the service's own, and this one is {owner}'s")
            if spec.id != folder.id:
                raise SpecError(f"its spec says it is {spec.id}")
        except FileNotFoundError:
            if (folder.root / SWEEP).exists():
                self._ignored.add(folder.id)  # a sweep's own: its runs have theirs
            return  # being made right now: the spec comes last
        except OSError as e:
            log.warning("%s: cannot be read now: %s", folder.root, e)
            return
        except SpecError as e:
            log.warning("%s: not adopted: %s", folder.root, e)
            self._ignored.add(folder.id)
            return
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
        adoption.take_up(self.db, spec, owner)
        self.specs[spec.id] = spec
        subject = subject_of(spec, spec.id)
        if not accounting.of_subject(self.db, subject):
            self._jobless.setdefault(subject, time.monotonic())

    def record_job(self, subject: str, job: JobRef) -> None:
        spec = self.specs[subject]
        try:
            owner = facts.owner_of(self._folder(subject))[0]
        except FileNotFoundError:
            owner = spec.owner
        accounting.record(
            self.db,
            cluster=job.cluster,
            job_id=job.job_id,
            submitted_at=clock.text(job.submitted_at),
            key=subject,
            subject=subject,
            purpose=spec.kind,
            owner=owner,
        )
        self._jobless.pop(subject, None)

    def _ingest(self) -> None:
        """Runs and replicas that have not ended, or whose books are still open, may have something to say."""
        everything = runs.everything(self.db)
        live = {r.id for r in everything if not r.state.ended}
        live |= {r.id for r in replicas.unended_replicas(self.db)}
        live |= {j.subject for j in accounting.unsettled(self.db)}
        for subject in sorted(live | self._ended.spoke_again([r.id for r in everything if r.id not in live])):
            self._listen(subject)

    def _listen(self, subject: str) -> None:
        if subject not in self.specs:
            return
        folder, spec = self._folder(subject), self.specs[subject]
        try:
            if facts.ingest(self.db, folder, spec, self._book) and not isinstance(spec, ServeSpec):
                recorded = {j.job_id for j in accounting.of_subject(self.db, subject)}
                newest = facts.successor(folder) or next(reversed(facts.announced_jobs(folder)), None)
                # While no job at all is known, its submitter is about to note it, or it is looked for by its key.
                if recorded and newest and newest not in recorded:
                    self._unrecorded[subject] = newest
        except OSError as e:
            log.warning("%s: cannot be read now: %s", folder.root, e)

    def _observe(self, statuses: Mapping[JobRef, JobStatus]) -> None:
        job_facts.observe(self.db, statuses)
        for job in accounting.unsettled(self.db):
            status = statuses.get(ref_of(job))
            if status is not None and status.state.ended:
                self._job_is_over(job, status.state, status.reason)

    def _note_found(self, found: Mapping[str, JobRef | None]) -> None:
        for subject, ref in found.items():
            if ref is None:
                self._submission_was_lost(subject)
            elif subject in self.specs:
                self.note_job(subject, ref)

    def note_job(self, subject: str, job: JobRef) -> None:
        self.record_job(subject, job)
        try:
            write_job(self._folder(subject), job)
        except OSError as e:
            log.warning("%s: its job %s is not noted there: %s", subject, job.job_id, e)  # a researcher's own folder

    def _submission_was_lost(self, subject: str) -> None:
        """The scheduler knows no job of its key: a replica is replaced, a run is for its owner to submit again."""
        cause = "its submission was lost: the scheduler knows no job of this key"
        self._lost.add(subject)
        for replica in replicas.replicas_of_job(self.db, subject):
            deployments.set_replica_state(self.db, replica.id, ReplicaState.LOST, cause)
        runs.never_started(self.db, subject, cause)

    def _job_is_over(self, job: accounting.Job, state: JobState, reason: str | None) -> None:
        """If its supervisor could not say why, the scheduler's word has to do. Harmless when all is known already."""
        # Their last words may have come after our last look.
        for subject in {job.subject, *(r.id for r in replicas.replicas_of_job(self.db, job.subject))}:
            self._listen(subject)
        if job.purpose == ServeSpec.kind or not self._belongs_to_another(job):
            job_facts.is_over(self.db, job, state, reason)

    def _belongs_to_another(self, job: accounting.Job) -> bool:
        """Whether the run's newest attempt is another job's."""
        try:
            announced = facts.announced_jobs(self._folder(job.subject))
            follows = facts.successor(self._folder(job.subject))
        except OSError:
            return False
        return follows not in (None, job.job_id) or (bool(announced) and announced[-1] != job.job_id)

    def _settle(self, jobs: Iterable[accounting.Job], usage: Mapping[JobRef, JobUsage]) -> None:
        for job in jobs:
            books = usage.get(ref_of(job))
            if books is None:
                continue
            if books.state.may_be_requeued and not _ended(job.state):
                # The books have this end before the attempt that follows it; whether one does, the queue tells.
                books = replace(books, state=JobState(job.state), ended_at=None)
            if books.state.ended:
                self._job_is_over(job, books.state, None)  # before its books are closed, and nobody looks any more
            job_facts.settle(self.db, job, books)

    # The shell around the plan.

    async def _find_lost(self) -> dict[str, JobRef | None]:
        """Ask the scheduler by key for jobs that were never noted, once their submitter cannot still be at it."""
        known_before = time.monotonic() - 2 * self.site.scheduler.command_timeout_s
        missing = [s for s, since in self._jobless.items() if since < known_before and s not in self._lost]
        arrays: dict[str, JobRef | None] = {}  # a sweep has up to thousands of runs, and one array
        found = {subject: await self.ask(self._find, subject, arrays) for subject in missing}
        for subject, job_id in list(self._unrecorded.items()):
            job = await self.ask(self.scheduler.find, subject)
            if job is not None and job.job_id == job_id:
                found[subject] = job
            del self._unrecorded[subject]  # otherwise nobody's books have it, and its own words must do
        return found

    def _find(self, subject: str, arrays: dict[str, JobRef | None]) -> JobRef | None:
        """As a task of its sweep's array, whose tasks carry the sweep's key while they wait, or by its own key."""
        spec = self.specs.get(subject)
        if isinstance(spec, TrainSpec) and spec.sweep and spec.sweep_index in range(MAX_ARRAY):
            if spec.sweep not in arrays:
                arrays[spec.sweep] = self.scheduler.find(spec.sweep)
            if (array := arrays[spec.sweep]) is not None:
                return replace(array, job_id=f"{array_of(array.job_id)}_{spec.sweep_index}")
        return self.scheduler.find(subject)

    async def _outlook(self) -> planned.Cluster:
        """Raises SchedulerError."""
        return situations.cluster_of(await self.ask(self.scheduler.outlook))

    async def _act(self, actions: Sequence[planned.Action]) -> None:
        """In their order; replicas that are started in a row are started together. One that fails holds up no other."""
        for starts, some in itertools.groupby(actions, key=lambda action: isinstance(action, planned.StartReplica)):
            if starts:
                await self._jobs.start([action for action in some if isinstance(action, planned.StartReplica)])
                continue
            for action in some:
                try:
                    await self._do(action)
                except RegistryError as e:
                    log.error("%s was not done, the next turn tries again: %s", action, e)

    async def _do(self, action: planned.Action) -> None:
        match action:
            case planned.Stop(replica, why):
                await self._jobs.stop(replica, why)
            case planned.Shorten():
                await self._jobs.shorten(action)
            case _:
                await self.write(self.plans.note, action)

    def _folder(self, subject: str) -> RunFolder:
        return RunFolder(Path(self.site.runs_dir) / subject)


def _ended(state: str) -> bool:
    return JobState(state).ended
