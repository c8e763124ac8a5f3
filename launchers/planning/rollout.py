"""From one revision to the next: one new replica on trial, a verdict, then one after another.

A revision is judged by its replicas' counters against those of the stable one's. They count from each replica's first
request on, so the stable one is judged on a longer time than the new one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from launchers.planning.facts import Had, Situation
from launchers.planning.fleet import READY, Fleet
from registry.replicas import ReplicaState

WORSE_BY = 0.05  # of all requests: failures beyond the stable revision's share
FEWEST_FAILURES = 3
ENOUGH = 20  # requests, of which fewer failures than that are an accident
SLOWER_BY, SLOWER_BY_S = 1.5, 0.05
FEWEST_OUTPUTS = 10


@dataclass(frozen=True, slots=True)
class Course:
    """`base` is the revision of what is started to fill up; `kept` are the revisions whose replicas are wanted."""

    base: int
    kept: tuple[int, ...]
    rolling: bool = False  # another revision than the stable one is wanted
    trial: bool = False  # and one replica of it is, or is to be, watched beside the stable ones
    bad: str | None = None  # why it is worse
    doubt: str | None = None  # why it may be: too little to give it up for, too much to let it take over
    watched_since: float | None = None


def course(s: Situation, fleet: Fleet) -> Course:
    w = s.wanted
    if w.stable is None or w.stable == w.revision:
        return Course(w.revision, (w.revision,))
    both = (w.revision, w.stable)
    old = any(r.revision == w.stable for r in fleet.slots)
    # It slept: the new one serves from the first call on, or never gets ready. What was good takes over at once. While
    # it is paused neither begins.
    serves = any(r.revision == w.revision for r in fleet.ready)
    if (w.proven or (w.least == 0 and not old)) and (serves or not w.paused):
        return Course(w.revision, (w.revision,), rolling=True)
    new = [r for r in s.replicas if r.revision == w.revision and not r.former and not _taken(r)]
    since = min((r.ready_at for r in new if r.ready_at is not None and not _crashed(r)), default=None)
    stable = [r for r in s.replicas if r.revision == w.stable and not _taken(r)]
    bad = worse(new, stable)
    doubt = _failing(new, stable) if sum(r.requests for r in new) < ENOUGH else None
    held = w.paused and sum(r.revision == w.revision for r in fleet.slots) <= w.rules.pack
    if bad is None and doubt is None and since is not None and _baked(s, new, since) and not held:
        return Course(w.revision, (w.revision,), rolling=True, watched_since=since)
    return Course(w.stable, both, rolling=True, trial=True, bad=bad, doubt=doubt, watched_since=since)


def worse(new: Iterable[Had], stable: Iterable[Had]) -> str | None:
    """Why the new replicas are worse than the stable ones, if they are."""
    new, stable = list(new), list(stable)
    if sum(r.failures for r in new) >= FEWEST_FAILURES and (words := _failing(new, stable)):
        return words
    outputs, others = sum(r.first_outputs for r in new), sum(r.first_outputs for r in stable)
    if outputs >= FEWEST_OUTPUTS and others >= FEWEST_OUTPUTS:
        mean, usual = sum(r.first_output_s for r in new) / outputs, sum(r.first_output_s for r in stable) / others
        if mean > SLOWER_BY * usual + SLOWER_BY_S:
            return f"its first output comes after {mean:.2f} s on average (the stable revision's after {usual:.2f} s)"
    return None


def _failing(new: list[Had], stable: list[Had]) -> str | None:
    """In words, that more of the new replicas' requests failed than of the stable ones', however few there were.

    Gateways give a replica that fails little to do, so that one that fails always may have few failures.
    """
    failures, requests = sum(r.failures for r in new), sum(r.requests for r in new)
    before, of = sum(r.failures for r in stable), sum(r.requests for r in stable)
    rate, usual = failures / max(requests, 1), before / max(of, 1)
    if rate <= usual + WORSE_BY:
        return None
    return f"{failures} of its {requests} requests failed ({rate:.0%}; of the stable revision's {usual:.0%})"


def _baked(s: Situation, new: list[Had], since: float) -> bool:
    rules = s.wanted.rules
    if not any(r.state is READY for r in new) or s.now - since < rules.bake_s:
        return False
    return sum(r.requests for r in new) >= rules.bake_requests or s.now - since >= 2 * rules.bake_s


def _taken(r: Had) -> bool:
    """Whether requests failed there as its job was taken from it, or its time was over. That says nothing of its
    revision, and what it was watched for does not count either."""
    return bool(r.failures) and r.state.ended and r.state is not ReplicaState.FAILED and r.failure is None


def _crashed(r: Had) -> bool:
    return r.state is ReplicaState.FAILED or r.state is ReplicaState.LOST
