"""What one poll saw of the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from slurm.model import Job, Node, Partition, Reservation


@dataclass(frozen=True, slots=True)
class Picture:
    """The queue as Slurm answered at one moment, and the cluster as it answered then or somewhat earlier."""

    at: datetime  # when it was asked: whatever had happened by then is in it
    jobs: tuple[Job, ...]
    cluster_at: datetime | None  # nodes change more slowly, and are asked for less often; None: not answered yet
    nodes: tuple[Node, ...]
    partitions: tuple[Partition, ...]
    reservations: tuple[Reservation, ...]
