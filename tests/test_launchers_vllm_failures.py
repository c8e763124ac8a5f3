"""Why an engine failed: vLLM's own last words (recordings/vllm: 0.32 on CPU), and those of what is below it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from launchers.vllm.failures import Kind, Policy, classify, plain, policy

RECORDINGS = sorted((Path(__file__).parent / "recordings" / "vllm").glob("*.txt"))  # NAME-EXITCODE.txt
SAYS = {
    "argument-value": (Kind.BAD_ARGUMENT, "--dtype: invalid choice: 'float17'"),
    "broken-config": (Kind.BAD_MODEL, "'/models/broken-config/config.json' is not a valid JSON file"),
    "context-too-long": (Kind.BAD_ARGUMENT, "max_model_len (1000000) is greater than the derived max_model_len"),
    "corrupt-weights": (Kind.BAD_MODEL, "SafetensorError: Error while deserializing header"),
    "head-dim": (Kind.BAD_MODEL, "Unsupported CPU attention configuration: head_dim=16"),
    "missing-model": (Kind.BAD_MODEL, "HFValidationError: Repo id must be in the form"),
    "port-taken": (Kind.PORT, "Address already in use"),
    "tensor-parallel": (Kind.BAD_ARGUMENT, "must be divisible by tensor parallel size"),
    "unknown-architecture": (Kind.BAD_MODEL, "does not recognize this architecture"),
    "unknown-argument": (Kind.BAD_ARGUMENT, "unrecognized arguments: --no-such-thing"),
}


def test_each_recording_is_known() -> None:
    assert {path.stem.rpartition("-")[0] for path in RECORDINGS} == set(SAYS)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_vllms_own_last_words_are_understood(recording: Path) -> None:
    name, _, code = recording.stem.rpartition("-")
    kind, words = SAYS[name]
    found = classify(int(code), recording.read_text(), was_ready=False)
    assert found.kind is kind and words in found.words
    assert "pid=" not in found.words and found.exit_code != 0


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", Kind.OUT_OF_MEMORY),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:117] CPUAllocator: can't allocate memory", Kind.OUT_OF_MEMORY),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0", Kind.OUT_OF_MEMORY),
        ("ValueError: No available memory for the cache blocks. Increase gpu_memory_utilization", Kind.BAD_ARGUMENT),
        ("ValueError: Free memory on device cuda:0 (2.1/79.1 GiB) on startup is less than desired", Kind.NODE),
        ("OSError: [Errno 28] No space left on device", Kind.NODE),
        ("RuntimeError: No CUDA GPUs are available", Kind.NODE),
        ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", Kind.NODE),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", Kind.CUDA),
        ("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered", Kind.NODE),
        ("torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:94, system error", Kind.CUDA),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", Kind.CUDA),
        ("AssertionError", Kind.CRASHED),
    ],
)  # fmt: skip
def test_what_is_below_vllm_is_understood(line: str, kind: Kind) -> None:
    log = f"INFO 11-29 05:38:04 [core.py:1] CUDA out of memory is not what happened\nloading\n{line}\nbye"
    found = classify(1, log, was_ready=False)
    assert found.kind is kind
    assert found.words == f"the engine ended with exit code 1: {line}" or kind is Kind.CRASHED


def test_a_cause_that_led_to_others_is_the_one_that_counts() -> None:
    log = (
        "(EngineCore pid=7) ERROR 11-29 05:43:11 [core.py:15]     raise OutOfMemoryError(\n"
        "(EngineCore pid=7) ERROR 11-29 05:43:11 [core.py:15] RuntimeError: CUDA error: device-side assert triggered\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    found = classify(1, log, was_ready=True)
    assert found.kind is Kind.CUDA and found.words.endswith(": RuntimeError: CUDA error: device-side assert triggered")


def test_an_engine_that_served_does_not_die_of_its_arguments() -> None:
    log = "error: argument --x: invalid\nOSError: [Errno 98] Address already in use\nValueError: size mismatch"
    assert classify(1, log, was_ready=True).kind is Kind.CRASHED


def test_what_a_client_says_is_no_cause_of_a_crash() -> None:
    log = (
        "(APIServer pid=7) ERROR 11-29 05:43:11 [serving.py:15] jinja2.TemplateError: no role MemoryError\n"
        "(EngineCore pid=8) ERROR 11-29 05:43:12 [core.py:15] RuntimeError: CUDA error: misaligned address\n"
    )
    assert classify(1, log, was_ready=True).kind is Kind.CUDA
    assert classify(1, log.splitlines()[0], was_ready=True).kind is Kind.CRASHED


@pytest.mark.parametrize(
    ("code", "says", "given"),
    [(0, "ended by itself with exit code 0", 1), (3, "ended with exit code 3", 3), (-signal.SIGSEGV, "SIGSEGV", 139)],
)
def test_an_engine_that_says_nothing_crashed(code: int, says: str, given: int) -> None:
    found = classify(code, "", was_ready=True)
    assert (found.kind, found.exit_code) == (Kind.CRASHED, given) and says in found.words


@pytest.mark.parametrize("kind", list(Kind))
def test_what_is_wrong_with_the_model_or_its_arguments_is_not_tried_again(kind: Kind) -> None:
    at_first, later = policy(kind, was_ready=False), policy(kind, was_ready=True)
    hopeless = (Kind.BAD_MODEL, Kind.BAD_ARGUMENT, Kind.OUT_OF_MEMORY)
    assert (at_first is Policy.HOPELESS) == (kind in hopeless)
    assert (at_first is Policy.IN_PLACE) == (kind is Kind.PORT)
    assert (later is Policy.IN_PLACE) == (kind in (*hopeless, Kind.PORT, Kind.CRASHED, Kind.HUNG))


def test_a_line_is_told_without_who_said_it_and_when() -> None:
    line = "(Worker pid=1) ERROR 11-29 05:43:11 [a.py:1] RuntimeError: (x pid=2) gone"
    assert plain(line) == "RuntimeError: (x pid=2) gone"
