"""Which task of which job this process is, and how the tasks of one job find each other.

The tasks meet through a file on the shared file system that the first task writes: the port is then really free,
and no scheduler needs to say who the first node is.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launchers.untrusted import read_object

# srun's options for tasks that end together. When one has gone without a word (killed, its node out of memory), the
# others must not wait for it until the time limit; but longer than a supervisor's own grace. Not at once, as
# --kill-on-bad-exit does it: the supervisors end each other and say why.
END_TOGETHER = ("--kill-on-bad-exit=0", "--wait=120")
END_APART = ("--kill-on-bad-exit=0", "--wait=0")  # and for tasks of which each has an end of its own
ELSEWHERE = "192.0.2.1"  # nobody's (RFC 5737): on the way there is how this host is known outside
MAX_CAUSE, MAX_TAIL, MAX_MARKER_BYTES = 2000, 6000, 1 << 17  # characters; a marker's bytes, escapes and all


class RendezvousError(RuntimeError):
    """The tasks of one job did not find each other."""


@dataclass(frozen=True, slots=True)
class Task:
    rank: int
    tasks: int
    local_rank: int
    job_id: str
    restart: int  # how often Slurm requeued the job
    node: str

    @property
    def attempt(self) -> str:
        """Names this attempt among all attempts of a run: a requeued job keeps its id and counts restarts."""
        return f"{self.job_id}.{self.restart}"


def task_of(environ: Mapping[str, str]) -> Task:
    """Read Slurm's variables, or submitit's local ones, or stand alone."""
    host = socket.gethostname()
    if "SLURM_PROCID" in environ:
        return Task(
            rank=int(environ["SLURM_PROCID"]),
            tasks=int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1),
            local_rank=int(environ.get("SLURM_LOCALID", "0")),
            job_id=_job_id(environ),
            restart=int(environ.get("SLURM_RESTART_COUNT", "0")),
            node=environ.get("SLURMD_NODENAME", host),
        )
    return Task(
        rank=int(environ.get("SUBMITIT_LOCAL_GLOBALID", "0")),
        tasks=int(environ.get("SUBMITIT_LOCAL_NTASKS", "1")),
        local_rank=int(environ.get("SUBMITIT_LOCAL_LOCALID", "0")),
        job_id=environ.get("SUBMITIT_LOCAL_JOB_ID", str(os.getpid())),
        restart=0,
        node=host,
    )


def _job_id(environ: Mapping[str, str]) -> str:
    """As Slurm's commands take and print it: of an array's task, ARRAY_TASK."""
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID", "0")


def free_port(host: str = "") -> int:
    """A port that was free a moment ago."""
    with socket.socket() as s:
        s.bind((host, 0))
        return int(s.getsockname()[1])


def own_address() -> str:
    """Where other nodes reach this host: by its name, or where that does not resolve, perhaps for a moment only, by its
    address on the way to others. 127.0.0.1 where there is no such way."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror:
        return _address_towards(ELSEWHERE)
    return name


def _address_towards(other: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect((other, 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(s.getsockname()[0])


def meet(
    directory: Path, task: Task, *, timeout_s: float = 300.0, clock: Callable[[], float] = time.monotonic
) -> tuple[str, int]:
    """(address, port) of the first task, agreed through `directory`. Raises RendezvousError after `timeout_s`."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{task.attempt}.json"
    if task.rank == 0:
        place = {"address": own_address() if task.tasks > 1 else "127.0.0.1", "port": free_port()}
        temporary = directory / f".{task.attempt}.{os.getpid()}"
        temporary.write_text(json.dumps(place), encoding="utf-8")
        os.rename(temporary, path)
    deadline = clock() + timeout_s
    while True:
        try:
            place = json.loads(path.read_text(encoding="utf-8"))
            return str(place["address"]), int(place["port"])
        except FileNotFoundError:
            if clock() > deadline:
                raise RendezvousError(
                    f"{path}: the first task did not say where it is within {timeout_s:.0f} s"
                ) from None
            time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Failure:
    """Which task of an attempt failed, where, why, and the end of its log."""

    rank: int
    node: str
    cause: str
    tail: str
    kind: str = "crashed"  # launchers.restart.Cause
    engine: str | None = None  # of an engine: launchers.vllm.failures.Kind


def mark_failed(marker: Path, failure: Failure) -> Failure:
    """Tell the other tasks of this attempt, so that none waits for ever. Returns the first failure that was told."""
    told = dataclasses.asdict(failure) | {"cause": failure.cause[:MAX_CAUSE], "tail": failure.tail[-MAX_TAIL:]}
    marker.parent.mkdir(exist_ok=True)
    temporary = marker.with_name(f".{marker.name}.{failure.rank}.{os.getpid()}")
    temporary.write_text(json.dumps(told), encoding="utf-8")
    try:
        os.link(temporary, marker)  # whole, and never over another task's
    except FileExistsError:
        pass  # another was first; this one may have died of it
    finally:
        temporary.unlink()
    first = read_failure(marker)
    assert first is not None
    return first


def read_failure(marker: Path) -> Failure | None:
    """Raises ValueError when the marker is not one of `mark_failed`."""
    try:
        data = read_object(marker, MAX_MARKER_BYTES)
        rank, node, cause, tail = int(data["rank"]), str(data["node"]), str(data["cause"]), str(data["tail"])
        engine = data.get("engine")
        return Failure(rank, node, cause, tail, str(data["kind"]), None if engine is None else str(engine))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as e:
        raise ValueError(f"{marker}: {e}") from e
