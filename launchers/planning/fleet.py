"""A deployment's replicas, sorted by what they do, in one look at each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from launchers.planning.facts import Had, Situation
from registry.replicas import ReplicaState

PENDING, STARTING = ReplicaState.PENDING, ReplicaState.STARTING
READY, DRAINING = ReplicaState.READY, ReplicaState.DRAINING


@dataclass(frozen=True, slots=True)
class Fleet:
    """`slots` are what counts towards what is wanted: each replica that comes or serves, but for successors of such."""

    former: list[Had]  # live ones of a former deployment of this name
    pending: list[Had]
    starting: list[Had]
    ready: list[Had]
    draining: list[Had]
    ended: list[Had]
    slots: list[Had]
    successors: dict[str, Had]  # of a replica that comes or serves -> the one that comes or serves in its place

    @property
    def coming(self) -> list[Had]:
        return self.pending + self.starting

    def serving(self, revision: int) -> list[Had]:
        return [r for r in self.ready if r.revision == revision]


def sort(situation: Situation) -> Fleet:
    former: list[Had] = []
    pending: list[Had] = []
    starting: list[Had] = []
    ready: list[Had] = []
    draining: list[Had] = []
    ended: list[Had] = []
    successions = False
    for r in situation.replicas:
        state = r.state
        if r.former:
            if not state.ended:
                former.append(r)
            continue
        if state is READY:
            ready.append(r)
        elif state is PENDING:
            pending.append(r)
        elif state is STARTING:
            starting.append(r)
        elif state is DRAINING:
            draining.append(r)
        else:
            ended.append(r)
            continue
        if r.replaces is not None:
            successions = True
    slots = ready + starting + pending  # who serves first: of several successors of one replica, the first counts
    successors = _successors(slots) if successions else {}
    if successors:
        attached = {r.id for r in successors.values()}
        slots = [r for r in slots if r.id not in attached]
    return Fleet(former, pending, starting, ready, draining, ended, slots, successors)


def _successors(live: Iterable[Had]) -> dict[str, Had]:
    ids = {r.id for r in live}
    found: dict[str, Had] = {}
    for r in live:
        if r.replaces in ids and r.replaces is not None:
            found.setdefault(r.replaces, r)
    return found
