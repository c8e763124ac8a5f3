"""Resources a person asked for, over the site's defaults; and environments as specs carry them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from launchers import sbatch
from launchers.sbatch import Option
from launchers.spec import Environment, Resources
from registry import site as settings
from registry.site import Site

LEAST = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "gpus_per_node": 0, "time_limit_s": 1}
LARGEST = 2**31 - 1  # what Slurm holds a count in
# Names end up as lines of a batch script that runs under the service's account: a line break in one would be a command.
WORD = re.compile(r"[A-Za-z0-9._,:@+-]{1,200}")
OPTION = re.compile(r"--[a-z0-9-]+(=[^\x00-\x1f\x7f]{0,4000})?")


# sbatch's options that would break a run, by name; everything else goes on to Slurm.
_SHAPE = "-N, --ntasks-per-node and --gpus-per-node say how many processes a run has, and where"
_OWN = "Headgate says it itself, so that the run survives what Slurm does to it"
_LOGS = "what a run prints is kept in its folder; `headgate logs` shows it"
_WAITS = "it submits and does not wait; `headgate logs -f` follows"
BREAKS_A_RUN = {
    "array": "--sweep makes an array, with a run of its own for each combination",
    "wrap": "what is run is the recipe; `headgate submit` takes --wrap",
    "clusters": "a run lives on its site's cluster; --site names another",
    **dict.fromkeys(("comment", "requeue", "no-requeue", "signal", "no-kill", "uid", "gid"), _OWN),
    **dict.fromkeys(("output", "error", "input", "open-mode"), _LOGS),
    **dict.fromkeys(("wait", "test-only", "parsable", "quiet", "verbose", "usage", "version", "help"), _WAITS),
    **dict.fromkeys(("ntasks", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-socket", "ntasks-per-tres"), _SHAPE),
    **dict.fromkeys(("tasks-per-node", "gpus", "gpus-per-task", "gpus-per-socket", "tres-per-task"), _SHAPE),
}
GPU_GRES = re.compile(r"gpu(?::[A-Za-z_][^:]*)?(?::(\d+))?")  # of one item of --gres, with its number
ONCE = frozenset({"begin", "deadline", "dependency", "hold"})  # when the first job was to start, which it has
SAID_TWICE = {"gpus_per_node": "gpus-per-node", "mem_gb": "mem"}  # fields that one of `options` may speak of too
# What somebody may say of a job that runs under the service's account.
REPLICA_OPTIONS = frozenset(
    {
        "begin",
        "constraint",
        "exclude",
        "exclusive",
        "gpus-per-node",
        "gres",
        "nice",
        "nodelist",
        "reservation",
        "time-min",
    }
)


def resources_from(
    defaults: settings.DefaultResources | Resources,
    asked: Mapping[str, Any],
    allowed: Collection[str] | None = None,
) -> Resources:
    """What was asked for, over the defaults. `allowed`: sbatch's options that may be among them; None: all for a run.

    Raises ValueError, naming the field, for one that does not exist or has the wrong type.
    """
    known = {f.name: f for f in dataclasses.fields(Resources)}
    chosen = {**dataclasses.asdict(defaults), **asked}
    for key, value in asked.items():
        if key not in known:
            raise ValueError(f"resources.{key}: unknown; allowed: {', '.join(known)}")
        if key == "options":
            chosen[key] = _checked(value, allowed)
        elif key == "mem_gb":
            if not _is_number(value, int | float) or not 0 < value <= LARGEST:
                raise ValueError(f"resources.mem_gb: {value!r} is not a number above 0 (GiB)")
        elif key in LEAST:
            if not _is_number(value, int) or not LEAST[key] <= value <= LARGEST:
                raise ValueError(f"resources.{key}: {value!r} is not a whole number of at least {LEAST[key]}")
        elif not isinstance(value, str) or not WORD.fullmatch(value):
            raise ValueError(f"resources.{key}: {value!r} is not a name: letters, digits and any of . _ , : @ + -")
    if "mem_gb" not in asked and _names(chosen.get("options", ())) & {"mem-per-cpu", "mem-per-gpu"}:
        chosen["mem_gb"] = None  # sbatch takes one of the three
    return Resources(**chosen)


def time_limit_s(text: str) -> int | None:
    """Of Slurm's own formats: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S. None: it is none of these."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        return None
    days, a, b, c = (int(g) if g else None for g in found.groups())
    assert a is not None
    if days is not None:
        return ((days * 24 + a) * 60 + (b or 0)) * 60 + (c or 0)
    if c is not None:
        return (a * 60 + (b or 0)) * 60 + c
    return a * 60 + (b or 0)


def changed(before: Resources, asked: Mapping[str, Any]) -> Resources:
    """What a run that is submitted again asks for: as before, or as is asked for now. Raises as `resources_from`."""
    now = asked.get("options", ())
    said = _names(now) | {name for field, name in SAID_TWICE.items() if field in asked}
    above = tuple(Option(f"--{name}") for name in said)
    stand = sbatch.unchallenged(sbatch.parse(before.options).components[0], above)
    kept = [str(option) for option in stand if option.name not in said | ONCE]
    return resources_from(before, {**asked, "options": [*kept, *now]})


def check_gpus(asks: Resources) -> None:
    """Each task trains on one GPU, or all of them on CPUs. Raises ValueError where some GPU or task would be idle."""
    gpus, tasks = asks.gpus_per_node, asks.tasks_per_node
    for option in asks.options:
        if option.startswith("--gres="):
            gpus = max(gpus, sum(int(m[1] or 1) for item in option[7:].split(",") if (m := GPU_GRES.fullmatch(item))))
    if gpus not in (0, tasks):
        raise ValueError(
            f"--gpus-per-node {gpus} is not --ntasks-per-node {tasks}: each task of a training run has one GPU; "
            f"say --ntasks-per-node={gpus}, or --gpus-per-node={tasks} (0: on CPUs)"
        )


def _checked(options: object, allowed: Collection[str] | None) -> tuple[str, ...]:
    if not isinstance(options, list | tuple):
        raise ValueError(f"resources.options: {options!r} is not a list of sbatch's options")
    for option in options:
        if not isinstance(option, str) or not OPTION.fullmatch(option):
            raise ValueError(f"resources.options: {option!r} is not --NAME or --NAME=VALUE, all on one line")
        name = option[2:].partition("=")[0]
        if allowed is not None and name not in allowed:
            raise ValueError(f"--{name} is not for a deployment's jobs; allowed: {', '.join(sorted(allowed))}")
        if allowed is None and name in BREAKS_A_RUN:
            raise ValueError(f"--{name} is not for a run: {BREAKS_A_RUN[name]}")
        if allowed is None and name == "export" and "=" in option.partition("=")[2]:
            raise ValueError(
                "--export of a value would stand in the run's folder for all to read; export it beforehand"
            )
    return tuple(options)


def _names(options: Iterable[str]) -> set[str]:
    return {option[2:].partition("=")[0] for option in options}


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def training_environment(site: Site) -> Environment:
    return _environment(site.environment("training"))


def engine_environment(site: Site) -> Environment:
    return _environment(site.environment("engine"))


def evaluation_environment(site: Site) -> Environment:
    return _environment(site.environment("evaluation"))


def _environment(chosen: settings.Environment) -> Environment:
    return Environment(
        kind=chosen.kind,
        python=chosen.python,
        image=chosen.image,
        mounts=chosen.mounts,
        modules=chosen.modules,
        command=chosen.command,
        env=dict(chosen.env),
    )
