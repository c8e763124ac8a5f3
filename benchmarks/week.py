"""One simulated week of one deployment: our planner, fixed numbers of replicas, naive scaling by requests in flight.

    make bench-week ARGS="--trace azure_llm_conv_2023.csv"

Everybody has the same requests, the same waits in Slurm's queue, jobs of 24 hours and a chance of preemption. The fixed
and the naive ones submit the next job when they see that one is gone. The naive one wants, every 30 s, as many replicas
as the requests in flight fill, counts its pending jobs, and cancels at once what is too much, the newest first.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.figures import show
from benchmarks.week_cluster import SLOTS, START_S, TIME_LIMIT_S, Cluster, Job, Line
from benchmarks.week_trace import TICK_S, Arrivals, Stays, week
from launchers.planning import facts
from launchers.planning.facts import Drain, Had, Loaded, Rules, Scale, SetState, Settle, StartReplica, Stop, Wanted
from launchers.planning.plan import plan
from registry.deployments import DeploymentState
from registry.replicas import ReplicaState

MOST = 32
EPOCH = 1_800_000_000.0
OUTPUT_TOKENS = 211  # expected of a request that runs
TARGET_TOKENS = int(0.75 * SLOTS * OUTPUT_TOKENS)  # a quarter of each replica is for what comes while the next starts
NAIVE_EVERY_S = 30
REMEMBERED = 50  # replicas that have ended


@dataclass(frozen=True, slots=True)
class Result:
    gpu_hours: float
    p99_wait_s: float
    refused: float
    cut: float
    asked: float


Policy = Callable[[Cluster, Line], None]


def figures(trace: Path | None = None) -> None:
    arrivals = week(trace)
    ours = run(arrivals, Ours(Stays(trace)))
    in_flight = sorted(a.requests * a.seconds / TICK_S for a in arrivals)
    mean, peak = (math.ceil(n / SLOTS) for n in (statistics.mean(in_flight), in_flight[int(len(in_flight) * 0.999)]))
    peers = {
        f"{peak} replicas all the time, enough for the peak": run(arrivals, Fixed(peak)),
        f"{mean} replicas all the time, enough on average": run(arrivals, Fixed(mean)),
        "naive scaling by requests in flight": run(arrivals, naive),
    }
    of = f"a simulated week of {'a recorded' if trace else 'a synthetic'} trace"
    for peer, theirs in peers.items():
        show(f"{of}: GPU-hours", ours.gpu_hours, "h", peer, theirs.gpu_hours)
        show(f"{of}: p99 wait for a replica", ours.p99_wait_s, "s", peer, theirs.p99_wait_s)
        show(f"{of}: refused of {ours.asked:,.0f} requests", ours.refused, "requests", peer, theirs.refused)
        show(f"{of}: cut off when a job ended", ours.cut, "requests", peer, theirs.cut)


def run(arrivals: list[Arrivals], policy: Policy) -> Result:
    """The week begins with one replica that serves."""
    cluster, line = Cluster(), Line()
    cluster.submit().starts_at = -START_S
    for new in arrivals:
        for ended in cluster.tick():
            line.lose(ended, cluster.now, len(cluster.ready()) + 1)
        line.tick(cluster.now, new, len(cluster.ready()))
        policy(cluster, line)
    for job in list(cluster.jobs):
        cluster.end(job)
    return Result(cluster.gpu_s / 3600, line.p99_s(), line.refused, line.cut, line.asked)


class Fixed:
    def __init__(self, count: int) -> None:
        self._count = count

    def __call__(self, cluster: Cluster, line: Line) -> None:
        for _ in range(self._count - len(cluster.jobs)):
            cluster.submit()


def naive(cluster: Cluster, line: Line) -> None:
    if cluster.now % NAIVE_EVERY_S:
        return
    want = min(max(1, math.ceil((line.running + line.queued) / SLOTS)), MOST)
    for _ in range(want - len(cluster.jobs)):
        cluster.submit()
    for job in sorted(cluster.jobs, key=lambda job: -job.starts_at)[: max(0, len(cluster.jobs) - want)]:
        if job.ready_at <= cluster.now:
            line.lose(job, cluster.now, len(cluster.ready()))
        cluster.end(job)


class Ours:
    """Takes the planner's actions, as the controller does. What a replica still has when it is stopped was cut off: the
    engine's own time to shut down is not reckoned."""

    def __init__(self, stays: Stays) -> None:
        self._stays = stays
        rules = Rules(target_tokens=TARGET_TOKENS, time_limit_s=TIME_LIMIT_S)
        state = DeploymentState.STARTING
        self._wanted = Wanted(name="chat", state=state, least=1, most=MOST, rules=rules)

    def __call__(self, cluster: Cluster, line: Line) -> None:
        now = EPOCH + cluster.now
        running_tokens = round(line.running * OUTPUT_TOKENS)
        waits = round(line.queued), round(line.queued_tokens), line.oldest_s(cluster.now)
        situation = facts.Situation(
            wanted=self._wanted,
            replicas=tuple(_had(job, cluster.now) for job in (*cluster.jobs, *cluster.over[-REMEMBERED:])),
            load=Loaded(round(line.running), running_tokens, *waits),
            timings=facts.Timings(statistics.median(cluster.waits) if cluster.waits else 0.0, START_S),
            now=now,
        )
        jobs = {job.id: job for job in cluster.jobs}
        for action in plan(situation, facts.Cluster(), words=False).actions:
            match action:
                case StartReplica():
                    cluster.submit(action.replaces)
                case Drain(one, _):
                    self._drain(jobs[one], cluster, line)
                case Stop(one, _):
                    self._drain(jobs[one], cluster, line)
                    line.lose(jobs[one], cluster.now, 1)
                    cluster.end(jobs[one])
                case Scale(_, desired, low_since, _):
                    scaled_at = now if desired != self._wanted.desired else self._wanted.scaled_at
                    self._wanted = replace(self._wanted, desired=desired, low_since=low_since, scaled_at=scaled_at)
                case SetState(_, state, _):
                    self._wanted = replace(self._wanted, state=state)
                case Settle(_, revision, _, _):
                    self._wanted = replace(self._wanted, stable=revision)

    def _drain(self, job: Job, cluster: Cluster, line: Line) -> None:
        if job.draining_at is not None:
            return
        if job.ready_at <= cluster.now:
            has = round(line.each(len(cluster.ready())))
            job.leaves = [cluster.now + seconds for seconds in self._stays.draw(has)]
        job.draining_at = cluster.now


def _had(job: Job, now: float) -> Had:
    state = ReplicaState.PENDING
    outstanding = SLOTS
    if job.ended_at is not None:
        state = (
            ReplicaState.STOPPED if job.draining_at is not None or job.ended_at >= job.ends_at else ReplicaState.LOST
        )
    elif job.draining_at is not None:
        state, outstanding = ReplicaState.DRAINING, job.outstanding(now)
    elif job.ready_at <= now:
        state = ReplicaState.READY
    elif job.starts_at <= now:
        state = ReplicaState.STARTING
    end = now if job.ended_at is None else job.ended_at
    return Had(
        id=job.id,
        state=state,
        created_at=EPOCH + job.submitted_at,
        started_at=EPOCH + job.starts_at if job.starts_at <= end else None,
        ready_at=EPOCH + job.ready_at if job.ready_at <= end else None,
        ended_at=None if job.ended_at is None else EPOCH + job.ended_at,
        ends_at=EPOCH + job.ends_at if job.starts_at <= now else None,
        draining_at=None if job.draining_at is None else EPOCH + job.draining_at,
        replaces=job.replaces,
        waiting_reason="Priority" if state is ReplicaState.PENDING and now - job.submitted_at > 30 else None,
        outstanding=outstanding,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trace", type=Path, help="CSV with TIMESTAMP, ContextTokens and GeneratedTokens")
    figures(options.parse_args().trace)


if __name__ == "__main__":
    main()
