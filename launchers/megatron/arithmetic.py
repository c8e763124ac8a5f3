"""What must work out before a single process is started. Pure; standard library only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from launchers.megatron.kinds import KINDS
from launchers.megatron.recipe import Data, Recipe, RecipeError, Source, Train

# Head sizes that vLLM's CPU attention computes. With another one it starts, says it is healthy, and dies at the first
# token, so a model that could never be served there is refused before it is trained.
HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 256)
# Rows of the embedding are rounded up to a multiple of it. megatron rounds to 128 x tensor; without the factor a
# checkpoint has the same shape in every layout, and any power of two up to 128 ranks divides it.
VOCAB_MULTIPLE = 128
SEEDS = 2**32  # numpy, which shuffles the samples, takes no other seeds


def padded_vocab(vocab_size: int) -> int:
    """Rows of the embedding: the vocabulary, and some that no token uses."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def check(recipe: Recipe, world_size: int) -> None:
    """Raise RecipeError, with the sum that does not work out, unless `world_size` ranks can train this recipe."""
    m, p, t = recipe.model, recipe.parallel, recipe.train
    _check_kind(recipe)
    for name, value in _numbers(recipe, ""):
        if not math.isfinite(value):
            raise RecipeError(f"{name} = {value}: must be a finite number")
    at_least_one: dict[str, float] = {
        "model.hidden": m.hidden, "model.layers": m.layers, "model.heads": m.heads, "model.kv_heads": m.kv_heads,
        "model.ffn": m.ffn, "model.seq_length": m.seq_length, "model.rope_scaling": m.rope_scaling,
        "parallel.tensor": p.tensor,
        "parallel.pipeline": p.pipeline, "train.iterations": t.iterations, "train.micro_batch": t.micro_batch,
        "train.global_batch": t.global_batch, "train.timeout_s": t.timeout_s,
        "restart.max_attempts": recipe.restart.max_attempts,
        "restart.without_progress": recipe.restart.without_progress,
        "restart.hang_timeout_s": recipe.restart.hang_timeout_s,
        "restart.start_timeout_s": recipe.restart.start_timeout_s,
    }  # fmt: skip
    not_negative: dict[str, float] = {
        "train.warmup": t.warmup, "train.threads": t.threads, "train.min_lr": t.min_lr, "train.grad_clip": t.grad_clip,
        "train.weight_decay": t.weight_decay, "train.decay": t.decay, "checkpoint.interval": recipe.checkpoint.interval,
        "checkpoint.keep_last": recipe.checkpoint.keep_last, "checkpoint.keep_every": recipe.checkpoint.keep_every,
        "evaluation.interval": recipe.evaluation.interval, "evaluation.iterations": recipe.evaluation.iterations,
        "model.norm_epsilon": m.norm_epsilon,
    }  # fmt: skip
    for name, value in at_least_one.items():
        if value < 1:
            raise RecipeError(f"{name} = {value}: must be at least 1")
    for name, value in not_negative.items():
        if value < 0:
            raise RecipeError(f"{name} = {value}: must not be negative")
    positive = {"train.lr": t.lr, "train.eps": t.eps, "model.rope_base": m.rope_base, "model.init_std": m.init_std}
    for name, value in positive.items():
        if value <= 0:
            raise RecipeError(f"{name} = {value:g}: must be more than 0")
    if not 0 <= t.seed < SEEDS:
        raise RecipeError(f"train.seed = {t.seed}: must be at least 0 and less than 2**32 = {SEEDS}")
    if recipe.evaluation.interval and not recipe.evaluation.iterations:
        raise RecipeError(
            f"evaluation.interval = {recipe.evaluation.interval}, but evaluation.iterations = 0: say how many global "
            "batches of validation text an evaluation takes"
        )
    _check_data(recipe.data)
    _check_layout(recipe, world_size)
    _check_schedule(t)


def _numbers(table: Any, where: str) -> Iterator[tuple[str, float]]:
    """Every setting that is a floating-point number, by its name."""
    for f in dataclasses.fields(table):
        value, name = getattr(table, f.name), f"{where}{f.name}"
        if isinstance(value, float):
            yield name, value
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from _numbers(item, f"{name}[{i}].")
        elif dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{name}.")


def _check_kind(recipe: Recipe) -> None:
    kind, init = KINDS.get(recipe.kind), recipe.init
    if kind is None:
        raise RecipeError(f"kind = {recipe.kind!r} is none of {', '.join(KINDS)}")
    if kind.weights == "random" and init:
        begins = ", ".join(name for name, k in KINDS.items() if k.weights == "given")
        raise RecipeError(f"[init]: kind = {recipe.kind!r} begins with random weights; [init] goes with {begins}")
    if kind.weights == "given" and (init is None or bool(init.hugging_face) == bool(init.checkpoint)):
        raise RecipeError(
            f"kind = {recipe.kind!r} needs one of init.hugging_face and init.checkpoint: the directory of the weights"
        )


def _check_data(d: Data) -> None:
    if d.sources and (d.text or d.jsonl or d.dataset):
        raise RecipeError("[data] names documents and [[data.sources]] too: move them into a source")
    plain = Data()
    beside = [f"data.{k} = {getattr(d, k)!r}" for k in ("field", "max_mb") if getattr(d, k) != getattr(plain, k)]
    if d.sources and beside:
        raise RecipeError(
            f"{' and '.join(beside)} beside [[data.sources]]: move it into each source that it is meant for"
        )
    for i, source in enumerate(d.blend):
        _check_source(source, f"data.sources[{i}]" if d.sources else "data")
    if d.tokenizer is None and not 512 <= d.vocab_size <= 2**31 - 1:
        raise RecipeError(f"data.vocab_size = {d.vocab_size}: must be at least 512 (256 bytes, 4 markers, and merges)")
    try:
        parts = [float(x) for x in d.split.split(",")]
    except ValueError:
        parts = []
    if len(parts) != 3 or not all(map(math.isfinite, parts)) or min(parts) < 0 or parts[0] <= 0:
        raise RecipeError(f'data.split = {d.split!r} is not three parts (training, validation, test) like "95,5,0"')


def _check_source(source: Source, where: str) -> None:
    named = [name for name in ("text", "jsonl", "dataset") if getattr(source, name)]
    if len(named) != 1:
        what = f"names {' and '.join(named)}" if named else "names no documents"
        raise RecipeError(f"{where} {what}: one of {where}.text, {where}.jsonl and {where}.dataset says where they are")
    if source.max_mb < 0:
        raise RecipeError(f"{where}.max_mb = {source.max_mb:g}: must not be negative (0: all)")
    if source.weight <= 0:
        raise RecipeError(f"{where}.weight = {source.weight:g}: must be more than 0")


def _check_layout(recipe: Recipe, world_size: int) -> None:
    m, p, t = recipe.model, recipe.parallel, recipe.train
    _divides("model.hidden", m.hidden, "model.heads", m.heads)
    if m.head_dim not in HEAD_DIMS:
        raise RecipeError(
            f"model.hidden / model.heads = {m.hidden} / {m.heads} = {m.head_dim} is a head size that vLLM's CPU "
            f"attention cannot serve; allowed: {', '.join(map(str, HEAD_DIMS))}"
        )
    if m.max_length and m.seq_length > m.max_length:
        raise RecipeError(f"model.seq_length = {m.seq_length} is above model.max_length = {m.max_length}")
    _divides("model.heads", m.heads, "model.kv_heads", m.kv_heads)
    _divides("model.heads", m.heads, "parallel.tensor", p.tensor)
    _divides("model.kv_heads", m.kv_heads, "parallel.tensor", p.tensor)
    _divides("model.ffn", m.ffn, "parallel.tensor", p.tensor)
    rows = padded_vocab(recipe.data.vocab_size)
    _divides(f"data.vocab_size = {recipe.data.vocab_size}, padded to {rows // VOCAB_MULTIPLE} x {VOCAB_MULTIPLE}",
             rows, "parallel.tensor", p.tensor)  # fmt: skip
    if p.sequence and p.tensor == 1:
        raise RecipeError("parallel.sequence shares work out between tensor-parallel ranks, but parallel.tensor = 1")
    if p.sequence:
        _divides("parallel.sequence: model.seq_length", m.seq_length, "parallel.tensor", p.tensor)
    _divides("model.layers", m.layers, "parallel.pipeline", p.pipeline)
    _divides("ranks (nodes x tasks per node)", world_size, "parallel.tensor x parallel.pipeline", p.tensor * p.pipeline)
    copies = world_size // (p.tensor * p.pipeline)
    _divides("train.global_batch", t.global_batch, "train.micro_batch x data-parallel copies", t.micro_batch * copies)


def _check_schedule(t: Train) -> None:
    for name, value in {"train.beta1": t.beta1, "train.beta2": t.beta2}.items():
        if not 0 <= value < 1:
            raise RecipeError(f"{name} = {value:g}: must be at least 0 and less than 1")
    if t.min_lr > t.lr:
        raise RecipeError(f"train.min_lr = {t.min_lr:g} is above train.lr = {t.lr:g}")
    if t.warmup >= t.iterations:
        raise RecipeError(f"train.warmup = {t.warmup} must be less than train.iterations = {t.iterations}")
    if t.schedule != "wsd" and t.decay:
        raise RecipeError(f'train.decay = {t.decay} has a meaning with train.schedule = "wsd" only')
    most = t.iterations - t.warmup - 1  # the iteration after the warm-up has lr itself
    if t.schedule == "wsd" and not 1 <= t.decay <= most:
        raise RecipeError(
            f'train.decay = {t.decay}: train.schedule = "wsd" needs at least 1 and at most train.iterations - '
            f"train.warmup - 1 = {t.iterations} - {t.warmup} - 1 = {most}"
        )


def _divides(name: str, value: int, by_name: str, by: int) -> None:
    if value % by:
        raise RecipeError(
            f"{name} = {value} is not divisible by {by_name} = {by} ({value} = {value // by} x {by} + {value % by})"
        )
