"""A file for `headgate apply`: a table [deployments.NAME] for each deployment, read strictly, and written.

    [deployments.chat]
    model = "llama@prod"
    min = 1
    max = 8
    target_tokens = 20000
    idle_timeout = "15m"
    engine_args = ["--max-model-len=8192"]
    resources.partition = "gpu"
    resources.time_limit = "8h"
    resources.options = ["--time-min=2:00:00"]
    overflow.qos = "preemptible"
    adapters.support = "adapters/support"

Durations are written as in a site's file. What `overflow` does not say is as `resources` has it. Relative paths (of
adapters, and of a model that begins with a dot) start at the file.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launchers.deployment_spec import DeploymentSpec, Wishes, checked
from registry.deployments import adapters
from registry.strict_toml import ConfigError, build, leaves, read_layer
from registry.toml_layers import Layer, dotted, expanded


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resources:
    """As launchers.resources.resources_from takes them, which also knows their bounds."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    time_limit_s: int | None = field(default=None, metadata={"unit": "duration", "above": 0})
    options: tuple[str, ...] | None = None

    def asked(self) -> dict[str, Any]:
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in given.items() if v is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table(Wishes):
    model: str
    resources: _Resources = _Resources()
    overflow: _Resources | None = None
    adapters: dict[str, Path] = field(default_factory=dict)

    def spec(self, name: str, base: Path | None) -> DeploymentSpec:
        wishes = {f.name: getattr(self, f.name) for f in dataclasses.fields(Wishes)}
        model = self.model
        if model.startswith((".", "~")):
            model = os.path.abspath((base or Path()) / expanded(Path(model)))
        return checked(
            DeploymentSpec(
                name=name,
                model=model,
                resources=self.resources.asked(),
                overflow=None if self.overflow is None else self.overflow.asked(),
                adapters={adapter: str(directory) for adapter, directory in self.adapters.items()},
                **wishes,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    deployments: dict[str, _Table] = field(default_factory=dict)


def read(path: Path, base: Path | None = None) -> list[DeploymentSpec]:
    """The deployments of a file, in its order. Raises ConfigError with every problem, each with its line and key.

    `base`: where its relative paths start; None: where the file is.
    """
    layer = read_layer(path)
    return _specs(layer if base is None else dataclasses.replace(layer, base=base))


def _specs(layer: Layer) -> list[DeploymentSpec]:
    tables = build(_File, [layer])[0].deployments
    found, problems = list[DeploymentSpec](), list[str]()
    for name, table in tables.items():
        here = ("deployments", name)
        try:
            found.append(table.spec(name, layer.base))
        except ValueError as e:
            problems.append(f"{layer.at(here)}: {dotted(here)}: {e}")
    problems += _mistakable(found, layer)
    if not (found or problems):
        problems.append(f"{layer.source}: no deployment; each is a table [deployments.NAME]")
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def _mistakable(specs: list[DeploymentSpec], layer: Layer) -> Iterator[str]:
    """Adapters whose name another of the file's deployments or adapters has as well: clients call both by it.

    The control API sees one deployment at a time, and says the same of those that there are.
    """
    taken = {spec.name: "a deployment" for spec in specs}
    for spec in specs:
        for name in dict.fromkeys(adapters({"adapters": spec.adapters, "engine_args": spec.engine_args})):
            if name in taken:
                here = ("deployments", spec.name, *(("adapters", name) if name in spec.adapters else ("engine_args",)))
                problem = f"{name} is {taken[name]}; the LoRA adapter needs a name of its own"
                yield f"{layer.at(here)}: {dotted(here)}: {problem}"
            else:
                taken[name] = f"a LoRA adapter of deployment {spec.name}"


def write(spec: DeploymentSpec) -> str:
    """The table that reads as this one."""
    return "\n".join((f"[{dotted(('deployments', spec.name))}]", *_lines(spec), ""))


def _lines(spec: DeploymentSpec) -> Iterator[str]:
    wishes = {f.name: getattr(spec, f.name) for f in dataclasses.fields(Wishes)}
    table = _Table(
        model=spec.model,
        resources=_resources(spec.resources),
        overflow=None if spec.overflow is None else _resources(spec.overflow),
        adapters={name: Path(directory) for name, directory in spec.adapters.items()},
        **wishes,
    )
    unsaid = dict(leaves(_Table(model="")))
    said = {key: value for key, value in leaves(table) if value is not None and unsaid.get(key) != value}
    yield f"model = {_toml(said.pop('model'))}"
    for key, value in said.items():
        if value != {}:
            yield f"{key} = {_toml(value)}"


def _resources(asked: dict[str, Any]) -> _Resources:
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in asked.items()}
    return _Resources(**values)


def _toml(value: Any) -> str:
    """As in JSON; but TOML takes no half of a character, and no DEL."""
    return json.dumps(value, default=str, ensure_ascii=False).replace("\x7f", "\\u007f")
