"""Checkpoint <-> Hugging Face Llama, and the proof that both compute the same."""

from __future__ import annotations

import json
import json.decoder
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM

from launchers.megatron import cpu, hugging_face, llama, manifest, model, writer
from launchers.megatron.checkpoint import RECIPE, TOKENIZER, load_weights, save_weights
from launchers.megatron.data import TURN_END, whole_text
from launchers.megatron.flops import parameters
from launchers.megatron.manifest import CheckpointError, Manifest
from launchers.megatron.ranks import Ranks, join
from launchers.megatron.recipe import Data, Init, Model, Parallel, Recipe, Train, to_dict

MAX_LOGIT_DIFFERENCE = 1e-3  # in fp32; rounding gives about 1e-5, a wrong rotation or a swapped row far more
# In bf16, of the logits' own size: eight bits round to 0.4%, and more with every layer; a wrong rotation gives 1.
MAX_RELATIVE_DIFFERENCE = 0.1
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Difference:
    """Between the logits of a GPT and of its Llama."""

    largest: float  # of any two
    relative: float  # root of the mean square, relative to that of the logits
    tokens: int  # compared

    @property
    def facts(self) -> dict[str, Any]:
        return {"max_logit_difference": self.largest, "compared_tokens": self.tokens}


def to_hugging_face(checkpoint: Path, promised: Manifest, recipe: Recipe, final: Path) -> Manifest:
    """Write the model to `final`, which appears whole or not at all. Raises CheckpointError when the logits differ."""
    dtype = getattr(torch, promised.facts["precision"])
    with _alone(recipe.train.timeout_s), _whole_or_nothing(final) as building:
        vocab = promised.facts.get("vocab") or hugging_face.vocabulary(checkpoint / TOKENIZER)
        gpt = _build(recipe.model, vocab, dtype)
        load_weights(gpt, checkpoint)
        _write(gpt, recipe.model, vocab, checkpoint / TOKENIZER, dtype, building)
        found = compare(gpt.float(), building, vocab, sample(building, recipe.model.seq_length))
        demand(found, torch.float32, checkpoint)
        return manifest.write(
            building,
            "model",
            architecture="LlamaForCausalLM",
            iteration=promised.facts["iteration"],
            run=promised.facts["run"],
            checkpoint=str(checkpoint),
            checkpoint_manifest_sha256=manifest.sha256(checkpoint / manifest.NAME),
            parameters=parameters(recipe.model, vocab),
            precision=promised.facts["precision"],
            max_length=recipe.model.context,
            **found.facts,
        )


def from_hugging_face(source: Path, run: str, final: Path) -> Manifest:
    """Write a checkpoint of iteration 0 to `final`, which appears whole or not at all; it holds weights only.

    Its recipe is one that would continue from it: the model is exact, [train] says nothing yet. Raises RecipeError for
    an architecture that cannot be trained here, CheckpointError when the logits differ.
    """
    shape = hugging_face.shape(source)
    vocab = int(shape.pop("vocab_size"))
    recipe = Recipe(
        kind="continue",
        model=Model(**shape, seq_length=shape["max_length"]),
        init=Init(hugging_face=source),
        data=Data(vocab_size=vocab),
        train=Train(iterations=1, micro_batch=1, global_batch=1, lr=1e-5),
    )
    with _alone(recipe.train.timeout_s), _whole_or_nothing(final) as building:
        dtype = llama.weights(source)("model.embed_tokens.weight").dtype
        gpt = _build(recipe.model, vocab, dtype)
        llama.fill(gpt, source, recipe.model, 0, 1)
        building.mkdir(parents=True)
        save_weights(gpt, building)
        load_weights(gpt, building)  # what is compared is what was written
        _carry_tokenizer(source, building / TOKENIZER)
        (building / RECIPE).write_text(json.dumps(to_dict(recipe), indent=1) + "\n", encoding="utf-8")
        found = compare(gpt.float(), source, vocab, sample(source, recipe.model.context))
        demand(found, torch.float32, source)
        return manifest.write(
            building,
            "checkpoint",
            iteration=0,
            run=run,
            source=str(source),
            weights_only=True,
            parallel={"tensor": 1, "pipeline": 1},
            ranks=1,
            precision=str(dtype).removeprefix("torch."),
            vocab=vocab,
            parameters=parameters(recipe.model, vocab),
            **found.facts,
        )


def compare(gpt: Any, directory: Path, vocab: int, tokens: torch.Tensor) -> Difference:
    """Of a whole GPT and the Llama in `directory`, both in the GPT's precision and on its device."""
    parameter = next(gpt.parameters())
    twin, report = AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=parameter.dtype, output_loading_info=True, local_files_only=True
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise CheckpointError(f"{directory}: weights do not fit: {report}")
    tokens = tokens.to(parameter.device)
    positions = torch.arange(tokens.shape[1], device=parameter.device)[None]
    training, gpt = gpt.training, gpt.eval()
    with torch.no_grad():
        ours = gpt(tokens, positions, None)[..., :vocab].float()
        theirs = twin.eval().to(parameter.device)(tokens).logits.float()
    gpt.train(training)
    difference = ours - theirs
    relative = float(difference.square().mean().sqrt() / theirs.square().mean().sqrt())
    return Difference(float(difference.abs().max()), relative, tokens.shape[1])


def demand(found: Difference, precision: torch.dtype, of: Path) -> None:
    """Raise CheckpointError when two models differ by more than rounding. NaN differs."""
    if precision is torch.float32:
        fits, most = found.largest <= MAX_LOGIT_DIFFERENCE, f"{MAX_LOGIT_DIFFERENCE:g}"
    else:
        fits, most = found.relative <= MAX_RELATIVE_DIFFERENCE, f"{MAX_RELATIVE_DIFFERENCE:g} of their size"
    if not fits:
        raise CheckpointError(
            f"{of}: converted logits differ by {found.largest:.3g}, {found.relative:.3g} of their size; allowed: {most}"
        )


def sample(directory: Path, length: int) -> torch.Tensor:
    """Text as the model may have seen it, as long as its context, at most 2048: (1, length) token ids."""
    assert json.decoder.__file__
    text = Path(json.decoder.__file__).read_text(encoding="utf-8")
    ids = whole_text(directory).encode(text).ids
    return torch.tensor([ids[: min(length, 2048)]])


@contextmanager
def _alone(timeout_s: float) -> Iterator[None]:
    """megatron's process groups, for one process on a CPU."""
    transformers.logging.disable_progress_bar()
    cpu.install()
    writer.install()
    join(Ranks(0, 1, CPU, dist.HashStore()), Parallel(), 1, timeout_s)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _whole_or_nothing(final: Path) -> Iterator[Path]:
    """A directory that gets its name when all went well, and is gone otherwise."""
    building = final.with_name(final.name + ".partial")
    shutil.rmtree(building, ignore_errors=True)
    try:
        yield building
        os.rename(building, final)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _build(shape: Model, vocab: int, dtype: torch.dtype) -> Any:
    return model.build(shape, vocab, model.config(shape, Parallel(), dtype), CPU).eval()


def _write(gpt: Any, shape: Model, vocab: int, tokenizer: Path, dtype: torch.dtype, directory: Path) -> None:
    known = Tokenizer.from_file(str(tokenizer / hugging_face.TOKENIZER))

    def token(name: str) -> int | None:
        text = hugging_face.special_token(tokenizer, name)
        return known.token_to_id(text) if text else None

    bos, eos, pad = token("bos_token"), token("eos_token"), token("pad_token")
    settings = llama.config(shape, vocab, bos=bos, eos=eos, pad=pad)
    settings.dtype = dtype
    twin = LlamaForCausalLM(settings).to(dtype)
    twin.load_state_dict(llama.from_gpt(dict(gpt.named_parameters()), shape, vocab))
    twin.save_pretrained(str(directory))
    # A text ends with the one, a turn of a chat with the other. What came with the tokenizer knows better, and wins.
    ends = [end for end in (eos, known.token_to_id(TURN_END)) if end is not None]
    GenerationConfig(bos_token_id=bos, eos_token_id=ends or None, pad_token_id=pad).save_pretrained(str(directory))
    _carry_tokenizer(tokenizer, directory)
    # safetensors' own files are for their owner alone; whoever may read the others serves the model.
    for path in directory.glob("*.safetensors"):
        path.chmod((directory / "config.json").stat().st_mode)


def _carry_tokenizer(source: Path, target: Path) -> None:
    """Byte for byte, with its chat template."""
    target.mkdir(parents=True, exist_ok=True)
    for name in hugging_face.TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
