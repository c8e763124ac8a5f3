"""sbatch's own words for what a job asks: options that `train`, `publish` and `serve` share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from launchers import sbatch
from launchers.resources import BREAKS_A_RUN, time_limit_s
from launchers.sbatch import NotUnderstood, Option

F = TypeVar("F", bound=Callable[..., Any])


class TimeLimit(click.ParamType[int]):
    """Slurm's time formats, in seconds: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = time_limit_s(value)
        if found is None:
            self.fail(f"{value!r} is no time limit; allowed: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S", param, ctx)
        return found


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


class Gpus(click.ParamType[str]):
    """A number of GPUs, maybe of a type: 2, h100:2."""

    name = "[type:]number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"([A-Za-z0-9._-]+:)?\d+", value):
            self.fail(f"{value!r} is no number of GPUs; allowed: 2, h100:2", param, ctx)
        return str(value)


class WithSbatchOptions(click.Command):
    """A command that takes all of sbatch's options beside its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Those that the command does not have itself end up as its parameter `options`, as --NAME or --NAME=VALUE."""
        own = {
            flag: p for p in self.get_params(ctx) if isinstance(p, click.Option) for flag in p.opts + p.secondary_opts
        }
        rest, mine, others = list(args), list[str](), list[str]()
        while rest and rest[0] != "--":
            word = rest.pop(0)
            flag = word.partition("=")[0] if word.startswith("--") else word[:2]
            if flag in own:
                takes_next = word == flag and not own[flag].is_flag and rest
                mine += [word, rest.pop(0)] if takes_next else [word]
                continue
            try:
                taken = sbatch.take(word, rest)
            except NotUnderstood as e:
                raise click.UsageError(str(e), ctx) from e
            mine += [str(option) for option in taken if option.flag in own] if taken else [word]
            others += [str(option.from_directory(os.getcwd())) for option in taken if option.flag not in own]
        left = super().parse_args(ctx, [*mine, *rest])
        ctx.params["options"] = tuple(others)
        return left


def resource_options(command: F) -> F:
    for option in reversed(
        (
            click.option("-p", "--partition"),
            click.option("-A", "--account"),
            click.option("-q", "--qos"),
            click.option("-N", "--nodes", type=click.IntRange(1)),
            click.option("--ntasks-per-node", "tasks_per_node", type=click.IntRange(1)),
            click.option("-c", "--cpus-per-task", type=click.IntRange(1)),
            click.option("--gpus-per-node", type=Gpus(), help="A number, or a type with it: h100:2."),
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
_FIELDS = {"time": "time_limit_s", "mem": "mem_gb"}  # by option, where it is not the same word


def asked(options: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the command line asks for and, below it, what SBATCH_* variables do. Raises click.UsageError for those."""
    given = {name: options[name] for name in NAMES if options.get(name) is not None}
    more = list(options.get("options") or ())
    flags = {field: name for name, field in _FIELDS.items()}
    typed = [f"--{flags.get(field, field.replace('_', '-'))}" for field in given]
    typed += [option.partition("=")[0] for option in more]
    above = tuple(map(Option, typed))
    for option in sbatch.unchallenged(sbatch.said_by_variables(environ or {}), above):
        field = _FIELDS.get(option.name, option.name.replace("-", "_"))
        if option.name in BREAKS_A_RUN or option.flag in typed or option.name == "job-name":
            continue  # meant for scripts of the person's own, or said on the command line too
        if field in NAMES:
            kind = {"time_limit_s": TimeLimit(), "mem_gb": Memory(), "gpus_per_node": Gpus()}.get(field)
            given[field] = kind.convert(option.value, None, None) if kind else option.value
        else:
            more.insert(0, str(option))
    if (gpus := given.get("gpus_per_node")) is not None:
        kind_of_gpu, _, count = gpus.rpartition(":")
        given["gpus_per_node"] = int(count)
        more += [f"--gpus-per-node={gpus}"] if kind_of_gpu else []
    return {**given, "options": more} if more else given
