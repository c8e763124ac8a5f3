"""Why an engine failed, from its exit code and its last words, and where it is worth another try. Pure.

The texts are vLLM's own (tests/recordings/vllm), those of torch, CUDA and NCCL, and the kernel's. An exit code says
little: vLLM exits with 0 when its core dies, and with 1 for a missing model as for a broken GPU.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

from launchers.child import how_it_ended, last_words

MAX_WORDS = 500  # characters


class Kind(enum.StrEnum):
    OUT_OF_MEMORY = "out-of-memory"
    BAD_MODEL = "bad-model"
    BAD_ARGUMENT = "bad-argument"
    PORT = "port"
    CUDA = "cuda"
    NODE = "node"
    CRASHED = "crashed"  # and no text says why
    HUNG = "hung"
    NEVER_READY = "never-ready"


class Policy(enum.StrEnum):
    IN_PLACE = "in place"
    ELSEWHERE = "elsewhere"  # another replica may do: on another node, or later
    HOPELESS = "hopeless"  # the same model with the same arguments fails the same way


@dataclass(frozen=True, slots=True)
class Failure:
    kind: Kind
    words: str
    exit_code: int = 1  # for the scheduler


# The first kind that any line speaks of counts: what names a cause stands before what such a cause leads to.
TEXTS = (
    (
        Kind.BAD_ARGUMENT,
        r"error: (unrecognized arguments|argument -|the following arguments are required|ambiguous option)"
        r"|max_model_len \(\d+\) is greater than the derived|max seq len \(\d+\)|No available memory for the cache"
        r"|must be divisible by tensor parallel size|World size .* is larger than the number of available"
        r"|not divisible by|greater than the number of (available )?(GPUs|devices)",
    ),
    (
        Kind.NODE,
        r"Free memory on device .* is less than desired|No space left on device|Read-only file system"
        r"|Input/output error|Stale file handle|NVRM|\bXid\b|uncorrectable|fell off the bus"
        r"|NVML (error|Shared)|initialize NVML"
        r"|No CUDA GPUs are available|CUDA driver version is insufficient|driver/library version mismatch",
    ),
    (
        Kind.OUT_OF_MEMORY,
        r"(CUDA|HIP|XPU) out of memory|OutOfMemoryError|MemoryError|Cannot allocate memory|can't allocate memory"
        r"|std::bad_alloc|oom[-_ ]kill|Out of memory: Killed",
    ),
    (
        Kind.CUDA,
        r"(CUDA|HIP|cuda runtime) error|CUBLAS_STATUS|CUDNN_STATUS|cudaError|NCCL error|nccl\w*Error|no kernel image",
    ),
    (Kind.PORT, r"Address already in use|EADDRINUSE"),
    (
        Kind.BAD_MODEL,
        r"is not a valid JSON file|HFValidationError|RepositoryNotFoundError|LocalEntryNotFoundError"
        r"|does not recognize this architecture|Model architectures .* (are not supported|failed)|SafetensorError"
        r"|Cannot find any model weights|Unsupported CPU attention configuration"
        r"|[Hh]ead[_ ]?(dim|size)\b.* not supported"
        r"|Can't load (the )?(configuration|tokenizer|config)|Couldn't instantiate the backend tokenizer"
        r"|size mismatch|contains custom code",
    ),
)  # fmt: skip
_TEXTS = tuple((kind, re.compile(text)) for kind, text in TEXTS)
_AT_THE_START = (Kind.BAD_ARGUMENT, Kind.BAD_MODEL, Kind.PORT)  # nothing that an engine which was ready dies of
_PREFIX = re.compile(r"^\((\w+) pid=\d+\) *|^(ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\] *")  # vLLM's, before its words
_CODE = re.compile(r'raise |File "|\^+$')  # of a traceback: may name an error that was not the one
_FRONT = re.compile(r"^\(APIServer")  # who prints clients' words, too
_NOISE = re.compile(r"^(\((\w+) pid=\d+\) *)?(INFO|WARNING|DEBUG) ")


def classify(exit_code: int, log_tail: str, was_ready: bool) -> Failure:
    """`exit_code` is Popen's: negative for a signal. `log_tail`: what this engine printed. `was_ready`: it was."""
    how = f"the engine {how_it_ended(exit_code)}"
    code = 128 - exit_code if exit_code < 0 else exit_code or 1
    said = [line for line in log_tail.splitlines() if not _NOISE.match(line)]
    lines = _words(said)
    telling = _words(line for line in said if not _FRONT.match(line)) if was_ready else lines
    for kind, text in _TEXTS:
        if was_ready and kind in _AT_THE_START:
            continue
        for line in telling:
            if text.search(line):
                return Failure(kind, f"{how}: {line}", code)
    last = last_words("\n".join(lines))
    return Failure(Kind.CRASHED, how + (f": {last}" if last else ""), code)


def _words(lines: Iterable[str]) -> list[str]:
    return [words for line in lines if not _CODE.match(words := plain(line))]


def plain(line: str) -> str:
    """A line of vLLM's log without who said it, and when."""
    while (shorter := _PREFIX.sub("", line)) != line:
        line = shorter
    return line.strip()[:MAX_WORDS]


def policy(kind: Kind, was_ready: bool) -> Policy:
    """`was_ready`: an engine of this job was, at some time: the model and its arguments are good ones."""
    if kind is Kind.PORT:
        return Policy.IN_PLACE  # with another one
    if kind in (Kind.BAD_MODEL, Kind.BAD_ARGUMENT, Kind.OUT_OF_MEMORY):
        return Policy.IN_PLACE if was_ready else Policy.HOPELESS
    if kind in (Kind.CRASHED, Kind.HUNG) and was_ready:
        return Policy.IN_PLACE
    return Policy.ELSEWHERE
