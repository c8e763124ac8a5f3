"""Deployments and replicas: which moves between states are made, and what the gateway may route to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from registry import accounting, clock, deployments
from registry.db import Conflict, Database, NotFound
from registry.deployments import Deployment, DeploymentState, Replica, ReplicaState

BEGAN = "2026-01-02T14:05:00.000000Z"
LEGAL = {
    ("starting", "ready"),
    ("starting", "stopping"),
    ("starting", "failed"),
    ("starting", "asleep"),
    ("ready", "starting"),
    ("ready", "stopping"),
    ("ready", "failed"),
    ("ready", "asleep"),
    *(("asleep", state) for state in ("starting", "ready", "stopping", "failed")),
    ("stopping", "stopped"),
}
WAY_TO: dict[str, Sequence[str]] = {
    "starting": (),
    "ready": ("ready",),
    "asleep": ("asleep",),
    "stopping": ("stopping",),
    "stopped": ("stopping", "stopped"),
    "failed": ("failed",),
}


def deploy(db: Database, name: str = "chat", owner: str = "ada", replicas: int = 1, model: str = "tiny") -> Deployment:
    request = {"resources": {"partition": "gpu"}, "engine_args": ["--x"]}
    return deployments.create(
        db,
        name,
        owner,
        model=model,
        version=1,
        model_path=f"/m/{model}",
        min_replicas=replicas,
        max_replicas=max(replicas, 1),
        request=request,
        by=owner,
        why="served",
    )


def add(db: Database, replica: str, *states: ReplicaState, deployment: str = "chat") -> None:
    deployments.add_replica(db, replica, deployment, "ada", f"/runs/{replica}")
    for state in states:
        if state is ReplicaState.READY:
            deployments.replica_is_ready(db, replica, "node-1", 8000, "key")
        else:
            deployments.set_replica_state(db, replica, state)


def only(db: Database, deployment: str = "chat") -> Replica:
    (replica,) = deployments.replicas(db, deployment)
    return replica


def test_a_deployment_starts_and_is_read_back_with_its_request(registry: Database) -> None:
    made = deploy(registry)
    assert made == deployments.get(registry, "chat")
    assert (made.state, made.request["resources"]) == (DeploymentState.STARTING, {"partition": "gpu"})
    with pytest.raises(NotFound, match="no deployment is called 'x'; there are: chat"):
        deployments.get(registry, "x")


@pytest.mark.parametrize(("old", "new"), list(itertools.product(map(str, DeploymentState), repeat=2)))
def test_only_legal_moves_between_states_are_made(registry: Database, old: str, new: str) -> None:
    deploy(registry)
    for state in WAY_TO[old]:
        assert deployments.set_state(registry, "chat", DeploymentState(state), "as it was")
    before = deployments.get(registry, "chat")
    moved = deployments.set_state(registry, "chat", DeploymentState(new), "because")
    after = deployments.get(registry, "chat")
    assert moved is ((old, new) in LEGAL)
    assert after.state == (new if moved else old)
    if moved:
        assert after.cause == "because" and (after.ended_at is not None) is after.state.ended
    else:
        assert after == before


def test_a_name_is_free_again_only_when_its_deployment_has_ended(registry: Database) -> None:
    first = deploy(registry)
    for state in (DeploymentState.READY, DeploymentState.STOPPING):
        with pytest.raises(Conflict, match="deployment chat exists already and is"):
            deploy(registry)
        deployments.set_state(registry, "chat", state)
    with pytest.raises(Conflict, match="is stopping; stop it first"):
        deploy(registry)
    deployments.set_state(registry, "chat", DeploymentState.STOPPED, "done")
    again = deploy(registry, owner="bob", replicas=2, model="big")
    assert (again.state, again.owner, again.model, again.min_replicas) == (DeploymentState.STARTING, "bob", "big", 2)
    assert (again.cause, again.ended_at) == (None, None) and again.created_at > first.created_at


def test_one_that_is_being_stopped_is_served_again_once_it_is(registry: Database) -> None:
    deploy(registry)
    deployments.set_state(registry, "chat", DeploymentState.STOPPING)
    with pytest.raises(Conflict, match="deployment chat is being stopped; serve it again once it is"):
        deployments.require_wanted(registry, "chat")


def test_a_replica_goes_from_pending_to_ready_with_its_endpoint(registry: Database) -> None:
    deploy(registry)
    add(registry, "r-1")
    assert only(registry).state is ReplicaState.PENDING
    deployments.replica_is_starting(registry, "r-1", BEGAN)
    assert only(registry).state is ReplicaState.STARTING
    deployments.replica_is_ready(registry, "r-1", "node-1", 8000, "key")
    replica = only(registry)
    assert (replica.state, replica.host, replica.port, replica.upstream_key) == (
        ReplicaState.READY,
        "node-1",
        8000,
        "key",
    )
    deployments.replica_is_starting(registry, "r-1", BEGAN)  # an old fact, seen late
    assert only(registry).state is ReplicaState.READY


@pytest.mark.parametrize("state", [ReplicaState.DRAINING, ReplicaState.STOPPED, ReplicaState.FAILED])
def test_a_replica_that_is_leaving_never_becomes_ready(registry: Database, state: ReplicaState) -> None:
    deploy(registry)
    add(registry, "r-1", state)
    deployments.replica_is_ready(registry, "r-1", "node-1", 8000, "key")
    deployments.replica_is_starting(registry, "r-1", BEGAN)
    assert (only(registry).state, only(registry).ready_at) == (state, None)


def test_the_first_ending_of_a_replica_and_its_cause_count(registry: Database) -> None:
    deploy(registry)
    add(registry, "r-1")
    deployments.set_replica_state(registry, "r-1", ReplicaState.FAILED, "out of memory")
    ended_at = only(registry).ended_at
    for state in ReplicaState:
        deployments.set_replica_state(registry, "r-1", state, "later")
    assert (only(registry).state, only(registry).cause) == (ReplicaState.FAILED, "out of memory")
    assert only(registry).ended_at == ended_at


def test_a_former_deployments_replica_is_not_routed_to_under_the_same_name(registry: Database) -> None:
    deploy(registry, model="old")
    add(registry, "r-1", ReplicaState.READY)
    deployments.set_state(registry, "chat", DeploymentState.FAILED)
    deploy(registry, model="new")
    assert deployments.live_replicas(registry) == {"chat": []}
    add(registry, "r-2", ReplicaState.READY)
    assert [r.id for r in deployments.live_replicas(registry)["chat"]] == ["r-2"]


def test_a_clock_that_was_set_back_makes_no_replica_older_than_its_deployment(
    registry: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = deploy(registry)
    monkeypatch.setattr(clock, "now", lambda: "2000-01-01T00:00:00.000000Z")
    add(registry, "r-1", ReplicaState.READY)
    assert deployments.is_current(deployment, only(registry))
    assert [r.id for r in deployments.live_replicas(registry)["chat"]] == ["r-1"]


def test_live_replicas_are_those_of_live_deployments_that_have_not_ended(registry: Database) -> None:
    deploy(registry)
    deploy(registry, "gone")
    add(registry, "pending")
    add(registry, "ready", ReplicaState.READY)
    add(registry, "draining", ReplicaState.READY, ReplicaState.DRAINING)
    add(registry, "lost", ReplicaState.LOST)
    add(registry, "other", deployment="gone")
    deployments.set_state(registry, "gone", DeploymentState.FAILED)
    live = deployments.live_replicas(registry)
    assert {name: [r.id for r in found] for name, found in live.items()} == {"chat": ["pending", "ready", "draining"]}


def test_what_the_scheduler_says_of_a_replica_is_written_when_it_changes_and_only_then(registry: Database) -> None:
    deploy(registry)
    add(registry, "r")
    start = "2026-01-02T14:05:00.000000Z"
    deployments.note_job(registry, "r", job_id="7", waiting_reason="Resources", expected_start_at=start)
    assert (only(registry).job_id, only(registry).waiting_reason) == ("7", "Resources")
    assert (only(registry).expected_start_at, only(registry).ends_at) == (start, None)
    before = registry.conn.total_changes
    deployments.note_job(registry, "r", job_id="7", waiting_reason="Resources", expected_start_at=start)
    assert registry.conn.total_changes == before
    deployments.note_job(registry, "r", job_id="7", ends_at=start)
    assert (only(registry).waiting_reason, only(registry).expected_start_at) == (None, None)
    assert only(registry).ends_at == start


def test_a_replicas_beginning_is_its_supervisors_first(registry: Database) -> None:
    deploy(registry)
    add(registry, "r")
    for at in (BEGAN, "2026-01-02T15:00:00.000000Z"):
        deployments.replica_is_starting(registry, "r", at)
    assert only(registry).started_at == BEGAN


def test_a_replica_remembers_why_it_was_started_and_in_whose_place(registry: Database) -> None:
    deploy(registry)
    add(registry, "old")
    deployments.add_replica(
        registry,
        "new",
        "chat",
        "ada",
        "/runs/new",
        revision=2,
        reason="old ends at 14:05",
        replaces="old",
        overflow=True,
        pack="p",
    )
    old, new = deployments.replicas(registry)
    assert (new.revision, new.reason, new.replaces, new.overflow) == (2, "old ends at 14:05", "old", True)
    assert (old.job_subject, new.job_subject) == ("old", "p") and not old.overflow


def test_an_engine_that_is_restarted_in_place_starts_and_is_ready_again(registry: Database) -> None:
    deploy(registry)
    add(registry, "r", ReplicaState.READY)
    deployments.note_adapters(registry, "r", ["poet", "legal"])
    first = only(registry)
    assert first.adapters == ("legal", "poet")
    deployments.replica_is_restarting(registry, "r", "the engine crashed", 1)
    assert (only(registry).state, only(registry).cause, only(registry).restarts, only(registry).adapters) == (
        ReplicaState.STARTING,
        "the engine crashed",
        1,
        (),
    )
    deployments.replica_is_ready(registry, "r", "node-1", 8001, "key")
    again = only(registry)
    assert (again.state, again.port, again.cause, again.ready_at) == (ReplicaState.READY, 8001, None, first.ready_at)


def test_a_draining_replica_whose_engine_restarts_gets_no_new_requests(registry: Database) -> None:
    deploy(registry)
    add(registry, "r", ReplicaState.READY)
    assert deployments.drain_replica(registry, "r", "its node is drained")
    deployments.replica_is_restarting(registry, "r", "the engine crashed", 2)
    deployments.replica_is_ready(registry, "r", "node-1", 8001, "key")
    assert (only(registry).state, only(registry).restarts, only(registry).port) == (ReplicaState.DRAINING, 2, 8000)


def test_only_what_is_ready_drains_and_says_why_and_since_when(registry: Database) -> None:
    deploy(registry)
    add(registry, "r")
    assert not deployments.drain_replica(registry, "r", "too many")
    assert (only(registry).state, only(registry).draining_at) == (ReplicaState.PENDING, None)
    deployments.replica_is_ready(registry, "r", "node-1", 8000, "key")
    assert deployments.drain_replica(registry, "r", "too many")
    since = only(registry).draining_at
    assert (only(registry).state, only(registry).drain_why) == (ReplicaState.DRAINING, "too many") and since
    assert not deployments.drain_replica(registry, "r", "again")
    deployments.set_replica_state(registry, "r", ReplicaState.DRAINING)  # its supervisor says so too
    assert (only(registry).drain_why, only(registry).draining_at) == ("too many", since)


def test_a_failure_is_kept_by_its_kind(registry: Database) -> None:
    deploy(registry)
    add(registry, "r")
    deployments.set_replica_state(registry, "r", ReplicaState.FAILED, "CUDA out of memory", "out-of-memory")
    assert (only(registry).cause, only(registry).failure) == ("CUDA out of memory", "out-of-memory")


def test_the_nodes_of_a_replicas_job_are_noted(registry: Database) -> None:
    deploy(registry)
    add(registry, "r")
    deployments.note_job(registry, "r", job_id="7")
    deployments.note_job(registry, "r", job_id="7", nodes="n1,n2")
    assert only(registry).nodes == "n1,n2"


def test_how_many_are_wanted_and_when_that_changed_is_remembered(registry: Database) -> None:
    deploy(registry, replicas=2)
    deployments.set_scale(registry, "chat", 2, None)
    first = deployments.get(registry, "chat")
    assert (first.desired, first.low_since) == (2, None) and first.scaled_at is not None
    deployments.set_scale(registry, "chat", 2, BEGAN)
    assert (deployments.get(registry, "chat").scaled_at, deployments.get(registry, "chat").low_since) == (
        first.scaled_at,
        BEGAN,
    )
    deployments.set_scale(registry, "chat", 1, None)
    assert (deployments.get(registry, "chat").scaled_at or "") > first.scaled_at


def test_the_bounds_and_a_pause_change_without_a_new_revision(registry: Database) -> None:
    deploy(registry)
    changed = deployments.change(registry, "chat", min_replicas=0, max_replicas=8)
    assert (changed.min_replicas, changed.max_replicas, changed.paused, changed.revision) == (0, 8, False, 1)
    assert deployments.change(registry, "chat", paused=True).paused
    assert not deployments.change(registry, "chat", paused=False).paused
    for wrong in ({"min_replicas": 9}, {"max_replicas": 0}, {"min_replicas": -1}):
        with pytest.raises(ValueError, match="'min' must be 0"):
            deployments.change(registry, "chat", **wrong)
    deployments.set_state(registry, "chat", DeploymentState.FAILED)
    with pytest.raises(Conflict, match="deployment chat is failed; serve it again first"):
        deployments.change(registry, "chat", max_replicas=9)


def test_as_many_as_share_a_job_are_the_least_that_the_most_may_be(registry: Database) -> None:
    deployments.create(
        registry, "chat", "ada", model="tiny", version=1, model_path="/m/tiny", min_replicas=1, max_replicas=8,
        request={"pack": 4}, by="ada", why="served",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"'max' must be at least 'pack' \(4\), not 3: so many share one job"):
        deployments.change(registry, "chat", max_replicas=3)
    assert deployments.change(registry, "chat", max_replicas=4).max_replicas == 4


def test_recent_replicas_are_the_live_ones_those_that_ended_since_and_the_last_that_was_ready(
    registry: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = iter(range(1, 60))
    monkeypatch.setattr(clock, "now", lambda: f"2026-01-01T00:{next(at):02}:00.000000Z")
    deploy(registry)
    add(registry, "served-first", ReplicaState.READY, ReplicaState.STOPPED)
    add(registry, "served-last", ReplicaState.READY, ReplicaState.LOST)
    add(registry, "never-ready", ReplicaState.FAILED)
    since = clock.now()
    add(registry, "late", ReplicaState.FAILED)
    add(registry, "live")
    deploy(registry, "other")
    add(registry, "others", ReplicaState.READY, deployment="other")
    found = [r.id for r in deployments.recent_replicas(registry, "chat", since)]
    assert found == ["served-last", "late", "live"]
    deployments.set_state(registry, "chat", DeploymentState.FAILED)
    deploy(registry)
    assert [r.id for r in deployments.recent_replicas(registry, "chat", since)] == ["live"]  # which is to be wound down


def test_of_what_ended_the_last_few_are_shown_and_those_whose_job_is_not_accounted_for(
    registry: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = iter(range(1, 60))
    monkeypatch.setattr(clock, "now", lambda: f"2026-01-01T00:{next(at):02}:00.000000Z")
    since = deploy(registry).created_at
    for name in ("open", "first", "second", "third"):
        add(registry, name, ReplicaState.LOST)
    deployments.add_replica(registry, "packed", "chat", "ada", "/runs/packed", pack="open")
    deployments.set_replica_state(registry, "packed", ReplicaState.STOPPED)
    for name in ("fourth", "fifth"):
        add(registry, name, ReplicaState.LOST)
    add(registry, "live")
    job = {"cluster": "c", "job_id": "7", "submitted_at": BEGAN, "key": "k", "purpose": "serve", "owner": "ada"}
    accounting.record(registry, subject="open", **job)
    found = [r.id for r in deployments.shown_replicas(registry, "chat", since, 2)]
    assert found == ["open", "packed", "fourth", "fifth", "live"]
    assert [r.id for r in deployments.shown_replicas(registry, "chat", clock.now(), 2)] == []
