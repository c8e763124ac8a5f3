"""What Slurm has in mind for its nodes, out of what one poll saw. Pure."""

from __future__ import annotations

from launchers.scheduler import Maintenance, Outlook
from slurm.model import NodeState
from slurm.picture import Picture

NOTHING = Outlook({}, {}, (), {})


def outlook(picture: Picture) -> Outlook:
    leaving, down = {}, {}
    for node in picture.nodes:
        if node.state in (NodeState.DOWN, NodeState.ERROR):
            down[node.name] = node.reason or node.state.value
        elif "DRAIN" in node.flags:
            leaving[node.name] = node.reason or "DRAIN"
    kept = [
        Maintenance(r.name, r.starts_at, r.ends_at, frozenset(r.nodes)) for r in picture.reservations if r.maintenance
    ]
    by_partition = {p.name: frozenset(p.nodes) for p in picture.partitions}
    for partition in picture.partitions:
        if partition.default:
            by_partition[""] = frozenset(partition.nodes)
    kept.sort(key=lambda m: (m.starts_at, m.name))
    return Outlook(leaving, down, tuple(kept), by_partition, picture.cluster_at)
