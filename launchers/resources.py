"""Resources a person asked for, over the site's defaults; and environments as specs carry them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from launchers.spec import Environment, Resources
from registry import site as settings
from registry.site import Site


def resources_from(defaults: settings.DefaultResources, asked: Mapping[str, Any]) -> Resources:
    """Raises ValueError, naming the field, for one that does not exist or has the wrong type."""
    known = {f.name: f for f in dataclasses.fields(Resources)}
    for key, value in asked.items():
        if key not in known:
            raise ValueError(f"resources.{key}: unknown; allowed: {', '.join(known)}")
        number = key in ("nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb", "time_limit_s")
        if number and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise ValueError(f"resources.{key}: {value!r} is not a number of at least 0")
        if not number and not isinstance(value, str):
            raise ValueError(f"resources.{key}: {value!r} is not a text")
    return Resources(**{**dataclasses.asdict(defaults), **asked})


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
        command=chosen.command,
        env=dict(chosen.env),
    )
