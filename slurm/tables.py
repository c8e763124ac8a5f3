"""Rows of squeue, sacct, sinfo, sshare and sacctmgr become records. Pure: no command is run here.

Fields are told apart by a separator that nobody can write into a job's name, because each client draws it by lot. A
name may even hold a line break, so a record is as many lines as it takes to have all its fields.

Whole columns are read at once: 10,000 jobs of two dozen fields are a quarter of a million small texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from slurm import parse
from slurm.model import QOS, TRES, Job, JobStep, JobUsage, Limit, Node

T = TypeVar("T")

# Field of the dataclass, column of the command, parser.
Columns = tuple[tuple[str, str, Callable[[str], Any]], ...]

SQUEUE: Columns = (
    ("id", "JobArrayID", str),
    ("raw_id", "JobID", int),
    ("name", "Name", str),
    ("user", "UserName", str),
    ("account", "Account", parse.text),
    ("partition", "Partition", str),
    ("qos", "QOS", parse.text),
    ("state", "State", parse.state),
    ("reason", "Reason", parse.maybe),
    ("comment", "Comment", parse.text),
    ("submitted_at", "SubmitTime", parse.some_time),
    ("starts_at", "StartTime", parse.time),
    ("ends_at", "EndTime", parse.time),
    ("time_limit_s", "TimeLimit", parse.duration_s),
    ("time_left_s", "TimeLeft", parse.duration_s),
    ("nodes", "NodeList", parse.nodes),
    ("node_count", "NumNodes", int),
    ("tres", "tres-alloc", parse.tres),
    ("priority", "PriorityLong", int),
    ("restarts", "RestartCnt", parse.count),
    ("dependency", "Dependency", parse.maybe),
    ("reservation", "Reservation", parse.maybe),
)
SACCT: Columns = (
    ("id", "JobID", str),
    ("raw_id", "JobIDRaw", int),
    ("cluster", "Cluster", str),
    ("name", "JobName", str),
    ("user", "User", str),
    ("account", "Account", str),
    ("partition", "Partition", str),
    ("qos", "QOS", str),
    ("state", "State", parse.state),
    ("state_text", "State", str),
    ("exit_code", "ExitCode", str),
    ("comment", "Comment", parse.text),
    ("submit_line", "SubmitLine", str),
    ("submitted_at", "Submit", parse.some_time),
    ("started_at", "Start", parse.time),
    ("ended_at", "End", parse.time),
    ("elapsed_s", "ElapsedRaw", int),
    ("suspended_s", "Suspended", parse.some_duration_s),
    ("nodes", "NodeList", parse.nodes),
    ("allocated", "AllocTRES", parse.tres),
    ("reservation", "Reservation", parse.maybe),
)
SACCT_STEPS: Columns = (
    ("id", "JobID", str),
    ("name", "JobName", str),
    ("state", "State", parse.state),
    ("exit_code", "ExitCode", str),
    ("started_at", "Start", parse.time),
    ("ended_at", "End", parse.time),
    ("elapsed_s", "ElapsedRaw", int),
    ("nodes", "NodeList", parse.nodes),
    ("tasks", "NTasks", parse.count),
    ("allocated", "AllocTRES", parse.tres),
    ("max_rss_bytes", "MaxRSS", lambda text: parse.memory_bytes(text) if text else None),
)
# One row for each node and partition.
SINFO: Columns = (
    ("name", "NodeList", str),
    ("state", "StateComplete", parse.node_state),
    ("reason", "Reason", parse.maybe),
    ("partition", "Partition", lambda text: text.removesuffix("*")),  # the default partition is marked
    ("cpus", "CPUsState", lambda text: [int(n) for n in text.split("/")]),  # allocated/idle/other/total
    ("memory", "Memory", parse.mebibytes),
    ("allocated_memory", "AllocMem", parse.mebibytes),
    ("free_memory", "FreeMem", parse.mebibytes),
    ("gres", "Gres", parse.gpus),
    ("gres_used", "GresUsed", parse.gpus),
    ("features", "Features", parse.words),
    ("cpu_load", "CPUsLoad", lambda text: None if text in parse.NOTHING else float(text)),
    ("version", "Version", parse.maybe),
)
# One row for each QOS; preemption is what `scontrol show assoc_mgr` does not tell.
QOS_TABLE: Columns = (
    ("name", "Name", str),
    ("priority", "Priority", parse.count),
    ("preempts", "Preempt", parse.words),
    ("preempt_mode", "PreemptMode", str),
    ("grace_time_s", "GraceTime", parse.some_duration_s),
    ("usage_factor", "UsageFactor", float),
    ("flags", "Flags", parse.flags),
)
SSHARE: Columns = (
    ("account", "Account", str.strip),  # indented, to show the tree
    ("user", "User", parse.maybe),
    ("partition", "Partition", parse.maybe),
    ("fair_share", "FairShare", lambda text: float(text) if text else None),
)


def jobs(text: str, separator: str) -> list[Job]:
    """The output of `squeue -h -O` with the columns SQUEUE."""
    return list(map(Job, *_read(text, SQUEUE, separator, f"{separator}\n")))


def accounting(text: str, separator: str) -> list[JobUsage]:
    """The output of `sacct -n -P -X -D --delimiter` with the columns SACCT."""
    return list(map(JobUsage, *_read(text, SACCT, separator, "\n")))


def steps(text: str, separator: str) -> list[JobStep]:
    """The output of `sacct -n -P -D --delimiter` with the columns SACCT_STEPS, without the jobs themselves."""
    rows = [row for row in _records(text, len(SACCT_STEPS), separator, "\n") if "." in row[0]]
    return list(map(JobStep, *_columns(rows, SACCT_STEPS)))


def nodes(text: str, separator: str) -> list[Node]:
    """The output of `sinfo -h -N -O` with the columns SINFO."""
    fields = [field for field, _, _ in SINFO]
    found: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for values in zip(*_read(text, SINFO, separator, f"{separator}\n"), strict=True):
        row = dict(zip(fields, values, strict=True))
        found.setdefault(row["name"], (row, []))[1].append(row["partition"])
    return [_node(row, tuple(partitions)) for row, partitions in found.values()]


def _node(row: dict[str, Any], partitions: tuple[str, ...]) -> Node:
    state, flags = row["state"]
    allocated, _, _, total = row["cpus"]
    gpus, gpus_by_type = row["gres"]
    used, used_by_type = row["gres_used"]
    return Node(
        name=row["name"],
        state=state,
        flags=flags,
        reason=row["reason"],
        partitions=partitions,
        tres=TRES(cpus=total, memory_bytes=row["memory"] or 0, nodes=1, gpus=gpus, gpus_by_type=gpus_by_type),
        allocated=TRES(
            cpus=allocated,
            memory_bytes=row["allocated_memory"] or 0,
            gpus=used,
            gpus_by_type=tuple((kind, n) for kind, n in used_by_type if n),
        ),
        features=row["features"],
        free_memory_bytes=row["free_memory"],
        cpu_load=row["cpu_load"],
        version=row["version"],
    )


def fair_shares(text: str, separator: str) -> dict[tuple[str, str | None, str | None], float | None]:
    """The output of `sshare -n -P` with the columns SSHARE: by (account, user, partition)."""
    accounts, users, partitions, factors = _read(text, SSHARE, separator, "\n")
    return dict(zip(zip(accounts, users, partitions, strict=True), factors, strict=True))


def qos(text: str, separator: str, limits: Mapping[str, tuple[Limit, ...]]) -> list[QOS]:
    """The output of `sacctmgr -n -P show qos` with the columns QOS_TABLE; limits by QOS (`assoc_mgr.qos_limits`)."""
    names, *others = _read(text, QOS_TABLE, separator, "\n")
    return list(map(QOS, names, *others, [limits.get(name, ()) for name in names]))


def _read(text: str, columns: Columns, separator: str, end: str) -> Sequence[Sequence[Any]]:
    return _columns(list(_records(text, len(columns), separator, end)), columns)


def _columns(records: Sequence[Sequence[str]], columns: Columns) -> list[list[Any]]:
    """Every column of the records, read. Raises ValueError that names the column."""
    values: Sequence[Sequence[str]] = list(zip(*records, strict=True)) or [()] * len(columns)
    read = []
    for (_, name, parser), column in zip(columns, values, strict=True):
        try:
            read.append(list(map(parser, column)))
        except (ValueError, KeyError) as e:
            raise ValueError(f"{name}: {e}") from e
    return read


def _records(text: str, width: int, separator: str, end: str) -> Iterator[list[str]]:
    """Records of `width` fields, each closed by `end`. Raises ValueError for half a record."""
    if not text:
        return
    if not text.endswith(end):
        raise ValueError(f"the text ends within a record: {text[-80:]!r}")
    pending = ""
    for line in text[: -len(end)].split(end):
        record = pending + line
        fields = record.split(separator)
        if len(fields) == width:
            yield fields
            pending = ""
        elif len(fields) < width:
            pending = record + end
        else:
            raise ValueError(f"a record of {width} fields was expected, not {record!r}")
    if pending:
        raise ValueError(f"a record of {width} fields was expected, not {pending!r}")
