"""How large a model is, and what training it costs in arithmetic. Standard library only."""

from __future__ import annotations

from launchers.megatron.recipe import Model, Recipe


def parameters(model: Model, vocab_size: int) -> int:
    """Weights of the whole model, tied embeddings once, without the rows that pad the vocabulary."""
    h = model.hidden
    keys_and_values = 2 * h * model.head_dim * model.kv_heads
    layer = 2 * h * h + keys_and_values + 3 * h * model.ffn + 2 * h  # two norms
    return model.layers * layer + h + h * vocab_size * (1 if model.tied_embeddings else 2)


def flops_per_token(recipe: Recipe, vocab_size: int) -> float:
    """Floating-point operations of one forward and backward pass, per token; a multiplication and an addition are two.

    Six per weight of every matrix, and causal attention's scores: on average half a sequence of keys for each token.
    Norms, rotations and the look-up of embeddings are left out, recomputed activations too: this is what the model
    needs, not what the machine does, as in model FLOPs utilisation (PaLM, arXiv:2204.02311, appendix B).
    """
    model = recipe.model
    h = model.hidden
    attention = h * h * (2 + 2 * model.kv_heads / model.heads)  # queries and output; keys and values
    weights = model.layers * (attention + 3 * h * model.ffn) + h * vocab_size
    return 6 * weights + 6 * model.layers * h * model.seq_length


def utilisation(tokens_per_s: float, flops: float, gpus: int, peak_tflops: float) -> float:
    """The part of these GPUs' peak that `flops` per token at this speed are: model FLOPs utilisation, 0 to 1."""
    return tokens_per_s * flops / (gpus * peak_tflops * 1e12)
