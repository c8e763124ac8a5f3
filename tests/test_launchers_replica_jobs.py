"""How replicas are ended: by their switch once they have begun, by their job before that or when they do not listen."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from controller_world import Memory, World

from launchers import replica_jobs, replica_launch, submit
from launchers.announce import announce
from launchers.launch import request_for
from launchers.planning.facts import StartReplica
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobState
from launchers.spec import ServeSpec, load
from registry import deployments, revisions
from registry.replicas import Replica, ReplicaState

WHY = "it is not wanted"


class Told(Memory):
    """Notes what it is asked to do to jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def cancel(self, ref: JobRef) -> None:
        self.asked.append("cancel")
        super().cancel(ref)

    def drain(self, ref: JobRef) -> None:
        self.asked.append("drain")


class Times:
    """The monotonic clock of what stops replicas."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        monkeypatch.setattr(replica_jobs, "time", self)

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Times:
    monkeypatch.setattr(replica_launch, "freeze", lambda destination: None)
    return Times(monkeypatch)


async def serving(root: Path, replicas: int = 1, begun: int | None = None) -> tuple[World, Told, list[Replica]]:
    """Replicas that share a job if they are several; of `begun` (all) the supervisor has begun."""
    memory = Told()
    world = World(root / "site", memory, **({"pack": replicas} if replicas > 1 else {}))
    await world.until(lambda: [r.state for r in world.live()] == [ReplicaState.READY] * replicas)
    for r in world.live()[:begun]:
        announce(RunFolder(Path(r.folder)).announcements, "attempt-started", attempt="1.0", job_id="1")
    return world, memory, world.live()


async def stop(world: World, *which: Replica) -> None:
    for r in which:
        await world.controller._jobs.stop(r.id, WHY)


def switched(r: Replica) -> bool:
    return (Path(r.folder) / "switches" / "stop").exists()


async def test_a_replica_that_has_begun_is_told_by_its_switch_and_its_job_is_left_alone(
    tmp_path: Path, clock: Times
) -> None:
    world, memory, (one,) = await serving(tmp_path)
    await stop(world, one, one)
    assert switched(one) and memory.asked == []
    (found,) = world.live()
    assert (found.state, found.drain_why) == (ReplicaState.DRAINING, WHY)
    world.controller.close()


async def test_one_that_does_not_listen_is_cancelled_after_its_patience(tmp_path: Path, clock: Times) -> None:
    world, memory, (one,) = await serving(tmp_path)
    await stop(world, one)
    patience_s = world.site.replicas.shutdown_timeout_s + replica_jobs.CANCEL_AGAIN_S
    clock.ahead_s = patience_s - 30.0
    await stop(world, one)
    assert memory.asked == []
    clock.ahead_s = patience_s + 1.0
    await stop(world, one, one)
    assert memory.asked == ["cancel"]  # and not again at once
    world.controller.close()


async def test_one_that_has_not_begun_is_cancelled_at_once(tmp_path: Path, clock: Times) -> None:
    world, memory, (one,) = await serving(tmp_path, begun=0)
    await stop(world, one)
    assert memory.asked == ["cancel"]
    world.controller.close()


async def test_a_switch_that_cannot_be_written_leaves_the_word_to_the_scheduler(tmp_path: Path, clock: Times) -> None:
    world, memory, (one,) = await serving(tmp_path)
    switches = Path(one.folder) / "switches"
    switches.rmdir()
    switches.write_text("no directory")
    await stop(world, one, one)
    assert memory.asked == ["drain"]
    clock.ahead_s = 1000.0
    await stop(world, one)
    assert memory.asked == ["drain", "cancel"]
    world.controller.close()


async def test_replicas_are_told_while_the_scheduler_is_silent(tmp_path: Path, clock: Times) -> None:
    world, memory, (one,) = await serving(tmp_path)
    memory.silent = True
    await stop(world, one)
    assert switched(one)
    world.controller.close()


async def test_of_several_in_a_job_one_that_does_not_listen_is_left_while_another_is_wanted(
    tmp_path: Path, clock: Times
) -> None:
    world, memory, (one, other) = await serving(tmp_path, 2)
    await stop(world, other)
    clock.ahead_s = 1000.0
    await stop(world, other)
    assert switched(other) and not switched(one) and memory.asked == []
    assert memory.jobs[0].state is JobState.RUNNING
    await stop(world, one, other)
    assert memory.asked == []  # the one may still drain
    clock.ahead_s = 2000.0
    await stop(world, one)
    assert memory.asked == ["cancel"]
    world.controller.close()


async def test_of_several_in_a_job_that_waits_each_is_over_and_the_last_takes_the_job_along(
    tmp_path: Path, clock: Times
) -> None:
    world, memory, (one, other) = await serving(tmp_path, 2, begun=0)
    await stop(world, one)
    assert switched(one) and [r.id for r in world.live()] == [other.id] and memory.asked == []
    await stop(world, other)
    assert memory.asked == ["cancel"]
    world.controller.close()


@pytest.mark.parametrize("vouched", [True, False])
async def test_a_job_is_told_whether_anybody_vouched_for_its_model(tmp_path: Path, clock: Times, vouched: bool) -> None:
    world = World(tmp_path / "site", Told(), safetensors_only=not vouched)
    await world.until(lambda: len(world.live()) == 1)
    spec = load(RunFolder(Path(world.live()[0].folder)).spec)
    assert isinstance(spec, ServeSpec) and spec.safetensors_only is not vouched
    world.controller.close()


@pytest.mark.parametrize(
    ("asked", "avoided", "said"),
    [
        (["--exclude=bad1,bad2"], ("n7", "n8"), ["bad1,bad2,n7,n8"]),
        (["--exclude=g[01-03]", "--nice=5"], ("n7",), ["g[01-03],n7"]),
        (["--exclude=bad1,bad2"], (), ["bad1,bad2"]),
        ([], ("n7",), ["n7"]),
    ],
)
def test_a_jobs_script_leaves_out_the_nodes_that_its_owner_named_and_those_that_failed_it_in_one_option(
    tmp_path: Path, asked: list[str], avoided: tuple[str, ...], said: list[str]
) -> None:
    world = World(tmp_path / "site", resources={"options": asked})
    deployment = deployments.get(world.controller.db, "chat")
    revision = revisions.get(world.controller.db, "chat", 1)
    start = StartReplica(deployment="chat", revision=1, why="1 is wanted", exclude=avoided)
    spec = replica_jobs.serve_spec(world.site, deployment, revision, start)
    script = submit.script(request_for(spec, RunFolder(tmp_path / spec.id)))
    assert re.findall(r"^#SBATCH --exclude=(.*)$", script, re.MULTILINE) == said
    assert ("#SBATCH --nice=5" in script) is ("--nice=5" in asked)
    world.controller.close()
