"""What a training run does: model, data, layout, schedule. Standard library only, the control plane reads it too.

A recipe is a TOML file with one table per section below. arithmetic.py holds what must work out before a single
process is started.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from registry.strict_toml import Layer


class RecipeError(ValueError):
    """A recipe that cannot work: the message names the setting, shows the arithmetic, says what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A Llama-shaped decoder: RMSNorm, SwiGLU, rotary positions, grouped-query attention."""

    preset: str = ""  # a shape of presets.py; what is said beside it overrides it
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    seq_length: int  # tokens in a training sample
    max_length: int = 0  # longest context of the served model; 0: seq_length
    tied_embeddings: bool = False  # one matrix embeds tokens and scores them
    rope_base: float = 10_000.0
    rope_scaling: float = 1.0  # Llama 3.1's stretching of long wavelengths, by this factor; 1: none
    norm_epsilon: float = 1e-5
    init_std: float = 0.02

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def context(self) -> int:
        return self.max_length or self.seq_length


def _patterns() -> Any:
    """Files by name or by pattern; strict_toml takes them from the recipe's directory on."""
    return field(default=(), metadata={"unit": "pattern"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Documents of one kind: exactly one of `text`, `jsonl` and `dataset` says where they are."""

    text: tuple[str, ...] = _patterns()  # a file is a document; "{stdlib}" is Python's own standard library
    jsonl: tuple[str, ...] = _patterns()  # a JSON object on each line
    dataset: tuple[str, ...] = _patterns()  # Hugging Face's: a directory of save_to_disk, parquet files
    field: str = "text"  # of a JSON object or a column: where the document is
    max_mb: float = 0.0  # megabytes of text to read, from a fixed shuffle of the files; 0: all
    weight: float = 1.0  # its share of the samples, relative to the others'


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """One source, said here, or a blend of several in `sources`; and the tokenizer they share."""

    text: tuple[str, ...] = _patterns()
    jsonl: tuple[str, ...] = _patterns()
    dataset: tuple[str, ...] = _patterns()
    field: str = "text"
    max_mb: float = 0.0
    sources: tuple[Source, ...] = ()
    tokenizer: Path | None = None  # a directory with tokenizer.json; none: a byte-level BPE is trained on the text
    vocab_size: int = 0  # of the tokenizer that is trained; where one is given, its own
    split: str = "95,5,0"  # training, validation, test: parts of the documents

    @property
    def blend(self) -> tuple[Source, ...]:
        if self.sources:
            return self.sources
        return (Source(text=self.text, jsonl=self.jsonl, dataset=self.dataset, field=self.field, max_mb=self.max_mb),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    """Whose weights a run begins with; the shape and the tokenizer are theirs too."""

    hugging_face: Path | None = None  # a directory with config.json and safetensors of a Llama
    checkpoint: Path | None = None  # a checkpoint of ours, in whatever layout it was saved


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    tensor: int = 1
    pipeline: int = 1
    sequence: bool = False  # tensor-parallel ranks also share out what lies between the matrices
    distributed_optimizer: bool = False
    recompute: Literal["none", "selective", "full"] = "none"  # activations made again: none, the MLPs', whole layers'


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    iterations: int
    micro_batch: int  # sequences one rank computes at a time
    global_batch: int  # sequences of one iteration, all ranks together
    lr: float
    min_lr: float = 0.0
    warmup: int = 0  # iterations
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"  # wsd: warm-up, stable, decay
    decay: int = 0  # iterations at the end of a wsd schedule, in which lr falls to min_lr in a straight line
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
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
    kind: str = "pretrain"  # one of kinds.KINDS
    model: Model
    data: Data
    train: Train
    init: Init | None = None
    parallel: Parallel = field(default_factory=Parallel)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    restart: Restart = field(default_factory=Restart)
    evaluation: Evaluation = field(default_factory=Evaluation)


def read_recipe(path: Path, overrides: Sequence[Layer] = ()) -> Recipe:
    """A recipe from its TOML file, with what it takes from elsewhere filled in: preset, shape of [init], vocabulary.

    `overrides` win over the file (strict_toml.flag_layers makes them of "train.lr=1e-3"). Raises ConfigError or
    RecipeError (both a ValueError), naming file, key and line.
    """
    from launchers.megatron import foundations  # these here, because a training environment reads spec.json only
    from registry import strict_toml

    layers = [strict_toml.read_layer(path), *overrides]
    recipe, _origins = strict_toml.build(Recipe, [*foundations.below(layers), *layers])
    return recipe


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain data, as a spec carries it; `from_dict` reads it back, also after a journey through JSON."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(recipe))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return str(value) if isinstance(value, Path) else value


def from_dict(data: dict[str, Any]) -> Recipe:
    """Strict: an unknown, missing or wrongly typed key is a RecipeError that names it."""
    return _table(Recipe, data, "")


def _table(cls: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise RecipeError(f"{where or 'the recipe'} must be a table, not {data!r}")
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise RecipeError(f"unknown key {_dot(where, key)!r}; allowed: {', '.join(sorted(hints))}{hint}")
    values = {key: _value(hints[key], value, _dot(where, key)) for key, value in data.items()}
    for f in dataclasses.fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise RecipeError(f"missing key {_dot(where, f.name)!r}")
    return cls(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    if typing.get_origin(kind) is types.UnionType:  # X | None
        return None if value is None else _value(typing.get_args(kind)[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _table(typing.cast(type, kind), value, where)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, list | tuple) or (item is str and not all(isinstance(v, str) for v in value)):
            raise RecipeError(f"{where} must be a list of {'strings' if item is str else 'tables'}, not {value!r}")
        return tuple(_value(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if kind is Path and isinstance(value, str):
        return Path(value)
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
