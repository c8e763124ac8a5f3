"""A site with a controller on a scheduler in memory: jobs start at once, and end when a test says so."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from launchers.controller import Controller
from launchers.scheduler import JobRef, JobRequest, JobState, JobStatus, JobUsage, Outlook, SchedulerUnavailable
from launchers.steady_clock import SteadyClock
from registry import deployments
from registry import site as settings
from registry.db import open_writer
from registry.migrations import MIGRATIONS
from registry.replicas import Replica, ReplicaState, replica_is_ready, replica_is_starting, replicas
from registry.site import Environments, Site

TURNS = 60  # more than any rollover here takes


class Crash(BaseException):
    """The process is killed here."""


@dataclasses.dataclass
class Job:
    ref: JobRef
    request: JobRequest
    state: JobState = JobState.RUNNING
    ends_at: datetime | None = None


class Memory:
    """Jobs that start at once, and end when they are told to."""

    cluster = "memory"

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.crash_after_submit = False
        self.silent = False
        self.no_books = False

    def submit(self, request: JobRequest) -> JobRef:
        ref = JobRef(self.cluster, str(len(self.jobs) + 1), datetime.now(UTC).replace(microsecond=0))
        self.jobs.append(Job(ref, request))
        if self.crash_after_submit:
            self.crash_after_submit = False
            raise Crash
        return ref

    def submit_again(self, request: JobRequest, script: Path) -> JobRef:
        raise NotImplementedError

    def script(self, request: JobRequest) -> str:
        return "#!/bin/bash\n"

    def find(self, key: str) -> JobRef | None:
        return next((job.ref for job in self.jobs if job.request.key == key), None)

    def states(self, refs: Iterable[JobRef]) -> Mapping[JobRef, JobStatus]:
        if self.silent:
            raise SchedulerUnavailable("squeue did not answer within 30 s")
        known = {job.ref: JobStatus(job.ref, job.state, ends_at=job.ends_at, nodes=("n1",)) for job in self.jobs}
        return {ref: known[ref] for ref in refs}

    def cancel(self, ref: JobRef) -> None:
        for job in self.jobs:
            if job.ref == ref:
                job.state = JobState.CANCELLED

    def drain(self, ref: JobRef) -> None:
        self.cancel(ref)

    def shorten(self, ref: JobRef, time_limit_s: int) -> None:
        raise NotImplementedError

    def outlook(self) -> Outlook:
        if self.silent:
            raise SchedulerUnavailable("sinfo did not answer within 30 s")
        return Outlook({}, {}, (), {})

    def usage(self, refs: Iterable[JobRef]) -> Mapping[JobRef, JobUsage]:
        if self.no_books:
            raise SchedulerUnavailable("sacct did not answer within 30 s")
        return {}

    def books(self, start: datetime, end: datetime) -> Any:
        raise NotImplementedError

    def running(self) -> list[Job]:
        return [job for job in self.jobs if job.state is JobState.RUNNING]


class World:
    """A site whose controller may be killed and begun again; its time passes as fast as a test says."""

    def __init__(self, root: Path, memory: Memory | None = None, **request: Any) -> None:
        root.mkdir()
        (root / "state").mkdir()
        engine = settings.Environment(kind="venv", python=sys.executable)
        self.site = Site(
            name="test",
            state_dir=root / "state",
            shared_dir=root,
            scheduler=settings.Scheduler(kind="local", command_timeout_s=0.001),
            environments=Environments(engine=engine),
        )
        self.site.runs_dir.mkdir()
        self.memory = Memory() if memory is None else memory
        self.ahead_s = 0.0
        self.begin()
        deployments.create(
            self.controller.db,
            "chat",
            "ada",
            model="tiny",
            version=1,
            model_path="/models/tiny",
            min_replicas=int(request.get("pack", 1)),
            max_replicas=int(request.get("pack", 1)),
            request=request,
            by="ada",
            why="served",
        )

    def begin(self) -> None:
        self.controller = Controller(self.site, open_writer(self.site.registry_db, MIGRATIONS), self.memory)
        self.controller.plans.clock = SteadyClock(
            lambda: time.time() + self.ahead_s, lambda: time.monotonic() + self.ahead_s
        )

    async def turn(self) -> None:
        """And then engines that were started are ready."""
        await self.controller.turn()
        self.ahead_s += 5.0
        db = self.controller.db
        jobs = {job.request.key for job in self.memory.running()}
        for r in replicas(db):
            if r.state in (ReplicaState.PENDING, ReplicaState.STARTING) and r.job_subject in jobs:
                replica_is_starting(db, r.id, r.created_at)
                replica_is_ready(db, r.id, "n1", 8000, "key")

    def live(self) -> list[Replica]:
        return [r for r in replicas(self.controller.db) if not r.state.ended]

    def settled(self) -> bool:
        """Whether one replica serves, whose job does not end soon, and nothing else is left."""
        live, running = self.live(), self.memory.running()
        return (
            [r.state for r in live] == [ReplicaState.READY]
            and [job.request.key for job in running] == [live[0].id]
            and running[0].ends_at is None
        )

    async def until(self, done: Callable[[], bool]) -> None:
        for _ in range(TURNS):
            await self.turn()
            if done():
                return
        pytest.fail(f"not within {TURNS} turns: {self.controller.plans.latest}, {self.live()}")
