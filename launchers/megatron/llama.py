"""The same network in two spellings: megatron-core's GPT and Hugging Face's Llama.

megatron keeps queries, keys and values in one matrix, group by group: for each key-value head its queries, then its
key, then its value, `head_dim` rows each. The first half of `linear_fc1` is the gate, the second half goes up. Both
sides rotate the two halves of a head, so rows are not permuted. megatron's embedding has more rows than there are
tokens (arithmetic.padded_vocab); Llama's has not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import LlamaConfig

from launchers.megatron.arithmetic import padded_vocab
from launchers.megatron.manifest import CheckpointError
from launchers.megatron.recipe import Model

Read = Callable[[str], torch.Tensor]  # a weight by its name

_EMBEDDING, _OUTPUT, _NORM = "embedding.word_embeddings.weight", "output_layer.weight", "decoder.final_layernorm.weight"
_EMBED_TOKENS, _LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
_QKV, _FC1 = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"
_SAME = {  # of a layer: megatron's name, Llama's name
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_COLUMNS = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")  # tensor parallelism splits these in columns


def config(model: Model, vocab_size: int, *, bos: int | None, eos: int | None, pad: int | None) -> LlamaConfig:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_base}
    if model.rope_scaling != 1.0:
        rope |= {"rope_type": "llama3", "factor": model.rope_scaling, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 8192}  # fmt: skip  # megatron has these numbers built in
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=model.hidden,
        intermediate_size=model.ffn,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.context,
        rms_norm_eps=model.norm_epsilon,
        rope_parameters=rope,
        hidden_act="silu",
        tie_word_embeddings=model.tied_embeddings,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def from_gpt(gpt: dict[str, torch.Tensor], model: Model, vocab_size: int) -> dict[str, torch.Tensor]:
    """Llama's weights from those of a whole (unsharded) GPT. Raises KeyError when a weight is missing."""
    named = {
        _EMBED_TOKENS: gpt[_EMBEDDING][:vocab_size],
        _LM_HEAD: gpt[_EMBEDDING if model.tied_embeddings else _OUTPUT][:vocab_size],
        "model.norm.weight": gpt[_NORM],
    }
    for i in range(model.layers):
        ours, theirs = f"decoder.layers.{i}.", f"model.layers.{i}."
        q, k, v = split_qkv(gpt[ours + _QKV], model)
        gate, up = gpt[ours + _FC1].chunk(2, dim=0)
        named |= {theirs + name: gpt[ours + our_name] for our_name, name in _SAME.items()}
        named |= {theirs + f"self_attn.{name}_proj.weight": part for name, part in (("q", q), ("k", k), ("v", v))}
        named |= {theirs + "mlp.gate_proj.weight": gate, theirs + "mlp.up_proj.weight": up}
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def fill(gpt: Any, directory: Path, model: Model, rank: int, shards: int) -> None:
    """Give this rank's part of a GPT (pipeline stage, `rank` of `shards` of tensor parallelism) a Llama's weights.

    Raises CheckpointError for weights that cannot be read, or have another shape.
    """
    read, before = weights(directory), gpt.decoder.layers[0].layer_number - 1  # layers of earlier stages
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            part = _part(name, read, model, before, rank, shards)
            target = parameter
            if name in (_EMBEDDING, _OUTPUT):
                target = parameter.zero_()[: part.shape[0]]  # the rows that no token uses stay zero
            if part.shape != target.shape:
                raise CheckpointError(
                    f"{directory}: what becomes {name} has shape {list(part.shape)}; allowed: {list(target.shape)}"
                )
            target.copy_(part)


def _part(name: str, read: Read, model: Model, before: int, rank: int, shards: int) -> torch.Tensor:
    if name == _NORM:
        return read("model.norm.weight")
    if name in (_EMBEDDING, _OUTPUT):
        table = read(_EMBED_TOKENS if name == _EMBEDDING or model.tied_embeddings else _LM_HEAD)
        rows = padded_vocab(table.shape[0]) // shards
        return table[rank * rows : (rank + 1) * rows]
    found = _LAYER.fullmatch(name)
    assert found, name
    kind, theirs = found[2], f"model.layers.{before + int(found[1])}."
    if kind == _QKV:
        q, k, v = (read(f"{theirs}self_attn.{x}_proj.weight") for x in "qkv")
        return join_qkv(q, k, v, model).chunk(shards)[rank]
    if kind == _FC1:
        return torch.cat([read(f"{theirs}mlp.{x}_proj.weight").chunk(shards)[rank] for x in ("gate", "up")])
    whole = read(theirs + _SAME[kind])
    return whole.chunk(shards, dim=1)[rank] if kind in _COLUMNS else whole


def split_qkv(qkv: torch.Tensor, model: Model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """((heads + 2 kv_heads) x head_dim, hidden) -> queries, keys, values, each (its heads x head_dim, hidden)."""
    queries = model.heads // model.kv_heads
    grouped = qkv.view(model.kv_heads, queries + 2, model.head_dim, -1)
    q, k, v = grouped.split([queries, 1, 1], dim=1)
    return tuple(part.reshape(-1, qkv.shape[1]) for part in (q, k, v))


def join_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, model: Model) -> torch.Tensor:
    """What `split_qkv` takes apart."""
    parts = [part.view(model.kv_heads, -1, model.head_dim, part.shape[1]) for part in (q, k, v)]
    return torch.cat(parts, dim=1).reshape(-1, q.shape[1])


def weights(directory: Path) -> Read:
    """The safetensors of a Hugging Face model, read one by one as they are asked for. Raises CheckpointError."""
    index = directory / "model.safetensors.index.json"
    places = _places(index) if index.exists() else {}

    def read(name: str) -> torch.Tensor:
        path = directory / places.get(name, "model.safetensors")
        try:
            with safe_open(str(path), framework="pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as e:
            raise CheckpointError(f"{path}: {name}: {e}") from e

    return read


def _places(index: Path) -> dict[str, str]:
    """Which file holds each weight."""
    try:
        return {name: str(file) for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{index}: no weight_map that can be read: {type(e).__name__}: {e}") from e
