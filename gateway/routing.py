"""Which replica takes a request: pure functions over a snapshot. The state is router.py's.

least-work, the default: the least of `tokens queued there + tokens of this prompt that are not cached there`, both in
tokens because an engine's prefill is what a request waits for. An engine's own gauges add what is there and not ours.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# Cautious speeds of an engine: a request that takes a detour is better off than one that is cut.
PREFILL_TOKENS_PER_S = 4000.0
OUTPUT_TOKENS_PER_S = 20.0
NEAR_S = 60.0  # replicas whose ends are no further apart end together
FULL = 0.98  # of an engine's KV cache
STALE_S = 15.0  # gauges older than this say nothing about now
SESSION_SLACK_TOKENS = 8192  # about a second of prefill: by so much may a session's own replica be busier


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


class Others(NamedTuple):
    """Requests at an engine that are not ours, as they are estimated: another gateway's, or a former one's."""

    requests: int
    tokens: int  # queued for them
    at: float  # monotonic seconds


NOBODY = Others(0, 0, 0.0)


@dataclass(slots=True)
class ReplicaLoad:
    """What is known of one replica's work. Router keeps it; here it is only read. Every time is monotonic seconds."""

    id: str
    outstanding: int = 0  # requests of ours that are not done
    queued: int = 0  # tokens of theirs: of the prompt what is uncached, until the first output; of the output all
    prefilling: dict[object, int] = field(default_factory=dict)  # the former, of each request, in the order sent
    gauges: Gauges | None = None
    others: Others = NOBODY
    prompt_tokens: float = 1000.0  # uncached ones of a request, and of its output: moving averages of ours
    output_tokens: float = 250.0
    ends_at: float | None = None  # when its job ends
    last_chosen: int = 0  # grows with every choice of any replica; 0 is never


class Work(NamedTuple):  # a third of the time of a frozen dataclass, on the path of every request
    prompt_tokens: int
    longest_tokens: int  # of its longest single answer: answers are made side by side
    block_tokens: float = 0.0  # in each of the prompt's blocks (prefix.py)
    session_replica: str | None = None  # where this session's last request went


def pick(
    policy: Policy, loads: Sequence[ReplicaLoad], work: Work, matched: Mapping[str, int], now: float
) -> ReplicaLoad | None:
    """The replica for this work; None of none. Of equals the one whose last choice is longest ago.

    `matched`: replica id -> leading blocks of the prompt that it has. `now`: monotonic seconds. Whatever the policy, a
    replica whose job ends before the work could be done is left out, while there is another.
    """
    if len(loads) < 2:
        return loads[0] if loads else None
    loads = _lasting(loads, work, now)
    if policy is Policy.LEAST_WORK:
        return _least_work(loads, work, matched, now)
    if policy is Policy.LEAST_OUTSTANDING:
        return min(loads, key=lambda load: (_requests(load, now), load.last_chosen))
    return min(loads, key=lambda load: load.last_chosen)


def uncached(work: Work, matched_blocks: int) -> int:
    """Tokens of the prompt that an engine with this many of its blocks computes: the last one always."""
    return max(work.prompt_tokens - int(matched_blocks * work.block_tokens), 1)


def others(gauges: Gauges, load: ReplicaLoad) -> Others:
    """What an engine has beside our requests, by its gauges and the load when they were read.

    Of ours any that has no output yet may wait there. The others are taken to be as long as ours are. A few are not
    counted, as gauges are some milliseconds older than our own count. An engine whose KV cache is full makes the next
    request wait for another to end, so it counts as if one more waited.
    """
    waiting = max(0, gauges.waiting - len(load.prefilling))
    running = max(0, gauges.running + gauges.waiting - load.outstanding - waiting - load.outstanding // 8)
    waiting += gauges.kv_usage >= FULL
    if not waiting + running:
        return NOBODY
    tokens = waiting * load.prompt_tokens + (waiting + running) * load.output_tokens
    return Others(waiting + running, round(tokens), gauges.at)


def _least_work(loads: Sequence[ReplicaLoad], work: Work, matched: Mapping[str, int], now: float) -> ReplicaLoad:
    """A session stays with its replica, whose engine may know more of it than we do, unless that is much busier."""
    chosen, least = loads[0], math.inf
    own, own_tokens = chosen, math.inf
    cached, block_tokens, session_replica = matched.get, work.block_tokens, work.session_replica
    for load in loads:
        tokens = load.queued - cached(load.id, 0) * block_tokens  # and the prompt, which is everywhere as long
        if load.others is not NOBODY and now - load.others.at <= STALE_S:
            tokens += load.others.tokens
        if tokens < least or (tokens == least and load.last_chosen < chosen.last_chosen):
            chosen, least = load, tokens
        if load.id == session_replica:
            own, own_tokens = load, tokens
    return own if own_tokens <= least + SESSION_SLACK_TOKENS else chosen


def _requests(load: ReplicaLoad, now: float) -> int:
    return load.outstanding + (load.others.requests if now - load.others.at <= STALE_S else 0)


def _lasting(loads: Sequence[ReplicaLoad], work: Work, now: float) -> Sequence[ReplicaLoad]:
    """Those that last long enough for the work; where there are none, those that last the longest."""
    ends = [load.ends_at for load in loads]
    if ends.count(None) == len(ends):
        return loads
    needed = now + work.prompt_tokens / PREFILL_TOKENS_PER_S + work.longest_tokens / OUTPUT_TOKENS_PER_S
    latest = max(math.inf if end is None else end for end in ends)
    limit = needed if latest >= needed else latest - NEAR_S
    return [load for load, end in zip(loads, ends, strict=True) if end is None or end >= limit]
