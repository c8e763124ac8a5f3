"""Where requests wait least: the gateway's routing beside other rules, on simulated replicas; and what a choice costs.

    make bench-routing                                                  on a synthetic trace
    make bench-routing ARGS="--trace mooncake_conversation.jsonl"       on Mooncake's (github.com/kvcache-ai/Mooncake)

Eight replicas, each with a prefix cache of a million tokens and a serial prefill of 8,000 tokens a second. Ours is the
gateway's own code; "exact" is the same rule when it knows every engine's cache as the engine does.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import routing_trace
from benchmarks.figures import show
from benchmarks.routing_fleet import Clock, Engine, Rule, times_to_first_token
from benchmarks.routing_rules import ConsistentHashing, Ours, Random, Sglang, exact, least_queued, replica
from benchmarks.routing_trace import Request
from gateway import routing
from gateway.prefix import BLOCK_BYTES, BLOCKS_PER_REPLICA, Prefixes, blocks
from gateway.router import Routed, Router
from gateway.routing import Policy, ReplicaLoad, Work

REPLICAS = 8
MANY = 64
LONG_BYTES = 40 << 10  # about 10,000 tokens
CALLS, ROUNDS = 500, 9


def rules(engines: Sequence[Engine], clock: Clock) -> dict[str, Callable[[], Rule]]:
    count = len(engines)

    def ours(policy: Policy) -> Rule:
        return Ours(Router(monotonic=clock, unix=clock), policy, [replica(n) for n in range(count)])

    return {
        "random": lambda: Random(count, random.Random(1)),
        "round-robin": lambda: ours(Policy.ROUND_ROBIN),
        "least-outstanding": lambda: ours(Policy.LEAST_OUTSTANDING),
        "sglang's rule": lambda: Sglang([0] * count, Prefixes(1 << 20)),
        "consistent hashing, bounded loads": lambda: ConsistentHashing([0] * count),
        "least queued tokens": lambda: least_queued(count, clock),
        "exact": lambda: exact(engines, clock),
        "least-work": lambda: ours(Policy.LEAST_WORK),
    }


def compare(requests: Sequence[Request], trace: str) -> None:
    """The mean times to the first token, ours against each."""
    means: dict[str, float] = {}
    for name in rules([], Clock()):
        engines, clock = [Engine() for _ in range(REPLICAS)], Clock()
        means[name] = statistics.fmean(times_to_first_token(requests, rules(engines, clock)[name](), engines, clock))
    mine = means.pop("least-work")
    for name, theirs in means.items():
        show(f"mean time to the first token, {trace}", mine, "s", name, theirs)


def choice(replicas: int, prompt_bytes: int) -> dict[str, float]:
    """CPU microseconds of each part of a choice, and of the whole, when every replica's list of blocks is full.

    Every prompt begins like all others, for a part of it that differs, and then goes on like none.
    """
    chance = random.Random(1)
    text = chance.randbytes(prompt_bytes)
    router, seen, ready = Router(), Prefixes(), [replica(n) for n in range(replicas)]
    loads = [ReplicaLoad(one.id) for one in ready]
    work = Work(prompt_bytes // 4, 343, BLOCK_BYTES / 4)
    under_way: deque[Routed] = deque()

    def fresh() -> bytes:
        at = chance.randrange(prompt_bytes)
        return text[:at] + chance.randbytes(16) + text[at + 16 :]

    def whole(prompt: bytes) -> None:
        routed = router.route("chat", Policy.LEAST_WORK, ready, prompt_bytes // 4, 343, 343, prompt, b"", None)
        assert routed is not None
        under_way.append(routed)
        if len(under_way) > 4 * replicas:  # so that every replica has some
            with under_way.popleft() as oldest:
                oldest.first_output()

    def rounds(of: Callable[[bytes], object]) -> float:
        return min(
            _us(of, [fresh() for _ in range(CALLS)]) for _ in range(ROUNDS)
        )  # what others do to the caches only adds

    def known(of: Callable[[list[int]], object]) -> float:
        return min(_us(of, [blocks(fresh(), b"") for _ in range(CALLS)]) for _ in range(ROUNDS))

    for n in range(2 * replicas * BLOCKS_PER_REPLICA * BLOCK_BYTES // max(prompt_bytes, BLOCK_BYTES)):
        prompt = fresh()
        whole(prompt)
        seen.note(str(n % replicas), blocks(prompt, b""))
    matched = seen.matched(blocks(text, b""))
    turn = itertools.cycle(one.id for one in ready)
    return {
        "hash": rounds(lambda prompt: blocks(prompt, b"")),
        "match": known(seen.matched),
        "pick": rounds(lambda _: routing.pick(Policy.LEAST_WORK, loads, work, matched, 0.0)),
        "note": known(lambda hashes: seen.note(next(turn), hashes)),
        "all of it": rounds(whole),
    }


def _us(of: Callable[[Any], object], some: Sequence[Any]) -> float:
    began = time.thread_time()
    for one in some:
        of(one)
    return (time.thread_time() - began) / len(some) * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare routing rules on simulated replicas.")
    parser.add_argument("--trace", type=Path, help="mooncake_conversation.jsonl; without it a synthetic one is made")
    asked = parser.parse_args()
    if asked.trace:
        compare(routing_trace.read(asked.trace), asked.trace.stem)
    else:
        compare(routing_trace.synthetic(), "synthetic")
    for replicas, prompt_bytes, name in (
        (2, 400, "a choice of 2 replicas for 100 tokens"),
        (MANY, LONG_BYTES, "a choice of 64 replicas for 10,000 tokens"),
    ):
        for part, us in choice(replicas, prompt_bytes).items():
            show(f"{name}, {part}", us, "us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
