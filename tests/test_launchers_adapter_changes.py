"""A revision with other LoRA adapters is loaded by the engines that run; where that cannot be, it is rolled out."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from controller_world import World
from platform_fixtures import ROOT
from waiting import eventually

from launchers import adapter_changes, replica_launch
from launchers.adapter_changes import CHANGE_S
from launchers.run_folder import RunFolder
from launchers.spec import ServeSpec
from launchers.task import Task
from launchers.told import Told
from launchers.vllm import adapters
from launchers.vllm.life import Life
from launchers.voice import Voice
from registry import deployments, revisions
from registry.deployments import Deployment
from registry.replicas import Replica, ReplicaState, note_adapters
from registry.revisions import Revision, RevisionState

AT = "2026-01-01T00:00:00.000000Z"
POLITE, TERSE, BOTH = {"polite": "/a/polite"}, {"terse": "/a/terse"}, {"polite": "/a/polite", "terse": "/a/terse"}


def revision(number: int, loads: dict[str, str], state: str = "rolling", version: int = 1, **request: Any) -> Revision:
    asked = {"adapters": loads, **request}
    return Revision(
        "chat", number, "tiny", version, "/m/tiny", asked, RevisionState(state), None, AT, "ada", "served", None
    )


def replica(name: str, state: str, *has: str, of: int = 1) -> Replica:
    nothing: dict[str, Any] = dict.fromkeys(
        ("host", "port", "upstream_key", "context_tokens", "cause", "ready_at", "ended_at")
    )
    words = {"folder": f"/runs/{name}", "created_at": AT}
    return Replica(
        id=name, deployment="chat", owner="ada", state=ReplicaState(state), revision=of, adapters=has,
        **words, **nothing,
    )  # fmt: skip


STABLE = revision(1, POLITE, "good")


@pytest.mark.parametrize(
    ("live", "done"),
    [
        ([replica("r1", "ready", "polite")], False),
        ([replica("r1", "ready", "polite", "terse")], True),
        ([replica("r1", "ready", "polite", "terse"), replica("r2", "ready", "polite")], False),
        ([replica("r1", "ready", "polite", "terse"), replica("r2", "starting")], True),  # it loads them as it starts
        ([replica("r1", "starting")], False),
    ],
)
def test_it_is_done_when_every_ready_replica_has_what_is_wanted_and_nothing_else(
    live: list[Replica], done: bool
) -> None:
    found = adapter_changes.change(STABLE, revision(2, BOTH), live, 5.0)
    assert found is not None
    assert (found.asked, found.done) == (tuple(r.id for r in live), done)


def test_an_adapter_that_is_wanted_no_more_has_to_be_gone() -> None:
    had = replica("r1", "ready", "polite", "terse")
    found = adapter_changes.change(revision(1, BOTH, "good"), revision(2, POLITE), [had], 5.0)
    assert found is not None and not found.done


@pytest.mark.parametrize(
    "wanted",
    [
        revision(2, {}),  # these engines could load none ever again
        revision(2, {"polite": "/elsewhere/polite"}),  # a replica does not tell directories
        revision(2, BOTH, version=2),
        revision(2, BOTH, engine_args=["--max-model-len", "128"]),
        revision(2, BOTH, "bad"),
        revision(2, POLITE),
    ],
)
def test_what_differs_in_more_than_that_takes_new_replicas(wanted: Revision) -> None:
    assert adapter_changes.change(STABLE, wanted, [replica("r1", "ready", "polite")], 5.0) is None


def test_engines_started_without_adapters_cannot_load_any() -> None:
    none = replace(STABLE, request={})
    assert adapter_changes.change(none, revision(2, POLITE), [replica("r1", "ready")], 5.0) is None


def test_how_many_replicas_there_are_and_who_gets_which_call_makes_no_difference() -> None:
    wanted = revision(2, BOTH, target_tokens=4000, routing="round-robin", stage=None)
    assert adapter_changes.change(STABLE, wanted, [replica("r1", "ready", "polite")], 5.0) is not None


def test_without_a_replica_of_the_stable_revision_the_new_one_is_started() -> None:
    assert adapter_changes.change(STABLE, revision(2, BOTH), [replica("r1", "ready", of=2)], 5.0) is None


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """With one replica that has the adapter `polite`."""
    monkeypatch.setattr(replica_launch, "freeze", lambda destination: None)
    for name in BOTH:
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").touch()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    made = World(tmp_path / "site", adapters={"polite": str(tmp_path / "polite")})
    yield made
    made.controller.close()


async def served(world: World) -> Replica:
    await world.until(lambda: world.settled() and deployment(world).stable == 1)
    (one,) = world.live()
    note_adapters(world.controller.db, one.id, ["polite"])
    return one


def deployment(world: World) -> Deployment:
    return deployments.get(world.controller.db, "chat")


def want(world: World, tmp_path: Path, *names: str) -> None:
    request = {"adapters": {name: str(tmp_path / name) for name in names}}
    words: dict[str, Any] = {"model": "tiny", "version": 1, "model_path": "/models/tiny", "by": "ada", "why": "more"}
    revisions.add(world.controller.db, "chat", request=request, **words)


async def test_engines_that_run_are_asked_and_become_the_new_revision(world: World, tmp_path: Path) -> None:
    one = await served(world)
    want(world, tmp_path, "polite", "terse")
    await world.controller.turn()
    folder = RunFolder(Path(one.folder))
    assert adapters.wanted(folder) == {name: str(tmp_path / name) for name in BOTH}
    assert (deployment(world).revision, deployment(world).stable) == (2, 1)
    assert any("0 of 1 that are ready" in line for line in world.controller.plans.latest["chat"].why)
    note_adapters(world.controller.db, one.id, list(BOTH))
    await world.controller.turn()
    assert (deployment(world).revision, deployment(world).stable) == (2, 2)
    assert revisions.get(world.controller.db, "chat", 2).state is RevisionState.GOOD
    await world.controller.turn()
    assert [(r.id, r.revision) for r in world.live()] == [(one.id, 2)] and len(world.memory.jobs) == 1
    assert adapters.wanted(folder) == {name: str(tmp_path / name) for name in BOTH}


async def test_what_engines_do_not_load_in_time_is_rolled_out_and_they_keep_what_they_had(
    world: World, tmp_path: Path
) -> None:
    one = await served(world)
    want(world, tmp_path, "terse")
    await world.controller.turn()
    assert len(world.memory.jobs) == 1
    world.ahead_s += CHANGE_S
    await world.controller.turn()
    assert [r.revision for r in world.live()] == [1, 2]
    assert adapters.wanted(RunFolder(Path(one.folder))) == {"polite": str(tmp_path / "polite")}
    assert any("others are started" in line for line in world.controller.plans.latest["chat"].why)


async def test_while_a_deployment_is_paused_its_engines_are_asked_for_nothing(world: World, tmp_path: Path) -> None:
    one = await served(world)
    deployments.change(world.controller.db, "chat", paused=True)
    want(world, tmp_path, "terse")
    await world.controller.turn()
    assert adapters.wanted(RunFolder(Path(one.folder))) is None and deployment(world).stable == 1


async def test_an_engine_that_runs_loads_what_a_new_revision_adds_and_stays(world: World, tmp_path: Path) -> None:
    one = await served(world)
    folder, spec = RunFolder(Path(one.folder)), world.controller.specs[one.id]
    assert isinstance(spec, ServeSpec)
    (folder.root / "code").symlink_to(ROOT)
    folder.rendezvous.mkdir()
    engine = replace(
        spec.environment, python=sys.executable, command=("{python}", str(ROOT / "tests" / "stand_in_engine.py"))
    )
    told = Told()
    life = Life(
        folder, replace(spec, environment=engine), Task(0, 1, 0, "1", 0, "n1"), Voice(folder.announcements), told
    )
    thread = threading.Thread(target=life.run)
    thread.start()
    try:

        async def started() -> bool:
            await world.controller.turn()
            return life.ready

        await eventually(started)
        want(world, tmp_path, "polite", "terse")

        async def stable() -> bool:
            await world.controller.turn()
            return deployment(world).stable == 2

        await eventually(stable)
        assert [(r.id, r.revision, r.adapters) for r in world.live()] == [(one.id, 2, ("polite", "terse"))]
    finally:
        told.stop("cancelled", "the test is over")
        thread.join(60)
        assert not thread.is_alive()
