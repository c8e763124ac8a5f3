"""Checkpoint -> Hugging Face Llama, and the proof that both compute the same."""

from __future__ import annotations

import json.decoder
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from launchers.megatron import cpu, llama, manifest, model
from launchers.megatron.checkpoint import TOKENIZER, load_weights
from launchers.megatron.data import TURN_END
from launchers.megatron.manifest import CheckpointError, Manifest
from launchers.megatron.ranks import Ranks, join
from launchers.megatron.recipe import Parallel, Recipe

MAX_LOGIT_DIFFERENCE = 1e-3  # in fp32; rounding gives about 1e-5, a wrong rotation or a swapped row far more


def convert(checkpoint: Path, promised: Manifest, recipe: Recipe, final: Path) -> Manifest:
    """Write the model to `final`, which appears whole or not at all. Raises CheckpointError when the logits differ."""
    transformers.logging.disable_progress_bar()
    cpu.install()
    ranks = Ranks(0, 1, torch.device("cpu"), dist.HashStore())
    building = final.with_name(final.name + ".partial")
    shutil.rmtree(building, ignore_errors=True)
    join(ranks, Parallel(), recipe.train.seed, recipe.train.timeout_s)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint / TOKENIZER), local_files_only=True)
        dtype = getattr(torch, promised.facts["precision"])
        gpt = _load(checkpoint, recipe, len(tokenizer), dtype)
        _write(gpt, recipe, tokenizer, dtype, building)
        tokens = _real_tokens(tokenizer, recipe.model.seq_length)
        difference = _compare(gpt.float(), building, tokens)
        if not difference <= MAX_LOGIT_DIFFERENCE:  # also when it is NaN
            raise CheckpointError(
                f"{checkpoint}: converted logits differ by {difference:.3g}, allowed: {MAX_LOGIT_DIFFERENCE:g}"
            )
        done = manifest.write(
            building,
            "model",
            architecture="LlamaForCausalLM",
            iteration=promised.facts["iteration"],
            run=promised.facts["run"],
            checkpoint=str(checkpoint),
            checkpoint_manifest_sha256=manifest.sha256(checkpoint / manifest.NAME),
            parameters=sum(p.numel() for p in gpt.parameters()),
            precision=promised.facts["precision"],
            max_logit_difference=difference,
            compared_tokens=tokens.shape[1],
            max_length=recipe.model.seq_length,
        )
        os.rename(building, final)
        return done
    finally:
        shutil.rmtree(building, ignore_errors=True)
        dist.destroy_process_group()


def _load(checkpoint: Path, recipe: Recipe, vocab_size: int, dtype: torch.dtype) -> Any:
    device = torch.device("cpu")
    gpt = model.build(recipe.model, vocab_size, model.config(recipe.model, Parallel(), dtype), device)
    load_weights(gpt, checkpoint)
    return gpt.eval()


def _write(gpt: Any, recipe: Recipe, tokenizer: Any, dtype: torch.dtype, directory: Path) -> None:
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    settings = llama.config(recipe.model, len(tokenizer), bos=bos, eos=eos, pad=pad)
    settings.dtype = dtype
    twin = LlamaForCausalLM(settings).to(dtype)
    twin.load_state_dict(llama.weights(dict(gpt.named_parameters()), recipe.model))
    twin.save_pretrained(str(directory))
    tokenizer.model_max_length = recipe.model.seq_length
    tokenizer.save_pretrained(str(directory))
    ends = [eos, tokenizer.convert_tokens_to_ids(TURN_END)]  # a completion ends with the text, a chat with its turn
    GenerationConfig(bos_token_id=bos, eos_token_id=ends, pad_token_id=pad).save_pretrained(str(directory))


def _compare(gpt: Any, directory: Path, tokens: torch.Tensor) -> float:
    """The largest absolute difference between any two logits, of the GPT and of the Llama read back from disk."""
    twin, report = AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise CheckpointError(f"converted weights do not fit: {report}")
    positions = torch.arange(tokens.shape[1])[None]
    with torch.no_grad():
        return float((gpt(tokens, positions, None) - twin.eval()(tokens).logits).abs().max())


def _real_tokens(tokenizer: Any, length: int) -> torch.Tensor:
    """Text as the model may have seen it, as long as its context: (1, length) token ids."""
    assert json.decoder.__file__
    text = Path(json.decoder.__file__).read_text(encoding="utf-8")
    return torch.tensor([tokenizer(text, truncation=True, max_length=length)["input_ids"]])
