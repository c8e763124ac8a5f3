"""Which replica takes a request: pure functions over a snapshot. The state is router.py's."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Rough speeds of an engine, for what cannot be known: better too slow, as a stream that is cut is worse than a detour.
PREFILL_TOKENS_PER_S = 8000.0
OUTPUT_TOKENS_PER_S = 20.0
STALE_S = 15.0  # gauges older than this say nothing about now
FULL = 0.98  # of an engine's KV cache: the next request waits for one to end
SESSION_SLACK_TOKENS = 8192  # about a second of prefill: so much more work a session's own replica may have


class Policy(enum.StrEnum):
    LEAST_WORK = "least-work"
    LEAST_OUTSTANDING = "least-outstanding"
    ROUND_ROBIN = "round-robin"


@dataclass(frozen=True, slots=True)
class Gauges:
    """An engine's own, from its /metrics."""

    running: int  # requests
    waiting: int  # requests
    kv_usage: float  # 0 to 1
    at: float  # monotonic seconds


@dataclass(slots=True)
class ReplicaLoad:
    """What is known about a replica's work. `router.py` keeps one for each, `pick` only reads it."""

    id: str
    outstanding: int = 0  # requests of ours that are not done
    queued: int = 0  # tokens of these: uncached prompt until the first output, expected output until the end
    gauges: Gauges | None = None
    unknown: int = 0  # requests that wait at the engine and are not ours, when its gauges were read
    typical: int = 0  # tokens that such a one is taken for
    ends_at: float | None = None  # when its job ends, by the clock of `now` and of the gauges
    last_chosen: int = 0  # grows with every choice of any replica; 0: never


@dataclass(frozen=True, slots=True)
class Work:
    prompt_tokens: int
    completion_tokens: int  # expected
    hashes: Sequence[int] = ()  # of the prompt's blocks: prefix.blocks
    session_replica: str | None = None  # where this session's last request went
    block_tokens: float = 0.0  # tokens in one block of the prompt


def pick(
    policy: Policy, loads: Sequence[ReplicaLoad], work: Work, matched: Mapping[str, int], now: float
) -> ReplicaLoad | None:
    """The replica for this work; None of none."""
    return min(loads, key=lambda load: (load.queued, load.last_chosen), default=None)
