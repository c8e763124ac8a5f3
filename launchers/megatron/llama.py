"""The same network in two spellings: megatron-core's GPT as Hugging Face's Llama.

megatron keeps queries, keys and values in one matrix, group by group: for each key-value head its queries, then its
key, then its value, `head_dim` rows each. The first half of `linear_fc1` is the gate, the second half goes up. Both
sides rotate the two halves of a head, so rows are not permuted.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig

from launchers.megatron.recipe import Model


def config(model: Model, vocab_size: int, *, bos: int, eos: int, pad: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=model.hidden,
        intermediate_size=model.ffn,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.seq_length,
        rms_norm_eps=model.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_base},
        hidden_act="silu",
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def weights(gpt: dict[str, torch.Tensor], model: Model) -> dict[str, torch.Tensor]:
    """Llama's weights from those of a whole (unsharded) GPT. Raises KeyError when a weight is missing."""
    named = {
        "model.embed_tokens.weight": gpt["embedding.word_embeddings.weight"],
        "model.norm.weight": gpt["decoder.final_layernorm.weight"],
        "lm_head.weight": gpt["output_layer.weight"],
    }
    for i in range(model.layers):
        ours, theirs = f"decoder.layers.{i}.", f"model.layers.{i}."
        q, k, v = split_qkv(gpt[ours + "self_attention.linear_qkv.weight"], model)
        gate, up = gpt[ours + "mlp.linear_fc1.weight"].chunk(2, dim=0)
        named |= {
            theirs + "input_layernorm.weight": gpt[ours + "input_layernorm.weight"],
            theirs + "self_attn.q_proj.weight": q,
            theirs + "self_attn.k_proj.weight": k,
            theirs + "self_attn.v_proj.weight": v,
            theirs + "self_attn.o_proj.weight": gpt[ours + "self_attention.linear_proj.weight"],
            theirs + "post_attention_layernorm.weight": gpt[ours + "pre_mlp_layernorm.weight"],
            theirs + "mlp.gate_proj.weight": gate,
            theirs + "mlp.up_proj.weight": up,
            theirs + "mlp.down_proj.weight": gpt[ours + "mlp.linear_fc2.weight"],
        }
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def split_qkv(qkv: torch.Tensor, model: Model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """((heads + 2 kv_heads) x head_dim, hidden) -> queries, keys, values, each (its heads x head_dim, hidden)."""
    queries = model.heads // model.kv_heads
    grouped = qkv.view(model.kv_heads, queries + 2, model.head_dim, -1)
    q, k, v = grouped.split([queries, 1, 1], dim=1)
    return tuple(part.reshape(-1, qkv.shape[1]) for part in (q, k, v))
