"""The controller's turns on a scheduler in memory: killed between any two steps, it goes on where it was."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

from launchers import control, replica_launch
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

    drain = cancel

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

    def __init__(self, root: Path, **request: Any) -> None:
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
        self.memory = Memory()
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


@pytest.fixture(autouse=True)
def no_frozen_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_launch, "freeze", lambda destination: None)  # nothing runs it here


def fatal(controller: Controller, at: int, when: str) -> Callable[[], bool]:
    """Kill it before, or after, its call number `at` to the registry's thread or the scheduler's. Whether it was."""
    count, killed = 0, False
    for name in ("write", "ask"):
        inner = getattr(controller, name)

        async def call(function: Any, *args: object, inner: Any = inner) -> Any:
            nonlocal count, killed
            count += 1
            if count == at and when == "before":
                killed = True
                raise Crash
            result = await inner(function, *args)
            if count == at:
                killed = True
                raise Crash
            return result

        setattr(controller, name, call)
    return lambda: killed


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_controller_killed_at_any_step_of_a_rollover_ends_it_with_one_job(tmp_path: Path, when: str) -> None:
    at, killed = 0, True
    while killed:
        at += 1
        world = World(tmp_path / f"{at}")
        await world.until(world.settled)
        (first,) = world.live()
        world.memory.jobs[0].ends_at = datetime.now(UTC) + timedelta(seconds=500 + world.ahead_s)
        crashed = fatal(world.controller, at, when)
        try:
            await world.until(world.settled)
        except Crash:
            world.controller.close()
            world.begin()
            await world.until(world.settled)
        killed = crashed()
        (successor,) = world.live()
        assert successor.id != first.id
        assert max(Counter(job.request.key for job in world.memory.jobs).values()) == 1, f"killed {when} call {at}"
        world.controller.close()
    assert at > 20  # otherwise nothing of the rollover was tried


async def test_a_job_that_was_submitted_as_the_controller_died_is_taken_up(tmp_path: Path) -> None:
    world = World(tmp_path / "site")
    world.memory.crash_after_submit = True
    with pytest.raises(Crash):
        await world.turn()
    world.controller.close()
    world.begin()
    await world.until(world.settled)
    assert len(world.memory.jobs) == 1
    world.controller.close()


async def test_nothing_is_started_or_stopped_while_the_queue_is_silent(tmp_path: Path) -> None:
    world = World(tmp_path / "site")
    world.memory.silent = True
    for _ in range(3):
        await world.turn()
    assert (world.memory.jobs, world.live()) == ([], [])
    (why,) = world.controller.plans.latest["chat"].why
    assert "squeue" in why or "sinfo" in why
    world.memory.silent = False
    await world.until(world.settled)
    world.controller.close()


async def test_books_that_cannot_be_had_keep_nobody_from_being_served(tmp_path: Path) -> None:
    world = World(tmp_path / "site")
    world.memory.no_books = True
    await world.until(world.settled)
    world.memory.jobs[0].state = JobState.NODE_FAIL
    await world.until(world.settled)
    assert "sacct" in (world.controller.scheduler_error or "")
    world.controller.close()


async def test_replicas_that_share_a_job_are_one_submission_and_one_is_stopped_alone(tmp_path: Path) -> None:
    world = World(tmp_path / "site", pack=2)

    def both_ready() -> bool:
        return [r.state for r in world.live()] == [ReplicaState.READY] * 2

    await world.until(both_ready)
    (job,) = world.memory.jobs
    one, other = world.live()
    assert job.request.key == one.id and {one.pack, other.pack} == {one.id}
    assert (job.request.resources.tasks_per_node, job.request.apart) == (2, True)

    await world.controller._jobs.stop(other.id, "it is not wanted")
    switch = Path(other.folder) / "switches" / "stop"
    assert switch.exists() and job.state is JobState.RUNNING
    await world.controller._jobs.stop(one.id, "it is not wanted")
    assert job.state is JobState.CANCELLED
    world.controller.close()


async def test_another_registrys_controller_does_nothing_on_the_same_shared_directory(tmp_path: Path) -> None:
    world = World(tmp_path / "site")
    await world.until(world.settled)
    (tmp_path / "other").mkdir()
    second_site = dataclasses.replace(world.site, state_dir=tmp_path / "other")
    second = Controller(second_site, open_writer(second_site.registry_db, MIGRATIONS), world.memory)
    await second.turn()
    assert "leads" in (second.scheduler_error or "")
    assert second.specs == {}  # it adopts nothing either
    await world.turn()
    assert world.settled() and len(world.memory.jobs) == 1
    second.close()
    world.controller.close()


async def test_one_that_stands_by_leads_once_the_other_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(control, "STANDBY_POLL_S", 0.01)
    world = World(tmp_path / "site")
    waiting = asyncio.create_task(asyncio.to_thread(control._led, world.site, world.memory))

    async def stands_by() -> bool:
        return "this one stands by" in caplog.text

    await eventually(stands_by)
    assert not waiting.done()
    world.controller.close()
    app = await waiting
    app[control.CONTROLLER].close()
