"""Replicas that were lost before they were of use: how long to wait for the next try, and when to give up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launchers.planning import rollover
from launchers.planning.facts import Cluster, Had, Situation
from launchers.planning.fleet import DRAINING, READY, Fleet
from launchers.vllm.failures import Kind, Policy, policy
from registry.replicas import ReplicaState

HOPELESS = frozenset(kind for kind in Kind if policy(kind, was_ready=False) is Policy.HOPELESS)
OF_THE_NODE = frozenset({Kind.NODE, Kind.CUDA})  # another node may do
MAX_LOST = 3  # losses in a row for each wanted replica, of a revision that never served; of another, twice as many
NODES_TRIED = 3  # times as many losses that nodes are blamed for count like all others
SERVED_S = 300.0  # a replica that served for less before it crashed was as good as lost
FIRST_WAIT_S, LONGEST_WAIT_S = 10.0, 600.0
HURRIED_WAIT_S = 60.0  # the longest, for the successor of one that serves and will end
AVOIDED_S = 3600.0  # for how long a node is not used on which a replica failed because of the node


@dataclass(frozen=True, slots=True)
class Losses:
    """Of one revision's replicas, guaranteed or preemptible ones, in a row."""

    count: int = 0
    retry_at: float = 0.0  # nothing is started before,
    succeed_at: float = 0.0  # and no successor before
    cause: str = ""  # of the last one
    given_up: str | None = None  # why starting another would only burn the allocation, if it would
    too_many: bool = False  # all the same it is tried: another replica serves, or the revision has proven itself


NONE = Losses()


def losses(s: Situation, fleet: Fleet, cluster: Cluster, revision: int, count: int, overflow: bool) -> Losses:
    """`count`: the replicas that are wanted. `overflow`: of preemptible ones."""
    if not fleet.ended:
        return NONE
    ended = [r for r in fleet.ended if r.revision == revision]
    succeeded_at = max(
        (at for r in (*fleet.ready, *fleet.draining, *ended) if (at := _proof(r, revision))), default=0.0
    )
    lost = [r for r in ended if _lost(r) and (r.ended_at or 0.0) >= succeeded_at]
    serves = any(r.revision == revision for r in fleet.ready)
    proven = revision == s.wanted.stable
    if not (
        proven or serves or any(r.ready_at is not None for r in (*fleet.draining, *ended) if r.revision == revision)
    ):
        for r in lost:
            if r.failure in HOPELESS or (r.state is ReplicaState.FAILED and r.failure is None):
                cause = r.cause or "its replica failed before it was ready"
                again = max(one.ended_at or 0.0 for one in lost) + _wait_s(lost)
                return Losses(len(lost), again, again, cause, given_up=cause)
    lost = [r for r in lost if r.overflow == overflow]
    if not lost:
        return NONE
    last = max(lost, key=lambda r: r.ended_at or 0.0)
    ended_at, cause = last.ended_at or 0.0, last.cause or "stopped before it was ready"
    if _out_of_time(s, last):
        cause = "its job's time limit came before it was ready"
    most = MAX_LOST * (2 if proven else 1) * max(count, 1)
    blamed = [r for r in lost if _blamed(s, r)]
    of_nodes = [r for r in blamed if r.failure in OF_THE_NODE]
    everywhere = _not_the_nodes(s, cluster, of_nodes, most, overflow)
    counted = len(blamed) if everywhere else len(blamed) - len(of_nodes)
    too_many = counted > most
    wait_s = LONGEST_WAIT_S if too_many else _wait_s(lost)
    given_up = f"{counted} replicas were lost, the last one: {cause}" if too_many and not (serves or proven) else None
    succeed_at = ended_at + (min(wait_s, HURRIED_WAIT_S) if proven else wait_s)
    return Losses(len(lost), ended_at + wait_s, succeed_at, cause, given_up, too_many)


def avoided(s: Situation, fleet: Fleet, cluster: Cluster, overflow: bool) -> tuple[str, ...]:
    """Nodes on which a replica failed because of the node, lately; none when there are no others, or the deployment
    says itself on which nodes it runs."""
    since = s.now - AVOIDED_S
    bad = {node for r in fleet.ended if r.failure in OF_THE_NODE and (r.ended_at or 0.0) > since for node in r.nodes}
    said = s.wanted.rules.says(overflow)
    nodes = cluster.nodes_of(s.wanted.rules.where(overflow)) - said.exclude
    return () if said.nodelist or (nodes and nodes <= bad) else tuple(sorted(bad))


def _wait_s(lost: Sequence[Had]) -> float:
    """From the last of so many in a row to the next try."""
    return float(min(FIRST_WAIT_S * 2 ** min(len(lost) - 1, 10), LONGEST_WAIT_S))


def _not_the_nodes(s: Situation, cluster: Cluster, failed: Sequence[Had], most: int, overflow: bool) -> bool:
    """Whether replicas that failed because of their nodes would do so on any: each node was tried, or very many."""
    said = s.wanted.rules.says(overflow)
    nodes = cluster.nodes_of(s.wanted.rules.where(overflow)) - said.exclude
    nodes -= cluster.down.keys() | cluster.leaving.keys()
    everywhere = said.nodelist or (bool(nodes) and nodes <= {node for r in failed for node in r.nodes})
    return everywhere or len(failed) > NODES_TRIED * most


def _proof(r: Had, revision: int) -> float | None:
    """When this replica showed that the revision's replicas work, if it did."""
    if r.revision != revision or r.ready_at is None:
        return None
    if r.state is READY or r.state is DRAINING:
        return r.ready_at
    return r.ended_at if (r.ended_at or 0.0) - r.ready_at >= SERVED_S else None


def _blamed(s: Situation, r: Had) -> bool:
    """Whether its own end speaks against its revision: what was not submitted, preempted, cancelled or on a node that
    went down says nothing of the next one, which is only tried later."""
    return r.failure is not None or r.state is ReplicaState.FAILED or _out_of_time(s, r)


def _out_of_time(s: Situation, r: Had) -> bool:
    """Whether it had its job's whole time, up to Slurm's signal, and was never ready. Preemption is told by the time,
    too: its signal is the same."""
    return r.ready_at is None and r.ends_at is not None and (r.ended_at or 0.0) >= r.ends_at - rollover.stop_s(s, r)


def _lost(r: Had) -> bool:
    """Whether it ended before it was of use, and not because we had it end. After it was ready only what its
    supervisor blames on it counts: preemption and scancel say nothing of the next one."""
    if r.draining_at is not None:
        return False
    if r.ready_at is None:
        return True
    crashed = r.state is not ReplicaState.STOPPED and r.failure is not None
    return crashed and (r.ended_at or 0.0) - r.ready_at < SERVED_S
