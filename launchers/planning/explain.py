"""Plain words for people: what a deployment wants, what it has, why, and what happens next. Times are in UTC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from launchers.planning import maintenance, rollover, scale
from launchers.planning.facts import Cluster, Had, Maintenance, Situation
from launchers.planning.fleet import DRAINING, PENDING, READY

if TYPE_CHECKING:
    from launchers.planning.turn import Turn

Next = tuple[float | None, str]


def silence(cluster: Cluster) -> tuple[str, ...]:
    cause = f" ({cluster.silence})" if cluster.silence else ""
    return (f"the scheduler does not answer{cause}: nothing is started or stopped until it does",)


def ending(s: Situation, live: Sequence[Had]) -> tuple[str, ...]:
    if not live:
        return (f"is {'stopped' if s.wanted.state.ended else 'being stopped'}, and has no replica",)
    drain = sum(r.state is DRAINING for r in live)
    return (f"is being stopped: {len(live)} {_replicas(len(live))} left, of which {drain} drain", *_draining(s, live))


def whole_outage(s: Situation, window: Maintenance, overflow: bool) -> str:
    """The same words for the same maintenance, whenever they are asked for."""
    where = s.wanted.rules.where(overflow)
    partition = f"partition {where}" if where else "the default partition"
    return (
        f"{s.wanted.name} will not be served during maintenance {window.name}, from {_date(window.starts_at)} "
        f"to {_date(window.ends_at)}: it takes all nodes of {partition}"
    )


def why(turn: Turn) -> tuple[str, ...]:
    s, w, count = turn.s, turn.s.wanted, turn.size.count
    lines = [f"wants {count} {_replicas(count)}: {scale.words(s, turn.size)}", _has(turn)]
    if turn.course.rolling:
        lines.append(_rollout(turn))
    if turn.missing:
        lines.append(_held(turn))
    for losses, kind in {turn.spare: "preemptible replicas", turn.base: "replicas"}.items():
        if losses.too_many:
            lines.append(f"{kind} are lost again and again, the last one: {losses.cause}; it is tried every 10 min")
    if not count and turn.fleet.coming:
        lines.append("what comes up all the same serves, and is kept for whoever called")
    if w.paused:
        lines.append("is paused: nothing is scaled or rolled out, and what ends is replaced")
    coming = turn.missing or turn.started or turn.fleet.pending
    if coming and (window := maintenance.in_the_way(s, turn.windows_of(turn.short_of), turn.short_of)):
        until = when(s, window.ends_at)
        lines.append(f"maintenance {window.name} takes all its nodes until {until}: new jobs wait for its end")
    return (*lines, *_draining(s, turn.fleet.draining))


def coming(turn: Turn) -> tuple[Next, ...]:
    """By time; what has none last."""
    s, w = turn.s, turn.s.wanted
    found: list[Next] = []
    for losses, revision in {
        turn.spare: turn.course.base,
        turn.base: turn.course.base,
        turn.newest: w.revision,
    }.items():
        if losses.retry_at > s.now:
            found.append((losses.retry_at, f"revision {revision} is tried again: {_lost(losses.count)} in a row"))
    for r in turn.slots:
        if r.state is READY and r.ends_at is not None and r.id not in turn.fleet.successors:
            lead = rollover.lead_s(s, r)
            end = f"its job ends at {when(s, r.ends_at)}, and queue, start-up and drain take about {lead / 60:.0f} min"
            found.append((max(s.now, r.ends_at - lead), f"a successor of {r.id} is submitted: {end}"))
    for r in turn.fleet.pending:
        reason = f": {r.waiting_reason}" if r.waiting_reason else ""
        found.append((r.expected_start_at, f"{r.id} starts{reason}"))
    for r in turn.fleet.starting:
        began = s.now if r.started_at is None else r.started_at
        found.append((began + s.timings.start_s, f"{r.id} is ready, if it starts as fast as others did"))
    if turn.size.ground is scale.Ground.COOLING and turn.size.low_since is not None:
        found.append(
            (turn.size.low_since + w.rules.scale_down_after_s, "one replica less is wanted, if the load stays")
        )
    if w.least == 0 and turn.size.count and s.called_at is not None:
        found.append((s.called_at + w.rules.idle_s, "it goes to sleep, if nobody calls"))
    if turn.course.trial and turn.course.watched_since is not None and not (turn.course.doubt or w.paused):
        found.append((turn.course.watched_since + w.rules.bake_s, f"revision {w.revision} is judged"))
    for window in turn.windows:
        if window.starts_at > s.now:
            found.append((window.starts_at, f"maintenance {window.name} begins, until {when(s, window.ends_at)}"))
    return tuple(sorted(found, key=lambda one: (one[0] is None, one[0] or 0.0, one[1])))


def when(s: Situation, at: float) -> str:
    """The time of day, with the date where that is another day than now."""
    there = datetime.fromtimestamp(at, UTC)
    return f"{there:%H:%M} UTC" if there.date() == datetime.fromtimestamp(s.now, UTC).date() else _date(at)


def _date(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _has(turn: Turn) -> str:
    fleet = turn.fleet
    parts = [f"{len(fleet.ready)} ready"]
    if fleet.starting:
        parts.append(f"{len(fleet.starting)} starting")
    for reason, n in Counter(r.waiting_reason for r in fleet.pending).items():
        parts.append(f"{n} pending" + (f" ({reason})" if reason else ""))
    if fleet.draining:
        parts.append(f"{len(fleet.draining)} draining")
    successors = len(fleet.successors)
    return "has " + ", ".join(parts) + (f"; {successors} of these to succeed another" if successors else "")


def _held(turn: Turn) -> str:
    more = f"{turn.missing} more {'is' if turn.missing == 1 else 'are'} wanted"
    losses = turn.losses(turn.short_of)
    if turn.s.now < losses.retry_at:
        again = when(turn.s, losses.retry_at)
        return f"{more}; {_lost(losses.count)} in a row, so the next is started at {again}: {losses.cause}"
    if (waits := turn.waits(turn.short_of)) is None:
        return f"{more}, one at a time"
    return f"{more}; Slurm cannot start the one that waits ({waits.waiting_reason}), so none is submitted"


def _rollout(turn: Turn) -> str:
    s, w, course = turn.s, turn.s.wanted, turn.course
    new = [r for r in turn.fleet.slots if r.revision == w.revision]
    to = f"rolls out revision {w.revision} in place of {w.stable}"
    if w.paused:
        return f"{to}: paused"
    if not course.trial:
        old = sum(r.revision == w.stable for r in turn.slots)
        return f"{to}: {len(new)} {_replicas(len(new))} of it, {old} to replace"
    if not any(r.state is READY for r in new):
        again = f", again from {when(s, turn.newest.retry_at)} on" if turn.newest.retry_at > s.now else ""
        last = f" (the last one: {turn.newest.cause})" if turn.newest.count else ""
        state = "waits in Slurm's queue" if new and all(r.state is PENDING for r in new) else "starts"
        if not new and turn.ready and (waits := turn.waits(turn.preemptible)):
            state = f"is submitted when {waits.id} has started, which waits ({waits.waiting_reason})"
        return f"{to}: its first replica {state}{again}{last}"
    answered = sum(r.requests for r in s.replicas if r.revision == w.revision)
    bake_s = w.rules.bake_s
    bake = f"{bake_s:.0f} s" if bake_s < 120 else f"{bake_s / 60:.0f} min"
    watched = f"{bake} and {w.rules.bake_requests} requests, or twice as long"
    longer = f"; {course.doubt}, so it is watched until more is known" if course.doubt else ""
    return f"{to}: its first replica is watched for {watched}; it has answered {answered}{longer}"


def _draining(s: Situation, live: Sequence[Had]) -> tuple[str, ...]:
    lines = []
    for r in live:
        if r.state is DRAINING:
            until = when(s, (s.now if r.draining_at is None else r.draining_at) + s.wanted.rules.drain_s)
            left = "its requests are not known" if r.outstanding is None else f"{r.outstanding} requests are left"
            lines.append(f"{r.id} drains until {until} at the latest: {left}")
    return tuple(lines)


def _lost(count: int) -> str:
    return f"{count} {'was' if count == 1 else 'were'} lost"


def _replicas(count: int) -> str:
    return "replica" if count == 1 else "replicas"
