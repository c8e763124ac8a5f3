"""What planning costs: a thousand deployments with ten replicas each, in one turn of the controller.

Timed is `plan` alone, on facts in memory: a real turn reads these first, from the registry and from Slurm.
The steady state is what nearly every turn is: everything serves, nothing is to be done. The busy one has jobs that end
soon, rollouts half-way, load that asks for more, replicas that drain, jobs that wait, crashes, and maintenance.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

from benchmarks.figures import show
from launchers.planning.facts import (
    Cluster,
    Had,
    Loaded,
    Maintenance,
    Rules,
    Situation,
    Timings,
    Wanted,
)
from launchers.planning.plan import plan
from registry.deployments import DeploymentState
from registry.replicas import ReplicaState

DEPLOYMENTS, REPLICAS = 1000, 10
ROUNDS = 15
NOW = 1_000_000.0
DAY = 86_400.0
NODES = tuple(f"node{n:04}" for n in range(2000))


def figures() -> None:
    total = f"plan() of {DEPLOYMENTS:,} deployments with {DEPLOYMENTS * REPLICAS:,} replicas, facts in memory, CPU"
    show(f"{total}: everything serves", _median_ms(steady(), Cluster()), "ms")
    show(f"{total}: everything serves, and why in words", _median_ms(steady(), Cluster(), words=True), "ms")
    show(f"{total}: everybody is busy", _median_ms(busy(), troubled()), "ms")


def steady() -> list[Situation]:
    return [_situation(n, [_ready(n, k) for k in range(REPLICAS)]) for n in range(DEPLOYMENTS)]


def busy() -> list[Situation]:
    cases: tuple[Callable[[int], Situation], ...] = (_ending, _rolling, _asking, _draining, _waiting, _crashing)
    return [cases[n % len(cases)](n) for n in range(DEPLOYMENTS)]


def troubled() -> Cluster:
    return Cluster(
        leaving={node: "broken fan" for node in NODES[::100]},
        maintenance=(Maintenance("upgrade", NOW + 2 * DAY, NOW + 2 * DAY + 3600, frozenset(NODES)),),
        partition_nodes={"": frozenset(NODES)},
    )


def _median_ms(situations: list[Situation], cluster: Cluster, *, words: bool = False) -> float:
    took = []
    for _ in range(ROUNDS):
        gc.collect()
        began = time.process_time()
        for situation in situations:
            plan(situation, cluster, words=words)
        took.append(time.process_time() - began)
    return statistics.median(took) * 1000


def _situation(
    n: int, replicas: list[Had], *, tokens: int = 19_000, desired: int = REPLICAS, revision: int = 1
) -> Situation:
    wanted = Wanted(
        name=f"d{n}",
        state=DeploymentState.READY,
        least=1,
        most=2 * REPLICAS,
        revision=revision,
        stable=1,
        desired=desired,
        rules=Rules(target_tokens=2000),
    )
    load = Loaded(40, tokens, 0, 0, 0.0)
    return Situation(
        wanted=wanted, replicas=tuple(replicas), load=load, called_at=NOW, timings=Timings(60.0, 120.0), now=NOW
    )


def _ready(n: int, k: int, *, ends_at: float = NOW + 0.5 * DAY, revision: int = 1) -> Had:
    return Had(
        id=f"d{n}-{k}",
        state=ReplicaState.READY,
        created_at=NOW - 0.5 * DAY - 100 * k,
        revision=revision,
        started_at=NOW - 0.5 * DAY,
        ready_at=NOW - 0.5 * DAY + 120,
        ends_at=ends_at,
        nodes=(NODES[(n * REPLICAS + k) % len(NODES)],),
        outstanding=4,
        requests=1000,
        first_outputs=1000,
        first_output_s=200.0,
    )


def _other(n: int, k: int, state: ReplicaState, *, failure: str | None = None) -> Had:
    ended_at = NOW - 100 * k if state.ended else None
    draining_at = NOW - 20 if state is ReplicaState.DRAINING else None
    reason = "Resources" if state is ReplicaState.PENDING else None
    return Had(
        id=f"d{n}-{k}",
        state=state,
        created_at=NOW - 1000,
        ended_at=ended_at,
        draining_at=draining_at,
        waiting_reason=reason,
        failure=failure,
        cause=failure,
    )


def _ending(n: int) -> Situation:
    return _situation(n, [_ready(n, k, ends_at=NOW + 60 * k) for k in range(REPLICAS)])


def _rolling(n: int) -> Situation:
    return _situation(n, [_ready(n, k, revision=1 + k % 2) for k in range(REPLICAS)], revision=2)


def _asking(n: int) -> Situation:
    return _situation(n, [_ready(n, k) for k in range(REPLICAS)], tokens=50_000)


def _draining(n: int) -> Situation:
    half = REPLICAS // 2
    drains = [_other(n, k, ReplicaState.DRAINING) for k in range(half, REPLICAS)]
    return _situation(n, [*(_ready(n, k) for k in range(half)), *drains], desired=half, tokens=9000)


def _waiting(n: int) -> Situation:
    half = REPLICAS // 2
    waits = [_other(n, k, ReplicaState.PENDING) for k in range(half, REPLICAS)]
    return _situation(n, [*(_ready(n, k) for k in range(half)), *waits])


def _crashing(n: int) -> Situation:
    half = REPLICAS // 2
    crashed = [_other(n, k, ReplicaState.FAILED, failure="crashed") for k in range(half, REPLICAS)]
    return _situation(n, [*(_ready(n, k) for k in range(half)), *crashed])


if __name__ == "__main__":
    figures()
