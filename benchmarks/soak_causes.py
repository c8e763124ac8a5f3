"""Why a client did not get its answer: what it saw, held against what was done to the replicas at that time.

Everything here is pure. Times are `time.time` of one machine.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Trouble(enum.StrEnum):
    KILLED = "killed"
    HUNG = "hung"
    DRAINED = "drained"  # told in advance, and let finish: no excuse for anything


@dataclass(frozen=True, slots=True)
class Incident:
    """What was done to a replica, and from when to when it answered nobody because of it."""

    replica: str
    trouble: Trouble
    began: float
    ended: float


class Saw(enum.StrEnum):
    """How a request ended for its client."""

    WHOLE = "whole"
    LEFT = "left"  # by its own choice
    REFUSED = "refused"  # another status than 200
    CUT = "cut"  # an error event, or the end of the connection, before the end of the answer
    WRONG = "wrong"  # a chunk missing, doubled, or of another request
    WAITED = "waited"  # longer than anything may take


@dataclass(frozen=True, slots=True)
class Seen:
    nonce: int
    tenant: str
    saw: Saw
    tokens: int  # that came
    status: int
    began: float
    ended: float
    text: str = ""  # of the error


@dataclass(frozen=True, slots=True)
class Begun:
    """One attempt, as the engine wrote it down."""

    replica: str
    at: float


def cause(seen: Seen, attempts: Sequence[Begun], incidents: Sequence[Incident], limited: str) -> str | None:
    """Of a request that was refused or cut; None when nothing explains it. `limited`: the tenant with a low limit.

    A cut answer is explained by its own replica's trouble. What failed before its first output is not: another replica
    was there, unless all that it was tried on were in trouble, and that takes two. Only of a silent one nobody knows
    whether it is at work.
    """
    if seen.status == 429 and seen.tenant == limited:
        return "429: its tenant was over its limit, as it was meant to be"
    if seen.saw not in (Saw.REFUSED, Saw.CUT):
        return None
    during = [i for i in incidents if i.began <= seen.ended and i.ended >= seen.began and i.trouble != Trouble.DRAINED]
    if seen.tokens:
        last = attempts[-1].replica if attempts else None
        of_its_own = [i.trouble for i in during if i.replica == last]
        return f"cut after its first output: its replica was {of_its_own[0]}" if of_its_own else None
    if seen.status not in (200, 502, 503, 504):
        return None
    if len({i.replica for i in during}) > 1:
        return f"{seen.status} before its first output: more than one replica was killed or hung meanwhile"
    if seen.status == 504 and any(i.trouble is Trouble.HUNG for i in during):
        return "504 before its first output: one replica hung meanwhile, and its silence was waited for"
    return None


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Least squares: how much the second grows with each unit of the first."""
    if len(samples) < 2:
        return 0.0
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


def table(counts: Mapping[str, int]) -> str:
    lines = [f"{count:8}  {what}" for what, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return "\n".join(["requests  how they ended", *lines])
