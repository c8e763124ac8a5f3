"""sbatch's own words for what a job asks: options that `train`, `publish` and `serve` share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class TimeLimit(click.ParamType[int]):
    """Slurm's time formats, in seconds: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", value)
        if not found:
            self.fail(f"{value!r} is no time limit; allowed: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S", param, ctx)
        days, a, b, c = (int(g) if g else None for g in found.groups())
        assert a is not None
        if days is not None:
            return ((days * 24 + a) * 60 + (b or 0)) * 60 + (c or 0)
        if c is not None:
            return (a * 60 + (b or 0)) * 60 + c
        return a * 60 + (b or 0)


class Memory(click.ParamType[float]):
    """sbatch's --mem, in GiB: a number of MiB, or one with a unit K, M, G, T."""

    name = "memory"
    units = {"K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0, "T": 1024.0}  # noqa: RUF012  # a constant table

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", str(value), re.IGNORECASE)
        if not found:
            self.fail(f"{value!r} is no amount of memory; allowed: 800 (MiB), 800M, 4G, 1T", param, ctx)
        return float(found[1]) * self.units[found[2].upper() or "M"]


def resource_options(command: F) -> F:
    for option in reversed(
        (
            click.option("-p", "--partition"),
            click.option("-A", "--account"),
            click.option("-q", "--qos"),
            click.option("-N", "--nodes", type=click.IntRange(1)),
            click.option("--ntasks-per-node", "tasks_per_node", type=click.IntRange(1)),
            click.option("-c", "--cpus-per-task", type=click.IntRange(1)),
            click.option("--gpus-per-node", type=click.IntRange(0)),
            click.option("--mem", "mem_gb", type=Memory(), help="Per node: 800M, 16G."),
            click.option("-t", "--time", "time_limit_s", type=TimeLimit(), help="As sbatch takes it: 8:00:00, 2-0."),
        )
    ):
        command = option(command)
    return command


NAMES = (
    *("partition", "account", "qos", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb"),
    "time_limit_s",
)


def asked(options: dict[str, Any]) -> dict[str, Any]:
    """The resource options that were given."""
    return {name: options[name] for name in NAMES if options.get(name) is not None}
