"""Pure: from what is wanted and what is, to what to do next. One call decides one deployment's next actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from registry.deployments import Deployment, DeploymentState, Replica, ReplicaState

MAX_LOST = 3  # replicas that may be lost after having been ready, before the deployment is called failed


@dataclass(frozen=True, slots=True)
class StartReplica:
    deployment: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Take the replica out of routing; its job is cancelled one turn later, when the gateway has seen it."""

    replica: str


@dataclass(frozen=True, slots=True)
class Cancel:
    replica: str


@dataclass(frozen=True, slots=True)
class SetState:
    deployment: str
    state: DeploymentState
    cause: str | None = None


Action = StartReplica | Drain | Cancel | SetState


def plan(deployment: Deployment, replicas: Sequence[Replica]) -> list[Action]:
    """`replicas` are all replicas of this deployment since it was last created."""
    live = [r for r in replicas if not r.state.ended]
    if deployment.state is DeploymentState.STOPPING:
        return _wind_down(live) or [SetState(deployment.name, DeploymentState.STOPPED)]
    if deployment.state.ended:
        return _wind_down(live)

    never_ready = [r for r in replicas if r.state is ReplicaState.FAILED and r.ready_at is None]
    if never_ready:
        # The same arguments fail the same way: asking again would only burn the allocation.
        cause = never_ready[-1].cause or "its replica failed before it was ready"
        return [SetState(deployment.name, DeploymentState.FAILED, cause), *_wind_down(live)]
    lost = [r for r in replicas if r.state is ReplicaState.FAILED]
    if len(lost) > MAX_LOST:
        cause = f"{len(lost)} replicas were lost, the last one: {lost[-1].cause}"
        return [SetState(deployment.name, DeploymentState.FAILED, cause), *_wind_down(live)]

    actions: list[Action] = []
    serving = [r for r in live if r.state is not ReplicaState.DRAINING]
    actions += [StartReplica(deployment.name)] * (deployment.replicas - len(serving))
    ready = any(r.state is ReplicaState.READY for r in live)
    state = DeploymentState.READY if ready else DeploymentState.STARTING
    if state is not deployment.state:
        actions.append(SetState(deployment.name, state))
    return actions


def _wind_down(live: Sequence[Replica]) -> list[Action]:
    """Drain what serves; cancel what drains already or never served."""
    return [Drain(r.id) if r.state is ReplicaState.READY else Cancel(r.id) for r in live]
