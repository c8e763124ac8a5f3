"""Deployments as a whole on a machine without Slurm: controller, gateway, command line and jobs are real processes.

Only the engine is scripted. Clients stream all the time, and each answer is checked token by token.
"""

from __future__ import annotations

import getpass
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from platform_fixtures import Platform, platform
from scripted_deployments import KILLED_S, Deployments, bad, engine_settings, lost, model, streaming
from waiting import wait_for

from benchmarks.deployments_clients import Saw, Seen
from registry import models
from registry.db import open_writer
from registry.migrations import MIGRATIONS
from registry.replicas import ReplicaState

SETTINGS = (
    *engine_settings(),
    "controller.poll=0.3s",
    "gateway.max_in_flight=2",
    "replicas.drain_timeout=20s",
    "replicas.shutdown_timeout=2s",
    "deployments.scale_up_every=2s",
    "deployments.scale_down_after=3s",
    "deployments.bake=3s",
    "deployments.bake_requests=3",
)


def registered(on: Platform, name: str, *directories: Path) -> None:
    """Versions 1 and on of a model. No controller runs yet."""
    (on.root / "state").mkdir(exist_ok=True)
    db = open_writer(on.root / "state" / "registry.db", MIGRATIONS)
    try:
        for directory in directories:
            models.register(db, name, getpass.getuser(), str(directory))
    finally:
        db.close()


@pytest.fixture(scope="module")
def laptop() -> Iterator[Deployments]:
    """Version 2 of the model `tale` fails whatever it is asked; 1 and 3 are good."""
    with platform("laptop.toml", *SETTINGS) as on:
        versions = [model(on.root / "models" / f"{n}", fails=n == 2) for n in (1, 2, 3)]
        registered(on, "tale", *versions)
        on.ok("up")
        on.ok("tenant", "create", "acme")
        yield Deployments(on, on.ok("key", "create", "acme").strip())


def serve(laptop: Deployments, name: str, *options: str) -> None:
    laptop.on.ok("serve", "tale@1", "--name", name, *options)


def test_replicas_come_with_the_queue_up_to_the_most_and_go_with_it_down_to_the_least(laptop: Deployments) -> None:
    serve(laptop, "grow", "--min", "1", "--max", "3", "--target-tokens", "50")
    most = 0
    with streaming(laptop, ["grow"], streams=8) as seen:

        def three() -> bool:
            nonlocal most
            most = max(most, len(laptop.live("grow")))
            return len(laptop.ready("grow")) == 3

        wait_for(three, 60)
        said = laptop.on.ok("explain", "grow")
    assert "wants 3 replicas" in said and "tokens are queued or running, 50 each" in said, said
    assert most == 3
    (kept,) = laptop.has("grow", 1)
    assert not bad(seen) and kept.failure is None
    ended = [r for r in laptop.replicas("grow") if r.state.ended]
    assert len(ended) == 2 and all(r.state is ReplicaState.STOPPED for r in ended), ended
    assert "wants 1 replica: that is its least number" in laptop.on.ok("explain", "grow")
    laptop.delete("grow")


def test_a_version_that_answers_worse_is_given_up_and_its_alias_goes_back_and_no_client_sees_it(
    laptop: Deployments,
) -> None:
    laptop.on.ok("alias", "set", "tale@prod", "1")
    laptop.on.ok("serve", "tale@prod", "--name", "chat", "--replicas", "1")
    (old,) = laptop.has("chat", 1)
    with streaming(laptop, ["chat"]) as seen:
        laptop.on.ok("alias", "set", "tale@prod", "2", "--canary", "40")
        wait_for(lambda: [a["version"] for a in laptop.on.json("alias", "list") if a["alias"] == "prod"] == [1], 60)
        laptop.has("chat", 1)
    assert [r.id for r in laptop.has("chat", 1)] == [old.id]
    assert laptop.described("chat")["version"] == 1
    assert not bad(seen), bad(seen)
    back, *_ = laptop.on.json("alias", "history", "tale@prod")
    assert back["to_version"] == 1 and "requests failed" in back["why"], back
    laptop.delete("chat")


def test_a_good_version_is_tried_with_its_share_and_then_replaces_the_old_one_and_is_rolled_back_on_demand(
    laptop: Deployments,
) -> None:
    serve(laptop, "story", "--replicas", "2")
    with streaming(laptop, ["story"]) as seen:
        laptop.on.ok("rollout", "story", "--to", "tale@3", "--canary", "25", "--wait")
        wait_for(lambda: {r.revision for r in laptop.live("story")} == {2}, 60)
        laptop.has("story", 2)
        laptop.on.ok("rollback", "story", "--wait")
        wait_for(lambda: {r.revision for r in laptop.live("story")} == {laptop.described("story")["revision"]}, 60)
        laptop.has("story", 2)
    assert laptop.described("story")["version"] == 1
    assert not bad(seen), bad(seen)
    laptop.delete("story")


def test_apply_scales_and_pauses_as_its_file_and_the_commands_say_and_clients_notice_nothing(
    laptop: Deployments, tmp_path: Path
) -> None:
    file = tmp_path / "all.toml"
    file.write_text('[deployments.poem]\nmodel = "tale@1"\nmin = 1\n')
    laptop.on.ok("apply", "-f", str(file), "--wait")
    (first,) = laptop.has("poem", 1)
    with streaming(laptop, ["poem"]) as seen:
        laptop.on.ok("scale", "poem", "2")
        laptop.has("poem", 2)
        laptop.on.ok("pause", "poem")
        laptop.on.ok("scale", "poem", "1")
        assert "is paused" in laptop.on.ok("explain", "poem")
        laptop.on.ok("pause", "poem", "--off")
        laptop.has("poem", 1)
        file.write_text(file.read_text() + 'engine_args = ["--max-num-seqs", "4"]\n')
        laptop.on.ok("apply", "-f", str(file), "--wait")
        wait_for(lambda: {r.revision for r in laptop.live("poem")} == {2}, 60)
        (second,) = laptop.has("poem", 1)
    assert second.id != first.id
    assert not bad(seen), bad(seen)
    laptop.delete("poem")


def cut_then(seen: list[Seen], killed_at: float) -> bool:
    """Whether all that went wrong is streams that had begun, and were cut by the kill."""
    return not lost(seen) and all(killed_at <= one.ended <= killed_at + KILLED_S for one in bad(seen))


@pytest.mark.parametrize("part", ["engine", "supervisor"])
def test_a_replica_that_is_killed_costs_no_request_that_had_no_answer_yet(laptop: Deployments, part: str) -> None:
    serve(laptop, part, "--replicas", "2")
    victim, other = laptop.has(part, 2)
    with streaming(laptop, [part]) as seen:
        wait_for(lambda: len(seen) >= 2)
        at = time.time()
        laptop.kill_part(victim, part)
        if part == "engine":
            wait_for(lambda: {r.id: r.restarts for r in laptop.live(part)}.get(victim.id) == 1)
        else:
            wait_for(lambda: victim.id not in {r.id for r in laptop.live(part)})
        after = laptop.has(part, 2)
    assert cut_then(seen, at), bad(seen)
    assert other.id in {r.id for r in after}
    assert (victim.id in {r.id for r in after}) == (part == "engine")
    laptop.delete(part)


@pytest.mark.parametrize("services", [("controller",), ("gateway",), ("controller", "gateway")], ids="+".join)
def test_services_that_are_killed_go_on_with_what_runs(laptop: Deployments, services: tuple[str, ...]) -> None:
    name = "-".join(services)
    serve(laptop, name, "--replicas", "2")
    before = laptop.has(name, 2)
    with streaming(laptop, [name]) as seen:
        wait_for(lambda: len(seen) >= 2)
        at = time.time()
        for service in services:
            laptop.kill(service)
        laptop.on.ok("up")
        laptop.on.ok("scale", name, "3")
        after = laptop.has(name, 3)
    assert [r.id for r in after][:2] == [r.id for r in before]
    if "gateway" in services:  # a client of a killed gateway sees its connection end; nobody else can retry for it
        assert all(one.saw is Saw.CUT and at <= one.ended <= at + KILLED_S for one in bad(seen)), bad(seen)
    else:
        assert not bad(seen), bad(seen)
    laptop.on.ok("ledger", "verify")
    laptop.delete(name)


def test_a_second_controller_of_the_same_state_is_refused_and_one_that_stands_by_leads_once_the_first_is_killed(
    laptop: Deployments,
) -> None:
    serve(laptop, "led", "--replicas", "1")
    (replica,) = laptop.has("led", 1)
    refused = laptop.on.run("controller", timeout=60)
    assert refused.returncode == 1 and "another process is its writer" in refused.stderr, refused.stderr
    standby = laptop.on.start("controller", "--standby")
    try:
        assert standby.stdout is not None
        assert any("stands by" in line for line in standby.stdout)
        with streaming(laptop, ["led"]) as seen:
            laptop.kill("controller")
            wait_for(lambda: laptop.on.run("scale", "led", "2").returncode == 0, 60)
            after = laptop.has("led", 2)
        assert after[0].id == replica.id and not bad(seen), bad(seen)
    finally:
        standby.terminate()
        try:
            standby.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            standby.kill()
    laptop.on.ok("up")
    laptop.delete("led")


def test_a_controller_with_a_registry_of_its_own_does_nothing_on_a_shared_directory_that_another_one_leads(
    laptop: Deployments, tmp_path: Path
) -> None:
    with platform("laptop.toml", *SETTINGS) as other:
        shared = ("--set", f"shared_dir={laptop.on.root}/shared")
        made = Deployments(Platform(other.root, other.site_file, other.port, (*SETTINGS, shared[1]), other.env), "")
        made.on.ok("up")
        try:
            made.on.ok("serve", str(model(tmp_path / "m")), "--name", "second", "--no-wait")
            log = other.root / "state" / "services" / "controller.log"
            wait_for(lambda: "leads on" in log.read_text())
            assert not made.live("second")
        finally:
            made.on.ok("down", "--keep-deployments")


def test_after_all_nothing_is_left_and_the_ledger_adds_up(laptop: Deployments) -> None:
    wait_for(lambda: not [line for line in laptop.on.processes() if "launchers.supervisor" in line])
    laptop.on.ok("ledger", "verify")
