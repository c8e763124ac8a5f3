"""Pure: from what is wanted and what is, to what to do next. One call decides one deployment's next actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from registry.deployments import Deployment, DeploymentState, Replica, ReplicaState, is_current

MAX_LOST = 3  # replicas that may be lost before the deployment is called failed


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
    """`replicas` are all that ever had this deployment's name; a former deployment's are wound down."""
    live = [r for r in replicas if not r.state.ended]
    if deployment.state is DeploymentState.STOPPING:
        return _wind_down(live) or [SetState(deployment.name, DeploymentState.STOPPED)]
    if deployment.state.ended:
        return _wind_down(live)

    current = [r for r in replicas if is_current(deployment, r)]
    if cause := _hopeless(current):
        return [SetState(deployment.name, DeploymentState.FAILED, cause), *_wind_down(live)]

    actions = _wind_down([r for r in live if r not in current])
    serving = [r for r in current if not r.state.ended and r.state is not ReplicaState.DRAINING]
    actions += [StartReplica(deployment.name)] * (deployment.replicas - len(serving))
    ready = any(r.state is ReplicaState.READY for r in current)
    state = DeploymentState.READY if ready else DeploymentState.STARTING
    if state is not deployment.state:
        actions.append(SetState(deployment.name, state))
    return actions


def _hopeless(replicas: Sequence[Replica]) -> str | None:
    """Why starting another replica would only burn the allocation, if it would."""
    failed = [r for r in replicas if r.state is ReplicaState.FAILED]
    if failed and not any(r.ready_at for r in replicas):
        return failed[-1].cause or "its replica failed before it was ready"  # the same arguments fail the same way
    # One that was stopped before it was ready (by its time limit, by scancel) is as lost as one that died.
    lost = [r for r in replicas if r in failed or (r.state is ReplicaState.STOPPED and r.ready_at is None)]
    if len(lost) > MAX_LOST:
        return f"{len(lost)} replicas were lost, the last one: {lost[-1].cause or 'stopped before it was ready'}"
    return None


def _wind_down(live: Sequence[Replica]) -> list[Action]:
    """Drain what serves; cancel what drains already or never served."""
    return [Drain(r.id) if r.state is ReplicaState.READY else Cancel(r.id) for r in live]
