"""What holds whatever happens: one deployment among jobs, calls, load and administrators that do as they like.

The same few examples are tried each time. `HEADGATE_EXAMPLES=3000` tries so many of each property, others each time.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from planning_world import NOW, SERVING, World

from launchers.planning.crashes import losses
from launchers.planning.facts import Cluster, Drain, Loaded, Maintenance, Rules, StartReplica, Warn
from launchers.planning.fleet import sort
from launchers.planning.rollout import course
from launchers.planning.rollover import last_moment
from registry.deployments import DeploymentState
from registry.replicas import ReplicaState

PENDING, STARTING, READY = ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.READY
KINDS = ("bad-model", "out-of-memory", "node", "cuda", "crash", None)
LONG = int(os.environ.get("HEADGATE_EXAMPLES", "0"))
EVENTS = (
    "time",
    "run",
    "ready",
    "run all",
    "fail",
    "lose",
    "waits",
    "call",
    "load",
    "silence",
    "revision",
    "pause",
    "outstanding",
    "counters",
    "leaving",
    "maintenance",
    "bounds",
    "no gateway",
)
events = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 1000)), max_size=60)
rules = st.builds(
    Rules,
    target_tokens=st.sampled_from([None, 100]),
    overflow=st.booleans(),
    pack=st.sampled_from([1, 1, 1, 2]),
    time_limit_s=st.sampled_from([300, 1800, 7200, 86400]),
    drain_s=st.sampled_from([30.0, 600.0]),
)


def trying(examples: int) -> settings:
    """Nothing is kept of one run for the next: neither fails at random."""
    return settings(max_examples=LONG or examples, derandomize=not LONG, database=None, deadline=None)


def happens(world: World, event: str, x: int) -> None:
    live = [r.id for r in world.of(*SERVING)]
    pending, starting = [r.id for r in world.of(PENDING)], [r.id for r in world.of(STARTING)]
    one = live[x % len(live)] if live else None
    match event:
        case "time":
            world.pass_time((1.0, 10.0, 60.0, 400.0, 1000.0)[x % 5])
        case "run" if pending and f"n{x % 4}" not in world.cluster.leaving:
            world.run(pending[x % len(pending)], f"n{x % 4}")
        case "run all":
            for each in pending if f"n{x % 4}" not in world.cluster.leaving else ():
                world.run(each, f"n{x % 4}")
            for each in starting:
                world.serve(each)
        case "ready" if starting:
            world.serve(starting[x % len(starting)])
        case "fail" if one in starting or one in [r.id for r in world.of(READY)]:
            world.end(str(one), ReplicaState.FAILED, KINDS[x % len(KINDS)])
        case "lose" if one:
            world.end(one, (ReplicaState.LOST, ReplicaState.STOPPED)[x % 2])
        case "waits":
            world.change(pending, waiting_reason="Resources" if x % 2 else None)
        case "call":
            world.called_at = world.now
        case "load":
            world.load = Loaded(x, x, x // 3, x // 3, float(x % 30))
        case "no gateway":
            world.load = None
        case "silence":
            world.cluster = replace(world.cluster, known=x % 2 == 0, silence="timed out")
        case "revision":
            world.wanted = replace(world.wanted, revision=world.wanted.revision + 1 + x % 2)
        case "pause":
            world.wanted = replace(world.wanted, paused=x % 2 == 0)
        case "outstanding":
            drains = [r.id for r in world.of(ReplicaState.DRAINING)]
            world.change(drains, outstanding=(None, 0, 3)[x % 3])
        case "counters" if one:
            world.change([one], requests=x, failures=x % 9, first_outputs=x // 2, first_output_s=float(x % 77))
        case "leaving":
            world.cluster = replace(world.cluster, leaving={f"n{x % 4}": "broken fan"} if x % 3 else {})
        case "maintenance":
            window = Maintenance(
                "m", world.now + 10 * x, world.now + 10 * x + 3600, frozenset({"n0", "n1", "n2", "n3"})
            )
            nodes = {"": window.nodes}
            world.cluster = replace(world.cluster, maintenance=(window,) if x % 4 else (), partition_nodes=nodes)
        case "bounds":
            world.wanted = replace(world.wanted, least=x % 4, most=max(x % 4, x % 7))


def check_turn(world: World) -> None:
    before = {r.id: r for r in world.of(*SERVING)}
    ready_before = [r for r in before.values() if r.state is READY]
    ending = [r for r in ready_before if r.ends_at and world.now >= (last_moment(world.situation(), r) or 0.0)]
    actions = world.turn().actions
    if not world.cluster.known:
        assert actions == ()
        return
    if world.wanted.state.ended:
        return

    places = world.slots
    if any(isinstance(a, StartReplica) and a.replaces is None for a in actions):
        assert len(places) <= world.count + world.wanted.rules.pack, "started beyond what is wanted and one job more"
    succeeded = Counter(r.replaces for r in world.of(*SERVING) if r.replaces in {p.id for p in world.of(*SERVING)})
    assert all(n == 1 for n in succeeded.values()), "two successors of one replica"
    if any(isinstance(a, Drain) for a in actions):
        serves = len(world.of(READY))
        assert serves >= min(len(ready_before), world.count) - len(ending), "drained below what is wanted"
    for r in world.of(ReplicaState.DRAINING):
        assert r.draining_at is not None and world.now < r.draining_at + world.wanted.rules.drain_s
    check_trial(world)
    again = [a for a in world.turn().actions if not isinstance(a, Warn)]
    assert again == [], f"not quiet: {again} after {actions}"


def check_trial(world: World) -> None:
    """While a revision is tried, the stable one has as many as are wanted, unless what was lost has them wait."""
    situation, wanted = world.situation(), world.wanted
    fleet, stable = sort(situation), wanted.stable
    if stable is None or not course(situation, fleet).trial:
        return
    lost = [losses(situation, fleet, world.cluster, stable, world.count, kind) for kind in (False, True)]
    waits = any(r.waiting_reason for r in fleet.pending if r.revision != wanted.revision)
    tried = [r for r in world.slots if r.revision == wanted.revision]
    others = [r for r in world.slots if r.revision not in (wanted.revision, stable)]
    if len(tried) <= wanted.rules.pack and not (others or waits or any(one.count for one in lost)):
        assert sum(r.revision == stable for r in world.slots) >= world.count, "the trial takes a place"


@trying(400)
@given(rules=rules, least=st.integers(0, 3), rolls=st.booleans(), happen=events)
@example(rules=Rules(overflow=True), least=0, rolls=False, happen=[("call", 0), ("bounds", 2)])
def test_whatever_happens_no_more_than_wanted_is_started_no_less_serves_and_the_plan_is_quiet(
    rules: Rules, least: int, rolls: bool, happen: list[tuple[str, int]]
) -> None:
    world = World(rules, least=least, most=6, **({"revision": 2, "stable": 1} if rolls else {}))
    check_turn(world)
    for event, x in happen:
        happens(world, event, x)
        check_turn(world)


@trying(60)
@given(rules=rules, least=st.integers(1, 3), happen=events)
@example(
    rules=Rules(target_tokens=100, time_limit_s=1800, drain_s=30.0),
    least=1,
    happen=[("load", 76), ("maintenance", 106), ("load", 0), ("time", 423)],
)
@example(rules=Rules(time_limit_s=1800), least=2, happen=[("time", 0), ("run all", 0), ("time", 392)])
def test_once_the_world_is_at_peace_as_many_serve_as_are_wanted_and_every_rollout_has_ended(
    rules: Rules, least: int, happen: list[tuple[str, int]]
) -> None:
    world = World(rules, least=least, most=6)
    for event, x in happen:
        happens(world, event, x)
        world.turn()
    world.cluster, world.load = Cluster(), Loaded(0, 0, 0, 0, 0.0)
    world.turn()
    if world.wanted.state.ended:
        return
    world.wanted = replace(world.wanted, paused=False, least=least, most=6)
    world.called_at = None
    for _ in range(300):
        world.turn()
        for r in world.of(PENDING):
            world.run(r.id)
        for r in world.of(STARTING):
            world.serve(r.id)
        world.pass_time(60.0)
    want = -(-least // rules.pack) * rules.pack
    assert world.wanted.state is DeploymentState.READY
    serving = [r for r in world.slots if r.state is READY]
    assert len(serving) == want, "each may have a successor that serves already, which does not count"
    assert {r.revision for r in world.of(READY)} == {world.wanted.revision} == {world.wanted.stable}


@pytest.mark.parametrize("failure", ["crash", "node", None])
@pytest.mark.parametrize("serves_s", [None, 30.0])
@pytest.mark.parametrize("stable", [None, 1])
def test_a_crash_loop_is_bounded(failure: str | None, serves_s: float | None, stable: int | None) -> None:
    world = World(Rules(), least=1, most=1, stable=stable)
    for _ in range(3600 // 5):
        world.turn()
        for r in world.of(PENDING):
            world.run(r.id)
        for r in world.of(STARTING):
            if serves_s:
                world.serve(r.id)
            else:
                world.end(r.id, ReplicaState.FAILED if failure else ReplicaState.LOST, failure)
        for r in world.of(READY):
            if world.now - (r.ready_at or NOW) >= (serves_s or 0.0):
                world.end(r.id, ReplicaState.FAILED, failure or "crash")
        world.pass_time(5.0)
    assert 3 < world.started <= 14
