"""The plan as a table: from what is wanted and what is, to what to do next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from launchers.plan import KEEP_AWAKE_S, MAX_LOST, Action, Cancel, Drain, SetState, StartReplica, awake, plan
from registry import clock
from registry.deployments import Deployment, DeploymentState, Replica, ReplicaState

START, READY = StartReplica("chat"), SetState("chat", DeploymentState.READY)
ASLEEP = SetState("chat", DeploymentState.ASLEEP)
STARTING, STOPPED = SetState("chat", DeploymentState.STARTING), SetState("chat", DeploymentState.STOPPED)


def failed(cause: str) -> SetState:
    return SetState("chat", DeploymentState.FAILED, cause)


def deployment(state: str, wanted: int = 1) -> Deployment:
    return Deployment(
        "chat", "ada", DeploymentState(state), "tiny", 1, "/m", wanted, {}, None, "2026-01-02T00:00:00.000000Z", None
    )


def replica(number: int, story: str, *, former: bool = False) -> Replica:
    """`story`: a state; with `was ` before it when the replica had been ready."""
    state = ReplicaState(story.removeprefix("was "))
    was_ready = story.startswith("was ") or state is ReplicaState.READY
    cause = f"cause {number}" if state in (ReplicaState.FAILED, ReplicaState.LOST) else None
    at = f"2026-01-0{1 if former else 2}T00:00:{number:02}Z"
    ended_at = at if state.ended else None
    ready_at = at if was_ready else None
    return Replica(
        f"r{number}", "chat", "ada", state, f"/runs/r{number}", None, None, None, None, cause, at, ready_at, ended_at
    )


@pytest.mark.parametrize(
    ("state", "stories", "actions"),
    [
        ("starting", [], [START]),
        ("starting", ["pending"], []),
        ("starting", ["starting"], []),
        ("starting", ["ready"], [READY]),
        ("ready", ["ready"], []),
        # Lost after it had been ready: another one, and nobody serves meanwhile.
        ("ready", ["was failed"], [START, STARTING]),
        ("ready", ["was failed", "pending"], [STARTING]),
        ("starting", ["was failed", "ready"], [READY]),
        # Stopped from outside (its time limit, scancel): another one.
        ("ready", ["was stopped"], [START, STARTING]),
        ("ready", ["was draining"], [START, STARTING]),
        ("starting", ["stopped"], [START]),
        # Dead before it was ever ready: the next one would die the same way.
        ("starting", ["failed"], [failed("cause 0")]),
        # Gone without a word before it was ready (node failure, preemption): that says nothing of the next one.
        ("starting", ["lost"], [START]),
        ("ready", ["was lost"], [START, STARTING]),
        ("starting", ["lost", "failed"], [failed("cause 1")]),
        # Stopping drains first, cancels one turn later, and is over when everything is.
        ("stopping", ["ready"], [Drain("r0")]),
        ("stopping", ["was draining"], [Cancel("r0")]),
        ("stopping", ["pending"], [Cancel("r0")]),
        ("stopping", ["starting"], [Cancel("r0")]),
        ("stopping", ["was stopped"], [STOPPED]),
        ("stopping", ["was failed"], [STOPPED]),
        ("stopping", [], [STOPPED]),
        # Whatever is left of one that ended is wound down.
        ("failed", ["ready"], [Drain("r0")]),
        ("failed", ["was draining"], [Cancel("r0")]),
        ("stopped", ["pending"], [Cancel("r0")]),
        ("failed", ["failed"], []),
        ("stopped", [], []),
    ],
)
def test_one_wanted_replica(state: str, stories: list[str], actions: list[Action]) -> None:
    replicas = [replica(n, story) for n, story in enumerate(stories)]
    assert plan(deployment(state), replicas) == actions


@pytest.mark.parametrize(
    ("state", "stories", "actions"),
    [
        ("starting", [], [START, START, START]),
        ("starting", ["pending", "starting"], [START]),
        ("starting", ["pending", "ready", "starting"], [READY]),
        ("ready", ["ready", "was failed", "ready"], [START]),
        ("starting", ["failed", "starting", "starting"], [failed("cause 0"), Cancel("r1"), Cancel("r2")]),
        # One that never got ready beside others that did: the arguments work, so it is lost like any other.
        ("ready", ["ready", "failed", "ready"], [START]),
        ("stopping", ["ready", "was draining", "pending"], [Drain("r0"), Cancel("r1"), Cancel("r2")]),
        ("stopping", ["was stopped", "was draining", "was failed"], [Cancel("r1")]),
    ],
)
def test_three_wanted_replicas(state: str, stories: list[str], actions: list[Action]) -> None:
    replicas = [replica(n, story) for n, story in enumerate(stories)]
    assert plan(deployment(state, wanted=3), replicas) == actions


@pytest.mark.parametrize("story", ["lost", "stopped"])
@pytest.mark.parametrize("wanted", [1, 3])
def test_replacing_replicas_that_are_lost_before_they_are_ready_has_an_end(story: str, wanted: int) -> None:
    bound = MAX_LOST * wanted
    lost = [replica(n, story) for n in range(bound)]
    assert START in plan(deployment("starting", wanted), lost)
    (action,) = plan(deployment("starting", wanted), [*lost, replica(bound, story)])
    assert isinstance(action, SetState) and action.state is DeploymentState.FAILED
    assert action.cause and action.cause.startswith(f"{bound + 1} replicas were lost, the last one: ")


def test_losses_are_forgotten_when_a_replica_gets_ready() -> None:
    before = [replica(n, "lost") for n in range(MAX_LOST)]
    once = replica(MAX_LOST, "was lost")
    after = [replica(MAX_LOST + 1 + n, "failed") for n in range(MAX_LOST)]
    assert START in plan(deployment("starting"), [*before, once, *after])
    (action,) = plan(deployment("starting"), [*before, once, *after, replica(20, "lost")])
    assert isinstance(action, SetState) and action.state is DeploymentState.FAILED


@pytest.mark.parametrize("story", ["was failed", "was lost", "failed", "lost"])
def test_no_number_of_losses_fails_a_deployment_while_a_replica_is_ready(story: str) -> None:
    lost = [replica(1 + n, story) for n in range(3 * MAX_LOST)]
    actions = plan(deployment("ready", wanted=2), [replica(0, "ready"), *lost])
    # Those that never got ready are not replaced for ever; those that served are.
    assert actions == ([START] if story.startswith("was ") else [])


@pytest.mark.parametrize("story", ["was stopped", "was failed", "was lost"])
def test_replicas_that_served_are_replaced_for_ever(story: str) -> None:
    assert START in plan(deployment("ready"), [replica(n, story) for n in range(50)])


@pytest.mark.parametrize(
    ("story", "actions"),
    [("ready", [Drain("r0")]), ("was draining", [Cancel("r0")]), ("starting", [Cancel("r0")]), ("was stopped", [])],
)
def test_a_former_deployments_replica_is_wound_down_and_counts_for_nothing(story: str, actions: list[Action]) -> None:
    assert plan(deployment("starting"), [replica(0, story, former=True)]) == [*actions, START]
    assert plan(deployment("ready"), [replica(0, story, former=True), replica(1, "ready")]) == actions
    assert plan(deployment("stopping"), [replica(0, story, former=True)]) == (actions or [STOPPED])


def test_a_former_deployments_failures_are_forgotten() -> None:
    former = [replica(n, "failed", former=True) for n in range(MAX_LOST + 2)]
    assert plan(deployment("starting"), former) == [START]


@pytest.mark.parametrize(
    ("state", "stories", "called", "actions"),
    [
        ("starting", [], False, [ASLEEP]),
        ("asleep", [], False, []),
        ("asleep", ["was stopped"], False, []),
        ("asleep", [], True, [START, STARTING]),
        ("starting", ["pending"], True, []),
        ("starting", ["ready"], True, [READY]),
        ("ready", ["ready"], True, []),
        ("ready", ["was lost"], True, [START, STARTING]),
        ("ready", ["was lost"], False, [ASLEEP]),
        # Nobody calls any more: what serves is drained, and cancelled one turn later.
        ("ready", ["ready"], False, [Drain("r0"), ASLEEP]),
        ("asleep", ["was draining"], False, [Cancel("r0")]),
        # Called again while it drains: it ends all the same, beside the next one.
        ("asleep", ["was draining"], True, [Cancel("r0"), START, STARTING]),
        # What is still coming up goes on, or no caller whose patience is shorter than the queue would ever be served.
        ("starting", ["pending"], False, []),
        ("starting", ["starting"], False, []),
        ("starting", ["failed"], True, [failed("cause 0")]),
        ("starting", ["lost", "lost", "lost"], True, [START]),
        ("stopping", ["ready"], True, [Drain("r0")]),
        ("asleep", ["was stopped"] * 9, True, [START, STARTING]),
    ],
)
def test_a_deployment_of_no_replicas(state: str, stories: list[str], called: bool, actions: list[Action]) -> None:
    replicas = [replica(n, story) for n, story in enumerate(stories)]
    assert plan(deployment(state, wanted=0), replicas, awake=called) == actions


CREATED = datetime(2026, 1, 2, tzinfo=UTC)
LONG = timedelta(seconds=KEEP_AWAKE_S)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("stories", "called", "now", "expected"),
    [
        ([], None, CREATED, False),
        ([], CREATED, CREATED, True),
        ([], CREATED, CREATED + LONG - SECOND, True),
        ([], CREATED, CREATED + LONG, False),
        # A former deployment of the name was called, not this one.
        ([], CREATED - SECOND, CREATED, False),
        # Slurm's queue was longer than its caller's patience: it is kept for when the caller comes again.
        (["ready"], None, CREATED + SECOND, True),
        (["ready"], CREATED, CREATED + LONG, False),
        (["was lost"], None, CREATED + SECOND, False),
    ],
)
def test_a_deployment_is_awake_for_a_while_after_its_last_call(
    stories: list[str], called: datetime | None, now: datetime, expected: bool
) -> None:
    replicas = [replica(n, story) for n, story in enumerate(stories)]
    assert awake(deployment("ready", 0), replicas, clock.text(called) if called else None, now) is expected
