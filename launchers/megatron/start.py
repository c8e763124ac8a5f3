"""What the first iteration of a run works on, where its kind begins with somebody's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from launchers.megatron import conversion, hugging_face, llama, manifest
from launchers.megatron.checkpoint import State, load_weights
from launchers.megatron.data import Dataset
from launchers.megatron.manifest import CheckpointError
from launchers.megatron.ranks import Ranks
from launchers.megatron.recipe import Recipe, RecipeError

COMPARED = 64  # tokens
Found = TypeVar("Found")


def begin(recipe: Recipe, dataset: Dataset, state: State, ranks: Ranks) -> tuple[str, dict[str, Any]]:
    """Give the model the weights that [init] names: what to say about it, and its facts. All ranks together.

    Raises RecipeError for weights that are damaged, are of another shape, or compute something else: another attempt
    would find them as they are.
    """
    assert recipe.init
    gpt = state.model.module
    try:
        if recipe.init.checkpoint:
            said = _from_checkpoint(recipe.init.checkpoint, gpt, ranks)
        else:
            said = _from_hugging_face(recipe, dataset, gpt, ranks)
    except CheckpointError as e:
        raise RecipeError(f"[init]: {e}") from e
    state.optimizer.reload_model_params()  # in bf16 it keeps a copy in fp32
    return said


def _from_checkpoint(path: Path, gpt: Any, ranks: Ranks) -> tuple[str, dict[str, Any]]:
    found = _on_the_first(ranks, lambda: manifest.verify(path))
    manifest.verify(path, hashes=False)  # each rank: it may be somewhere that rank 0 alone sees
    load_weights(gpt, path)
    facts = {"init": str(path), "init_run": found.facts["run"], "init_iteration": found.facts["iteration"]}
    return f"weights: those of {path}, iteration {facts['init_iteration']} of {facts['init_run']}", facts


def _from_hugging_face(recipe: Recipe, dataset: Dataset, gpt: Any, ranks: Ranks) -> tuple[str, dict[str, Any]]:
    assert recipe.init
    assert recipe.init.hugging_face
    path = recipe.init.hugging_face
    _same_shape(recipe, dataset, path)
    mine = parallel_state.get_tensor_model_parallel_rank()
    llama.fill(gpt, path, recipe.model, mine, parallel_state.get_tensor_model_parallel_world_size())
    facts: dict[str, Any] = {"init": str(path)}
    parallel = recipe.parallel
    if parallel.tensor * parallel.pipeline > 1:
        return f"weights: those of {path}; logits not compared, which takes tensor = pipeline = 1", facts
    found = _on_the_first(ranks, lambda: _compared(gpt, path, dataset.vocab))
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()  # of the twin that was compared
    differ = f"{found.largest:.2e} over {found.tokens} tokens"
    return f"weights: those of {path}; logits differ from transformers' by at most {differ}", facts | found.facts


def _compared(gpt: Any, path: Path, vocab: int) -> conversion.Difference:
    found = conversion.compare(gpt, path, vocab, conversion.sample(path, COMPARED))
    conversion.demand(found, next(gpt.parameters()).dtype, path)
    return found


def _on_the_first(ranks: Ranks, work: Callable[[], Found]) -> Found:
    """What rank 0 finds, on every rank; all of them raise the CheckpointError that it raises."""
    said: list[Any] = [None]
    if ranks.first:
        try:
            said[0] = work()
        except CheckpointError as e:
            said[0] = e
    dist.broadcast_object_list(said, src=0, device=ranks.device)
    if isinstance(said[0], CheckpointError):
        raise said[0]
    found: Found = said[0]
    return found


def _same_shape(recipe: Recipe, dataset: Dataset, path: Path) -> None:
    """What was true when the run was submitted may have been replaced since."""
    for name, value in hugging_face.shape(path).items():
        known = dataset.vocab if name == "vocab_size" else getattr(recipe.model, name)
        if known != value:
            raise RecipeError(f"{path}: says {name} = {value!r} now, the run was submitted with {known!r}")
