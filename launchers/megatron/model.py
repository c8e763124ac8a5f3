"""A Llama-shaped GPT, in megatron-core's terms: this rank's part of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from launchers.megatron import cpu, layers
from launchers.megatron.arithmetic import padded_vocab
from launchers.megatron.recipe import Model, Parallel


def precision(name: str, device: torch.device) -> torch.dtype:
    """The number format that a recipe's `train.precision` means on this device."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


# What megatron calls `selective` by default recomputes attention scores, which a fused kernel never keeps. The MLPs'
# activations are the largest of those that are left.
_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def config(model: Model, parallel: Parallel, dtype: torch.dtype) -> TransformerConfig:
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_dim,
        ffn_hidden_size=model.ffn,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=model.init_std,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        sequence_parallel=parallel.sequence,
        **_RECOMPUTE[parallel.recompute],
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        attention_softmax_in_fp32=True,
        use_cpu_initialization=not torch.cuda.is_available(),
        # These kernels come with Apex or TransformerEngine; without them megatron refuses the default.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
    )


def build(model: Model, vocab_size: int, settings: TransformerConfig, device: torch.device) -> GPTModel:
    """This rank's shard, freshly initialised, on `device`; its embedding has padded_vocab(vocab_size) rows."""
    made = _Gpt(
        settings,
        layers.block(settings),
        vocab_size=padded_vocab(vocab_size),
        max_sequence_length=model.context,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=model.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=model.rope_base,
        rope_scaling=model.rope_scaling != 1.0,
        rope_scaling_factor=model.rope_scaling,
    ).to(device=device, dtype=settings.params_dtype)
    if model.tied_embeddings and not torch.cuda.is_available():
        made.tie()
    cpu.adopt(made)
    return made


class _Gpt(GPTModel):
    """megatron's constructor sends tied embeddings through a GPU when they stand on two stages: without one, later."""

    def _is_in_embd_group(self) -> bool:
        return torch.cuda.is_available() and super()._is_in_embd_group()

    def tie(self) -> None:
        """The last stage's copy begins as zeros: the sum is the first stage's."""
        if self.config.pipeline_model_parallel_size > 1 and super()._is_in_embd_group():
            dist.all_reduce(self.shared_embedding_or_output_weight().data, group=self.embd_group)
