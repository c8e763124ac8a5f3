"""What a training run does: model, data, layout, schedule. Standard library only, the control plane reads it too.

A recipe is a TOML file with one table per section below. `check` holds the arithmetic that must work out before a
single process is started.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# Head sizes that vLLM's CPU attention computes. With another one it starts, says it is healthy, and dies at the first
# token, so a model that could never be served there is refused before it is trained.
HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 256)


class RecipeError(ValueError):
    """A recipe that cannot work: the message names the setting, shows the arithmetic, says what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A Llama-shaped decoder: RMSNorm, SwiGLU, rotary positions, grouped-query attention, untied embeddings."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    seq_length: int  # tokens in a training sample, and the longest context of the served model
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5
    init_std: float = 0.02

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    text: tuple[str, ...]  # glob patterns, files, or directories; "{stdlib}" is Python's own standard library
    vocab_size: int  # of the byte-level BPE that is trained on this text
    max_mb: float = 1024.0  # megabytes of text to read, from a fixed shuffle of the files
    split: str = "95,5,0"  # training, validation, test: parts of the documents


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    tensor: int = 1
    pipeline: int = 1
    distributed_optimizer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    iterations: int
    micro_batch: int  # sequences one rank computes at a time
    global_batch: int  # sequences of one iteration, all ranks together
    lr: float
    min_lr: float = 0.0
    warmup: int = 0  # iterations
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    seed: int = 1234
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    threads: int = 0  # CPU threads of one rank; 0: OMP_NUM_THREADS decides
    timeout_s: int = 1800  # a collective that takes longer means that a rank is lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    interval: int = 0  # iterations; 0: only at the end, and when asked to stop
    asynchronous: bool = True  # write in the background; the checkpoint exists when its manifest does
    keep_last: int = 0  # how many are kept, the newest; 0: all
    keep_every: int = 0  # iterations: of multiples of it the checkpoint is kept for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """When a run that ended goes on by itself, and what counts as ended."""

    max_attempts: int = 100
    without_progress: int = 3  # attempts in a row that saved nothing new
    hang_timeout_s: int = 1800  # no iteration, save or evaluation has finished for so long: a hang
    start_timeout_s: int = 3600  # the same until the first iteration


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    interval: int = 0  # iterations; 0: only at the end
    iterations: int = 0  # global batches of validation text; 0: no evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    model: Model
    data: Data
    train: Train
    parallel: Parallel = field(default_factory=Parallel)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    restart: Restart = field(default_factory=Restart)
    evaluation: Evaluation = field(default_factory=Evaluation)


def read_recipe(path: Path) -> Recipe:
    """A recipe from its TOML file. Raises registry.strict_toml.ConfigError (a ValueError) naming file, key and line."""
    from registry import strict_toml  # here, because a training environment reads spec.json only

    recipe, _origins = strict_toml.build(Recipe, [strict_toml.read_layer(path)])
    return recipe


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain data, as a spec carries it; `from_dict` reads it back, also after a journey through JSON."""
    return dataclasses.asdict(recipe)


def from_dict(data: dict[str, Any]) -> Recipe:
    """Strict: an unknown, missing or wrongly typed key is a RecipeError that names it."""
    return _table(Recipe, data, "")


def _table(cls: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise RecipeError(f"{where or 'the recipe'} must be a table, not {data!r}")
    types = typing.get_type_hints(cls)
    for key in data:
        if key not in types:
            close = difflib.get_close_matches(str(key), types, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise RecipeError(f"unknown key {_dot(where, key)!r}; allowed: {', '.join(sorted(types))}{hint}")
    values = {key: _value(types[key], value, _dot(where, key)) for key, value in data.items()}
    for f in dataclasses.fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise RecipeError(f"missing key {_dot(where, f.name)!r}")
    return cls(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _table(typing.cast(type, kind), value, where)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise RecipeError(f"{where} must be a list of strings, not {value!r}")
        return tuple(value)
    if typing.get_origin(kind) is Literal:
        allowed = typing.get_args(kind)
        if value not in allowed:
            raise RecipeError(f"{where} = {value!r} is none of {', '.join(allowed)}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # not isinstance: True is no number here
        raise RecipeError(f"{where} must be {kind.__name__}, not {value!r}")
    return value


def _dot(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def check(recipe: Recipe, world_size: int) -> None:
    """Raise RecipeError, with the sum that does not work out, unless `world_size` ranks can train this recipe."""
    m, d, p, t = recipe.model, recipe.data, recipe.parallel, recipe.train
    at_least_one: dict[str, float] = {
        "model.hidden": m.hidden, "model.layers": m.layers, "model.heads": m.heads, "model.kv_heads": m.kv_heads,
        "model.ffn": m.ffn, "model.seq_length": m.seq_length, "parallel.tensor": p.tensor,
        "parallel.pipeline": p.pipeline, "train.iterations": t.iterations, "train.micro_batch": t.micro_batch,
        "train.global_batch": t.global_batch, "train.timeout_s": t.timeout_s,
        "restart.max_attempts": recipe.restart.max_attempts,
        "restart.without_progress": recipe.restart.without_progress,
        "restart.hang_timeout_s": recipe.restart.hang_timeout_s,
        "restart.start_timeout_s": recipe.restart.start_timeout_s,
    }  # fmt: skip
    not_negative: dict[str, float] = {
        "train.warmup": t.warmup, "train.threads": t.threads, "train.min_lr": t.min_lr, "train.grad_clip": t.grad_clip,
        "train.weight_decay": t.weight_decay, "checkpoint.interval": recipe.checkpoint.interval,
        "checkpoint.keep_last": recipe.checkpoint.keep_last, "checkpoint.keep_every": recipe.checkpoint.keep_every,
        "evaluation.interval": recipe.evaluation.interval, "evaluation.iterations": recipe.evaluation.iterations,
    }  # fmt: skip
    for name, value in at_least_one.items():
        if value < 1:
            raise RecipeError(f"{name} = {value}: must be at least 1")
    for name, value in not_negative.items():
        if value < 0:
            raise RecipeError(f"{name} = {value}: must not be negative")
    if not d.text:
        raise RecipeError("data.text is empty: name at least one pattern, file or directory")
    if not 512 <= d.vocab_size <= 2**31 - 1:
        raise RecipeError(f"data.vocab_size = {d.vocab_size}: must be at least 512 (256 bytes, 4 markers, and merges)")
    if d.max_mb <= 0:
        raise RecipeError(f"data.max_mb = {d.max_mb:g}: must be more than 0")
    _check_split(d.split)

    _divides("model.hidden", m.hidden, "model.heads", m.heads)
    if m.head_dim not in HEAD_DIMS:
        raise RecipeError(
            f"model.hidden / model.heads = {m.hidden} / {m.heads} = {m.head_dim} is a head size that vLLM's CPU "
            f"attention cannot serve; allowed: {', '.join(map(str, HEAD_DIMS))}"
        )
    _divides("model.heads", m.heads, "model.kv_heads", m.kv_heads)
    _divides("model.heads", m.heads, "parallel.tensor", p.tensor)
    _divides("model.kv_heads", m.kv_heads, "parallel.tensor", p.tensor)
    _divides("model.ffn", m.ffn, "parallel.tensor", p.tensor)
    _divides("data.vocab_size", d.vocab_size, "parallel.tensor", p.tensor)
    _divides("model.layers", m.layers, "parallel.pipeline", p.pipeline)
    _divides("ranks (nodes x tasks per node)", world_size, "parallel.tensor x parallel.pipeline", p.tensor * p.pipeline)
    copies = world_size // (p.tensor * p.pipeline)
    _divides("train.global_batch", t.global_batch, "train.micro_batch x data-parallel copies", t.micro_batch * copies)

    if t.lr <= 0:
        raise RecipeError(f"train.lr = {t.lr:g}: must be more than 0")
    if t.min_lr > t.lr:
        raise RecipeError(f"train.min_lr = {t.min_lr:g} is above train.lr = {t.lr:g}")
    if t.warmup >= t.iterations:
        raise RecipeError(f"train.warmup = {t.warmup} must be less than train.iterations = {t.iterations}")


def _divides(name: str, value: int, by_name: str, by: int) -> None:
    if value % by:
        raise RecipeError(
            f"{name} = {value} is not divisible by {by_name} = {by} ({value} = {value // by} x {by} + {value % by})"
        )


def _check_split(split: str) -> None:
    try:
        parts = [float(x) for x in split.split(",")]
    except ValueError:
        parts = []
    if len(parts) != 3 or min(parts) < 0 or parts[0] <= 0:
        raise RecipeError(f'data.split = {split!r} is not three parts (training, validation, test) like "95,5,0"')
