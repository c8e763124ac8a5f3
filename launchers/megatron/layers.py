"""The parts of a layer that megatron leaves to TransformerEngine, made of what torch has itself.

megatron-core's unfused attention writes out every score. At 512 tokens on a CPU that is five times the work of the
fused kernel, and on a GPU without TransformerEngine it is the memory that runs out first.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build


class CausalAttention(torch.nn.Module):
    """Stands where megatron has DotProductAttention; without weights, dropout, or any mask but the causal one."""

    def __init__(self, config: Any, *, softmax_scale: float | None = None, **placed: Any) -> None:
        super().__init__()  # `placed`: layer number and process groups, of no consequence here
        self.scale = softmax_scale

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None, **settings: Any
    ) -> torch.Tensor:
        """(sequence, batch, heads or key-value heads, head_dim) each -> (sequence, batch, heads x head_dim)."""
        assert attention_mask is None, "only causal attention is computed here"
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        context = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=True)
        return context.permute(2, 0, 1, 3).flatten(2)


class Norm(torch.nn.RMSNorm):
    """torch's RMSNorm, which megatron takes as it is only without sequence parallelism.

    With it a rank sees a part of each sequence; the mark says that the weight's gradients are to be summed.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **settings: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel


def block(config: Any) -> TransformerBlockSubmodules:
    """This pipeline stage's layers, with the attention and the norms of this module."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.self_attention.submodules.core_attention = CausalAttention
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = Norm
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=Norm)
