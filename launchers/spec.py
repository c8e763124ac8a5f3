"""What a person asked for, resolved and frozen: the `spec.json` of a run folder.

A spec carries a schema version. The reader accepts this version and the one before it (`SCHEMA - 1`, once there is
one), and refuses anything else by name, so that jobs launched before an upgrade keep their meaning.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

from launchers.untrusted import Unbelievable, read_object
from registry.strict_toml import did_you_mean

SCHEMA = 1
MAX_BYTES = 1 << 20


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
    options: tuple[str, ...] = ()  # more of sbatch's options, each --NAME or --NAME=VALUE; the last of a kind counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where a heavy program runs: a virtual environment, or a container around the same command line."""

    kind: str  # venv | apptainer | pyxis
    python: str  # the interpreter, as seen inside the environment
    image: str | None = None  # .sif path (apptainer) or image URI (pyxis)
    mounts: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
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
    sweep: str | None = None  # whose job array it is submitted with, and its task there
    sweep_index: int | None = None
    peak_tflops: float | None = None  # of one GPU, dense, in bf16: the divisor of MFU
    dataset_dir: str  # where prepared datasets are kept and found again


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A checkpoint's way to a model's alias. Each of the runs that are its steps carries it whole."""

    id: str
    source: str  # the checkpoint's id: RUN/ITERATION
    model: str
    alias: str
    canary: int | None = None  # percent of the calls that deployments which follow the alias give the new version first
    steps: tuple[str, ...]  # the ids of its runs, in their order: conversion, smoke test and, with tasks, evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSpec:
    kind: ClassVar[str] = "convert"
    id: str
    name: str
    owner: str
    created_at: str
    resources: Resources
    environment: Environment
    direction: Literal["to-hf", "from-hf"] = "to-hf"
    checkpoint: str  # absolute path of the checkpoint directory; from-hf: of the Hugging Face model's
    checkpoint_id: str  # from-hf: empty, as there is none yet
    model: str  # the model's name in the registry; from-hf: empty
    alias: str | None = None
    promotion: Promotion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeSpec:
    """Whether an engine can serve a model at all: it is started for nobody else, and generates for a few prompts."""

    kind: ClassVar[str] = "smoke"
    id: str
    name: str
    owner: str
    created_at: str
    resources: Resources
    environment: Environment  # the engine's
    model: str  # its name in the registry
    model_path: str
    engine_args: tuple[str, ...] = ()
    start_timeout_s: int = 900
    after: str | None = None  # the run folder of the step before, which must have come to its end
    promotion: Promotion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSpec:
    """What a model is worth, by tasks of its owner's for EleutherAI's harness (lm_eval), against an engine of its own.

    Nothing is fetched from anywhere: the tasks name files.
    """

    kind: ClassVar[str] = "evaluate"
    id: str
    name: str
    owner: str
    created_at: str
    resources: Resources
    environment: Environment  # the engine's
    harness: Environment  # where lm_eval is
    model: str
    model_path: str
    tasks_dir: str  # absolute; its YAML files say what the tasks are, and relative paths in them begin there
    tasks_sha256: str  # launchers.evaluation.tasks.digest of them, when the evaluation was asked for
    tasks: tuple[str, ...] = ()  # (): all that the directory has
    limit: int | None = None  # examples of each task, at most
    require: tuple[str, ...] = ()  # launchers.evaluation.requirement.Requirement, as it is written
    engine_args: tuple[str, ...] = ()
    start_timeout_s: int = 900
    after: str | None = None
    promotion: Promotion | None = None


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
    safetensors_only: bool = False  # nobody vouched for the model: launchers.vllm.weights.check before each start
    listen: str = "127.0.0.1"  # the address the engine binds; 0.0.0.0 where the gateway is on another node
    tls: bool = True  # with a certificate that its job mints
    engine_args: tuple[str, ...] = ()
    shutdown_timeout_s: int = 30
    start_timeout_s: int = 900
    revision: int = 1  # of its deployment
    runner: Literal["generate", "embed", "score"] = "generate"  # what the engine is for, and how it is proven
    adapters: dict[str, str] = field(default_factory=dict)  # LoRA adapters to load: name -> absolute directory
    stage_dir: str | None = None  # node-local directory that the weights are copied to first, once per node
    multi_node: Literal["mp", "ray"] = "mp"  # how engines of several nodes are started: vLLM's own, or Ray
    pack: tuple[str, ...] = ()  # the ids of the replicas that share its job, in the order of its tasks; (): its own
    max_restarts: int = 3  # of a crashed or hung engine, in place
    hang_timeout_s: int = 120  # for a probe's token, after which the engine is taken to hang


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptSpec:
    """A script of the owner's own, as `headgate submit` gave it to sbatch; nothing of ours runs in its job."""

    kind: ClassVar[str] = "script"
    id: str
    name: str  # the job's name, made safe
    owner: str
    created_at: str
    argv: tuple[str, ...]  # sbatch's options, the script and its arguments, as they were typed
    args: tuple[str, ...]  # the script's own
    cwd: str  # where it was submitted
    script: str | None  # the file's absolute path; None: the script came from standard input, or from --wrap
    job_name: str  # as Slurm has it
    output: str  # where the job prints to, absolute, in Slurm's patterns (%j, %A, %a, %x, ...)
    error: str | None = None  # None: the same


StepSpec = SmokeSpec | EvaluateSpec
OfflineSpec = TrainSpec | ConvertSpec | StepSpec
SupervisedSpec = OfflineSpec | ServeSpec  # what our supervisor runs
Spec = SupervisedSpec | ScriptSpec
_KINDS: dict[str, type[Spec]] = {
    c.kind: c for c in (TrainSpec, ConvertSpec, SmokeSpec, EvaluateSpec, ServeSpec, ScriptSpec)
}


def promotion_of(spec: Spec) -> Promotion | None:
    """Whose step a run is."""
    return spec.promotion if isinstance(spec, ConvertSpec | SmokeSpec | EvaluateSpec) else None


def after_its_time(spec: Spec) -> str:
    """What helps a run that its time limit has ended. A promotion does not go on with a step that is resumed."""
    if promotion_of(spec) is None:
        return "`headgate resume` goes on"
    return f"promote again with more ({'--convert-time' if isinstance(spec, ConvertSpec) else '-t'})"


def dump(spec: Spec) -> str:
    return json.dumps({"schema": SCHEMA, "kind": spec.kind, **dataclasses.asdict(spec)}, indent=2) + "\n"


def load(path: Path) -> Spec:
    """Read a spec file, which may be anybody's. Raises SpecError, naming the file and the field.

    OSError says that the file cannot be read now: a second look may succeed.
    """
    try:
        data = read_object(path, MAX_BYTES)
        schema, kind = data.pop("schema", None), data.pop("kind", None)
        if schema != SCHEMA:
            raise ValueError(f"schema {schema!r} is not known here; this Headgate reads schema {SCHEMA}")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(f"kind {kind!r} is none of {', '.join(sorted(_KINDS))}")
        spec = built(_KINDS[kind], data)
        if datetime.fromisoformat(spec.created_at).tzinfo is None:
            raise ValueError(f"created_at: {spec.created_at!r} names no time zone")
    except Unbelievable as e:
        raise SpecError(f"{path}: not a readable spec: {e}") from e
    except ValueError as e:
        raise SpecError(f"{path}: {e}") from e
    return spec


_Part = typing.TypeVar("_Part")  # a dataclass


def built(cls: type[_Part], data: Any, prefix: str = "") -> _Part:
    """A dataclass from a JSON object: each value of its field's type, none unknown, none missing. Raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError(f"{prefix.rstrip('.') or 'it'} is not an object")
    assert dataclasses.is_dataclass(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kinds = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in fields:
            hint = did_you_mean(key, fields)
            allowed = ", ".join(sorted(fields)) + (hint and f";{hint}")
            raise ValueError(f"unknown field {prefix + key!r}; allowed: {allowed}")
        part = next(filter(dataclasses.is_dataclass, (kinds[key], *typing.get_args(kinds[key]))), None)
        if part is not None and not (value is None and _fits(None, kinds[key])):
            values[key] = built(typing.cast(type, part), value, f"{prefix}{key}.")
            continue
        values[key] = tuple(value) if isinstance(value, list) else value
        if not _fits(values[key], kinds[key]):
            raise ValueError(f"{prefix}{key}: {value!r} is not of type {fields[key].type}")
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{name} is missing")
    return cls(**values)


def _fits(value: object, kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, k) for k in arguments)
    if origin is tuple:  # tuple[X, ...]
        return isinstance(value, tuple) and all(_fits(v, arguments[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, arguments[1]) for v in value.values())
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind)
