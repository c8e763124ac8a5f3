"""The Slurm client over pyslurm, for what is polled: jobs and nodes. This module alone imports pyslurm.

pyslurm runs in a child process, the worker (`python -m slurm.native`), which is started at the first question and kept.
Importing it ends the process where there is no slurm.conf; each of its calls holds the interpreter's lock until
slurmctld has answered, for MessageTimeout (10 s and more) when it does not, for ever when munge hangs; and a child can
be ended, a thread cannot.
"""

from __future__ import annotations

import logging
import pwd
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any, TypeVar

from slurm import parse
from slurm.commands import TIMEOUT_S, CommandClient
from slurm.errors import SlurmUnavailable
from slurm.model import TRES, Job, Node
from slurm.worker import Worker, WorkerEnded, claim_stdout, serve

log = logging.getLogger(__name__)
T = TypeVar("T")
_MIB = 1024**2

# Attributes of pyslurm.Job and pyslurm.Node, in the order of a row. The two TRES at a job's end become one text.
JOB = (
    *("id", "array_id", "array_task_id", "array_tasks_waiting", "array_tasks_parallel"),
    *("heterogeneous_id", "heterogeneous_offset", "name", "user_id", "account", "partition", "qos", "state"),
    *("state_reason", "comment", "submit_time", "start_time", "end_time", "time_limit", "run_time_remaining"),
    *("allocated_nodes", "num_nodes", "priority", "requeue_count", "dependencies", "reservation"),
    *("allocated_tres", "requested_tres"),
)
NODE = (
    *("name", "state", "reason", "partitions", "total_cpus", "allocated_cpus", "real_memory", "allocated_memory"),
    *("configured_gres", "allocated_tres", "available_features", "free_memory", "cpu_load", "slurm_version"),
)


class NativeClient(CommandClient):
    """A SlurmClient. `timeout_s` bounds each answer; questions of several threads are asked one after the other.

    What else there is, the commands do, because pyslurm 25.11 cannot or does it otherwise:
    - accounting: it keeps one record for each job id, so requeued attempts and recycled ids fall together;
    - associations, QOS: no live use, no inherited limits, of a QOS nothing but its name;
    - partitions, reservations, configuration: no TRES of a partition, flags and settings in words of its own;
    - submit: it knows nothing of #SBATCH lines;
    - cancel, signal, hold, release, requeue, update: given an array's id, they reach only the tasks that wait.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__(environment=environment, timeout_s=timeout_s)
        self._worker = Worker("slurm.native", "pyslurm", environment, timeout_s)

    def close(self) -> None:
        """End the worker. A later question starts another."""
        self._worker.end()

    def probe(self, timeout_s: float) -> tuple[str, str]:
        """The versions of pyslurm and of slurmctld, if pyslurm understands it. Raises SlurmUnavailable otherwise."""
        pyslurm, slurm = self._worker.ask("versions", timeout_s)
        self._nodes(timeout_s)
        return pyslurm, slurm

    def jobs(self, ids: Iterable[str] | None = None, *, user: str | None = None) -> list[Job]:
        wanted = None if ids is None else frozenset(ids)
        if wanted is not None and not wanted:
            return []
        try:
            rows = self._worker.ask("jobs")
        except WorkerEnded as e:
            log.warning("asking squeue instead of pyslurm: %s", e)
            return super().jobs(wanted, user=user)
        return _understood(jobs, rows, datetime.now(UTC), wanted, user)

    def nodes(self) -> list[Node]:
        try:
            found = self._nodes()
        except WorkerEnded as e:
            log.warning("asking sinfo instead of pyslurm: %s", e)
            found = None
        return super().nodes() if found is None else found

    def _nodes(self, timeout_s: float | None = None) -> list[Node] | None:
        return _understood(nodes, *self._worker.ask("nodes", timeout_s))


def _understood(read: Callable[..., T], *answer: object) -> T:
    """What cannot be read is no answer: half of it must not pass for the whole."""
    try:
        return read(*answer)
    except (TypeError, ValueError, KeyError) as e:
        raise SlurmUnavailable(f"pyslurm said what cannot be read here: {e}") from e


# -- records --------------------------------------------------------------------------------------------------------


def jobs(rows: Iterable[tuple[Any, ...]], now: datetime, ids: frozenset[str] | None, user: str | None) -> list[Job]:
    """Rows of the attributes JOB, as far as they are these ids' and this user's, as records."""
    return [job for row in rows if (job := _job(row, now, ids, user)) is not None]


def _job(row: tuple[Any, ...], now: datetime, ids: frozenset[str] | None, user: str | None) -> Job | None:
    (
        raw_id, array_id, array_task, array_waiting, array_parallel,
        het_id, het_offset, name, uid, account, partition, qos, state,
        reason, comment, submitted, start, end, limit_min, left_s,
        node_list, node_count, priority, restarts, dependency, reservation,
        tres,
    ) = row  # fmt: skip
    job_id = str(raw_id)
    if array_waiting:
        job_id = f"{array_id}_[{array_waiting}{f'%{array_parallel}' if array_parallel else ''}]"
    elif array_id:
        job_id = f"{array_id}_{array_task or 0}"  # pyslurm takes task 0 for no task
    elif het_id:
        job_id = f"{het_id}+{het_offset or 0}"
    owner = _user_name(uid)
    if user is not None and user not in (owner, str(uid)):
        return None
    if ids is not None and not (
        ids & {job_id, str(raw_id), str(array_id), str(het_id)}
        or (array_waiting and _one_of(ids, array_id, array_waiting))
    ):
        return None
    ends_at = _time(end)
    return Job(
        id=job_id,
        raw_id=raw_id,
        name=name or "",
        user=owner,
        account=account or "",
        partition=partition or "",
        qos=qos or "",
        state=parse.state(state),
        reason=parse.maybe(reason or ""),
        comment=comment or "",
        submitted_at=datetime.fromtimestamp(submitted, UTC),
        starts_at=_time(start),
        # Slurm counts a job without a limit as ending in a year.
        ends_at=None if limit_min is None and ends_at is not None and ends_at > now else ends_at,
        time_limit_s=None if limit_min is None else limit_min * 60,
        time_left_s=None if left_s is None else max(0, left_s),
        nodes=parse.nodes(node_list or ""),
        node_count=node_count or 0,
        tres=parse.tres(tres),
        priority=priority or 0,
        restarts=restarts,
        dependency=_dependency(dependency),
        reservation=reservation,
    )


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


@lru_cache(4096)
def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _one_of(ids: Iterable[str], array_id: int, waiting: str) -> bool:
    """Whether one of the ids is a task ("12_7") of those that wait ("4-9", "0-8:2,11")."""
    mine = {int(task) for job, _, task in (i.partition("_") for i in ids) if job == str(array_id) and task.isdigit()}
    for part in waiting.split(",") if mine else ():
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        if first.isdigit() and not mine.isdisjoint(range(int(first), int(last or first) + 1, int(step or 1))):
            return True
    return False


def _dependency(found: dict[str, Any] | None) -> str | None:
    """Back to what Slurm wrote, as far as pyslurm kept it: not the order of the kinds."""
    if found is None:
        return None
    parts = [f"{kind}:{job}" for kind, jobs in found.items() if isinstance(jobs, list) for job in jobs]
    # pyslurm does not understand `singleton(unfulfilled)`, the one kind that names no job.
    return ("?" if found["satisfy"] == "any" else ",").join(parts or ["singleton"])


def nodes(rows: Iterable[tuple[Any, ...]], tracked: Iterable[str]) -> list[Node] | None:
    """Rows of the attributes NODE as records; None where pyslurm cannot tell which GPUs are free.

    It knows what is allocated on a node only as far as AccountingStorageTRES (`tracked`) counts it.
    """
    found = [_node(row, frozenset(tracked)) for row in rows]
    return None if None in found else [node for node in found if node is not None]


def _node(row: tuple[Any, ...], tracked: frozenset[str]) -> Node | None:
    (
        name, state, reason, partitions, cpus, allocated_cpus, memory, allocated_memory,
        gres, allocated, features, free_memory, load, version,
    ) = row  # fmt: skip
    has = parse.tres(",".join(f"gres/{kind}={n}" for kind, n in gres.items() if kind.split(":")[0] == "gpu"))
    used = parse.tres(",".join(f"{kind}={n}" for kind, n in allocated.items() if kind.startswith("gres/gpu")))
    kinds = has.gpus_of_each_type
    if not all(f"gres/gpu:{kind}" in tracked for kind in kinds):
        if kinds and not (len(kinds) == 1 and "gres/gpu" in tracked):
            return None
        used = TRES(gpus=used.gpus, gpus_by_type=tuple((kind, used.gpus) for kind in kinds if kind and used.gpus))
    base, flags = parse.node_state(state)
    return Node(
        name=name,
        state=base,
        flags=flags,
        reason=reason,
        partitions=tuple(partitions),
        tres=TRES(cpus, (memory or 0) * _MIB, nodes=1, gpus=has.gpus, gpus_by_type=has.gpus_by_type),
        allocated=TRES(allocated_cpus, allocated_memory * _MIB, gpus=used.gpus, gpus_by_type=used.gpus_by_type),
        features=tuple(features),
        free_memory_bytes=None if free_memory is None else free_memory * _MIB,
        cpu_load=load,
        version=version,
    )


# -- the worker -------------------------------------------------------------------------------------------------------


def main() -> None:
    answers = claim_stdout()
    import pyslurm

    for record, attributes in ((pyslurm.Job, JOB), (pyslurm.Node, NODE)):
        if missing := [a for a in attributes if not hasattr(record, a)]:
            sys.exit(f"pyslurm {pyslurm.__version__} has no {record.__name__}.{missing[0]}")
    questions = {"jobs": _ask_jobs, "nodes": _ask_nodes, "versions": _ask_versions}
    serve(answers, {name: partial(ask, pyslurm) for name, ask in questions.items()}, refusal=pyslurm.RPCError)


def _ask_versions(pyslurm: Any) -> tuple[str, str]:
    return pyslurm.__version__, pyslurm.slurmctld.Config.load().version


def _ask_jobs(pyslurm: Any) -> list[tuple[Any, ...]]:
    rows = _rows(pyslurm.Jobs.load().values(), JOB)
    return [(*row, _tres(has or asks)) for *row, has, asks in rows]


def _ask_nodes(pyslurm: Any) -> tuple[list[tuple[Any, ...]], list[str]]:
    tracked = pyslurm.slurmctld.Config.load().accounting_storage_tres
    return list(_rows(pyslurm.Nodes.load().values(), NODE)), list(tracked)


def _rows(records: Iterable[Any], attributes: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    read = attrgetter(*attributes)
    for record in records:
        try:
            yield read(record)
        except UnicodeDecodeError:
            yield tuple(_text(record, attribute) for attribute in attributes)


def _text(record: Any, attribute: str) -> Any:
    """Bytes that are no UTF-8 (job names may hold any) become U+FFFD."""
    try:
        return getattr(record, attribute)
    except UnicodeDecodeError as e:
        return e.object.decode(errors="replace")


def _tres(resources: Any) -> str:
    """As Slurm writes them; memory in MiB."""
    if resources is None:
        return ""
    single = (resources.cpu, resources.mem, resources.node, resources.billing, resources.energy)
    several = (resources.gres, resources.license, resources.fs, resources.interconnect, resources.other)
    found = (*single, *(each for kind in several for each in kind.values()))
    return ",".join(f"{each.type_and_name}={each.count}" for each in found if each is not None)


if __name__ == "__main__":
    main()
