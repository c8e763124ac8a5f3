"""What the planner decides, rule by rule, on data. Its clock stands at NOW."""

from __future__ import annotations

from typing import Any

import pytest

from launchers.planning.facts import (
    Cluster,
    Drain,
    Had,
    Loaded,
    Rules,
    Scale,
    SetState,
    Settle,
    Situation,
    StartReplica,
    Stop,
    Timings,
    Wanted,
)
from launchers.planning.plan import plan
from registry.deployments import DeploymentState
from registry.replicas import ReplicaState

NOW = 1_000_000.0
CREATED = NOW - 100_000.0


def deployment(state: str = "ready", rules: dict[str, Any] | None = None, **more: Any) -> Wanted:
    more = {"least": 1, "most": 8, "stable": 1} | more
    return Wanted(name="chat", state=DeploymentState(state), created_at=CREATED, rules=Rules(**(rules or {})), **more)


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


def decided(wanted: Wanted, *replicas: Had, cluster: Cluster = Cluster(), **more: Any) -> list[object]:
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
