"""Replicas that will end, and when: each gets one successor in time, and drains when that one serves."""

from __future__ import annotations

from launchers.planning.facts import Cluster, Had, Situation
from launchers.planning.fleet import READY, STARTING

HEARD_S = 3.0  # until every gateway has heard that a replica drains, and has said what it still has there
NOTICE_S = 45.0  # Slurm signals a replica's job so long before its shutdown time at the earliest: what sbatch is told
# (launchers.launch), and a round of Slurm's own
SPARE_S = 5.0  # between the end of a replica's shutdown time and that signal


def drain_s(s: Situation) -> float:
    """How long a replica may drain: never a large part of a short job."""
    return min(s.wanted.rules.drain_s, s.wanted.rules.time_limit_s / 4)


def stop_s(s: Situation, r: Had) -> float:
    """How long before a replica's end it is stopped at the latest: what it still has is over before Slurm's signal,
    which an engine's own workers die of. That comes at most a quarter of the time limit early, and all of it is no
    large part of a short job."""
    rules = s.wanted.rules
    limit = r.time_limit_s or rules.limit_s(r.overflow)
    return min(rules.shutdown_s + SPARE_S + min(rules.shutdown_s + NOTICE_S, limit / 4), limit / 3)


def lead_s(s: Situation, r: Had) -> float:
    """How long before a replica's end its successor is submitted."""
    rules = s.wanted.rules
    overlap = s.timings.start_s + drain_s(s) + max(rules.margin_s, stop_s(s, r))
    # A job so short that start-up and drain fill it would otherwise have its successor run beside it all the time.
    return s.timings.queue_s + min(overlap, (r.time_limit_s or rules.limit_s(r.overflow)) / 2)


def soon(s: Situation) -> float:
    """No replica that ends later than this needs anything now."""
    rules = s.wanted.rules
    early = 2 * rules.margin_s + 2 * rules.shutdown_s + SPARE_S + NOTICE_S
    return s.now + s.timings.queue_s + s.timings.start_s + rules.drain_s + early


def last_moment(s: Situation, r: Had) -> float | None:
    """When it drains, whether or not another one is ready: what it has in flight must end before its job does."""
    rules = s.wanted.rules
    limit = r.time_limit_s or rules.limit_s(r.overflow)
    early = max(rules.shutdown_s + min(rules.margin_s, limit / 8), stop_s(s, r))
    return None if r.ends_at is None else r.ends_at - early


def ending(s: Situation, cluster: Cluster, r: Had) -> str | None:
    """Why a replica needs a successor now, if it does."""
    if r.ends_at is not None:
        # One that is not ready yet gets its successor when it will not serve any more.
        lead = lead_s(s, r) if r.state is READY else max(s.wanted.rules.margin_s, stop_s(s, r))
        if s.now >= r.ends_at - lead and (r.state is READY or r.state is STARTING):
            return "its job ends"
    if cluster.leaving and r.state is READY and not _older(cluster, r):
        for node in r.nodes:
            if node in cluster.leaving:
                return f"node {node} is to be left: {cluster.leaving[node]}"
    return None


def unneeded(s: Situation, cluster: Cluster, r: Had) -> bool:
    """Whether a replica that had to be succeeded, and whose successor still waits, may stay after all.

    Not in the second half of its time, or where its successor is due soon: when that is, what queues and starts have
    taken lately tells, and whoever has waited in the queue keeps its place there.
    """
    if r.state is not READY or ending(s, cluster, r) is not None:
        return False
    half = (r.time_limit_s or s.wanted.rules.limit_s(r.overflow)) / 2
    return r.ends_at is None or s.now < r.ends_at - max(2 * lead_s(s, r), half)


def _older(cluster: Cluster, r: Had) -> bool:
    """What Slurm said of its nodes before the job began is over: it starts none on a node that is to be left."""
    return cluster.seen_at is not None and r.started_at is not None and cluster.seen_at < r.started_at


def drained(s: Situation, r: Had) -> str | None:
    """Why a replica that drains is to be stopped now, if it is."""
    rules = s.wanted.rules
    since = s.now - rules.drain_s if r.draining_at is None else r.draining_at
    if r.ends_at is not None and s.now >= r.ends_at - stop_s(s, r):
        return "its job ends"
    if r.outstanding is None:
        return "no gateway says that it has requests there" if s.now >= since + rules.shutdown_s else None
    if r.outstanding == 0:
        return "nothing is outstanding" if s.now >= since + HEARD_S else None
    return "its time to drain is over" if s.now >= since + rules.drain_s else None
