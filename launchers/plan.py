"""Pure: from what is wanted and what is, to what to do next. One call decides one deployment's next actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from registry import clock
from registry.deployments import Deployment, DeploymentState, Replica, ReplicaState, is_current

MAX_LOST = 3  # how often each wanted replica may be lost before it is ready, until starting another is given up
KEEP_AWAKE_S = 900.0  # how long a deployment of no replicas keeps the one that a call woke, after the last call


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


def awake(deployment: Deployment, replicas: Sequence[Replica], called_at: str | None, now: datetime) -> bool:
    """Whether a deployment of no replicas wants one: from its last call on, or from when that one got ready if Slurm's
    queue was longer than its callers' patience, for KEEP_AWAKE_S. `called_at`: of whatever had its name."""
    since = [r.ready_at for r in replicas if r.state is ReplicaState.READY and r.ready_at]
    if called_at is not None and called_at >= deployment.created_at:
        since.append(called_at)
    return any((now - clock.parse(at)).total_seconds() < KEEP_AWAKE_S for at in since)


def plan(deployment: Deployment, replicas: Sequence[Replica], *, awake: bool = False) -> list[Action]:
    """`replicas` are all that ever had this deployment's name; a former deployment's are wound down.

    `awake` counts only for a deployment of no replicas.
    """
    live = [r for r in replicas if not r.state.ended]
    if deployment.state is DeploymentState.STOPPING:
        return _wind_down(live) or [SetState(deployment.name, DeploymentState.STOPPED)]
    if deployment.state.ended:
        return _wind_down(live)

    current = [r for r in replicas if is_current(deployment, r)]
    ready = [r for r in current if r.state is ReplicaState.READY]
    hopeless = _hopeless(current, MAX_LOST * max(deployment.min_replicas, 1))
    if hopeless and not ready:
        return [SetState(deployment.name, DeploymentState.FAILED, hopeless), *_wind_down(live)]

    actions = _wind_down([r for r in live if r not in current])
    wanted = deployment.min_replicas or int(awake)
    if deployment.min_replicas == 0:
        # What still comes up when nobody calls any more goes on: it is not asked to queue a second time.
        over = [] if awake else ready
        actions += _wind_down([r for r in current if r in over or r.state is ReplicaState.DRAINING])
        ready = [r for r in ready if r not in over]
    coming = [r for r in current if r.state in (ReplicaState.PENDING, ReplicaState.STARTING)]
    if not hopeless:
        actions += [StartReplica(deployment.name)] * (wanted - len(ready) - len(coming))
    idle = DeploymentState.STARTING if wanted or coming else DeploymentState.ASLEEP
    state = DeploymentState.READY if ready else idle
    if state is not deployment.state:
        actions.append(SetState(deployment.name, state))
    return actions


def _hopeless(replicas: Sequence[Replica], bound: int) -> str | None:
    """Why starting another replica would only burn the allocation, if it would."""
    last_ready = max((r.ready_at for r in replicas if r.ready_at), default="")
    failed = [r for r in replicas if r.state is ReplicaState.FAILED]
    if failed and not last_ready:
        return failed[-1].cause or "its replica failed before it was ready"  # the same arguments fail the same way
    # One that served proves that the arguments work, and is replaced. One that ended before it was ready, however it
    # ended (its own failure, its node's, preemption, scancel), counts until another gets ready.
    lost = [r for r in replicas if r.state.ended and r.ready_at is None and (r.ended_at or "") >= last_ready]
    if len(lost) > bound:
        return f"{len(lost)} replicas were lost, the last one: {lost[-1].cause or 'stopped before it was ready'}"
    return None


def _wind_down(live: Sequence[Replica]) -> list[Action]:
    """Drain what serves; cancel what drains already or never served."""
    return [Drain(r.id) if r.state is ReplicaState.READY else Cancel(r.id) for r in live]
