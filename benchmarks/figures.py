"""Measure, compare, print: what every benchmark here does. A figure is one JSON object on a line of its own.

    {"figure": ..., "value": ..., "unit": ..., "peer": ..., "peer_value": ..., "ratio": ...}

`ratio` is value / peer_value. A figure without a peer has null in these three.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of something took. `cpu_s`: user and system time, of this process and of its children."""

    wall_s: float
    cpu_s: float


def cost(of: Callable[[], object]) -> Cost:
    wall_s, cpu_s = time.perf_counter(), _cpu_s()
    of()
    return Cost(time.perf_counter() - wall_s, _cpu_s() - cpu_s)


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Cost]:
    """Each run's median cost over several rounds in which all take turns; a first round, to warm up, is not counted."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for n in range(rounds + 1):
        for name, run in runs.items():
            one = cost(run)
            if n > 0:
                costs[name].append(one)
    return {
        name: Cost(statistics.median(c.wall_s for c in some), statistics.median(c.cpu_s for c in some))
        for name, some in costs.items()
    }


def show(figure: str, value: float, unit: str, peer: str | None = None, peer_value: float | None = None) -> None:
    ratio = None if not peer_value else _short(value / peer_value)
    line = {
        "figure": figure,
        "value": _short(value),
        "unit": unit,
        "peer": peer,
        "peer_value": None if peer_value is None else _short(peer_value),
        "ratio": ratio,
    }
    print(json.dumps(line), flush=True)


def show_costs(figure: str, ours: Cost, peers: Mapping[str, Cost]) -> None:
    """Wall and CPU, against each of the peers."""
    for peer, theirs in peers.items():
        show(f"{figure}, wall", ours.wall_s, "s", peer, theirs.wall_s)
        show(f"{figure}, CPU", ours.cpu_s, "s", peer, theirs.cpu_s)


def _short(value: float) -> float:
    """Three significant digits, or the whole number."""
    return float(f"{value:.3g}") if abs(value) < 100 else round(value)


def _cpu_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used) + _ticks_of_live_children() / os.sysconf("SC_CLK_TCK")


def _ticks_of_live_children() -> int:
    """RUSAGE_CHILDREN has those that have ended. Of those that run on, the kernel tells hundredths of a second."""
    children = [pid for task in Path("/proc/self/task").iterdir() for pid in _text(task / "children").split()]
    stats = (_text(Path("/proc", pid, "stat")).rpartition(")")[2].split() for pid in children)
    return sum(int(ticks) for stat in stats for ticks in stat[11:15])  # user, system, and of children it waited for


def _text(path: Path) -> str:
    """Nothing of a thread or a process that has just ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
