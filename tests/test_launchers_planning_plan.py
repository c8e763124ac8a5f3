"""What the planner decides, rule by rule, on data. Its clock stands at NOW."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from planning_world import World

from launchers.launch import CLOSING_S
from launchers.planning import rollover
from launchers.planning.facts import (
    Cluster,
    Drain,
    EndTrial,
    Had,
    Loaded,
    Maintenance,
    Options,
    Rules,
    Scale,
    SetState,
    Settle,
    Shorten,
    Situation,
    StartReplica,
    Stop,
    Timings,
    Wanted,
    Warn,
)
from launchers.planning.plan import plan
from launchers.submit import signal_lead_s
from registry.deployments import DeploymentState
from registry.replicas import ReplicaState

NOW = 1_000_000.0
KNOWN = Cluster()


def deployment(state: str = "ready", rules: dict[str, Any] | None = None, **more: Any) -> Wanted:
    more = {"least": 1, "most": 8, "stable": 1} | more
    return Wanted(name="chat", state=DeploymentState(state), rules=Rules(**(rules or {})), **more)


def replica(name: str, state: str = "ready", **more: Any) -> Had:
    """`was STATE`: it had been ready, for an hour."""
    now = ReplicaState(state.removeprefix("was "))
    times: dict[str, Any] = {"created_at": NOW - 5000}
    if state.startswith("was ") or now in (ReplicaState.READY, ReplicaState.DRAINING):
        times |= {"started_at": NOW - 4900, "ready_at": NOW - 4000}
    if now.ended:
        times |= {"ended_at": NOW - 400}
    if now is ReplicaState.DRAINING:
        times |= {"draining_at": NOW - 1}
    return Had(id=name, state=now, **(times | more))


def decided(wanted: Wanted, *replicas: Had, cluster: Cluster = KNOWN, **more: Any) -> list[Any]:
    """As pairs of words where that says enough: ("start", revision), ("drain", id), ("stop", id), ("is", state)."""
    found = plan(Situation(wanted=wanted, replicas=replicas, now=NOW, **more), cluster)
    return [_short(action) for action in found.actions]


def _short(action: object) -> object:
    match action:
        case StartReplica(replaces=None):
            return ("start", action.revision)
        case StartReplica():
            return ("succeed", action.replaces)
        case Drain():
            return ("drain", action.replica)
        case Stop():
            return ("stop", action.replica)
        case SetState(cause=None):
            return ("is", str(action.state))
        case SetState():
            return ("is", str(action.state), action.cause)
        case Scale():
            return ("scale", action.desired)
        case Settle():
            return ("settle", action.revision, action.good)
    return action


@pytest.mark.parametrize(
    ("state", "states", "actions"),
    [
        ("starting", [], [("start", 1)]),
        ("starting", ["pending"], []),
        ("starting", ["starting"], []),
        ("starting", ["ready"], [("is", "ready")]),
        ("ready", ["ready"], []),
        ("ready", ["was lost"], [("start", 1), ("is", "starting")]),
        ("ready", ["was stopped"], [("start", 1), ("is", "starting")]),
        ("ready", ["was lost", "pending"], [("is", "starting")]),
        ("ready", ["draining"], [("start", 1), ("is", "starting")]),
        ("ready", ["ready", "ready"], [("drain", "r0")]),
        ("ready", ["ready", "pending"], [("stop", "r1")]),
        ("stopping", ["ready"], [("drain", "r0")]),
        ("stopping", ["draining"], []),
        ("stopping", ["pending", "starting"], [("stop", "r0"), ("stop", "r1")]),
        ("stopping", ["was stopped"], [("is", "stopped")]),
        ("failed", ["ready"], [("drain", "r0")]),
        ("stopped", ["pending"], [("stop", "r0")]),
        ("stopped", [], []),
    ],
)
def test_one_replica_is_kept(state: str, states: list[str], actions: list[object]) -> None:
    assert decided(deployment(state), *(replica(f"r{n}", one) for n, one in enumerate(states))) == actions


# How many.


def load(tokens: int, waited_s: float = 0.0) -> Loaded:
    return Loaded(running=tokens // 100, running_tokens=tokens, queued=0, queued_tokens=0, waited_s=waited_s)


@pytest.mark.parametrize(
    ("tokens", "waited_s", "desired", "more", "scaled"),
    [
        (5200, 0.0, 3, {}, None),
        (5200, 0.0, 1, {}, 3),
        (5200, 0.0, 1, {"most": 2}, 2),
        (50_000, 0.0, 1, {"most": 20}, 5),  # one step
        (50_000, 0.0, 1, {"most": 20, "scaled_at": NOW - 29}, None),
        (50_000, 0.0, 1, {"most": 20, "scaled_at": NOW - 30}, 5),
        (0, 11.0, 1, {}, 2),  # one ready, and a request waits too long
        (0, 11.0, 2, {}, 2),  # the one that comes already is the answer; only that the load is not low is new
        (1000, 0.0, 3, {"low_since": NOW - 299}, None),
        (1000, 0.0, 3, {"low_since": NOW - 300}, 2),
        (1000, 0.0, 3, {"low_since": NOW - 900, "scaled_at": NOW - 29}, None),
        (1000, 0.0, 3, {"low_since": NOW - 900, "scaled_at": NOW - 31}, 2),
        (0, 0.0, 1, {}, None),
    ],
)
def test_load_asks_for_replicas(
    tokens: int, waited_s: float, desired: int, more: dict[str, Any], scaled: int | None
) -> None:
    wanted = deployment(rules={"target_tokens": 2000}, desired=desired, **more)
    replicas = [replica("r0"), *(replica(f"r{n}", "starting") for n in range(1, desired))]
    actions = decided(wanted, *replicas, load=load(tokens, waited_s))
    counts = [n for what, n, *_ in actions if what == "scale" and n != desired]
    assert counts == ([scaled] if scaled not in (None, desired) else [])
    new = max((scaled or desired) - desired, 0)
    assert [what for what, *_ in actions].count("start") == new


def test_when_the_load_begins_to_ask_for_fewer_that_is_remembered_and_forgotten_when_it_does_not() -> None:
    three = [replica(f"r{n}") for n in range(3)]
    wanted = deployment(rules={"target_tokens": 2000}, desired=3)
    (low,) = plan(Situation(wanted=wanted, replicas=tuple(three), load=load(1000), now=NOW), KNOWN).actions
    assert low == Scale("chat", 3, NOW, "")
    wanted = deployment(rules={"target_tokens": 2000}, desired=3, low_since=NOW - 100)
    (high,) = plan(Situation(wanted=wanted, replicas=tuple(three), load=load(5000), now=NOW), KNOWN).actions
    assert high == Scale("chat", 3, None, "")


def test_of_more_than_one_that_is_not_needed_one_goes_and_the_words_say_why() -> None:
    wanted = deployment(rules={"target_tokens": 2000}, desired=3, low_since=NOW - 900)
    three = tuple(replica(f"r{n}") for n in range(3))
    decision = plan(Situation(wanted=wanted, replicas=three, load=load(1000), now=NOW), KNOWN)
    words = "1,000 tokens are queued or running, 2,000 each: 1 would do, and not all go at once"
    assert decision.actions[0] == Scale("chat", 2, NOW - 900, words)
    assert [_short(a) for a in decision.actions[1:]] == [("drain", "r0")]
    assert decision.why[0] == f"wants 2 replicas: {words}"


def test_while_no_gateway_says_what_the_load_is_nothing_is_scaled() -> None:
    wanted = deployment(rules={"target_tokens": 2000}, desired=3, low_since=NOW - 900)
    assert decided(wanted, *(replica(f"r{n}") for n in range(3)), load=None) == []


def test_replicas_that_share_jobs_come_in_multiples() -> None:
    wanted = deployment(rules={"target_tokens": 2000, "pack": 4}, desired=4)
    four = [replica(f"r{n}") for n in range(4)]
    assert decided(wanted, *four, load=load(9000)) == [("scale", 8), *[("start", 1)] * 4]


def test_what_slurm_cannot_start_is_not_asked_for_twice() -> None:
    wanted = deployment(rules={"target_tokens": 2000}, desired=2)
    waits = replica("r1", "pending", waiting_reason="Resources")
    situation = Situation(wanted=wanted, replicas=(replica("r0"), waits), load=load(7900), now=NOW)
    decision = plan(situation, KNOWN)
    assert [_short(a) for a in decision.actions] == [("scale", 4)]
    assert "2 more are wanted; Slurm cannot start the one that waits (Resources), so none is submitted" in decision.why
    # The least is kept whatever waits.
    assert decided(deployment(least=3), replica("r0"), waits) == [("start", 1)]


def test_a_paused_deployment_is_not_scaled_but_what_it_loses_is_replaced() -> None:
    wanted = deployment(rules={"target_tokens": 2000}, desired=2, paused=True, low_since=NOW - 9999)
    assert decided(wanted, replica("r0"), replica("r1"), load=load(50_000)) == []
    assert decided(wanted, replica("r0"), replica("r1", "was lost"), load=load(0)) == [("start", 1)]


def test_what_is_beyond_the_least_is_preemptible_where_that_is_asked_for_and_goes_first() -> None:
    wanted = deployment(rules={"target_tokens": 2000, "overflow": True}, least=2, desired=2)
    two = [replica("r0"), replica("r1")]
    actions = plan(Situation(wanted=wanted, replicas=tuple(two), load=load(7900), now=NOW), KNOWN).actions
    assert [a.overflow for a in actions if isinstance(a, StartReplica)] == [True, True]
    low = deployment(rules={"target_tokens": 2000, "overflow": True}, least=2, desired=3, low_since=NOW - 900)
    assert decided(low, replica("r0", overflow=True), *two[1:], replica("r2"), load=load(0)) == [
        ("scale", 2),
        ("drain", "r0"),
    ]
    # A guaranteed one that is lost is replaced by a guaranteed one, also where preemptible ones would do by number.
    (start,) = plan(
        Situation(wanted=wanted, replicas=(replica("r0"), replica("r1", overflow=True)), load=load(1), now=NOW), KNOWN
    ).actions
    assert isinstance(start, StartReplica) and not start.overflow


# To zero, and from there.

SLEEPER: dict[str, Any] = {"least": 0, "most": 1}


@pytest.mark.parametrize(
    ("state", "states", "called_s_ago", "actions"),
    [
        ("starting", [], None, [("is", "asleep")]),
        ("asleep", [], None, []),
        ("asleep", [], 899, [("scale", 1), ("start", 1), ("is", "starting")]),
        ("asleep", [], 900, []),
        ("asleep", [], 100_001, []),  # a former deployment of the name was called
        ("ready", ["ready"], 899, [("scale", 1)]),
        ("ready", ["ready"], 900, [("drain", "r0"), ("is", "asleep")]),
        ("asleep", ["draining"], 1, [("scale", 1), ("start", 1), ("is", "starting")]),
        # What comes up when nobody calls any more goes on; when it is lost nobody waits for another one.
        ("starting", ["pending"], 900, []),
        ("starting", ["starting"], 900, []),
        ("starting", ["lost"], 900, [("is", "asleep")]),
    ],
)
def test_a_deployment_sleeps_while_nobody_calls_it(
    state: str, states: list[str], called_s_ago: float | None, actions: list[object]
) -> None:
    called_at = None if called_s_ago is None else NOW - called_s_ago
    replicas = [replica(f"r{n}", one) for n, one in enumerate(states)]
    assert decided(deployment(state, **SLEEPER), *replicas, called_at=called_at) == actions


def test_a_replica_that_came_up_too_late_is_kept_for_its_caller_to_come_again() -> None:
    late = replica("r0", ready_at=NOW - 800)
    assert decided(deployment(desired=1, **SLEEPER), late, called_at=NOW - 5000) == []
    later = replica("r0", ready_at=NOW - 900)
    assert ("drain", "r0") in decided(deployment(desired=1, **SLEEPER), later, called_at=NOW - 5000)


# What ends.

# With ten minutes to drain, and shut down before Slurm's signal: 1,210 s before.
TIMINGS = Timings(queue_s=300.0, start_s=200.0)


@pytest.mark.parametrize(
    ("left_s", "actions"), [(1211, []), (1210, [("succeed", "r0")]), (111, [("succeed", "r0")]), (110, ["both"])]
)
def test_a_successor_is_submitted_in_time(left_s: float, actions: list[object]) -> None:
    found = decided(deployment(), replica("r0", ends_at=NOW + left_s), timings=TIMINGS)
    if actions == ["both"]:  # too late to wait for anyone: requests that are in flight must end
        assert found == [("drain", "r0"), ("start", 1), ("is", "starting")]
    else:
        assert found == actions


def test_there_is_one_successor_at_a_time_and_the_old_one_drains_when_it_serves() -> None:
    old = replica("r0", ends_at=NOW + 900)
    coming, ready = replica("r1", "starting", replaces="r0"), replica("r1", replaces="r0", ends_at=NOW + 80_000)
    assert decided(deployment(), old, coming, timings=TIMINGS) == []
    assert decided(deployment(), old, ready, timings=TIMINGS) == [("drain", "r0")]
    lost = replica("r1", "lost", replaces="r0", ended_at=NOW - 60)
    assert decided(deployment(), old, lost, timings=TIMINGS) == [("succeed", "r0")]
    # Not for one that starts, until it is clear that it will never serve.
    assert decided(deployment(), replica("r0", "starting", ends_at=NOW + 900), timings=TIMINGS)[:-1] == []
    assert ("succeed", "r0") in decided(deployment(), replica("r0", "starting", ends_at=NOW + 80), timings=TIMINGS)


@pytest.mark.parametrize("limit_s", [60, 120, 180, 300, 480, 3600, 86_400])
@pytest.mark.parametrize("margin_s", [1.0, 60.0, 600.0])
def test_a_replica_drains_and_stops_before_slurm_signals_its_job_whatever_the_margin(
    limit_s: int, margin_s: float
) -> None:
    """sbatch is told so many seconds before its end, and Slurm, which looks every 30 s, may be as much earlier."""
    signal_s = min(signal_lead_s(limit_s, 30 + CLOSING_S) + 30, limit_s / 3)
    rules = {"time_limit_s": limit_s, "margin_s": margin_s}
    ready = replica("r0", ends_at=NOW + signal_s)
    assert ("drain", "r0") in decided(deployment(rules=rules), ready)
    drains = replica("r0", "draining", draining_at=NOW - 1, outstanding=2, ends_at=NOW + signal_s)
    assert ("stop", "r0") in decided(deployment(rules=rules), drains)


def test_the_time_to_drain_is_no_large_part_of_a_short_job() -> None:
    short = deployment(rules={"time_limit_s": 600})
    assert decided(short, replica("r0", ends_at=NOW + 600 - 1), timings=Timings(0.0, 60.0)) == []
    assert decided(short, replica("r0", ends_at=NOW + 270), timings=Timings(0.0, 60.0)) == [("succeed", "r0")]


@pytest.mark.parametrize(
    ("fields", "stops"),
    [
        ({"draining_at": NOW - 2, "outstanding": 0}, False),  # not every gateway has heard of it
        ({"draining_at": NOW - 3, "outstanding": 0}, True),
        ({"draining_at": NOW - 599, "outstanding": 2}, False),
        ({"draining_at": NOW - 600, "outstanding": 2}, True),
        ({"draining_at": NOW - 60, "outstanding": 2, "ends_at": NOW + 111}, False),
        ({"draining_at": NOW - 60, "outstanding": 2, "ends_at": NOW + 110}, True),
        ({"draining_at": NOW - 29, "outstanding": None}, False),  # no gateway lives
        ({"draining_at": NOW - 30, "outstanding": None}, True),
    ],
)
@pytest.mark.parametrize("state", ["ready", "stopping", "stopped"])
def test_what_drains_is_stopped_when_it_is_empty_or_its_time_is_over(
    fields: dict[str, Any], stops: bool, state: str
) -> None:
    found = decided(deployment(state), replica("r0"), replica("r1", "draining", **fields))
    assert (("stop", "r1") in found) is stops


def test_a_replica_on_a_node_that_is_to_be_left_is_succeeded_and_one_on_a_dead_node_left_to_slurm() -> None:
    there = replica("r0", nodes=("n1", "n2"))
    assert decided(deployment(), there, cluster=Cluster(leaving={"n2": "broken fan"})) == [("succeed", "r0")]
    assert decided(deployment(), there, cluster=Cluster(leaving={"n3": "broken fan"}, down={"n2": "dead"})) == []


def test_what_slurm_said_of_a_node_before_a_job_began_there_is_not_believed_of_it() -> None:
    there = replica("r0", nodes=("n1",), started_at=NOW - 20)
    for seen_at, does in ((NOW - 21, []), (NOW - 19, [("succeed", "r0")]), (None, [("succeed", "r0")])):
        cluster = Cluster(leaving={"n1": "broken fan"}, seen_at=seen_at)
        assert decided(deployment(), there, cluster=cluster) == does


def test_a_successor_that_waits_is_called_off_when_the_node_is_not_left_after_all() -> None:
    old, waits = replica("r0", nodes=("n1",)), replica("r1", "pending", replaces="r0")
    leaving = Cluster(leaving={"n1": "broken fan"})
    assert decided(deployment(), old, waits, cluster=leaving) == []
    assert decided(deployment(), old, waits) == [("stop", "r1")]
    assert decided(deployment(), old, replica("r1", "starting", replaces="r0")) == []  # it has what it waited for
    # One that is due soon stays: what a start is measured to take changes with each.
    rules = {"drain_s": 30.0, "margin_s": 60.0, "time_limit_s": 700}
    lead = 60 + 30 + rollover.stop_s(Situation(wanted=deployment(rules=rules), now=NOW), old)
    for left_s, does in ((lead - 1, []), (2 * lead, []), (2 * lead + 1, [("stop", "r1")])):
        ends = replace(old, ends_at=NOW + left_s)
        found = decided(deployment(rules=rules), ends, waits, timings=Timings(0.0, 60.0))
        assert found == does, left_s
    for left_s, does in ((3600, []), (3601, [("stop", "r1")])):  # and so does one in the second half of a job
        ends = replace(old, ends_at=NOW + left_s)
        assert decided(deployment(rules={"time_limit_s": 7200}), ends, waits) == does, left_s


def test_while_slurm_is_not_known_nothing_is_done() -> None:
    silent = Cluster(known=False, silence="squeue timed out")
    for state, states in (("ready", ["was lost"]), ("stopping", ["ready"]), ("starting", []), ("stopping", [])):
        decision = plan(
            Situation(wanted=deployment(state), replicas=tuple(replica("r0", one) for one in states), now=NOW), silent
        )
        assert decision.actions == ()
        assert "squeue timed out" in decision.why[0]


# Maintenance.

ALL = frozenset({"n1", "n2"})


def maintained(left_s: float, nodes: frozenset[str] = ALL, goes_on: float = 7200.0) -> Cluster:
    window = Maintenance("upgrade", NOW + left_s, NOW + left_s + goes_on, nodes)
    return Cluster(maintenance=(window,), partition_nodes={"": ALL})


@pytest.mark.parametrize(
    ("left_s", "nodes", "limit"),
    [
        (7200, ALL, 7080),  # two hours less a minute's margin and the quarter of a minute that it may wait, in minutes
        (7200, frozenset({"n1"}), None),  # Slurm has another node for it
        (690, ALL, 600),
        (600, ALL, None),  # not worth its start: it waits behind the maintenance
        (200_000, ALL, None),
        (-10, ALL, None),
    ],
)
def test_jobs_are_short_enough_to_end_before_maintenance(
    left_s: float, nodes: frozenset[str], limit: int | None
) -> None:
    timings = Timings(15.0, 60.0)
    found = plan(Situation(wanted=deployment(), timings=timings, now=NOW), maintained(left_s, nodes)).actions
    (start,) = [a for a in found if isinstance(a, StartReplica)]
    assert start.time_limit_s == limit


def test_a_job_that_waits_is_shortened_before_maintenance_once() -> None:
    waits = replica("r0", "pending", time_limit_s=None)
    shorter = Shorten("r0", 7140, "it starts before maintenance upgrade if it ends before it")
    assert shorter in decided(deployment("starting"), waits, cluster=maintained(7200), timings=Timings(0.0, 60.0))
    fits = replica("r0", "pending", time_limit_s=7140)
    found = decided(deployment("starting"), fits, cluster=maintained(7200), timings=Timings(0.0, 60.0))
    assert not any(isinstance(a, Shorten) for a in found)


def test_tenants_are_warned_of_maintenance_in_the_same_words_as_time_passes() -> None:
    cluster = maintained(7200)
    situation = Situation(wanted=deployment(), replicas=(replica("r0"),), now=NOW)
    (warning,) = plan(situation, cluster).actions
    assert isinstance(warning, Warn)
    assert warning.words == (
        "chat will not be served during maintenance upgrade, from 1970-01-12 15:46 UTC to 1970-01-12 17:46 UTC: it "
        "takes all nodes of the default partition"
    )
    (again,) = plan(replace(situation, now=NOW + 100), cluster).actions
    assert again == warning
    assert plan(situation, maintained(7200, frozenset({"n1"}))).actions == ()


def test_what_waits_for_the_end_of_maintenance_says_so() -> None:
    decision = plan(Situation(wanted=deployment("starting"), now=NOW), maintained(300))
    assert "maintenance upgrade takes all its nodes until 15:51 UTC: new jobs wait for its end" in decision.why


def test_no_job_is_started_before_maintenance_that_would_start_up_for_most_of_its_time() -> None:
    for start_s, limit in ((3570.0, 7140), (3600.0, None)):
        found = plan(Situation(wanted=deployment(), timings=Timings(0.0, start_s), now=NOW), maintained(7200)).actions
        (start,) = [a for a in found if isinstance(a, StartReplica)]
        assert start.time_limit_s == limit


def test_no_job_gets_less_time_for_maintenance_than_its_own_least() -> None:
    for least_s, limit in ((7140, 7140), (7200, None)):
        wanted = deployment("starting", rules={"options": Options(time_min_s=least_s)})
        situation = Situation(wanted=wanted, timings=Timings(0.0, 60.0), now=NOW)
        (start,) = [a for a in plan(situation, maintained(7200)).actions if isinstance(a, StartReplica)]
        assert start.time_limit_s == limit
        waits = replace(situation, replicas=(replica("r0", "pending"),))
        shortened = [a.time_limit_s for a in plan(waits, maintained(7200)).actions if isinstance(a, Shorten)]
        assert shortened == ([] if limit is None else [limit])


# Rollouts.


def rolling(**more: Any) -> Wanted:
    return deployment(**({"revision": 2, "rollout_at": NOW - 1000} | more))


def new(name: str, state: str = "ready", **more: Any) -> Had:
    """A replica of revision 2, watched for long enough, that has answered enough."""
    fields = {"revision": 2, "ready_at": NOW - 400, "requests": 100} if state == "ready" else {"revision": 2}
    return replica(name, state, **(fields | more))


@pytest.mark.parametrize(
    ("replicas", "actions"),
    [
        ([replica("r0")], [("start", 2)]),
        ([replica("r0"), new("n0", "starting")], []),
        ([replica("r0"), new("n0", ready_at=NOW - 299)], []),
        ([replica("r0"), new("n0", requests=19)], []),
        ([replica("r0"), new("n0", requests=19, ready_at=NOW - 600)], [("drain", "r0"), ("settle", 2, True)]),
        ([replica("r0"), new("n0")], [("drain", "r0"), ("settle", 2, True)]),
        ([new("n0")], [("settle", 2, True)]),
        # Worse: five points more failures, at least three; or half as slow again.
        ([replica("r0", requests=100), new("n0", failures=3, requests=50)], [("settle", 2, False), ("drain", "n0")]),
        ([replica("r0", requests=100), new("n0", failures=2, requests=20)], [("drain", "r0"), ("settle", 2, True)]),
        # Gateways avoid what fails: the one request that it was given says nothing good of it, however long ago.
        ([replica("r0", requests=100), new("n0", failures=1, requests=1, ready_at=NOW - 9999)], []),
        (
            [replica("r0", requests=100, failures=40), new("n0", failures=43)],
            [("drain", "r0"), ("settle", 2, True)],
        ),
        (
            [
                replica("r0", first_outputs=10, first_output_s=1.0),
                new("n0", first_outputs=10, first_output_s=2.01, ready_at=NOW - 1),
            ],
            [("settle", 2, False), ("drain", "n0")],
        ),
        (
            [
                replica("r0", first_outputs=10, first_output_s=1.0),
                new("n0", first_outputs=10, first_output_s=1.99, ready_at=NOW - 1),
            ],
            [],
        ),
        # It cannot get ready.
        ([replica("r0"), new("n0", "failed", failure="bad-argument", cause="no")], [("settle", 2, False)]),
        ([replica("r0"), new("n0", "failed", failure="crashed", cause="no")], [("start", 2)]),
        (
            [replica("r0"), *(new(f"n{k}", "failed", failure="crashed", cause="no") for k in range(4))],
            [("settle", 2, False)],
        ),
    ],
)
def test_a_revision_is_tried_judged_and_rolled_out(replicas: list[Had], actions: list[object]) -> None:
    assert decided(rolling(), *replicas) == actions


def test_a_rollout_goes_on_one_by_one_and_never_serves_with_fewer() -> None:
    old = [replica(f"r{n}") for n in range(3)]
    wanted = rolling(least=3)
    assert decided(wanted, *old, new("n0")) == [("drain", "r0"), ("start", 2)]
    assert decided(wanted, *old[1:], new("n0"), new("n1", "starting")) == []
    assert decided(wanted, *old[1:], new("n0"), new("n1")) == [("drain", "r1"), ("start", 2)]
    assert decided(wanted, old[2], new("n0"), new("n1"), new("n2")) == [("drain", "r2"), ("settle", 2, True)]
    # However few calls it was to get before, from now on its replicas get theirs.
    few = replace(wanted, canary=10)
    assert decided(few, *old, new("n0")) == [("drain", "r0"), ("start", 2), EndTrial("chat", 2)]
    assert decided(few, *old, new("n0", ready_at=NOW - 1)) == []
    assert decided(few, old[2], new("n0"), new("n1"), new("n2")) == [("drain", "r2"), ("settle", 2, True)]


def test_what_was_good_before_takes_over_without_a_trial() -> None:
    back = rolling(proven=True)
    assert decided(back, replica("r1")) == [("start", 2)]
    assert decided(back, replica("r1"), new("n1", ready_at=NOW - 1)) == [
        ("drain", "r1"),
        ("settle", 2, True),
    ]


def test_a_paused_rollout_takes_no_step() -> None:
    assert decided(rolling(paused=True), replica("r0")) == []
    two = replica("r0"), replica("r1")
    assert decided(rolling(paused=True, least=2), *two, new("n0", failures=50)) == []
    assert decided(rolling(paused=True), replica("r0", "was lost")) == [("start", 1), ("is", "starting")]


def test_a_revision_for_a_deployment_that_sleeps_settles_when_it_first_serves() -> None:
    assert decided(rolling(state="asleep", **SLEEPER)) == []
    woken = decided(rolling(state="asleep", **SLEEPER), called_at=NOW - 1)
    assert woken == [("scale", 1), ("start", 2), ("is", "starting")]
    ready = new("n0", ready_at=NOW - 1, requests=0)
    assert decided(rolling(desired=1, **SLEEPER), ready, called_at=NOW - 1) == [("settle", 2, True)]
    hopeless = new("n0", "failed", failure="bad-model", cause="no")
    assert ("settle", 2, False) in decided(rolling(state="asleep", **SLEEPER), hopeless, called_at=NOW - 1)


def test_when_yet_another_revision_is_wanted_the_one_between_goes_first() -> None:
    wanted = rolling(revision=3, least=2)
    between = new("n0")
    # The stable one's number is made up before anything of the newest is tried.
    assert decided(wanted, replica("r0"), replica("r1"), between) == [("drain", "n0"), ("start", 3)]
    assert decided(wanted, replica("r0"), between) == [("start", 1)]
    assert decided(wanted, replica("r0"), replica("r1"), new("n0", "starting")) == [("stop", "n0"), ("start", 3)]


def test_a_first_revision_is_good_when_it_serves() -> None:
    first = deployment("starting", stable=None)
    assert decided(first, replica("r0")) == [("settle", 1, True), ("is", "ready")]


# Crashes.


def crashes(count: int, state: str = "lost", last_s_ago: float = 5000.0, **more: Any) -> list[Had]:
    return [
        replica(f"c{n}", state, created_at=NOW - 9000, ended_at=NOW - last_s_ago - n, cause=f"cause {n}", **more)
        for n in range(count)
    ]


@pytest.mark.parametrize("failure", ["bad-model", "bad-argument", "out-of-memory", None])
def test_a_first_revision_that_can_never_work_fails_at_once(failure: str | None) -> None:
    found = decided(
        deployment("starting", stable=None), *crashes(1, "failed", failure=failure), replica("r0", "pending")
    )
    assert found == [("is", "failed", "cause 0"), ("stop", "r0")]


@pytest.mark.parametrize(("count", "wait_s"), [(1, 10), (2, 20), (3, 40), (6, 320)])
def test_losses_in_a_row_are_retried_later_each_time(count: int, wait_s: float) -> None:
    early, late = (crashes(count, last_s_ago=wait_s + more) for more in (-1, 0))
    assert decided(deployment("starting"), *early) == []
    assert decided(deployment("starting"), *late) == [("start", 1)]


def test_too_many_losses_in_a_row_are_the_end_of_what_never_served_only() -> None:
    never = deployment("starting", stable=None)
    assert decided(never, *crashes(3, failure="crashed")) == [("start", 1)]
    failed = [("is", "failed", "4 replicas were lost, the last one: cause 0")]
    assert decided(never, *crashes(4, failure="crashed")) == failed
    assert decided(never, *crashes(9)) == [("start", 1)]
    assert decided(deployment("starting"), *crashes(9, failure="crashed")) == [("start", 1)]


def test_losses_before_a_replica_served_are_forgotten() -> None:
    served = replica("r0", "was lost", ready_at=NOW - 4000, ended_at=NOW - 1000)
    assert decided(deployment("starting"), *crashes(9), served) == [("start", 1)]


def test_a_crash_soon_after_it_was_ready_is_a_loss_and_preemption_is_not() -> None:
    soon = {"ready_at": NOW - 100, "ended_at": NOW - 5}
    crashed, preempted = replica("r0", "was failed", failure="crashed", **soon), replica("r0", "was lost", **soon)
    assert decided(deployment("starting"), crashed) == []
    assert decided(deployment("starting"), preempted) == [("start", 1)]


def test_what_we_had_end_before_it_was_ready_is_no_loss() -> None:
    stopped = crashes(9, "stopped", last_s_ago=1.0, draining_at=NOW - 20)
    assert decided(deployment("starting"), *stopped) == [("start", 1)]


def test_while_another_replica_serves_it_is_tried_ever_more_slowly_but_never_given_up() -> None:
    wanted = deployment(least=2)
    lost = [replica(f"c{n}", "lost", failure="crashed", ended_at=NOW - 599 - n) for n in range(20)]
    decision = plan(Situation(wanted=wanted, replicas=(replica("r0"), *lost), now=NOW), KNOWN)
    assert decision.actions == ()
    assert any(line.startswith("replicas are lost again and again") for line in decision.why)
    later = replace(Situation(wanted=wanted, replicas=(replica("r0"), *lost), now=NOW), now=NOW + 1)
    assert [_short(a) for a in plan(later, KNOWN).actions] == [("start", 1)]


def test_a_node_that_failed_a_replica_is_avoided_for_an_hour_unless_there_is_no_other() -> None:
    failed = crashes(9, "failed", failure="cuda", nodes=("n1",), last_s_ago=700.0)
    (start,) = plan(
        Situation(wanted=deployment("starting", stable=None), replicas=tuple(failed), now=NOW), KNOWN
    ).actions
    assert isinstance(start, StartReplica) and start.exclude == ("n1",)
    only = Cluster(partition_nodes={"": frozenset({"n1"})})
    (start,) = plan(Situation(wanted=deployment("starting"), replicas=tuple(failed[:6]), now=NOW), only).actions
    assert isinstance(start, StartReplica) and start.exclude == ()
    old = crashes(1, "failed", failure="node", nodes=("n1",), last_s_ago=3600.0)
    (start,) = plan(Situation(wanted=deployment("starting"), replicas=tuple(old), now=NOW), KNOWN).actions
    assert isinstance(start, StartReplica) and start.exclude == ()


@pytest.mark.parametrize(
    ("own", "excluded"),
    [
        (Options(nodelist=True), ()),
        (Options(exclude=frozenset({"n2"})), ()),
        (Options(exclude=frozenset({"n3"})), ("n1",)),
    ],
)
def test_a_node_that_failed_a_replica_is_not_avoided_where_the_owner_left_no_other(
    own: Options, excluded: tuple[str, ...]
) -> None:
    both = Cluster(partition_nodes={"": frozenset({"n1", "n2"})})
    failed = crashes(1, "failed", failure="cuda", nodes=("n1",), last_s_ago=700.0)
    wanted = deployment("starting", stable=None, rules={"options": own})
    (start,) = plan(Situation(wanted=wanted, replicas=tuple(failed), now=NOW), both).actions
    assert isinstance(start, StartReplica) and start.exclude == excluded
    again = crashes(4, "failed", failure="cuda", nodes=("n1",), last_s_ago=700.0)
    found = decided(wanted, *again, cluster=both)
    assert (found == [("start", 1)]) is bool(excluded)  # otherwise it is given up: each node it may have was tried


@pytest.mark.parametrize(
    ("nodes", "count", "given_up"),
    [
        ({"n1"}, 3, False),  # as many as of any other losses
        ({"n1"}, 4, True),
        ({"n1", "n2"}, 4, False),  # the other node may do
        ({"n1", "n2"}, 9, False),
        ({"n1", "n2"}, 10, True),  # but the cluster never gives it
        (set(), 9, False),  # which nodes there are is not known
        (set(), 10, True),
    ],
)
def test_failures_of_nodes_count_once_every_node_has_failed_or_very_many_times(
    nodes: set[str], count: int, given_up: bool
) -> None:
    failed = crashes(count, "failed", failure="cuda", nodes=("n1",))
    cluster = Cluster(partition_nodes={"": frozenset(nodes)} if nodes else {})
    found = decided(deployment("starting", stable=None), *failed, cluster=cluster)
    words = f"{count} replicas were lost, the last one: cause 0"
    assert found == ([("is", "failed", words)] if given_up else [("start", 1)])


def test_a_node_that_is_down_is_none_that_has_yet_to_be_tried() -> None:
    failed = crashes(4, "failed", failure="node", nodes=("n1",))
    both = Cluster(partition_nodes={"": frozenset({"n1", "n2"})}, down={"n2": "no power"})
    ((what, state, _),) = decided(deployment("starting", stable=None), *failed, cluster=both)
    assert (what, state) == ("is", "failed")


def test_a_former_deployments_replicas_are_wound_down_and_count_for_nothing() -> None:
    former = {"former": True}
    found = decided(deployment("starting"), replica("r0", **former), replica("r1", "pending", **former))
    assert found == [("drain", "r0"), ("stop", "r1"), ("start", 1)]
    assert decided(deployment("starting"), *(replica(f"c{n}", "failed", **former) for n in range(9))) == [("start", 1)]


def test_a_time_limit_that_comes_before_the_engine_is_ready_is_a_crash_loop_too() -> None:
    world = World(rules=Rules(time_limit_s=300), least=1, most=1)
    found: list[object] = []
    while world.now < NOW + 7200 and not found:
        found = [a for a in world.turn().actions if isinstance(a, SetState)]
        for r in world.of(ReplicaState.PENDING):
            world.run(r.id)
        world.pass_time(10)
    cause = "4 replicas were lost, the last one: its job's time limit came before it was ready"
    assert found == [SetState("chat", DeploymentState.FAILED, cause)]


@pytest.mark.parametrize(
    ("more", "given_up"),
    [
        ({"ended_at": NOW - 400, "ends_at": NOW - 400}, True),
        ({"ended_at": NOW - 500, "ends_at": NOW - 400}, True),  # Slurm's signal comes before
        ({"ended_at": NOW - 900, "ends_at": NOW - 400}, False),  # preempted, or cancelled by somebody
        ({"ended_at": NOW - 400}, False),  # it never ran
        ({"ended_at": NOW - 400, "ends_at": NOW - 400, "draining_at": NOW - 500}, False),  # by us
        ({"ended_at": NOW - 400, "ends_at": NOW - 400, "ready_at": NOW - 500}, False),  # it served until then
    ],
)
def test_only_the_whole_time_without_getting_ready_speaks_against_a_revision(
    more: dict[str, Any], given_up: bool
) -> None:
    lost = [replica(f"c{n}", "stopped", created_at=NOW - 9000, cause="time limit", **more) for n in range(4)]
    found = decided(deployment("starting", stable=None), *lost)
    assert any(isinstance(a, tuple) and a[:2] == ("is", "failed") for a in found) is given_up


# In words.


def test_what_it_wants_has_and_will_do_is_said_in_plain_words() -> None:
    wanted = deployment(rules={"target_tokens": 2000}, desired=3)
    pending = replica("r2", "pending", waiting_reason="Resources", expected_start_at=NOW + 500)
    replicas = (replica("r0", ends_at=NOW + 5000), replica("r1"), pending)
    decision = plan(Situation(wanted=wanted, replicas=replicas, load=load(5200), timings=TIMINGS, now=NOW), KNOWN)
    assert decision.why == (
        "wants 3 replicas: 5,200 tokens are queued or running, 2,000 each",
        "has 2 ready, 1 pending (Resources)",
    )
    assert decision.next == (
        (NOW + 500, "r2 starts: Resources"),
        (
            NOW + 5000 - 1210,
            "a successor of r0 is submitted: its job ends at 15:10 UTC, and queue, "
            "start-up and drain take about 20 min",
        ),
    )


def test_without_words_the_actions_are_the_same() -> None:
    situation = Situation(wanted=deployment("starting"), replicas=tuple(crashes(3)), now=NOW)
    quick = plan(situation, KNOWN, words=False)
    assert quick.actions == plan(situation, KNOWN).actions != ()
    assert quick.why == quick.next == ()


def test_a_job_that_may_run_in_several_partitions_is_stopped_by_maintenance_of_all_their_nodes_only() -> None:
    wanted = deployment("starting", rules={"partition": "a,b"})
    nodes = {"a": frozenset({"n1"}), "b": frozenset({"n2"})}
    for reserved, limit in ((ALL, 7140), (frozenset({"n1"}), None)):
        cluster = replace(maintained(7200, reserved), partition_nodes=nodes)
        found = plan(Situation(wanted=wanted, timings=Timings(0.0, 60.0), now=NOW), cluster).actions
        assert [a.time_limit_s for a in found if isinstance(a, StartReplica)] == [limit]


@pytest.mark.parametrize(
    ("replicas", "words"),
    [
        ([replica("r0")], "its first replica starts"),
        ([replica("r0"), new("n0", "pending")], "its first replica waits in Slurm's queue"),
        (
            [replica("r0"), new("n0", "failed", failure="crashed", cause="the engine ended", ended_at=NOW - 3)],
            "its first replica starts, again from 13:46 UTC on (the last one: the engine ended)",
        ),
        (
            [replica("r0"), new("n0", requests=5, ready_at=NOW - 50)],
            "its first replica is watched for 5 min and 20 requests, or twice as long; it has answered 5",
        ),
        (
            [replica("r0", requests=9), new("n0", requests=1, failures=1, ready_at=NOW - 999)],
            "its first replica is watched for 5 min and 20 requests, or twice as long; it has answered 1; 1 of its "
            "1 requests failed (100%; of the stable revision's 0%), so it is watched until more is known",
        ),
    ],
)
def test_how_far_a_rollout_is_is_said_in_plain_words(replicas: list[Had], words: str) -> None:
    decision = plan(Situation(wanted=rolling(), replicas=tuple(replicas), now=NOW), KNOWN)
    assert f"rolls out revision 2 in place of 1: {words}" in decision.why


def test_a_rollout_that_slurm_has_no_room_for_says_what_it_waits_for() -> None:
    waits = replica("r1", "pending", waiting_reason="Resources")
    decision = plan(Situation(wanted=rolling(least=2), replicas=(replica("r0"), waits), now=NOW), KNOWN)
    assert decision.actions == ()
    submitted = "its first replica is submitted when r1 has started, which waits (Resources)"
    assert f"rolls out revision 2 in place of 1: {submitted}" in decision.why
