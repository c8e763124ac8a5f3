"""Records of Slurm's, for tests of what is concluded from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from slurm import parse
from slurm.model import QOS, Association, Job, JobState, Limit, Node, NodeState, Partition, Reservation
from slurm.picture import Picture

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
GIB = 1024**3


def after(**spans: float) -> datetime:
    return NOW + timedelta(**spans)


def job(number: int = 1, asks: str = "cpu=1,mem=1G,node=1", **changed: Any) -> Job:
    """A job of ada's that waits in partition gpu for an hour of what `asks` says in Slurm's words."""
    tres = parse.tres(asks)
    made = Job(
        id=str(number),
        raw_id=number,
        name="wrap",
        user="ada",
        account="physics",
        partition="gpu",
        qos="normal",
        state=JobState.PENDING,
        reason=None,
        comment="",
        submitted_at=after(minutes=-5),
        starts_at=None,
        ends_at=None,
        time_limit_s=3600,
        time_left_s=None,
        nodes=(),
        node_count=tres.nodes or 1,
        tres=tres,
        priority=1000,
        restarts=0,
    )
    return dataclasses.replace(made, **changed)


def gpus(count: int, kind: str = "h100", nodes: int = 1) -> str:
    typed = f",gres/gpu:{kind}={count}" if kind else ""
    return f"cpu={nodes},mem=1G,node={nodes},gres/gpu={count}{typed}"


def node(name: str, used: str = "", has: str = "cpu=16,mem=64G,gres/gpu=8,gres/gpu:h100=8", **changed: Any) -> Node:
    """A node of partition gpu."""
    made = Node(
        name=name,
        state=NodeState.MIXED if used else NodeState.IDLE,
        flags=frozenset(),
        reason=None,
        partitions=("gpu",),
        tres=parse.tres(has),
        allocated=parse.tres(used),
        features=(),
        free_memory_bytes=None,
        cpu_load=None,
        version=None,
    )
    return dataclasses.replace(made, **changed)


def partition(name: str = "gpu", **changed: Any) -> Partition:
    made = Partition(
        name=name,
        state="UP",
        default=False,
        hidden=False,
        nodes=(),
        tres=parse.tres(""),
        max_time_s=None,
        default_time_s=None,
        max_nodes=None,
        qos=None,
        allow_accounts=None,
        allow_qos=None,
        allow_groups=None,
        preempt_mode="OFF",
        grace_time_s=0,
        priority_tier=1,
    )
    return dataclasses.replace(made, **changed)


def reservation(name: str, nodes: Sequence[str], **changed: Any) -> Reservation:
    """Of whole nodes, for maintenance, from two o'clock to four."""
    made = Reservation(
        name=name,
        starts_at=after(hours=2),
        ends_at=after(hours=4),
        nodes=tuple(nodes),
        flags=frozenset({"MAINT"}),
        users=("root",),
        accounts=(),
        partition=None,
        active=False,
        tres=parse.tres(f"cpu={16 * len(nodes)}"),
    )
    return dataclasses.replace(made, **changed)


def association(account: str, user: str | None, *limits: Limit, parent: str | None = None) -> Association:
    return Association("c", account, user, None, account if user else parent, False, tuple(limits))


def qos(name: str, *limits: Limit) -> QOS:
    return QOS(name, 0, (), "cluster", 0, 1.0, frozenset(), tuple(limits))


def picture(
    jobs: Sequence[Job] = (),
    nodes: Sequence[Node] = (),
    partitions: Sequence[Partition] | None = None,
    reservations: Sequence[Reservation] = (),
) -> Picture:
    shown = (partition(),) if partitions is None else tuple(partitions)
    return Picture(NOW, tuple(jobs), NOW, tuple(nodes), shown, tuple(reservations))
