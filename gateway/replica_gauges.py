"""What /metrics shows of replicas. The engines' own pages are closed to everyone but the gateway, so it passes on what
an operator scales by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from gateway.catalog import View
from gateway.metrics import Labels, Metrics
from gateway.replica_health import Health, ReplicaHealth, Standing
from gateway.routing import STALE_S, Gauges, ReplicaLoad
from registry.deployments import Replica, ReplicaState

REPLICA = ("deployment", "replica")
LIVE = tuple(state for state in ReplicaState if not state.ended)


def watch_replicas(
    metrics: Metrics,
    ready: Callable[[], Iterable[Replica]],
    health: ReplicaHealth,
    loads: Callable[[], Iterable[ReplicaLoad]],
    clock: Callable[[], float],
) -> None:
    """`clock` is the monotonic one of the gauges, in seconds."""
    metrics.watch(
        "replicas",
        "Ready replicas by whether they are given requests.",
        ("deployment", "state"),
        lambda: by_state(ready(), health.snapshot()),
    )
    metrics.watch(
        "replica_requests_outstanding",
        "Requests of this gateway that a replica has not done.",
        REPLICA,
        lambda: of_ready(ready(), {load.id: float(load.outstanding) for load in loads()}),
    )

    def engine(read: Callable[[Gauges], float]) -> Callable[[], Mapping[Labels, float]]:
        return lambda: of_ready(ready(), fresh(loads(), clock(), read))

    for name, text, read in (
        ("engine_num_requests_running", "Requests that an engine says it runs.", lambda g: g.running),
        ("engine_num_requests_waiting", "Requests that an engine says wait in it.", lambda g: g.waiting),
        ("engine_kv_cache_usage_ratio", "Part of its KV cache that an engine says is in use.", lambda g: g.kv_usage),
    ):
        metrics.watch(name, text, REPLICA, engine(read))


def watch_deployments(metrics: Metrics, view: Callable[[], View]) -> None:
    metrics.watch(
        "deployment_replicas_wanted",
        "Replicas that a deployment is to have now.",
        ("deployment",),
        lambda: wanted(view()),
    )
    metrics.watch(
        "deployment_replicas",
        "Replicas of a deployment that have not ended, by how far they are.",
        ("deployment", "state"),
        lambda: had(view()),
    )


def wanted(view: View) -> dict[Labels, float]:
    """Pure. Until somebody has decided, the least."""
    return {(d.name,): float(d.min_replicas if d.desired is None else d.desired) for d in view.deployments.values()}


def had(view: View) -> dict[Labels, float]:
    """Pure. Every state, also those that no replica is in."""
    found: dict[Labels, float] = {(name, str(state)): 0.0 for name in view.live for state in LIVE}
    for name, replicas in view.live.items():
        for replica in replicas:
            found[name, replica.state] += 1
    return found


def by_state(ready: Iterable[Replica], standings: Mapping[str, Standing]) -> dict[Labels, float]:
    """Pure. Every state of a deployment that has a replica, also those in which it has none: a gauge that vanishes
    when it falls to nothing alarms nobody."""
    found: Counter[Labels] = Counter()
    for replica in ready:
        standing = standings.get(replica.id)
        for state in Health:
            found[replica.deployment, state] += state is (standing.state if standing else Health.HEALTHY)
    return {labels: float(count) for labels, count in found.items()}


def of_ready(ready: Iterable[Replica], values: Mapping[str, float]) -> dict[Labels, float]:
    """Pure. The values (by replica) of those that are ready."""
    return {(r.deployment, r.id): values[r.id] for r in ready if r.id in values}


def fresh(loads: Iterable[ReplicaLoad], now: float, read: Callable[[Gauges], float]) -> dict[str, float]:
    """Pure. What engines said of themselves, while it says anything about now."""
    return {load.id: float(read(load.gauges)) for load in loads if load.gauges and now - load.gauges.at <= STALE_S}
