"""What a person asked for, resolved and frozen: the `spec.json` of a run folder.

A spec carries a schema version. The reader accepts this version and the one before it (`SCHEMA - 1`, once there is
one), and refuses anything else by name, so that jobs launched before an upgrade keep their meaning.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

SCHEMA = 1


class SpecError(ValueError):
    """A spec file that cannot be read: the message names the file, the field and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one job asks of the scheduler, in sbatch's own words."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    mem_gb: float | None = None
    time_limit_s: int = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where a heavy program runs: a virtual environment, or a container around the same command line."""

    kind: str  # venv | apptainer | pyxis
    python: str  # the interpreter, as seen inside the environment
    image: str | None = None  # .sif path (apptainer) or image URI (pyxis)
    mounts: tuple[str, ...] = ()
    command: tuple[str, ...] = ()  # engine only: how the server is started; empty means `python -m vllm...`
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    kind: ClassVar[str] = "train"
    id: str
    name: str
    owner: str
    created_at: str  # ISO 8601, UTC
    resources: Resources
    environment: Environment
    recipe: dict[str, Any]  # launchers.megatron.recipe.Recipe as plain data
    dataset_dir: str  # where prepared datasets are kept and found again


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSpec:
    kind: ClassVar[str] = "convert"
    id: str
    name: str
    owner: str
    created_at: str
    resources: Resources
    environment: Environment
    checkpoint: str  # absolute path of the checkpoint directory
    checkpoint_id: str
    model: str  # the model's name in the registry
    alias: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSpec:
    kind: ClassVar[str] = "serve"
    id: str  # the replica's id
    name: str  # the deployment's name, which is also what clients call
    owner: str
    created_at: str
    resources: Resources
    environment: Environment
    model_path: str
    listen: str = "127.0.0.1"  # the address the engine binds; 0.0.0.0 where the gateway is on another node
    engine_args: tuple[str, ...] = ()
    shutdown_timeout_s: int = 30
    start_timeout_s: int = 900


Spec = TrainSpec | ConvertSpec | ServeSpec
_KINDS: dict[str, type[TrainSpec] | type[ConvertSpec] | type[ServeSpec]] = {
    c.kind: c for c in (TrainSpec, ConvertSpec, ServeSpec)
}


def dump(spec: Spec) -> str:
    return json.dumps({"schema": SCHEMA, "kind": spec.kind, **dataclasses.asdict(spec)}, indent=2) + "\n"


def load(path: Path) -> Spec:
    """Read a spec file. Raises SpecError, naming the file and the field."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise SpecError(f"{path}: not a readable spec: {e}") from e
    if not isinstance(data, dict):
        raise SpecError(f"{path}: a spec is a JSON object")
    schema, kind = data.pop("schema", None), data.pop("kind", None)
    if schema != SCHEMA:
        raise SpecError(f"{path}: schema {schema!r} is not known here; this Headgate reads schema {SCHEMA}")
    if kind not in _KINDS:
        raise SpecError(f"{path}: kind {kind!r} is none of {', '.join(sorted(_KINDS))}")
    cls = _KINDS[kind]
    known = {f.name for f in dataclasses.fields(cls)}
    for key in data:
        if key not in known:
            raise SpecError(f"{path}: unknown field {key!r} in a {kind} spec; allowed: {', '.join(sorted(known))}")
    try:
        data["resources"] = Resources(**data["resources"])
        env = dict(data["environment"])
        env["mounts"], env["command"] = tuple(env.get("mounts", ())), tuple(env.get("command", ()))
        data["environment"] = Environment(**env)
        if "engine_args" in data:
            data["engine_args"] = tuple(data["engine_args"])
        return cls(**data)
    except (KeyError, TypeError) as e:
        raise SpecError(f"{path}: {e}") from e
