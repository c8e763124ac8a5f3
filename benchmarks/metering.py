"""What reading a stream's counts costs, and what removing them from each chunk adds.

    make bench-metering

Chunks are as vLLM 0.32 writes them, each in a read of its own, which is the dearest way in which they come. `stripped`
is what a client gets that asked for no running counts; its peer lets the same chunks pass with their counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson

from benchmarks.figures import interleaved, show
from gateway import calls
from gateway.calls import Kind
from gateway.metering import StreamMeter

CHUNKS = 2000
STREAMS = 10  # a run, so that it takes tenths of a second
ROUNDS = 15


def chunks(choices: int, reasoning: bool) -> list[bytes]:
    """Of a chat's stream, without its last event. `reasoning`: as with a parser for it, which states more."""
    found = []
    for n in range(CHUNKS):
        usage: dict[str, object] = {"prompt_tokens": 812, "total_tokens": 812 + n, "completion_tokens": n}
        if reasoning:
            usage["completion_tokens_details"] = {"reasoning_tokens": n // 2}
        choice = {"index": n % choices, "delta": {"content": "gravity "}, "logprobs": None, "finish_reason": None}
        event = {
            "id": "chatcmpl-94502aafc4346453",
            "object": "chat.completion.chunk",
            "created": 1795910943,
            "model": "tiny",
            "choices": [{**choice, "token_ids": None}],
            "usage": usage,
        }
        found.append(b"data: " + orjson.dumps(event) + b"\n\n")
    return found


def fed(stream: Sequence[bytes], choices: int, running: bool) -> Callable[[], None]:
    """`running`: the client asked for running counts, so that nothing is removed."""
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}} if running else {}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "n": choices, **options}
    call = calls.read(Kind.CHAT, orjson.dumps(body))

    def run() -> None:
        for _ in range(STREAMS):
            feed = StreamMeter(call).feed
            for chunk in stream:
                feed(chunk)

    return run


def main() -> None:
    for choices, reasoning in ((1, False), (2, False), (1, True)):
        stream = chunks(choices, reasoning)
        costs = interleaved({"stripped": fed(stream, choices, False), "whole": fed(stream, choices, True)}, ROUNDS)
        us = {name: cost.cpu_s / (STREAMS * CHUNKS) * 1e6 for name, cost in costs.items()}
        what = f"n={choices}{', reasoning' if reasoning else ''}"
        show(f"a chunk stripped of its count, {what}", us["stripped"], "us", "with its count", us["whole"])
        show(f"stripping adds, {what}", us["stripped"] - us["whole"], "us")


if __name__ == "__main__":
    main()
