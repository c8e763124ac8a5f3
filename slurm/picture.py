"""What one poll saw of the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from slurm.model import Job, Node, Partition, Reservation


@dataclass(frozen=True, slots=True)
class Picture:
    """The queue as Slurm answered at one moment, and the cluster as it answered then or somewhat earlier."""

    at: datetime
    jobs: tuple[Job, ...]
    cluster_at: datetime  # nodes change more slowly than jobs, and are asked for less often
    nodes: tuple[Node, ...]
    partitions: tuple[Partition, ...]
    reservations: tuple[Reservation, ...]
