"""What the first iteration of a run works on, where its kind begins with somebody's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def begin(recipe: Recipe, dataset: Dataset, state: State, ranks: Ranks) -> tuple[str, dict[str, Any]]:
    """Give the model the weights that [init] names: what to say about it, and its facts. All ranks together.

    Raises CheckpointError or RecipeError for weights that are damaged, are of another shape, or compute something else.
    """
    assert recipe.init
    gpt = state.model.module
    if recipe.init.checkpoint:
        said = _from_checkpoint(recipe.init.checkpoint, gpt)
    else:
        said = _from_hugging_face(recipe, dataset, gpt, ranks)
    state.optimizer.reload_model_params()  # in bf16 it keeps a copy in fp32
    return said


def _from_checkpoint(path: Path, gpt: Any) -> tuple[str, dict[str, Any]]:
    found = manifest.verify(path, hashes=dist.get_rank() == 0)
    dist.barrier()
    load_weights(gpt, path)
    facts = {"init": str(path), "init_run": found.facts["run"], "init_iteration": found.facts["iteration"]}
    return f"weights: those of {path}, iteration {facts['init_iteration']} of {facts['init_run']}", facts


def _from_hugging_face(recipe: Recipe, dataset: Dataset, gpt: Any, ranks: Ranks) -> tuple[str, dict[str, Any]]:
    assert recipe.init
    assert recipe.init.hugging_face
    path = recipe.init.hugging_face
    _same_shape(recipe, dataset, path)
    mine = parallel_state.get_tensor_model_parallel_rank()
    llama.fill(gpt, llama.weights(path), recipe.model, mine, parallel_state.get_tensor_model_parallel_world_size())
    facts: dict[str, Any] = {"init": str(path)}
    parallel = recipe.parallel
    if parallel.tensor * parallel.pipeline > 1:
        return f"weights: those of {path}; logits not compared, which takes tensor = pipeline = 1", facts
    problem: list[str | None] = [None]
    if ranks.first:
        found = conversion.compare(gpt, path, dataset.vocab, conversion.sample(path, COMPARED))
        facts |= found.facts
        try:
            conversion.demand(found, next(gpt.parameters()).dtype, path)
        except CheckpointError as e:
            problem[0] = str(e)
    dist.broadcast_object_list(problem, src=0, device=ranks.device)
    if problem[0]:
        raise CheckpointError(problem[0])
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()  # of the twin that was compared
    differ = f"{facts['max_logit_difference']:.2e} over {COMPARED} tokens" if ranks.first else "as rank 0 says"
    return f"weights: those of {path}; logits differ from transformers' by at most {differ}", facts


def _same_shape(recipe: Recipe, dataset: Dataset, path: Path) -> None:
    """What was true when the run was submitted may have been replaced since."""
    for name, value in hugging_face.shape(path).items():
        known = dataset.vocab if name == "vocab_size" else getattr(recipe.model, name)
        if known != value:
            raise RecipeError(f"{path}: says {name} = {value!r} now, the run was submitted with {known!r}")
