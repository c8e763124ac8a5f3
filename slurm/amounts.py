"""Amounts, durations and times in plain words. Pure.

Times stand as ISO 8601 in UTC (`moment`), so that a text says the same to everybody; whoever prints it for a person
puts them into that person's own time (`localised`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo

_GIB = 1024**3
_ONE = {"cpu": "CPU", "gres/gpu": "GPU", "node": "node", "billing": "billing unit"}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def gpu(kind: str) -> str:
    """A GPU type as people write it: "h100" is H100, and "" (no type) GPU."""
    return kind.upper() or "GPU"


def gpus(count: int, kind: str = "") -> str:
    """ "4 H100", "1 GPU", "4 GPUs"."""
    return f"{count:,} {gpu(kind)}" if kind else counted(count, "GPU")


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def tres(name: str, count: int) -> str:
    """An amount of a TRES of Slurm's, memory in bytes: "4 H100", "16 CPUs", "64 GiB of memory"."""
    if name == "mem":
        return f"{gib(count)} GiB of memory"
    if name.startswith("gres/gpu:"):
        return gpus(count, name.removeprefix("gres/gpu:"))
    if name.startswith("license/"):
        return f"{counted(count, 'license')} of {name.removeprefix('license/')}"
    return counted(count, _ONE[name]) if name in _ONE else f"{count:,} {name.removeprefix('gres/')}"


def gib(count: int) -> str:
    return _number(count / _GIB)


def tres_hours(name: str, seconds: int) -> str:
    """TRES-seconds (of memory: byte-seconds) as hours: "12.5 GPU-hours"."""
    return f"{_number(hours(name, seconds))} {hours_of(name)}"


def hours(name: str, seconds: int) -> float:
    return round(seconds / 3600 / (_GIB if name == "mem" else 1), 2)


def hours_of(name: str) -> str:
    if name == "mem":
        return "GiB-hours"
    if name.startswith("gres/gpu:"):
        return f"{gpu(name.removeprefix('gres/gpu:'))}-hours"
    return f"{_ONE.get(name, name)}-hours"


def _number(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def duration(seconds: float) -> str:
    """Two units at most: "12s", "3m", "5h 12m", "2d 3h"."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes = whole // 60
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "m")]
    while not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{n}{unit}" for n, unit in parts[:2] if n)


def several(names: Iterable[str], most: int = 4) -> str:
    """ "g1", "g1 and g2", "g1, g2, g3, g4 and 12 more"."""
    all_names = list(names)
    if len(all_names) > most:
        return f"{', '.join(all_names[:most])} and {len(all_names) - most} more"
    return " and ".join(filter(None, [", ".join(all_names[:-1]), *all_names[-1:]]))


def moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def localised(text: str, now: datetime, zone: tzinfo | None = None) -> str:
    """The text with its moments as this zone's (default: this process's) clock shows them: today's as 14:20."""
    today = now.astimezone(zone)

    def local(match: re.Match[str]) -> str:
        at = datetime.fromisoformat(match[0]).astimezone(zone)
        if at.date() == today.date():
            return f"{at:%H:%M}"
        return f"{at.day} {at:%b %H:%M}" if abs((at - today).days) < 300 else f"{at.day} {at:%b %Y %H:%M}"

    return _MOMENT.sub(local, text)
