"""What the ledger may say of a stream whose gateway was killed, and whether it does. Pure; times are seconds.

A gateway journals running counts every NOTE_S, of what was passed on by then. So a killed one bills at most what the
client got, and at least what it had NOTE_S before the kill, if the gateway was run in time. On a busy machine it
is not, and notes late by as long as it was not run. That slack is measured: the longest silence, of all streams
together, that reaches into the last LOOK_BACK_S before the kill; how late the clients' own loop was in that time, which
may have hidden a silence; and TURN_S for the turn of the gateway's loop that notes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.soak_engine import PROMPT_BASE
from registry.ledger import Outcome, UsageEvent

NOTE_S = 0.25
TURN_S = 0.025
LOOK_BACK_S = 0.5


@dataclass(frozen=True, slots=True)
class Kill:
    at: float
    silence_s: float  # see silence()
    late_s: float = 0.0  # the clients' loop, at most, in the LOOK_BACK_S before

    @property
    def slack_s(self) -> float:
        return self.silence_s + self.late_s + TURN_S


@dataclass(slots=True)
class Delivered:
    """One stream as its client saw it, from the gateway of life `life` (0 until the first kill)."""

    nonce: int
    asked: int  # tokens
    life: int
    ended: bool = False  # it came to its [DONE]
    status: int = 0
    tokens: int = 0
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # (time, tokens by then)

    def by(self, at: float) -> int:
        """Tokens that had come by then."""
        known = bisect_right(self.arrivals, at, key=lambda arrival: arrival[0])
        return self.arrivals[known - 1][1] if known else 0


@dataclass(slots=True)
class Verdict:
    wrong: list[str] = field(default_factory=list)
    ended: int = 0
    cut: int = 0
    cut_below: list[int] = field(default_factory=list)  # by how many tokens each cut one is billed below its delivery
    needed_slack: int = 0  # cut ones that are in their bound only because the machine was busy


def silence(arrivals: Iterable[float], at: float) -> float:
    """The longest time without an arrival that reaches into the LOOK_BACK_S before `at`; arrivals in order."""
    moments = [*arrivals, at]
    return max((later - earlier for earlier, later in pairwise(moments) if later > at - LOOK_BACK_S), default=0)


def judged(streams: Iterable[Delivered], kills: Sequence[Kill], events: Iterable[UsageEvent]) -> Verdict:
    billed: Mapping[int, list[UsageEvent]] = defaultdict(list)
    for event in events:
        billed[event.prompt_tokens - PROMPT_BASE].append(event)
    verdict = Verdict()
    for stream in streams:
        its = billed[stream.nonce]
        if len(its) > 1:
            verdict.wrong.append(f"stream {stream.nonce}: billed {len(its)} times: {its}")
        elif stream.ended:
            verdict.ended += 1
            if [(e.completion_tokens, e.outcome) for e in its] != [(stream.asked, Outcome.COMPLETED)]:
                verdict.wrong.append(f"stream {stream.nonce}: ended with {stream.asked} tokens, billed {its}")
        elif stream.life >= len(kills) or stream.status not in (0, 200):
            verdict.wrong.append(f"stream {stream.nonce}: cut with status {stream.status}, and by no kill")
        else:
            verdict.cut += 1
            _judge_cut(stream, kills[stream.life], its[0].completion_tokens if its else 0, verdict)
    return verdict


def _judge_cut(stream: Delivered, kill: Kill, billed: int, verdict: Verdict) -> None:
    least = stream.by(kill.at - NOTE_S - kill.slack_s)
    if billed > stream.tokens:
        verdict.wrong.append(f"stream {stream.nonce}: cut after {stream.tokens} tokens, billed {billed}")
    elif billed < least:
        verdict.wrong.append(f"stream {stream.nonce}: cut after {stream.tokens} tokens, billed {billed} of {least} due")
    verdict.cut_below.append(stream.tokens - billed)
    verdict.needed_slack += least <= billed < stream.by(kill.at - NOTE_S)
