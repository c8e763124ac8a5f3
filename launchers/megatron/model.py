"""A Llama-shaped GPT, in megatron-core's terms: this rank's part of it."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from launchers.megatron import attention, cpu
from launchers.megatron.recipe import Model, Parallel


def precision(name: str, device: torch.device) -> torch.dtype:
    """The number format that a recipe's `train.precision` means on this device."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


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
    """This rank's shard, freshly initialised, on `device`."""
    made = GPTModel(
        settings,
        attention.layer(),
        vocab_size=vocab_size,
        max_sequence_length=model.seq_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=model.rope_base,
    ).to(device=device, dtype=settings.params_dtype)
    cpu.adopt(made)
    return made


def parameters(made: GPTModel, device: torch.device) -> int:
    """How many parameters the whole model has, over all tensor- and pipeline-parallel ranks.

    Norm weights stand on every tensor-parallel rank and are counted once.
    """
    shards = parallel_state.get_tensor_model_parallel_world_size()
    mine = sum(p.numel() * (shards if getattr(p, "tensor_model_parallel", False) else 1) for p in made.parameters())
    count = torch.tensor([mine], dtype=torch.int64, device=device)
    dist.all_reduce(count, group=parallel_state.get_pipeline_model_parallel_group())
    return int(count.item())
