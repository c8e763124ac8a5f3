"""Where there is room for new jobs: by partition and GPU type, and for one job. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from slurm.model import TRES, Job, Node, Reservation
from slurm.picture import Picture


@dataclass(frozen=True, slots=True)
class Room:
    """The nodes of one partition that have one type of GPU ("" where they have no type, None for none at all)."""

    partition: str
    partition_state: str  # UP | DOWN | DRAIN | INACTIVE
    gpu: str | None
    nodes: int
    nodes_out: int  # of them: down, drained, in maintenance, or reserved for somebody
    nodes_partly_reserved: int  # of the others: some of their CPUs, which still count as free here, are somebody's
    gpus: int
    gpus_free: int
    nodes_free: int  # on which those are
    most_on_one_node: int
    cpus: int
    cpus_free: int


def rooms(picture: Picture) -> list[Room]:
    """Partitions in their order, types by name. A node of two partitions counts in both, one of two types twice."""
    closed, partly = reserved(picture), partly_reserved(picture)
    found = []
    for partition in picture.partitions:
        members = [n for n in picture.nodes if partition.name in n.partitions]
        kinds = {kind for n in members for kind in n.tres.gpus_of_each_type}
        groups: list[tuple[str | None, list[Node]]] = [
            (kind, [n for n in members if kind in n.tres.gpus_of_each_type]) for kind in sorted(kinds)
        ]
        if bare := [n for n in members if not n.tres.gpus]:
            groups.append((None, bare))
        for kind, nodes in groups:
            open_nodes = [n for n in nodes if n.available and n.name not in closed and partition.state == "UP"]
            free = [n.free_gpus_by_type.get(kind, 0) for n in open_nodes if kind is not None]
            found.append(
                Room(
                    partition=partition.name,
                    partition_state=partition.state,
                    gpu=kind,
                    nodes=len(nodes),
                    nodes_out=sum(not n.available or n.name in closed for n in nodes),
                    nodes_partly_reserved=sum(n.available and n.name in partly for n in nodes),
                    gpus=sum(n.tres.gpus_of_each_type.get(kind, 0) for n in nodes if kind is not None),
                    gpus_free=sum(free),
                    nodes_free=sum(n > 0 for n in free),
                    most_on_one_node=max(free, default=0),
                    cpus=sum(n.tres.cpus for n in nodes),
                    cpus_free=sum(free_cpus(n) for n in open_nodes),
                )
            )
    return found


def reserved(picture: Picture) -> dict[str, list[Reservation]]:
    """Nodes that are reserved now as a whole, by name: jobs without the reservation do not start there.

    Of several on one node (MAINT and OVERLAP allow it) each counts.
    """
    found: dict[str, list[Reservation]] = {}
    for reservation in picture.reservations:
        if reservation.active and whole(reservation, picture):
            for name in reservation.nodes:
                found.setdefault(name, []).append(reservation)
    return found


def partly_reserved(picture: Picture) -> frozenset[str]:
    """Nodes of which some CPUs are reserved now (CoreCnt, TRES): on the others anybody's jobs may start."""
    some = (r.nodes for r in picture.reservations if r.active and not whole(r, picture))
    return frozenset(name for names in some for name in names) - reserved(picture).keys()


def whole(reservation: Reservation, picture: Picture) -> bool:
    """Whether it has all CPUs of its nodes; of which it has some only, Slurm does not say."""
    names = frozenset(reservation.nodes)
    return reservation.tres.cpus >= sum(n.tres.cpus for n in picture.nodes if n.name in names)


def free_cpus(node: Node) -> int:
    return node.tres.cpus - node.allocated.cpus if node.available else 0


def free_memory_bytes(node: Node) -> int:
    """What Slurm has not given away, whatever programs really use."""
    return node.tres.memory_bytes - node.allocated.memory_bytes if node.available else 0


def open_to(job: Job, partition: str, picture: Picture) -> list[Node]:
    """Nodes of the partition that may take new jobs of this kind: of its reservation, or of nobody's."""
    own = next((r for r in picture.reservations if r.active and r.name == job.reservation), None)
    if job.reservation is not None and own is None:
        return []
    within = None if own is None else frozenset(own.nodes)
    holders = reserved(picture)
    closed = {name for name in holders if any(_keeps_out(holder, own) for holder in holders[name])}
    return [
        n for n in picture.nodes
        if partition in n.partitions and n.available and n.name not in closed and (within is None or n.name in within)
    ]  # fmt: skip


def _keeps_out(holder: Reservation, own: Reservation | None) -> bool:
    """Whether a reservation of whole nodes keeps jobs of another one, or of none, off them (job_test_resv)."""
    if own is None:
        return True
    overlaps = own.maintenance or ("OVERLAP" in own.flags and not holder.maintenance)
    return holder.name != own.name and not overlaps


def free_gpus(nodes: Sequence[Node], kind: str) -> list[int]:
    """Free GPUs of a type on each node; of "" all of them, since a job that names no type takes any."""
    if kind:
        return [n.free_gpus_by_type.get(kind, 0) for n in nodes]
    return [sum(n.free_gpus_by_type.values()) for n in nodes]


def shares(total: int, nodes: int) -> int:
    """What each of a job's nodes must have at least, were it spread evenly."""
    return -(-total // max(1, nodes))


def up_to_date(picture: Picture) -> Picture:
    """With what the jobs hold now, on nodes where one began or ended since the nodes were asked.

    Of a job on several nodes each is taken to hold the same share, which what the nodes themselves say need not be.
    """
    if picture.cluster_at is None or picture.cluster_at >= picture.at:
        return picture
    asked = picture.cluster_at.replace(microsecond=0)  # Slurm's times are whole seconds
    moved = {name for job in picture.jobs if _moved_since(job, asked) for name in job.nodes}
    held: dict[str, list[Job]] = {name: [] for name in moved}
    for job in picture.jobs:
        if not job.state.pending and not job.state.ended:
            for name in moved.intersection(job.nodes):
                held[name].append(job)
    return replace(picture, nodes=tuple(_holding(n, held[n.name]) if n.name in moved else n for n in picture.nodes))


def _moved_since(job: Job, asked: datetime) -> bool:
    return any(at is not None and at >= asked for at in (job.started_at, job.ended_at))


def _share(total: int, job: Job) -> int:
    """What a job holds on each of its nodes; one that is ending may have left all of them."""
    return total // max(1, job.node_count)


def _holding(node: Node, jobs: Sequence[Job]) -> Node:
    by_type: dict[str, int] = {}
    for job in jobs:
        kinds = job.tres.gpus_of_each_type
        if len(node.tres.gpus_by_type) == 1:  # a cluster need not track types, but the node has only this one
            kinds = {node.tres.gpus_by_type[0][0]: job.tres.gpus}
        for kind, count in kinds.items():
            by_type[kind] = by_type.get(kind, 0) + _share(count, job)
    allocated = TRES(
        cpus=min(node.tres.cpus, sum(_share(j.tres.cpus, j) for j in jobs)),
        memory_bytes=min(node.tres.memory_bytes, sum(_share(j.tres.memory_bytes, j) for j in jobs)),
        gpus=min(node.tres.gpus, sum(by_type.values())),
        gpus_by_type=tuple((kind, count) for kind, count in sorted(by_type.items()) if kind and count),
    )
    return replace(node, allocated=allocated)
