"""Which replicas may be given requests. The only module that changes a replica's Health.

    HEALTHY --a run of failures--> EJECTED --its time is over, one request is sent--> PROBING --success--> HEALTHY
                                      ^------------------------failure, longer this time--'

One request at a time probes; the others go elsewhere until it has said how it went. Nothing is ever ejected into
uselessness: where all of a deployment's replicas are out, `fallback` names the one that failed least recently, and the
request that goes there counts as its probe. So a deployment whose only replica stumbled is tried all the same, and one
whose replicas all fail is tried replica after replica.

Only failures that are the replica's own count. A client that left says nothing, and nor does an engine's 4xx.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

FIRST_S = 2.0  # a first ejection; each further one doubles it
LONGEST_S = 60.0
JITTER = 0.25  # of an ejection's length, taken off at random: replicas of one node shall not come back as one
FORGIVEN_S = 120.0  # healthy for so long, the next ejection is a first one again
PROBE_S = 30.0  # a probe that has said nothing for so long no longer keeps others away


class Health(enum.StrEnum):
    HEALTHY = "healthy"
    EJECTED = "ejected"
    PROBING = "probing"


class Fault(enum.StrEnum):
    UNREACHABLE = "unreachable"  # connection refused, no route, wrong certificate: nobody is there
    POLL = "poll"  # the engine's own /health, answered with something else than 200, or cut off
    HUNG = "hung"  # the same, not answered in time
    REQUEST = "request"  # a connection lost, a 5xx, an abort, silence


# How many failures of one kind in a row eject: kinds are not added up, as a health that was slow to come once is no
# hung engine because two requests failed. A port that refuses will refuse the next one too; the rest may be one's own.
LIMITS = {Fault.UNREACHABLE: 1, Fault.POLL: 3, Fault.HUNG: 3, Fault.REQUEST: 3}
# What a /health that is answered disproves. Not a REQUEST: an engine may be healthy and fail all it is asked.
DISPROVED = frozenset({Fault.UNREACHABLE, Fault.POLL, Fault.HUNG})


@dataclass(frozen=True, slots=True)
class Standing:
    """One replica's. Times are of the monotonic clock, in seconds."""

    state: Health
    failures: Mapping[Fault, int]  # of each kind, since the last success
    ejections: int  # in a row: since it was last FORGIVEN
    since: float  # when it entered the state
    until: float  # EJECTED: when a probe is due; PROBING: when another one may go; HEALTHY: when it is forgiven
    failed_at: float
    fault: Fault
    why: str


def after_failure(old: Standing | None, fault: Fault, why: str, now: float, luck: float) -> Standing:
    """Pure. `luck` in 0 ... 1 shortens an ejection by up to JITTER."""
    if old is None:
        old = Standing(Health.HEALTHY, {}, 0, now, now, now, fault, why)
    if old.state is Health.EJECTED and (fault is Fault.REQUEST or now < old.until):
        return replace(old, failed_at=now, why=why)  # no news: a request that was running when it was ejected, say
    # Where a probe is due and /health fails first, that was the probe, and no client's request had to be.
    forgiven = old.state is Health.HEALTHY and now >= old.until
    ejections = 0 if forgiven else old.ejections
    failures = {**old.failures, fault: old.failures.get(fault, 0) + 1}
    if old.state is Health.HEALTHY and failures[fault] < LIMITS[fault]:
        return replace(old, failures=failures, ejections=ejections, failed_at=now, fault=fault, why=why)
    length = min(FIRST_S * 2.0 ** min(ejections, 30), LONGEST_S) * (1 - JITTER * luck)
    return Standing(Health.EJECTED, failures, ejections + 1, now, now + length, now, fault, why)


def after_success(old: Standing, now: float) -> Standing | None:
    """Pure. None: nothing is held against it any more."""
    match old.state:
        case Health.EJECTED:
            return old  # a request from before the ejection: it may be served by a listener that is gone
        case Health.PROBING:
            return replace(old, state=Health.HEALTHY, failures={}, since=now, until=now + FORGIVEN_S)
        case Health.HEALTHY:
            if not old.ejections or now >= old.until:
                return None
            return replace(old, failures={}) if old.failures else old


def after_poll(old: Standing, now: float) -> Standing | None:
    """Pure. Its /health was answered with 200."""
    if old.state is Health.HEALTHY:
        failures = {fault: count for fault, count in old.failures.items() if fault not in DISPROVED}
        if failures:
            return replace(old, failures=failures)
        return after_success(old, now) if old.fault in DISPROVED else old
    if old.fault in DISPROVED and old.state is Health.EJECTED:
        return replace(old, until=min(old.until, now))
    return old


class ReplicaHealth:
    """All replicas'. `clock` is monotonic, in seconds; `luck` draws from 0 ... 1; `ejected` hears of each ejection,
    one after a failed probe too.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        luck: Callable[[], float] = random.random,
        ejected: Callable[[str, Fault], None] = lambda replica_id, fault: None,
    ) -> None:
        self._clock = clock
        self._luck = luck
        self._ejected = ejected
        self._standings: dict[str, Standing] = {}  # of those that failed lately
        self._out: set[str] = set()  # EJECTED or PROBING

    def usable(self, replica_id: str) -> bool:
        """Healthy; or out, and due to be probed. Changes nothing: `started` says that a request goes there."""
        return replica_id not in self._out or self._clock() >= self._standings[replica_id].until

    def started(self, replica_id: str) -> bool:
        """A request is sent there, by `usable` or by `fallback`. Whether it is a probe, which others now wait for."""
        if replica_id not in self._out:
            return False
        now = self._clock()
        old = self._standings[replica_id]
        self._standings[replica_id] = replace(old, state=Health.PROBING, since=now, until=now + PROBE_S)
        return True

    def failed(self, replica_id: str, why: str, fault: Fault = Fault.REQUEST) -> None:
        """Something went wrong that is the replica's fault."""
        old = self._standings.get(replica_id)
        new = after_failure(old, fault, why, self._clock(), self._luck())
        self._keep(replica_id, new)
        if new.state is Health.EJECTED and (old is None or old.state is not Health.EJECTED):
            self._ejected(replica_id, fault)

    def succeeded(self, replica_id: str) -> None:
        """The first generated output (or a whole answer, or the engine's own 4xx) arrived: say it then, not at the end
        of a stream, as a probe keeps others away until it has spoken."""
        if (old := self._standings.get(replica_id)) is not None:
            self._keep(replica_id, after_success(old, self._clock()))

    def abandoned(self, replica_id: str) -> None:
        """The probe (`started` said so) ended, perhaps without a word (its client left): another may go at once.

        Before or after `failed` and `succeeded`, which have the last word on what it showed.
        """
        old = self._standings.get(replica_id)
        if old is not None and old.state is Health.PROBING:
            self._standings[replica_id] = replace(old, until=self._clock())

    def polled(self, replica_id: str) -> None:
        """Its /health was answered with 200: a probe is due at once if being unreachable was all that was wrong."""
        if (old := self._standings.get(replica_id)) is not None:
            self._keep(replica_id, after_poll(old, self._clock()))

    def fallback(self, replica_ids: Iterable[str]) -> str | None:
        """Of replicas none of which is usable, the one that failed least recently; None of none."""
        standings = self._standings
        return min(replica_ids, key=lambda i: standings[i].failed_at if i in standings else -math.inf, default=None)

    def forget(self, gone: Iterable[str]) -> None:
        """Replicas that are no more."""
        for replica_id in gone:
            self._keep(replica_id, None)

    def snapshot(self) -> Mapping[str, Standing]:
        """Of every replica that failed lately; the others are healthy. A copy."""
        return dict(self._standings)

    def _keep(self, replica_id: str, standing: Standing | None) -> None:
        if standing is None:
            self._standings.pop(replica_id, None)
        else:
            self._standings[replica_id] = standing
        if standing is None or standing.state is Health.HEALTHY:
            self._out.discard(replica_id)
        else:
            self._out.add(replica_id)
