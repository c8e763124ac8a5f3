"""Where there is room for new jobs: by partition and GPU type, and for one job. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slurm.model import Job, Node, Reservation
from slurm.picture import Picture


@dataclass(frozen=True, slots=True)
class Room:
    """The nodes of one partition that have one type of GPU ("" where they have no type, None for none at all)."""

    partition: str
    partition_state: str  # UP | DOWN | DRAIN | INACTIVE
    gpu: str | None
    nodes: int
    nodes_out: int  # of them: down, drained, in maintenance, or reserved for somebody
    gpus: int
    gpus_free: int
    nodes_free: int  # on which those are
    most_on_one_node: int
    cpus: int
    cpus_free: int


def rooms(picture: Picture) -> list[Room]:
    """Partitions in their order, types by name. A node of two partitions counts in both, one of two types twice."""
    closed = reserved(picture)
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
                    gpus=sum(n.tres.gpus_of_each_type.get(kind, 0) for n in nodes if kind is not None),
                    gpus_free=sum(free),
                    nodes_free=sum(n > 0 for n in free),
                    most_on_one_node=max(free, default=0),
                    cpus=sum(n.tres.cpus for n in nodes),
                    cpus_free=sum(free_cpus(n) for n in open_nodes),
                )
            )
    return found


def reserved(picture: Picture) -> dict[str, Reservation]:
    """Nodes that are reserved now, by name: jobs without the reservation do not start there."""
    return {name: r for r in picture.reservations if r.active for name in r.nodes}


def free_cpus(node: Node) -> int:
    return node.tres.cpus - node.allocated.cpus if node.available else 0


def free_memory_bytes(node: Node) -> int:
    """What Slurm has not given away, whatever programs really use."""
    return node.tres.memory_bytes - node.allocated.memory_bytes if node.available else 0


def open_to(job: Job, partition: str, picture: Picture) -> list[Node]:
    """Nodes of the partition that may take new jobs of this kind: of its reservation, or of nobody's."""
    closed = reserved(picture)
    found = []
    for node in picture.nodes:
        owner = closed.get(node.name)
        if partition in node.partitions and node.available and (owner.name if owner else None) == job.reservation:
            found.append(node)
    return found


def free_gpus(nodes: Sequence[Node], kind: str) -> list[int]:
    """Free GPUs of a type on each node; of "" all of them, since a job that names no type takes any."""
    if kind:
        return [n.free_gpus_by_type.get(kind, 0) for n in nodes]
    return [sum(n.free_gpus_by_type.values()) for n in nodes]


def shares(total: int, nodes: int) -> int:
    """What each of a job's nodes must have at least, were it spread evenly."""
    return -(-total // max(1, nodes))
