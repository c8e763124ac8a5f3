"""This machine in Slurm's words: one partition of one node, and the local scheduler's jobs on it."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from pathlib import Path

import psutil

from launchers.local_job import LocalJob, records
from launchers.run_folder import RunFolder
from launchers.spec import ScriptSpec, SpecError, load
from launchers.subjects import user_name
from slurm.model import TRES, Job, JobState, Node, NodeState, Partition
from slurm.picture import Picture
from slurm.sight import Limits, Sight

PARTITION = "local"
NVIDIA = Path("/proc/driver/nvidia/gpus")  # one folder for each GPU


class ThisMachine:
    """A Source (launchers/direct.py) over the local scheduler's spool. Nothing waits here, and nothing is limited."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool

    def queue(self, user: str | None) -> Sight:
        return self.cluster()

    def cluster(self) -> Sight:
        return Sight(picture(self._spool, datetime.now(UTC)))

    def limits(self) -> Sight:
        seen = self.cluster()
        return Sight(seen.picture, Limits(seen.picture.at, (), ()))


def picture(spool: Path, now: datetime) -> Picture:
    """The jobs that run, and the machine with what they were given of it."""
    host = socket.gethostname()
    jobs = tuple(job for recorded in records(spool) if (job := _job(recorded, host, now)) is not None)
    has = TRES(
        cpus=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        nodes=1,
        gpus=sum(1 for _ in NVIDIA.iterdir()) if NVIDIA.is_dir() else 0,
    )
    # Nobody keeps local jobs from asking for more than there is.
    used = TRES(cpus=min(has.cpus, sum(j.tres.cpus for j in jobs)), gpus=min(has.gpus, sum(j.tres.gpus for j in jobs)))
    state = NodeState.MIXED if jobs else NodeState.IDLE
    node = Node(
        name=host,
        state=state,
        flags=frozenset(),
        reason=None,
        partitions=(PARTITION,),
        tres=has,
        allocated=used,
        features=(),
        free_memory_bytes=psutil.virtual_memory().available,
        cpu_load=os.getloadavg()[0],
        version=None,
    )
    partition = Partition(
        name=PARTITION,
        state="UP",
        default=True,
        hidden=False,
        nodes=(host,),
        tres=has,
        max_time_s=None,
        default_time_s=None,
        max_nodes=1,
        qos=None,
        allow_accounts=None,
        allow_qos=None,
        allow_groups=None,
        preempt_mode="OFF",
        grace_time_s=0,
        priority_tier=1,
    )
    return Picture(now, jobs, now, (node,), (partition,), ())


def _job(recorded: LocalJob, host: str, now: datetime) -> Job | None:
    """None for one that has ended."""
    process = recorded.process()
    if process is None:
        return None
    try:
        user = user_name(process.uids().real)
    except psutil.NoSuchProcess:
        return None
    limit_s = _time_limit_s(RunFolder(Path(recorded.log_dir).parent))
    used_s = int((now - recorded.submitted_at).total_seconds())
    return Job(
        id=str(recorded.pid),
        raw_id=recorded.pid,
        name=recorded.name,
        user=user,
        account="",
        partition=PARTITION,
        qos="",
        state=JobState.RUNNING,
        reason=None,
        comment=recorded.key,
        submitted_at=recorded.submitted_at,
        starts_at=recorded.submitted_at,
        ends_at=None,
        time_limit_s=limit_s,
        time_left_s=None if limit_s is None else max(0, limit_s - used_s),
        nodes=(host,),
        node_count=1,
        tres=TRES(cpus=recorded.cpus, gpus=recorded.gpus, nodes=1),
        priority=1,
        restarts=0,
    )


def _time_limit_s(folder: RunFolder) -> int | None:
    try:
        spec = load(folder.spec)
    except (OSError, SpecError):
        return None
    return None if isinstance(spec, ScriptSpec) else spec.resources.time_limit_s
