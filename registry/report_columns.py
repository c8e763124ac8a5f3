"""Columns that several reports have, and the arithmetic of their cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from registry.report import Check, Column, Value
from registry.usage_rows import Counts

MICRO = 1_000_000
HOUR = 3600
TOP = 10

Row = dict[str, Value]
T = TypeVar("T")

DIMENSIONS = {
    name: Column(name, title)
    for name, title in (
        ("tenant", "Tenant"),
        ("user", "User"),
        ("key", "Key"),
        ("model", "Model"),
        ("kind", "Kind"),
        ("account", "Account"),
        ("partition", "Partition"),
        ("qos", "QOS"),
        ("gpu", "GPU type"),
        ("subject", "Run, replica or job"),
    )
}
COUNTS = (
    Column("requests", "Requests", "count"),
    Column("cut", "Cut short", "count"),
    Column("prompt_tokens", "Prompt tokens", "count"),
    Column("cached_tokens", "Cached", "count"),
    Column("completion_tokens", "Completion tokens", "count"),
    Column("reasoning_tokens", "Reasoning", "count"),
    Column("credits", "Credits", "credits"),
)


def row(**cells: Value) -> Row:
    return cells


def named(by: Iterable[str], key: Iterable[str]) -> Row:
    return dict(zip(by, key, strict=True))


def dimensions(by: Iterable[str]) -> tuple[Column, ...]:
    return tuple(DIMENSIONS[one] for one in by)


def counted(counts: Counts) -> Row:
    return {
        "requests": counts.requests,
        "cut": counts.cut,
        "prompt_tokens": counts.prompt_tokens,
        "cached_tokens": counts.cached_tokens,
        "completion_tokens": counts.completion_tokens,
        "reasoning_tokens": counts.reasoning_tokens,
        "credits": credits(counts.microcredits),
    }


def credits(microcredits: int) -> float:
    return microcredits / MICRO


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def change(now: float, before: float) -> float | None:
    """Of 1: 0.5 is half as much again. None where there was nothing before."""
    return (now - before) / before if before else None


def regrouped(of: Mapping[T, Counts], key: Callable[[T], tuple[str, ...]]) -> dict[tuple[str, ...], Counts]:
    found: dict[tuple[str, ...], Counts] = {}
    for old, counts in of.items():
        new = key(old)
        found[new] = found.get(new, Counts()) + counts
    return found


def equal(what: str, here: int, there: int, of: str) -> Check:
    """`what` "GPU-seconds of the lines", `of` "Slurm's total"."""
    if here == there:
        return Check(f"{what} add up to {of}: {there:,}", True)
    return Check(f"{what} are {here:,}, but {of} is {there:,}", False)


def top(rows: Sequence[T], worth: Callable[[T], tuple[float, ...]], most: int = TOP) -> list[T]:
    return sorted(rows, key=worth, reverse=True)[:most]
