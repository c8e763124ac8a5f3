"""What the directory of a Hugging Face model or tokenizer says about itself. Standard library only.

Weights are not looked at: the control plane asks, before anything is submitted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launchers.megatron.recipe import RecipeError

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
# Carried with a tokenizer wherever it goes, byte for byte.
TOKENIZER_FILES = (
    TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt", "generation_config.json",
)  # fmt: skip
# What a Llama's config.json may say, and what it means where it says nothing (transformers' own default).
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",), "hidden_act": ("silu", None), "attention_bias": (False, None), "mlp_bias": (False, None),
    "quantization_config": (None,),
}  # fmt: skip
# Megatron has one kind of stretching built in, with Llama 3.1's numbers; only the factor is free.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def shape(directory: Path) -> dict[str, Any]:
    """The [model] of a Llama, and `vocab_size`, from its config.json. Raises RecipeError for another architecture."""
    path = directory / CONFIG
    said = _read(path)
    for key, allowed in _FIXED.items():
        if said.get(key) not in allowed:
            words = ", ".join(json.dumps(a) for a in allowed if a is not None) or "nothing"
            raise RecipeError(f"{path}: {key} = {json.dumps(said.get(key))} cannot be trained here; allowed: {words}")
    try:
        hidden, heads = int(said["hidden_size"]), int(said["num_attention_heads"])
        found = {
            "hidden": hidden,
            "layers": int(said["num_hidden_layers"]),
            "heads": heads,
            "kv_heads": int(said.get("num_key_value_heads") or heads),
            "ffn": int(said["intermediate_size"]),
            "max_length": int(said["max_position_embeddings"]),
            "tied_embeddings": bool(said.get("tie_word_embeddings", False)),
            "norm_epsilon": float(said.get("rms_norm_eps", 1e-6)),
            **_rope(path, said),
        }
        vocab_size = int(said["vocab_size"])
    except KeyError as e:
        raise RecipeError(f"{path}: says no {e.args[0]}") from e
    except (TypeError, ValueError) as e:
        raise RecipeError(f"{path}: {e}") from e
    head_dim = said.get("head_dim") or hidden // heads
    if head_dim * heads != hidden:
        raise RecipeError(
            f"{path}: head_dim = {head_dim}; allowed: hidden_size / num_attention_heads = {hidden} / {heads}"
        )
    return {**found, "vocab_size": vocab_size}


def vocabulary(directory: Path) -> int:
    """How many token ids a tokenizer has: its largest, and one. Raises RecipeError for one that cannot be read."""
    path = directory / TOKENIZER
    said = _read(path)
    try:
        vocab = said["model"]["vocab"]  # {token: id}; of a unigram model [[token, score], ...]
        ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        return 1 + max([*ids, *(int(token["id"]) for token in said.get("added_tokens") or ())])
    except (KeyError, TypeError, ValueError) as e:
        raise RecipeError(f"{path}: not a tokenizer: {type(e).__name__}: {e}") from e


def special_token(directory: Path, name: str) -> str | None:
    """The text of a token such as "eos_token", as tokenizer_config.json has it."""
    path = directory / TOKENIZER_CONFIG
    said = _read(path).get(name) if path.exists() else None
    return said.get("content") if isinstance(said, dict) else said


def _rope(path: Path, said: dict[str, Any]) -> dict[str, float]:
    """transformers 5 writes `rope_parameters`; before, `rope_theta` stood alone, and `rope_scaling` beside it."""
    rope = said.get("rope_parameters") or {
        **(said.get("rope_scaling") or {}),
        "rope_theta": said.get("rope_theta", 1e4),
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = {"rope_base": float(rope.get("rope_theta", 1e4))}
    if kind == "default":
        return {**base, "rope_scaling": 1.0}
    if kind != "llama3" or any(rope.get(key) != value for key, value in _LLAMA3.items()):
        raise RecipeError(
            f"{path}: rope type {kind!r} with {json.dumps(rope)} cannot be trained here; allowed: default, or llama3 "
            f"with {json.dumps(_LLAMA3)}"
        )
    return {**base, "rope_scaling": float(rope["factor"])}


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise RecipeError(f"{path}: {e.strerror}") from e
    except ValueError as e:
        raise RecipeError(f"{path}: not JSON: {e}") from e
    if not isinstance(said, dict):
        raise RecipeError(f"{path}: not a JSON object")
    return said
