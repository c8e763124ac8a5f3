"""Jobs end before maintenance begins, and those that cannot are not in its way.

Slurm starts no job that would run into a maintenance reservation of its nodes. What asks for less time starts before.
Maintenance counts where it takes all nodes of the partition: otherwise Slurm has somewhere to place the job.
"""

from __future__ import annotations

import functools

from launchers.planning.facts import Cluster, Had, Maintenance, Situation


def ahead(s: Situation, cluster: Cluster, overflow: bool) -> list[Maintenance]:
    """What goes on or is to come, and takes all nodes on which this deployment's replicas of this kind may run."""
    if not cluster.maintenance:
        return []
    nodes = cluster.nodes_of(s.wanted.rules.where(overflow))
    return [m for m in cluster.maintenance if nodes and m.ends_at > s.now and _takes(m.nodes, nodes)]


def fitting_s(s: Situation, windows: list[Maintenance], overflow: bool) -> int | None:
    """The time limit with which a job submitted now ends before the next maintenance, also if it first waits; None:
    its own fits, or nothing that is worth its start does."""
    own = s.wanted.rules.limit_s(overflow)
    for m in windows:
        left = m.starts_at - s.now
        if left <= 0 or left >= own + s.timings.queue_s:
            continue
        rest = left - s.wanted.rules.margin_s - min(s.timings.queue_s, left / 4)
        limit = int(rest // 60) * 60  # Slurm counts minutes
        return limit if _shortest_s(s, overflow) <= limit < own else None
    return None


def _shortest_s(s: Situation, overflow: bool) -> float:
    """What would start up for most of its time is not worth its start, and Slurm takes no limit below the job's own
    --time-min: it waits for the end instead."""
    rules = s.wanted.rules
    return max(rules.shortest_s, rules.says(overflow).time_min_s, 2 * s.timings.start_s)


def shorter_s(s: Situation, windows: list[Maintenance], pending: Had) -> int | None:
    """The time limit that a waiting job needs, if with its own it would run into maintenance."""
    limit = pending.time_limit_s or s.wanted.rules.limit_s(pending.overflow)
    if not any(0 < m.starts_at - s.now < limit for m in windows):
        return None
    fits = fitting_s(s, windows, pending.overflow)
    return fits if fits is not None and fits < limit else None


def in_the_way(s: Situation, windows: list[Maintenance], overflow: bool) -> Maintenance | None:
    """The one that goes on, or is so near that what is submitted now starts only after it."""
    for m in windows:
        left = m.starts_at - s.now
        if left <= 0 or (left < s.wanted.rules.limit_s(overflow) and fitting_s(s, windows, overflow) is None):
            return m
    return None


@functools.lru_cache(maxsize=256)  # the same few sets of nodes, for each of a thousand deployments
def _takes(reserved: frozenset[str], nodes: frozenset[str]) -> bool:
    return nodes <= reserved
