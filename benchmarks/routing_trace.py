"""What the simulated replicas are asked: a recorded trace, or one of the same shape made here."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK_TOKENS = 512  # of a trace's blocks, and of the simulated caches
TOKEN_BYTES = 4  # of English text
OPENING = b'[{"role": "user", "content": "'  # so that no block of the trace is a block of the gateway's
REQUESTS = 12_031  # of the synthetic trace, and what follows: as in Mooncake's trace of conversations
DURATION_S = 3537
TICK_S = 3.0  # arrivals are told in ticks, and come in bursts of ten
SHORTEST, LONGEST = 891, 126_195


@dataclass(frozen=True, slots=True)
class Request:
    at: float  # seconds
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]  # one id for each block of the prompt, the last one perhaps not full

    def prompt(self) -> bytes:
        """Text whose blocks are the same where the ids are, and another where they are not."""
        text = b"".join(b"%016x" % block * (BLOCK_TOKENS * TOKEN_BYTES // 16) for block in self.blocks)
        return (OPENING + text)[: self.input_tokens * TOKEN_BYTES]


def read(path: Path) -> list[Request]:
    """A file of Mooncake's: one JSON object for each request, times in milliseconds, in order."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [Request(r["timestamp"] / 1000, r["input_length"], r["output_length"], tuple(r["hash_ids"])) for r in rows]


def synthetic(seed: int = 1, requests: int = REQUESTS) -> list[Request]:
    """Conversations that all begin with the same block (a system prompt) and grow by a question and an answer."""
    chance = random.Random(seed)
    ids = iter(range(1, 1 << 60))
    duration_s = DURATION_S * requests / REQUESTS
    made: list[Request] = []
    while len(made) < requests:
        made += _conversation(chance, ids, duration_s)
    return sorted(made, key=lambda request: request.at)[:requests]


def _conversation(chance: random.Random, ids: Iterator[int], duration_s: float) -> Iterator[Request]:
    """Four of ten requests continue a conversation; the longer it is, the likelier it goes on."""
    at = chance.uniform(-duration_s / 10, duration_s)  # some were going on when the record began
    tokens = _within(chance.lognormvariate(math.log(5264), 1.25), SHORTEST, LONGEST)
    blocks, turn = [0], 0
    while at < duration_s:
        full = tokens // BLOCK_TOKENS
        blocks += [next(ids) for _ in range(len(blocks), math.ceil(tokens / BLOCK_TOKENS))]
        output_tokens = _within(chance.gauss(345, 190), 1, 2000)
        if at >= 0:
            yield Request(at // TICK_S * TICK_S, tokens, output_tokens, tuple(blocks))
        turn += 1
        if chance.random() > min(0.25 + 0.1 * turn, 0.75):
            return
        at += chance.lognormvariate(math.log(123), 0.98)
        tokens = _within(tokens + chance.lognormvariate(math.log(450), 1.5), SHORTEST, LONGEST)
        blocks = blocks[: max(full, 1)]  # one that was not full is another when it is


def _within(value: float, least: int, most: int) -> int:
    return min(max(round(value), least), most)
