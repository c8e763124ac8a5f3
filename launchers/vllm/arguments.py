"""Which of vLLM's arguments anybody may give a deployment of theirs. Pure.

A shared control plane runs engines as its own user, so an argument that loads code (`--trust-remote-code`,
`--middleware`, `--worker-cls`, ...) or reads files is for administrators and the site file only.
"""

from __future__ import annotations

from collections.abc import Sequence

OPEN_TO_ALL = (
    "--block-size",
    "--data-parallel-size",
    "--dtype",
    "--enable-auto-tool-choice",
    "--enable-prefix-caching",
    "--enforce-eager",
    "--gpu-memory-utilization",
    "--kv-cache-dtype",
    "--kv-cache-memory-bytes",
    "--max-logprobs",
    "--max-model-len",
    "--max-num-batched-tokens",
    "--max-num-seqs",
    "--no-enable-prefix-caching",
    "--pipeline-parallel-size",
    "--quantization",
    "--reasoning-parser",
    "--seed",
    "--tensor-parallel-size",
    "--tool-call-parser",
)


def refuse_unlisted(words: Sequence[str]) -> None:
    """Raise ValueError, naming the argument and what is allowed, for one that only an administrator may give."""
    for word in words:
        name = word.partition("=")[0]
        if word.startswith("-") and name not in OPEN_TO_ALL:
            raise ValueError(f"engine argument {name} is for administrators; you may give: {', '.join(OPEN_TO_ALL)}")
