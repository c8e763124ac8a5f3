"""Shapes by name, for `[model] preset = "llama-8b"`. Standard library only.

The small ones are those of the pretraining literature (60m to 350m: GaLore, arXiv:2403.03507), the large ones Llama's:
1b and 3b are Llama 3.2's, 7b and 13b Llama 2's, 8b and 70b Llama 3's. Contexts are those they were pretrained with.
"""

from __future__ import annotations

from typing import Any


def _shape(
    hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, seq_length: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden": hidden, "layers": layers, "heads": heads, "kv_heads": kv_heads, "ffn": ffn, "seq_length": seq_length,
        **more,
    }  # fmt: skip


PRESETS = {
    "llama-tiny": _shape(128, 4, 4, 2, 384, 256),
    "llama-60m": _shape(512, 8, 8, 8, 1376, 1024),
    "llama-125m": _shape(768, 12, 12, 12, 2048, 1024),
    "llama-350m": _shape(1024, 24, 16, 16, 2736, 1024),
    "llama-1b": _shape(2048, 16, 32, 8, 8192, 8192, rope_base=500_000.0, tied_embeddings=True),
    "llama-3b": _shape(3072, 28, 24, 8, 8192, 8192, rope_base=500_000.0, tied_embeddings=True),
    "llama-7b": _shape(4096, 32, 32, 32, 11008, 4096),
    "llama-8b": _shape(4096, 32, 32, 8, 14336, 8192, rope_base=500_000.0),
    "llama-13b": _shape(5120, 40, 40, 40, 13824, 4096),
    "llama-70b": _shape(8192, 80, 64, 8, 28672, 8192, rope_base=500_000.0),
}
