"""Slurm's text becomes dataclasses. Pure: no command is run here.

Fields are separated by the ASCII unit separator, because a job's name may hold every printable character; a name may
even hold a line break, so a record is as many lines as it takes to have all its fields. For that, the last column
must be one that cannot hold a line break.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from slurm.model import TRES, Job, JobState, JobUsage

SEPARATOR = "\x1f"

_NOTHING = frozenset({"", "Unknown", "None", "N/A", "n/a", "(null)", "None assigned", "NONE"})
_UNITS_MB = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2, "P": 1024.0**3}


def time(text: str) -> datetime | None:
    """Seconds since the epoch (SLURM_TIME_FORMAT=%s), or Slurm's default, which is local time without saying so."""
    if text in _NOTHING:
        return None
    if text.isdigit():
        return datetime.fromtimestamp(int(text), UTC)
    return datetime.fromisoformat(text).astimezone(UTC)


def some_time(text: str) -> datetime:
    moment = time(text)
    if moment is None:
        raise ValueError(f"a time was expected, not {text!r}")
    return moment


def duration_s(text: str) -> int | None:
    """[days-]hours:minutes:seconds, or minutes:seconds; None for UNLIMITED and for a limit that is not set."""
    if text in ("UNLIMITED", "INFINITE", "NOT_SET", "INVALID", "Partition_Limit") or text in _NOTHING:
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(?:\.\d+)?", text)
    if match is None:
        raise ValueError(f"not a duration of Slurm's: {text!r}")
    days, hours, minutes, seconds = (int(g or 0) for g in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def nodes(text: str) -> tuple[str, ...]:
    """`g[01-03,7],c1` as names, in order. Raises ValueError on unbalanced brackets."""
    if text in _NOTHING:
        return ()
    names: list[str] = []
    for expression in re.split(r",(?![^\[]*\])", text):
        parts = re.split(r"\[([^\[\]]*)\]", expression)  # literal, range, literal, range, ..., literal
        if any("[" in p or "]" in p for p in parts):
            raise ValueError(f"not a node list: {text!r}")
        choices = [list(_indices(p)) if i % 2 else [p] for i, p in enumerate(parts)]
        names.extend("".join(choice) for choice in itertools.product(*choices))
    return tuple(names)


def _indices(ranges: str) -> Iterator[str]:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        width = len(first)
        yield from (f"{i:0{width}}" for i in range(int(first), int(last or first) + 1))


def tres(text: str) -> TRES:
    """`cpu=2,gres/gpu:h100=4,gres/gpu=4,mem=200M,node=2`: a typed count repeats part of the untyped one.

    A cluster may track only the types; then their sum is the number of GPUs.
    """
    count = dict(item.split("=", 1) for item in text.split(",") if "=" in item)
    prefix = "gres/gpu:"
    by_type = tuple(sorted((k.removeprefix(prefix), int(v)) for k, v in count.items() if k.startswith(prefix)))
    untyped = count.get("gres/gpu")
    return TRES(
        cpus=int(count.get("cpu", 0)),
        memory_mb=_megabytes(count.get("mem", "0")),
        nodes=int(count.get("node", 0)),
        billing=int(count.get("billing", 0)),
        gpus=sum(n for _, n in by_type) if untyped is None else int(untyped),
        gpus_by_type=by_type,
    )


def _megabytes(text: str) -> int:
    unit = text[-1:]
    return round(float(text[:-1]) * _UNITS_MB[unit]) if unit in _UNITS_MB else round(float(text))


def state(text: str) -> JobState:
    """`CANCELLED by 1000` is CANCELLED; sacct marks a truncated word with a plus sign, which -P avoids."""
    return JobState(text.split(" ", 1)[0])


def _maybe(text: str) -> str | None:
    return None if text in _NOTHING else text


# Field of the dataclass, column of the command, parser. The last column cannot hold a line break.
Columns = tuple[tuple[str, str, Callable[[str], Any]], ...]
SQUEUE: Columns = (
    ("id", "%i", str),
    ("name", "%j", str),
    ("comment", "%k", lambda text: _maybe(text) or ""),
    ("state", "%T", state),
    ("reason", "%r", _maybe),
    ("submitted_at", "%V", some_time),
    ("started_at", "%S", time),
    ("ended_at", "%e", time),
    ("nodes", "%N", nodes),
    ("partition", "%P", str),
    ("account", "%a", str),
    ("user", "%u", str),
    ("time_limit_s", "%l", duration_s),
)
SACCT: Columns = (
    ("id", "JobID", str),
    ("name", "JobName", str),
    ("comment", "Comment", str),
    ("submit_line", "SubmitLine", str),
    ("state", "State", state),
    ("state_text", "State", str),
    ("exit_code", "ExitCode", str),
    ("submitted_at", "Submit", some_time),
    ("started_at", "Start", time),
    ("ended_at", "End", time),
    ("nodes", "NodeList", nodes),
    ("partition", "Partition", str),
    ("account", "Account", str),
    ("user", "User", str),
    ("allocated", "AllocTRES", tres),
    ("elapsed_s", "ElapsedRaw", int),
)


def jobs(text: str) -> list[Job]:
    """The output of `squeue -h -o` with the columns SQUEUE."""
    return [Job(**fields) for fields in _records(text, SQUEUE)]


def accounting(text: str) -> list[JobUsage]:
    """The output of `sacct -n -P -X -D --delimiter` with the columns SACCT."""
    return [JobUsage(**fields) for fields in _records(text, SACCT)]


def _records(text: str, columns: Columns) -> Iterator[dict[str, Any]]:
    record = ""
    for line in text.removesuffix("\n").split("\n") if text else ():
        record = f"{record}\n{line}" if record else line
        values = record.split(SEPARATOR)
        if len(values) >= len(columns):
            yield _fields(values, columns)
            record = ""
    if record:
        raise ValueError(f"a record of {len(columns)} fields was expected, not {record!r}")


def _fields(values: Sequence[str], columns: Columns) -> dict[str, Any]:
    fields = {}
    for value, (field, column, parser) in zip(values, columns, strict=True):
        try:
            fields[field] = parser(value.strip())
        except (ValueError, KeyError) as e:
            raise ValueError(f"{column}: {e}") from e
    return fields
