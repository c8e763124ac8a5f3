"""What the planner makes of several things that go wrong at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_world import NOW, World

from launchers.planning.facts import Cluster, Drain, Had, Loaded, Maintenance, Rules, SetState, Settle, StartReplica
from launchers.vllm.failures import Kind
from registry.deployments import DeploymentState
from registry.replicas import ReplicaState

PENDING, STARTING, READY, LOST = ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.READY, ReplicaState.LOST


def having(*replicas: Had, rules: Rules | None = None, **wanted: Any) -> World:
    world = World(rules, **({"stable": 1} | wanted))
    world.replicas = {r.id: r for r in replicas}
    return world


def had(name: str, state: ReplicaState = READY, **more: Any) -> Had:
    served = {"started_at": NOW - 5000, "ready_at": NOW - 4000} if state is READY else {}
    return Had(id=name, state=state, **({"created_at": NOW - 5000} | served | more))


def lost(name: str, ended_at: float = NOW - 400, **more: Any) -> Had:
    return had(name, LOST, ended_at=ended_at, **more)


def starts(world: World) -> list[StartReplica]:
    return [a for a in world.turn().actions if isinstance(a, StartReplica)]


# A rollout.


def goes_on(world: World, seconds: float, step_s: float = 60.0) -> World:
    """Jobs start, and get ready, and nobody calls."""
    for _ in range(int(seconds / step_s)):
        world.turn()
        for r in world.of(PENDING):
            world.run(r.id)
        world.pass_time(step_s)
        for r in world.of(STARTING):
            world.serve(r.id)
        world.change([r.id for r in world.of(ReplicaState.DRAINING)], outstanding=0)
    return world


@pytest.mark.parametrize(("before", "then"), [(3, 2), (2, 1), (4, 2), (3, 0)])
def test_fewer_replicas_and_a_new_revision_may_be_asked_for_at_once(before: int, then: int) -> None:
    world = World(least=before, most=before)
    world.settle_down()
    world.wanted = replace(world.wanted, least=then, most=max(then, 1), revision=2)
    goes_on(world, 7200)
    assert [r.revision for r in world.of(READY)] == [2] * then
    assert world.wanted.stable == 2 or not then


@pytest.mark.parametrize("reason", ["PartitionDown", None])
def test_a_revision_that_mends_what_cannot_start_does_not_wait_for_it(reason: str | None) -> None:
    if reason is not None:
        world = having(had("a1", PENDING, waiting_reason=reason), revision=2)
    else:
        world = having(*[lost(f"a{n}", NOW - 1, failure="crashed") for n in range(14)], revision=2)
    started = starts(world)
    assert [a.revision for a in started] == [2]
    assert starts(world) == []


def test_while_one_serves_a_revision_is_not_tried_as_long_as_slurm_can_start_nothing() -> None:
    world = having(had("a1"), had("a2", PENDING, waiting_reason="Resources"), least=2, revision=2)
    assert starts(world) == []


@pytest.mark.parametrize("wanted", [{"least": 0, "most": 1, "desired": 1}, {"least": 1, "proven": True}])
def test_while_it_is_paused_what_ends_is_replaced_by_what_is_good(wanted: dict[str, Any]) -> None:
    world = having(lost("a1"), paused=True, revision=2, **wanted)
    world.called_at = NOW
    assert [a.revision for a in starts(world)] == [1]


@pytest.mark.parametrize(("state", "failure", "given_up"), [(LOST, None, False), (LOST, "crashed", True)])
def test_requests_that_failed_as_a_trials_job_was_preempted_are_not_held_against_its_revision(
    state: ReplicaState, failure: str | None, given_up: bool
) -> None:
    tried = had("n0", state, revision=2, ready_at=NOW - 100, ended_at=NOW - 1, requests=40, failures=4, failure=failure)
    world = having(had("a1", requests=1000), tried, revision=2)
    assert any(isinstance(a, Settle) for a in world.turn().actions) is given_up


def test_a_takeover_that_is_in_doubt_again_starts_no_fleet_beside_what_has_taken_over() -> None:
    new = [had(f"n{n}", revision=2, requests=n == 0, failures=n == 0) for n in range(4)]
    world = having(*new, had("o0", requests=100), had("o1", requests=100), revision=2, least=5, most=5)
    world.turn()
    assert len(world.slots) <= 6


@pytest.mark.parametrize("leaving", [True, False])
def test_what_takes_a_canarys_place_is_watched_from_its_own_beginning(leaving: bool) -> None:
    tried = had("n0", revision=2, ready_at=NOW - 700, requests=2, failures=2, nodes=("n1",), outstanding=0)
    world = having(had("a1", requests=1000), tried, revision=2, rules=Rules(bake_s=300.0))
    goes_on(world, 600)
    if leaving:
        world.cluster = Cluster(leaving={"n1": "fan"})
    else:
        world.end("n0")
    goes_on(world, 240)
    assert (world.wanted.stable, world.replicas["a1"].state) == (1, READY)
    assert [r.id for r in world.of(READY) if r.revision == 2] not in ([], ["n0"])


def test_a_pause_holds_a_canary_with_its_percentage_however_long_it_lasts() -> None:
    tried = had("n0", revision=2, requests=100)
    world = having(had("a1", requests=100), tried, revision=2, paused=True, canary=5)
    assert [a for a in world.turn().actions if not isinstance(a, SetState)] == []
    assert world.wanted.canary == 5


def test_a_hopeless_revision_beside_one_that_serves_is_not_tried_in_every_turn() -> None:
    world = having(had("a1"), revision=2, stable=None)
    tries = 0
    for _ in range(720):
        tries += len(starts(world))
        for r in world.of(PENDING):
            world.run(r.id)
        world.pass_time(5.0)
        for r in world.of(STARTING):
            world.end(r.id, ReplicaState.FAILED, "bad-argument")
    assert 2 < tries < 14


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("trial", [PENDING, STARTING, READY])
@pytest.mark.parametrize("reason", [None, "Resources"])
@pytest.mark.parametrize("stable", [0, 1])
def test_a_lost_stable_replica_is_replaced_whatever_the_one_on_trial_does(
    paused: bool, trial: ReplicaState, reason: str | None, stable: int
) -> None:
    waits = {"waiting_reason": reason} if trial is PENDING else {}
    on_trial = had("n0", trial, revision=2, **waits)
    if trial is READY:
        on_trial = had("n0", revision=2, ready_at=NOW - 5)
    old = [had(f"r{n}") for n in range(stable)]
    world = having(*old, on_trial, lost("r9"), revision=2, least=stable + 1, paused=paused)
    assert [(a.revision, a.replaces) for a in starts(world)] == [(1, None)]
    assert starts(world) == []


def test_a_rollout_that_is_paused_on_trial_keeps_all_that_serve() -> None:
    world = having(had("r0"), had("n0", revision=2, ready_at=NOW - 5), revision=2, paused=True)
    assert not [a for a in world.turn().actions if isinstance(a, Drain)]


# What says nothing of a revision.


@pytest.mark.parametrize("why", ["not submitted", "preempted"])
@pytest.mark.parametrize("stable", [None, 1])
def test_what_is_lost_without_a_failure_of_its_own_never_gives_up_a_revision_and_is_tried_ever_more_slowly(
    why: str, stable: int | None
) -> None:
    world = having(stable=stable)
    for _ in range(6 * 3600 // 20):
        world.turn()
        for r in world.of(PENDING):
            if why == "preempted":
                world.run(r.id)
            world.end(r.id)
        world.pass_time(20.0)
    assert not world.wanted.state.ended
    assert 30 < world.started < 60


@pytest.mark.parametrize("failure", ["crashed", "bad-model", "cuda", "never-ready", None])
def test_a_proven_revision_is_never_given_up(failure: str | None) -> None:
    world = having()
    for _ in range(6 * 3600 // 20):
        world.turn()
        for r in world.of(PENDING):
            world.run(r.id)
            world.end(r.id, ReplicaState.FAILED, failure)
        world.pass_time(20.0)
    assert world.wanted.state is DeploymentState.STARTING
    assert 30 < world.started < 60


@pytest.mark.parametrize("failure", [Kind.CRASHED, Kind.NEVER_READY, Kind.HUNG])
def test_a_first_revision_whose_engine_is_to_blame_is_given_up_after_four(failure: Kind) -> None:
    blamed = [lost(f"c{n}", NOW - 5000, started_at=NOW - 5000, failure=failure) for n in range(4)]
    for count, state in ((3, DeploymentState.STARTING), (4, DeploymentState.FAILED)):
        world = having(*blamed[:count], lost("x", NOW - 5000), stable=None)
        world.turn()
        assert world.wanted.state is state


# Preemptible and guaranteed ones.

SPARE = Rules(target_tokens=1000, overflow=True)


def test_a_preemptible_replica_that_waits_keeps_no_guaranteed_one_from_being_replaced() -> None:
    waits = {"overflow": True, "waiting_reason": "Resources"}
    world = having(
        *(had("g1"), lost("g2"), had("o1", PENDING, **waits), had("o2", PENDING, **waits)),
        **{"rules": SPARE, "least": 2, "most": 4, "desired": 4},
    )
    world.load = Loaded(4, 4000, 0, 0, 0.0)
    assert [a.overflow for a in starts(world)] == [False]
    assert starts(world) == []


def test_a_guaranteed_replica_that_waits_keeps_no_preemptible_one_from_being_started() -> None:
    world = having(
        *(had("g1"), had("g2", PENDING, waiting_reason="Resources")),
        **{"rules": SPARE, "least": 2, "most": 4, "desired": 3},
    )
    world.load = Loaded(4, 3000, 0, 0, 0.0)
    assert [a.overflow for a in starts(world)] == [True]


def test_losses_of_preemptible_replicas_do_not_delay_guaranteed_ones() -> None:
    preempted = [lost(f"o{n}", NOW - n, started_at=NOW - 900, overflow=True) for n in range(17)]
    world = having(had("g1", ends_at=NOW + 200), *preempted, rules=SPARE, most=2, desired=2)
    world.load = Loaded(4, 2000, 0, 0, 0.0)
    assert [(a.replaces, a.overflow) for a in starts(world)] == [("g1", False)]
    assert any("17 were lost in a row" in words for _, words in world.turn().next)


def test_the_end_of_a_replica_that_serves_does_not_wait_for_long_because_successors_were_lost() -> None:
    failed = [lost(f"s{n}", NOW - 30, replaces="r0", failure="crashed") for n in range(9)]
    world = having(had("r0", ends_at=NOW + 200), *failed)
    assert starts(world) == []
    world.pass_time(30.0)
    assert [a.replaces for a in starts(world)] == ["r0"]


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize(
    ("nodes", "guaranteed_s", "spare_s"),
    [
        ({"n1", "n2"}, 35_940, None),  # an hour ends before it anyway
        ({"n2"}, None, None),
        ({"n1"}, 35_940, None),
    ],
)
def test_time_limits_before_maintenance_are_each_kinds_own(
    overflow: bool, nodes: set[str], guaranteed_s: int | None, spare_s: int | None
) -> None:
    rules = Rules(
        target_tokens=1000, overflow=True, time_limit_s=86_400, overflow_time_limit_s=3600, overflow_partition="spare"
    )
    world = having(*([had("g1")] if overflow else []), rules=rules, most=2, desired=1 + overflow)
    world.load = Loaded(1, 2000 if overflow else 10, 0, 0, 0.0)
    window = Maintenance("m", NOW + 36_000, NOW + 72_000, frozenset(nodes))
    both = {"": frozenset({"n1"}), "spare": frozenset({"n2"})}
    world.cluster = Cluster(maintenance=(window,), partition_nodes=both)
    assert [(a.overflow, a.time_limit_s) for a in starts(world)] == [(overflow, spare_s if overflow else guaranteed_s)]


def test_a_preemptible_job_is_shortened_for_maintenance_of_its_own_partition() -> None:
    rules = Rules(target_tokens=1000, overflow=True, overflow_time_limit_s=7200, overflow_partition="spare")
    both = {"": frozenset({"n1"}), "spare": frozenset({"n2"})}
    for node, shortened in (("n1", 0), ("n2", 1)):
        world = having(had("g1"), had("o1", PENDING, overflow=True), rules=rules, most=2, desired=2)
        world.load = Loaded(1, 2000, 0, 0, 0.0)
        world.cluster = Cluster(
            maintenance=(Maintenance("m", NOW + 3600, NOW + 7200, frozenset({node})),), partition_nodes=both
        )
        world.turn()
        assert (world.replicas["o1"].time_limit_s is not None) is bool(shortened)


# Replicas that share jobs.


@given(
    pack=st.integers(1, 5),
    least=st.integers(0, 6),
    more=st.integers(0, 6),
    tokens=st.integers(0, 20),
    by_load=st.booleans(),
)
def test_never_are_more_wanted_than_the_most_and_never_fewer_than_the_least(
    pack: int, least: int, more: int, tokens: int, by_load: bool
) -> None:
    most = max(least + more, 1)
    rules = Rules(target_tokens=10 if by_load else None, pack=pack, max_step=16)
    world = having(rules=rules, least=least, most=most)
    world.load, world.called_at = Loaded(1, tokens * 10, 0, 0, 0.0), NOW
    world.turn()
    assert max(least, 1) <= len(world.of(PENDING)) <= most


def test_what_shares_a_job_comes_in_whole_jobs_below_the_most() -> None:
    world = having(rules=Rules(target_tokens=10, pack=4, max_step=16), least=1, most=6)
    world.load = Loaded(4, 400_000, 0, 0, 0.0)
    assert len(starts(world)) == 4


@pytest.mark.parametrize("proven", [False, True])
@pytest.mark.parametrize(("count", "jobs"), [(4, [4]), (8, [4, 4]), (6, [2, 4])])
def test_a_rollout_replaces_whole_jobs_by_whole_jobs(count: int, jobs: list[int], proven: bool) -> None:
    world = World(Rules(pack=4), least=count, most=count)
    world.settle_down()
    assert world.jobs == jobs
    world.wanted = replace(world.wanted, revision=2, proven=proven)
    world.settle_down()
    goes_on(world, 3600)
    assert [r.revision for r in world.of(READY)] == [2] * count and world.wanted.stable == 2
    assert world.jobs == jobs
    goes_on(world, 86_400)  # until their time limits are over
    assert world.jobs == jobs and len(world.of(READY)) == count


def test_a_step_down_takes_whole_jobs_and_what_is_left_of_one_first() -> None:
    world = World(Rules(pack=4, target_tokens=100, scale_down_after_s=60, scale_up_every_s=1), least=4, most=8)
    world.load = Loaded(7, 700, 0, 0, 0.0)
    world.settle_down()
    world.end(world.of(READY)[1].id, LOST)
    world.settle_down()
    assert world.jobs == [1, 3, 4]
    world.load = Loaded(0, 0, 0, 0, 0.0)
    goes_on(world, 1800)
    assert world.jobs == [4]


def test_jobs_that_are_not_equally_far_are_left_whole() -> None:
    def two(job: str, created_at: float) -> list[Had]:
        states = ((f"{job}1", READY), (f"{job}2", STARTING))  # one is started again in place
        return [had(name, state, job=job, created_at=created_at) for name, state in states]

    world = having(*two("a", NOW - 50), *two("b", NOW - 40), *two("c", NOW - 30), rules=Rules(pack=2), least=4, most=4)
    world.turn()
    assert len(world.slots) == 6  # none goes as long as fewer serve than are wanted
    world.change(["a2", "b2", "c2"], state=READY, ready_at=NOW)
    world.turn()
    assert [r.id for r in world.slots] == ["a1", "a2", "b1", "b2"]
