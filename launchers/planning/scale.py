"""How many replicas are wanted."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from launchers.planning.facts import Loaded, Situation, Wanted
from launchers.planning.fleet import Fleet


class Ground(enum.Enum):
    """Why so many are wanted."""

    LEAST = "the least"
    PAUSED = "scaling is paused"
    IDLE = "nobody calls"
    CALLED = "it is called"
    UNUSED = "woken, and not called since it got ready"
    LOAD = "the load"
    WAIT = "requests wait too long"
    STEP = "more are asked for than one step gives"
    SHRINKING = "fewer are asked for than one step down gives"
    COOLING = "fewer are asked for, not for long enough"
    BLIND = "no gateway says what the load is"


@dataclass(frozen=True, slots=True)
class Size:
    count: int
    ground: Ground
    asked: int  # by the load, within least and most, whatever steps and cool-downs allow
    low_since: float | None


def size(s: Situation, fleet: Fleet) -> Size:
    w = s.wanted
    now = s.now
    if w.paused:
        count = _within(w, w.least if w.desired is None else w.desired)
        return Size(count, Ground.PAUSED, count, w.low_since)
    floor = w.least
    if floor == 0:
        if not awake(s, fleet):
            return Size(0, Ground.IDLE, 0, None)
        floor = _whole(w, 1)
    if w.rules.target_tokens is None:
        if w.least:
            return Size(_whole(w, w.least), Ground.LEAST, w.least, None)
        called = w.created_at <= (s.called_at or 0.0) and now - (s.called_at or 0.0) < w.rules.idle_s
        return Size(floor, Ground.CALLED if called else Ground.UNUSED, floor, None)
    before = max(floor, _within(w, floor if w.desired is None else w.desired))
    if s.load is None:
        return Size(before, Ground.BLIND, before, w.low_since)
    asked, ground = _asked(w, s.load, fleet, floor)
    if asked > before:
        if w.scaled_at is not None and now - w.scaled_at < w.rules.scale_up_every_s and w.desired:
            return Size(before, Ground.STEP, asked, None)
        count = min(asked, _whole(w, before + w.rules.max_step))
        return Size(count, ground if count == asked else Ground.STEP, asked, None)
    if asked == before:
        return Size(before, ground, asked, None)
    since = now if w.low_since is None else w.low_since
    cooled = now - since >= w.rules.scale_down_after_s
    if cooled and (w.scaled_at is None or now - w.scaled_at >= w.rules.scale_up_every_s):
        count = max(asked, before - w.rules.pack)
        if count > asked:
            return Size(count, Ground.SHRINKING, asked, since)
        return Size(count, ground, asked, None)
    return Size(before, Ground.COOLING, asked, since)


def awake(s: Situation, fleet: Fleet) -> bool:
    """Whether a deployment that may sleep wants a replica: for its idle time from its last call on, or from when its
    replica got ready if Slurm's queue was longer than its callers' patience. A former deployment's calls do not count.
    """
    since = s.now - s.wanted.rules.idle_s
    if s.called_at is not None and s.called_at >= s.wanted.created_at and s.called_at > since:
        return True
    return any(r.ready_at is not None and r.ready_at > since for r in fleet.ready)


def _asked(w: Wanted, load: Loaded, fleet: Fleet, floor: int) -> tuple[int, Ground]:
    """By the tokens that are queued and running; and while somebody waits too long, one more than serve: those that
    come already are this one."""
    assert w.rules.target_tokens is not None
    by_tokens = math.ceil((load.running_tokens + load.queued_tokens) / w.rules.target_tokens)
    by_wait = len(fleet.ready) + 1 if load.waited_s > w.rules.target_wait_s else 0
    asked = max(floor, _within(w, max(by_tokens, by_wait)))
    if asked <= floor:
        return asked, Ground.LEAST if w.least else Ground.CALLED
    return asked, Ground.LOAD if by_tokens >= by_wait else Ground.WAIT


def _within(w: Wanted, count: int) -> int:
    return _whole(w, min(max(count, w.least), max(w.most, w.least)))


def _whole(w: Wanted, count: int) -> int:
    """Replicas that share a job come together."""
    pack = w.rules.pack
    return count if pack == 1 else -(-count // pack) * pack


def words(s: Situation, size: Size) -> str:
    """Why so many are wanted."""
    w, load = s.wanted, s.load
    minutes = f"{w.rules.idle_s / 60:.0f} min"
    match size.ground:
        case Ground.LEAST:
            return "that is its least number"
        case Ground.PAUSED:
            return "scaling is paused"
        case Ground.IDLE:
            return f"nobody has called it for {minutes}" if s.called_at is not None else "nobody has called it"
        case Ground.CALLED:
            return f"it has been called within {minutes}"
        case Ground.UNUSED:
            return f"it was woken, and is kept for {minutes} for whoever called"
        case Ground.BLIND:
            return "no gateway says how many are needed, so that stays"
    assert load is not None
    tokens = (
        f"{load.running_tokens + load.queued_tokens:,} tokens are queued or running, {w.rules.target_tokens:,} each"
    )
    if size.ground is Ground.WAIT:
        return f"a request has waited {load.waited_s:.0f} s"
    if size.ground is Ground.STEP:
        return (
            f"{tokens}: {size.asked} are needed, at most {w.rules.max_step} more every {w.rules.scale_up_every_s:.0f} s"
        )
    if size.ground is Ground.SHRINKING:
        return f"{tokens}: {size.asked} would do, and not all go at once"
    if size.ground is Ground.COOLING:
        return f"{tokens}: {size.asked} would do, for less than {w.rules.scale_down_after_s:.0f} s so far"
    return tokens
