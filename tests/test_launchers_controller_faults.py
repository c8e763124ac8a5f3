"""What goes wrong with one replica, job or deployment stays with it: nothing is orphaned, and no other waits for it."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from controller_world import Job, World

from launchers import following, leadership, replica_jobs, replica_launch
from launchers.leadership import Lease
from launchers.scheduler import JobRef, JobRequest, JobState, SchedulerError, SchedulerUnavailable
from registry import deployments, replicas, revisions
from registry.db import Conflict, Database
from registry.deployments import Deployment, DeploymentState
from registry.replicas import ReplicaState
from registry.revisions import RevisionState
from registry.site import Environments


@pytest.fixture(autouse=True)
def no_frozen_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_launch, "freeze", lambda destination: None)  # nothing runs it here


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "site")
    yield made
    made.controller.close()


async def orphan(world: World) -> Job:
    """The job of a replica that is taken to be lost."""
    await world.until(world.settled)
    (job,) = world.memory.jobs
    deployments.set_replica_state(world.controller.db, job.request.key, ReplicaState.LOST, "it was lost")
    return job


def another(db: Database, name: str = "a") -> None:
    deployments.create(
        db,
        name,
        "ada",
        model="tiny",
        version=1,
        model_path="/models/tiny",
        min_replicas=1,
        max_replicas=1,
        request={},
        by="ada",
        why="served",
    )


def refuse(world: World, monkeypatch: pytest.MonkeyPatch, e: SchedulerError, prefix: str) -> None:
    submit = world.memory.submit

    def refused(request: JobRequest) -> JobRef:
        if request.key.startswith(prefix):
            raise e
        return submit(request)

    monkeypatch.setattr(world.memory, "submit", refused)


async def test_a_job_that_cannot_be_noted_in_its_folder_is_its_replicas_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(replica_launch, "write_job", full)
    await world.until(world.settled)
    assert len(world.memory.jobs) == 1


async def test_a_job_whose_replicas_are_all_over_is_cancelled_after_the_time_to_end_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await orphan(world)
    for _ in range(3):
        await world.turn()
    assert job in world.memory.running()
    monkeypatch.setattr(replica_jobs, "CANCEL_AGAIN_S", -world.site.replicas.shutdown_timeout_s)
    await world.until(world.settled)  # one replica, and no other job


async def test_a_job_that_cannot_be_cancelled_keeps_no_other_from_being_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await orphan(world)

    def fails(ref: JobRef) -> None:
        raise SchedulerError("scancel: not permitted")

    monkeypatch.setattr(world.memory, "cancel", fails)
    monkeypatch.setattr(replica_jobs, "CANCEL_AGAIN_S", -world.site.replicas.shutdown_timeout_s)
    await world.until(lambda: [r.state for r in world.live()] == [ReplicaState.READY])


async def test_a_refused_submission_is_lost_with_its_cause_and_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        refuse(world, patched, SchedulerError("sbatch: AssocMaxSubmitJobLimit"), "chat-")
        await world.turn()
        await world.turn()
    (lost,) = replicas.replicas(world.controller.db)
    assert lost.state is ReplicaState.LOST and "AssocMaxSubmitJobLimit" in (lost.cause or "")
    assert deployments.get(world.controller.db, "chat").state is DeploymentState.STARTING
    await world.until(world.settled)


def configured_anew(world: World, environments: Environments) -> None:
    """The controller is restarted with another site file."""
    world.controller.close()
    world.site = dataclasses.replace(world.site, environments=environments)
    world.begin()


async def test_a_deployment_that_serves_goes_on_and_tries_again_where_the_site_refuses_another_start(
    world: World,
) -> None:
    def ready() -> list[ReplicaState]:
        return [r.state for r in world.live()]

    deployments.change(world.controller.db, "chat", min_replicas=2, max_replicas=2)
    await world.until(lambda: ready() == [ReplicaState.READY] * 2)
    before = world.site.environments
    configured_anew(world, Environments())
    world.memory.jobs[0].state = JobState.FAILED
    for _ in range(12):
        await world.turn()
        assert deployments.get(world.controller.db, "chat").state is DeploymentState.READY
    assert ready() == [ReplicaState.READY]
    refused = [r for r in replicas.replicas(world.controller.db) if "[environments.engine]" in (r.cause or "")]
    assert {r.state for r in refused} == {ReplicaState.LOST} and len(refused) < 12
    assert any("[environments.engine]" in line for line in world.controller.plans.latest["chat"].why)
    configured_anew(world, before)
    world.ahead_s += 600.0
    await world.until(lambda: ready() == [ReplicaState.READY] * 2)


async def test_a_revision_is_given_up_that_the_site_refuses_and_the_stable_one_serves_on(world: World) -> None:
    await world.until(world.settled)
    await world.turn()
    db = world.controller.db
    revisions.add(
        db,
        "chat",
        model="tiny",
        version=1,
        model_path="/models/tiny",
        request={"resources": {"options": ["--wrap=ls"]}},
        by="ada",
        why="changed",
    )
    for _ in range(6):
        await world.turn()
    assert revisions.get(db, "chat", 2).state is RevisionState.BAD and world.settled()
    assert deployments.get(db, "chat").state is DeploymentState.READY


async def test_a_deployment_that_never_served_fails_where_the_site_refuses_its_start(world: World) -> None:
    configured_anew(world, Environments())
    await world.turn()
    failed = deployments.get(world.controller.db, "chat")
    assert failed.state is DeploymentState.FAILED and "[environments.engine]" in (failed.cause or "")
    assert world.memory.jobs == [] and replicas.replicas(world.controller.db) == []


async def test_a_partition_that_is_drained_for_maintenance_ends_neither_a_new_deployment_nor_a_rollout(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained = SchedulerError("sbatch: error: Required partition not available (inactive or drain)")
    db = world.controller.db
    await world.until(world.settled)
    another(db)
    revisions.add(
        db, "chat", model="tiny", version=1, model_path="/models/tiny", request={"stage": True}, by="ada", why="changed"
    )
    with monkeypatch.context() as patched:
        refuse(world, patched, drained, "")
        for _ in range(6):
            await world.turn()
    assert deployments.get(db, "a").state is DeploymentState.STARTING
    assert revisions.get(db, "chat", 2).state is RevisionState.ROLLING
    await world.until(lambda: deployments.get(db, "a").state is DeploymentState.READY)


async def test_a_time_limit_that_slurm_does_not_take_fails_a_new_deployment_with_its_words(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "sbatch: error: Requested time limit is invalid (missing or exceeds some limit)"
    refuse(world, monkeypatch, SchedulerError(words), "")
    await world.until(lambda: deployments.get(world.controller.db, "chat").state is DeploymentState.FAILED)
    assert words in (deployments.get(world.controller.db, "chat").cause or "")


async def test_a_refused_submission_keeps_no_other_deployment_from_its_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    another(world.controller.db)
    refuse(world, monkeypatch, SchedulerError("sbatch: QOSMaxSubmitJobPerUserLimit"), "a-")
    await world.turn()
    assert [r.deployment for r in world.live()] == ["chat"]


async def test_a_scheduler_that_falls_silent_is_asked_for_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    another(world.controller.db)
    refuse(world, monkeypatch, SchedulerUnavailable("sbatch did not answer within 30 s"), "a-")
    await world.turn()
    assert [r.deployment for r in world.live()] == ["a"]  # it may have been submitted


async def test_what_the_registry_refuses_of_one_deployment_stays_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    another(world.controller.db)
    follow = following.follow

    def broken(db: Database, deployment: Deployment) -> str | None:
        if deployment.name == "a":
            raise Conflict("its adapter's name is taken")
        return follow(db, deployment)

    with monkeypatch.context() as patched:
        patched.setattr(following, "follow", broken)
        await world.turn()
    assert [r.deployment for r in world.live()] == ["chat"]
    note = world.controller.plans.note

    def refuses(action: Any) -> None:
        if getattr(action, "deployment", "") == "a":
            raise Conflict("not now")
        note(action)

    monkeypatch.setattr(world.controller.plans, "note", refuses)
    await world.until(lambda: deployments.get(world.controller.db, "chat").state is DeploymentState.READY)


async def test_a_replica_that_is_stopped_before_it_was_submitted_is_no_loss(world: World, tmp_path: Path) -> None:
    deployments.add_replica(world.controller.db, "chat-1", "chat", "ada", str(tmp_path / "none"))
    await world.controller._jobs.stop("chat-1", "1 is wanted")
    (stopped,) = replicas.replicas(world.controller.db)
    assert (stopped.state, stopped.cause) == (ReplicaState.STOPPED, "1 is wanted")
    assert stopped.draining_at is not None


async def test_a_turn_that_outlasts_its_lease_does_nothing_more(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outlook = world.memory.outlook

    def slow() -> Any:
        (tmp_path / "site" / leadership.LEASE).write_text(json.dumps({"controller": "other:/registry.db"}))
        return outlook()

    monkeypatch.setattr(world.memory, "outlook", slow)
    await world.turn()
    assert world.memory.jobs == [] and "other:/registry.db" in (world.controller.scheduler_error or "")


def test_of_two_that_find_no_lease_one_leads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (Lease(tmp_path, tmp_path / name) for name in ("a.db", "b.db"))
    look = other._look

    def both_look() -> tuple[str | None, float]:
        found = look()
        assert one.other() is None  # it makes the lease in between
        return found

    with monkeypatch.context() as patched:
        patched.setattr(other, "_look", both_look)
        assert other.other() is not None
    assert "a.db leads" in (other.other() or "") and one.other() is None


def test_a_lease_that_names_nobody_is_led_by_from_the_next_turn_on(tmp_path: Path) -> None:
    (tmp_path / leadership.LEASE).write_text("{")
    lease = Lease(tmp_path, tmp_path / "a.db")
    assert "taking over" in (lease.other() or "") and lease.other() is None


async def test_one_of_a_pack_that_is_replaced_takes_its_part_of_the_job(tmp_path: Path) -> None:
    world = World(tmp_path / "site", pack=2, resources={"gpus_per_node": 2, "mem_gb": 8})

    def ready() -> list[ReplicaState]:
        return [r.state for r in world.live()]

    await world.until(lambda: ready() == [ReplicaState.READY] * 2)
    deployments.set_replica_state(world.controller.db, world.live()[0].id, ReplicaState.LOST, "its engine died")
    await world.until(lambda: ready() == [ReplicaState.READY] * 2)
    asked = [(job.request.resources.gpus_per_node, job.request.resources.mem_gb) for job in world.memory.jobs]
    assert asked == [(2, 8.0), (1, 4.0)]
    world.controller.close()
