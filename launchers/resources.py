"""Resources a person asked for, over the site's defaults; and environments as specs carry them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from launchers.spec import Environment, Resources
from registry import site as settings
from registry.site import Site

LEAST = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "gpus_per_node": 0, "time_limit_s": 1}
LARGEST = 2**31 - 1  # what Slurm holds a count in
# Names end up as lines of a batch script that runs under the service's account: a line break in one would be a command.
WORD = re.compile(r"[A-Za-z0-9._,:@+-]{1,200}")


def resources_from(defaults: settings.DefaultResources, asked: Mapping[str, Any]) -> Resources:
    """Raises ValueError, naming the field, for one that does not exist or has the wrong type."""
    known = {f.name: f for f in dataclasses.fields(Resources)}
    for key, value in asked.items():
        if key not in known:
            raise ValueError(f"resources.{key}: unknown; allowed: {', '.join(known)}")
        if key == "mem_gb":
            if not _is_number(value, int | float) or not 0 < value <= LARGEST:
                raise ValueError(f"resources.mem_gb: {value!r} is not a number above 0 (GiB)")
        elif key in LEAST:
            if not _is_number(value, int) or not LEAST[key] <= value <= LARGEST:
                raise ValueError(f"resources.{key}: {value!r} is not a whole number of at least {LEAST[key]}")
        elif not isinstance(value, str) or not WORD.fullmatch(value):
            raise ValueError(f"resources.{key}: {value!r} is not a name: letters, digits and any of . _ , : @ + -")
    return Resources(**{**dataclasses.asdict(defaults), **asked})


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def training_environment(site: Site) -> Environment:
    return _environment(site.environment("training"))


def engine_environment(site: Site) -> Environment:
    return _environment(site.environment("engine"))


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
