"""One field of what Slurm prints becomes a value. Pure.

A poll of a large cluster reads the same texts over and over (limits, TRES, node lists, states), so what is read once is
remembered; the values are immutable.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache

from slurm import versions
from slurm.model import TRES, JobState, NodeState

NOTHING = frozenset({"", "Unknown", "None", "N/A", "n/a", "n/s", "(null)", "None assigned", "NONE", "none"})
_NO_LIMIT = frozenset({"UNLIMITED", "INFINITE", "NOT_SET", "INVALID", "Partition_Limit"})
_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4, "P": 1024**5}
_MIB = 1024**2


def maybe(text: str) -> str | None:
    return None if text in NOTHING else text


def text(text: str) -> str:
    """A text of somebody's own, where "(null)" is how Slurm prints none."""
    return "" if text == "(null)" else text


def words(text: str) -> tuple[str, ...]:
    """`a,b` as its parts."""
    return () if text in NOTHING else tuple(text.split(","))


def flags(text: str) -> frozenset[str]:
    """`associations,limits` or `REQUEUE,GANG` as a set; what stands for nothing is an empty one."""
    return frozenset(words(text)) - {"none"}


def number(text: str) -> int | None:
    """A count, or None for N/A and for no limit."""
    return None if text in NOTHING or text in _NO_LIMIT else int(text)


def count(text: str) -> int:
    """A count that stands for zero where Slurm says nothing."""
    return number(text) or 0


def time(text: str) -> datetime | None:
    """Seconds since the epoch (SLURM_TIME_FORMAT=%s), or Slurm's default, which is local time without saying so."""
    if text.isdigit():
        return datetime.fromtimestamp(int(text), UTC)
    if text in NOTHING:
        return None
    return datetime.fromisoformat(text).astimezone(UTC)


def some_time(text: str) -> datetime:
    moment = time(text)
    if moment is None:
        raise ValueError(f"a time was expected, not {text!r}")
    return moment


@lru_cache(4096)
def duration_s(text: str) -> int | None:
    """[days-]hours:minutes:seconds, or minutes:seconds; None for UNLIMITED and for a limit that is not set.

    "30 sec" and "0 min", as `scontrol show config` has it, are durations too.
    """
    if text in _NO_LIMIT or text in NOTHING:
        return None
    if match := re.fullmatch(r"(\d+) (sec|secs|min)", text):
        return int(match[1]) * (60 if match[2] == "min" else 1)
    late = text.startswith("-")  # time left of a job beyond its limit, while OverTimeLimit lets it
    match = re.fullmatch(r"-?(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(?:\.\d+)?", text)
    if match is None:
        raise ValueError(f"not a duration of Slurm's: {text!r}")
    days, hours, minutes, seconds = (int(g or 0) for g in match.groups())
    return 0 if late else ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def some_duration_s(text: str) -> int:
    """A duration that is zero where Slurm sets none."""
    return duration_s(text) or 0


@lru_cache(4096)
def nodes(text: str) -> tuple[str, ...]:
    """`g[01-03,7],c1` as names, in order. Raises ValueError on unbalanced brackets."""
    if text in NOTHING:
        return ()
    names: list[str] = []
    for expression in re.split(r",(?![^\[]*\])", text):
        parts = re.split(r"\[([^\[\]]*)\]", expression)  # literal, range, literal, range, ..., literal
        if any("[" in p or "]" in p for p in parts):
            raise ValueError(f"not a node list: {text!r}")
        choices = [list(_indices(p)) if i % 2 else [p] for i, p in enumerate(parts)]
        # Interned, because the same thousand names stand in thousands of lists.
        names.extend(sys.intern("".join(choice)) for choice in itertools.product(*choices))
    return tuple(names)


def _indices(ranges: str) -> Iterator[str]:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        width = len(first)
        yield from (f"{i:0{width}}" for i in range(int(first), int(last or first) + 1))


@lru_cache(4096)
def tres(text: str) -> TRES:
    """`cpu=2,gres/gpu:h100=4,gres/gpu=4,mem=200M,node=2`: a typed count repeats part of the untyped one.

    A cluster may track only the types; then their sum is the number of GPUs.
    """
    amounts = dict(item.split("=", 1) for item in text.split(",") if "=" in item)
    memory, untyped = amounts.pop("mem", "0"), amounts.pop("gres/gpu", None)
    cpus, node_count, billing = (int(float(amounts.pop(k, 0))) for k in ("cpu", "node", "billing"))
    prefix = "gres/gpu:"
    by_type = tuple(sorted((k.removeprefix(prefix), int(v)) for k, v in amounts.items() if k.startswith(prefix)))
    others = tuple(sorted((k, memory_bytes(v)) for k, v in amounts.items() if not k.startswith(prefix)))
    return TRES(
        cpus=cpus,
        memory_bytes=memory_bytes(memory, unit=_MIB),
        nodes=node_count,
        billing=billing,
        gpus=sum(n for _, n in by_type) if untyped is None else int(untyped),
        gpus_by_type=by_type,
        others=others,
    )


def gpus(text: str) -> tuple[int, tuple[tuple[str, int], ...]]:
    """GPUs of a gres list as sinfo has it, `gpu:h100:8(S:0-1),gpu:2,shard:4`: how many, and of each type.

    Of used GPUs without a type sinfo says `gpu:(null):6(IDX:0-5)` where gres.conf binds them to cores. Raises
    ValueError for GPUs that are told otherwise: one in use must not pass for free because it could not be read.
    """
    typed: dict[str, int] = {}
    total = 0
    for item in re.sub(r"\([^)]*\)", "", text.replace(":(null)", "")).split(","):
        if item.partition(":")[0] != "gpu":
            continue
        match = re.fullmatch(r"gpu(?::([^:()]+))?:(\d+)", item)
        if match is None:
            raise ValueError(f"not GPUs as sinfo has them: {text!r}")
        kind, amount = match[1], int(match[2])
        total += amount
        if kind:
            typed[kind] = typed.get(kind, 0) + amount
    return total, tuple(sorted(typed.items()))


def memory_bytes(text: str, unit: int = 1) -> int:
    """`1.50G`, or a bare number of `unit` bytes."""
    suffix = text[-1:]
    return round(float(text[:-1]) * _UNITS[suffix]) if suffix in _UNITS else round(float(text)) * unit


def mebibytes(text: str) -> int | None:
    """A bare number of MiB, as sinfo has it, in bytes."""
    return None if text in NOTHING else int(text) * _MIB


@lru_cache(256)
def state(text: str) -> JobState:
    """`CANCELLED by 1000` is CANCELLED; sacct marks a truncated word with a plus sign, which -P avoids.

    A word that is not known here must not make one job of somebody's hide all the others.
    """
    word = text.split(" ", 1)[0]
    return JobState(word) if word in JobState.__members__ else JobState.UNRECOGNISED


@lru_cache(256)
def node_state(text: str) -> tuple[NodeState, frozenset[str]]:
    """`idle+drain+not_responding` as its base state and its flags, in capitals as slurm.h has them.

    A base state that is not known here is UNKNOWN, its word among the flags: it must not hide all other nodes.
    """
    base, *words = text.upper().split("+")
    flags = {versions.NODE_FLAGS.get(word, word) for word in words}
    known = NodeState.__members__.get(versions.NODE_STATES.get(base, base))
    return (NodeState.UNKNOWN, frozenset(flags | {base})) if known is None else (known, frozenset(flags))
