"""What this gateway has to do and how replicas served it, told to the controller through the ledger's file.

Every EVERY_S what has changed, and every HEARTBEAT_S that nothing has: nothing to do is not the same as no gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from gateway.catalog import View
from registry import demand
from registry.db import Database, transaction
from registry.demand import Load, Served
from registry.deployments import ReplicaState

EVERY_S = 2.0
HEARTBEAT_S = 4.0
ANEW_S = 60.0  # after which all is told again: a word may be lost, and the heartbeat goes on


class Work(NamedTuple):
    """Of one deployment, now."""

    running: int = 0  # requests
    running_tokens: int = 0
    queued: int = 0
    queued_tokens: int = 0
    waited_s: float = 0.0  # the longest wait


class Tally:
    """Of one replica, since this gateway began."""

    __slots__ = ("failures", "first_output_s", "first_outputs", "outstanding", "requests")

    def __init__(self) -> None:
        self.outstanding = self.requests = self.failures = self.first_outputs = 0
        self.first_output_s = 0.0

    def first_output(self, after_s: float) -> None:
        self.first_outputs += 1
        self.first_output_s += after_s


@dataclass(frozen=True, slots=True)
class News:
    at: str
    loads: list[Load]
    served: list[Served]
    gone: list[str]  # deployments
    draining: bool  # some replica drains: whoever waits for its last request is told at once that there is none


class Workload:
    """For one event loop, as nothing here waits or locks."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}
        self._changed: set[str] = set()  # replicas
        self._told: dict[str, Work] = {}  # by deployment
        self._view = View()
        self._draining = False

    def begun(self, replica_id: str) -> Tally:
        """A request is given to a replica. Cheap: for each of them."""
        tally = self._tallies.get(replica_id)
        if tally is None:
            tally = self._tallies[replica_id] = Tally()
        tally.outstanding += 1
        self._changed.add(replica_id)
        return tally

    def ended(self, replica_id: str, tally: Tally) -> None:
        tally.outstanding -= 1
        tally.requests += 1
        self._changed.add(replica_id)

    def news(self, view: View, busy: Iterable[str], work: Callable[[str], Work], at: str) -> News:
        """What has changed since the last time. `busy`: the deployments that may have work."""
        gone = self._look(view) if view is not self._view else []
        now = {name: Work() for name, told in self._told.items() if any(told)}
        now |= {name: Work() for name in view.deployments.keys() - self._told.keys()}
        now |= {name: work(name) for name in busy if name in view.deployments}
        loads = [Load(name, at, *one) for name, one in now.items() if self._told.get(name) != one]
        self._told |= now
        served = []
        for replica in self._changed:
            t = self._tallies[replica]
            counts = (t.outstanding, t.requests, t.failures, t.first_outputs, t.first_output_s)
            served.append(Served(replica, at, *counts))
        self._changed.clear()
        return News(at, loads, served, gone, self._draining)

    async def tell(self, news: Callable[[], News], write: Callable[[News], None]) -> None:
        """Runs until cancelled. `write` hands over to the ledger's writer and does not wait for it."""
        quiet_s = HEARTBEAT_S  # the first word is that there is a gateway
        since_s = 0.0
        while True:
            said = news()
            if said.loads or said.served or said.gone or said.draining or quiet_s >= HEARTBEAT_S:
                write(said)
                quiet_s = 0.0
            await asyncio.sleep(EVERY_S)
            quiet_s += EVERY_S
            since_s += EVERY_S
            if since_s >= ANEW_S:
                since_s = 0.0
                self._told.clear()
                self._changed.update(self._tallies)

    def _look(self, view: View) -> list[str]:
        """Another view: replicas and deployments have come or gone. Those that are gone, by name."""
        self._view = view
        live = {r.id: r.state for replicas in view.live.values() for r in replicas}
        self._draining = ReplicaState.DRAINING in live.values()
        for replica in self._tallies.keys() - live.keys() - self._changed:
            if not self._tallies[replica].outstanding:
                del self._tallies[replica]
        for replica, state in live.items():
            if state in (ReplicaState.READY, ReplicaState.DRAINING) and replica not in self._tallies:
                self._tallies[replica] = Tally()
                self._changed.add(replica)  # that it has nothing is worth knowing
        gone = [name for name in self._told if name not in view.deployments]
        for name in gone:
            del self._told[name]
        return gone


def write(db: Database, gateway: str, news: News) -> None:
    """In one transaction. `gateway`: the name of its journal. Raises StorageError."""
    with transaction(db):
        demand.note_load(db, gateway, news.at, news.loads)
        demand.note_served(db, gateway, news.served)
        demand.forget(db, gateway, news.gone, news.at)
