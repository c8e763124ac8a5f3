"""The controller's turns on a scheduler in memory: killed between any two steps, it goes on where it was."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from controller_world import Crash, World
from waiting import eventually

from launchers import control, replica_launch
from launchers.controller import Controller
from launchers.scheduler import JobState
from registry.db import open_writer
from registry.migrations import MIGRATIONS
from registry.replicas import ReplicaState


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
