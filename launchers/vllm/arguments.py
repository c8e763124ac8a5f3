"""Which of vLLM's arguments anybody may give a deployment of theirs, and what some of them say. Pure.

A shared control plane runs engines as its own user, so an argument that loads code (`--trust-remote-code`,
`--middleware`, `--worker-cls`, ...), reads or writes a file, or opens a port is for administrators and the site file
only. So is a word that no option takes: for vLLM that is another model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# As vLLM 0.32 has them, each reviewed: sizes, layouts, choices among a list that vLLM itself brings along.
FLAGS = (
    "--async-scheduling",
    "--disable-cascade-attn",
    "--disable-chunked-mm-input",
    "--disable-custom-all-reduce",
    "--disable-hybrid-kv-cache-manager",
    "--disable-sliding-window",
    "--enable-auto-tool-choice",
    "--enable-chunked-prefill",
    "--enable-expert-parallel",
    "--enable-prefix-caching",
    "--enforce-eager",
    "--language-model-only",
    "--no-async-scheduling",
    "--no-enable-chunked-prefill",
    "--no-enable-prefix-caching",
    "--skip-mm-profiling",
)
VALUED = (
    "--block-size",
    "--chat-template-content-format",
    "--cpu-offload-gb",
    "--data-parallel-size",
    "--decode-context-parallel-size",
    "--dtype",
    "--gpu-memory-utilization",
    "--kv-cache-dtype",
    "--kv-cache-memory-bytes",
    "--logprobs-mode",
    "--long-prefill-token-threshold",
    "--max-cudagraph-capture-size",
    "--max-logprobs",
    "--max-model-len",
    "--max-num-batched-tokens",
    "--max-num-queued-reqs",
    "--max-num-queued-tokens",
    "--max-num-seqs",
    "--mm-processor-cache-gb",
    "--optimization-level",
    "--performance-mode",
    "--pipeline-parallel-size",
    "--prefix-caching-hash-algo",
    "--quantization",
    "--reasoning-parser",
    "--scheduling-policy",
    "--seed",
    "--stream-interval",
    "--tensor-parallel-size",
    "--tokenizer-mode",
    "--tool-call-parser",
)
OPEN_TO_ALL = tuple(sorted(FLAGS + VALUED))
# A number, or a name out of a list of vLLM's: no path, no URL, no JSON object, no Python class.
VALUE = re.compile(r"(-?[0-9]|[A-Za-z])[A-Za-z0-9._+-]{0,63}")
_NEGATIVE = re.compile(r"-[0-9.]+")  # a value for argparse, too
_SHORT = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size"}


def refuse_unlisted(words: Sequence[str]) -> None:
    """Raise ValueError, naming the argument and what is allowed, for one that only an administrator may give."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, joined, value = word.partition("=")
        if not word.startswith("-"):
            raise ValueError(f"engine argument {word!r} belongs to no option before it; give it as --NAME=VALUE")
        if name not in OPEN_TO_ALL:
            raise ValueError(f"engine argument {name} is for administrators; you may give: {', '.join(OPEN_TO_ALL)}")
        if name in FLAGS:
            if joined:
                raise ValueError(f"engine argument {name} takes no value, and has {value!r}")
            continue
        if not joined:
            if not rest or (rest[0].startswith("-") and not _NEGATIVE.fullmatch(rest[0])):
                raise ValueError(f"engine argument {name} needs a value")
            value = rest.pop(0)
        if not VALUE.fullmatch(value):
            raise ValueError(
                f"engine argument {name}: {value!r} is for administrators; you may give a number or a name (letters, "
                "digits and any of . _ + -)"
            )


def runner_args(runner: str) -> tuple[str, ...]:
    """What makes an engine generate, embed or score. Raises ValueError for another word.

    A model that was made to score (a sequence classifier) is taken as it is; any other one is made to by its likeness
    of embeddings, as vLLM has it for /score and /rerank.
    """
    if runner == "generate":
        return ()
    if runner == "embed":
        return ("--runner", "pooling", "--convert", "embed")
    if runner == "score":
        return ("--runner", "pooling")
    raise ValueError(f"runner {runner!r} is none of embed, generate, score")


def last(words: Sequence[str], name: str) -> str | None:
    """The value that counts for vLLM: the last one given; None where there is none. `name`: the option's long one."""
    found = None
    for n, word in enumerate(words):
        option, joined, value = word.partition("=")
        if _SHORT.get(option, option.replace("_", "-")) == name:
            found = value if joined else (*words[n + 1 :], None)[0]
    return found


def number(words: Sequence[str], name: str) -> int:
    """A parallel size; 1 where it is not given. Raises ValueError for what is no whole number above 0."""
    value = last(words, name)
    if value is None:
        return 1
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise ValueError(f"engine argument {name}: {value!r} is not a whole number above 0")
    return int(value)


def ranks(words: Sequence[str]) -> int:
    """How many workers one engine has, each on a GPU of its own. Raises ValueError as `number`."""
    sizes = ("--tensor-parallel-size", "--pipeline-parallel-size")
    return number(words, sizes[0]) * number(words, sizes[1])
