"""Samples out of a prepared dataset, in an order that depends on the recipe alone: not on how many ranks share them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from launchers.megatron import manifest
from launchers.megatron.corpus import DataError
from launchers.megatron.data import Dataset, end_of_text, padding
from launchers.megatron.ranks import Ranks
from launchers.megatron.recipe import Recipe

Batch = dict[str, torch.Tensor]  # tokens, labels, loss_mask, position_ids: each (micro batch, sequence)


class _TokenizerFacts:
    """What GPTDataset asks of a tokenizer."""

    def __init__(self, directory: Path) -> None:
        self.vocab_size = int(manifest.read(directory).facts["vocab"])
        self.eod, self.pad = end_of_text(directory), padding(directory)
        self.unique_identifiers = {"class": type(self).__name__, "path": str(directory)}


def build(recipe: Recipe, dataset: Dataset, index: Path, ranks: Ranks) -> tuple[Any, Any]:
    """(training, validation) samples; validation is None when none is asked for. Raises DataError.

    The shuffled order is kept in `index`, for later attempts of the run. An index without its mark was cut short.
    """
    mark = index / "complete"
    if ranks.first and not mark.exists():
        shutil.rmtree(index, ignore_errors=True)
    dist.barrier()
    t, e = recipe.train, recipe.evaluation
    settings = GPTDatasetConfig(
        random_seed=t.seed, sequence_length=recipe.model.seq_length, blend=_blend(dataset),
        split=recipe.data.split, tokenizer=_TokenizerFacts(dataset.tokenizer), path_to_cache=str(index),
        reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
        mid_level_dataset_surplus=0.005,
    )  # fmt: skip
    wanted = [t.iterations * t.global_batch, e.iterations * t.global_batch or None, None]
    if len(dataset.parts) > 1:
        _check_parts(recipe, dataset)
        wanted = [size or 1 for size in wanted]  # of a blend megatron wants a number
    train, valid, _test = BlendedMegatronDatasetBuilder(GPTDataset, wanted, lambda: True, settings).build()
    if train is None or not len(train):
        raise DataError(f"{dataset.documents} documents split {recipe.data.split} leave no text to train on")
    if e.iterations and (valid is None or not len(valid)):
        raise DataError(f"{dataset.documents} documents split {recipe.data.split} leave no text for evaluation")
    dist.barrier()
    if ranks.first:
        mark.touch()
    return train, valid


def _check_parts(recipe: Recipe, dataset: Dataset) -> None:
    """Raise DataError for a source that is too small to have a part of each split, which megatron would trip over."""
    shares = [float(share) for share in recipe.data.split.split(",")]
    for part in dataset.parts:
        for share in shares:
            if share and part.documents * share / sum(shares) < 1:
                raise DataError(f"{part.path}: {part.documents} documents are too few to be split {recipe.data.split}")


def _blend(dataset: Dataset) -> tuple[list[str], list[float] | None]:
    """megatron's words for a blend: the files, and the share of samples that each gives."""
    prefixes, weights = [part.prefix for part in dataset.parts], [part.weight for part in dataset.parts]
    return prefixes, weights if len(weights) > 1 else None


def batches(samples: Any, recipe: Recipe, ranks: Ranks, start: int) -> Iterator[Batch]:
    """This rank's micro batches, from the `start`-th sample on, round and round."""
    t = recipe.train
    rounds = t.global_batch // (t.micro_batch * ranks.copies)
    first = start
    while True:
        for i in range(rounds):
            at = first + (i * ranks.copies + ranks.data_rank) * t.micro_batch
            rows = [samples[(at + j) % len(samples)] for j in range(t.micro_batch)]
            keys = ("tokens", "labels", "loss_mask", "position_ids")
            yield {k: torch.stack([row[k] for row in rows]).to(ranks.device) for k in keys}
        first += t.global_batch
