"""Who is asked for, and what there is to do: gateways write it into `ledger.db`, the controller reads it.

When a deployment was last called is what wakes one of which no replica runs, and keeps one running that is used. What
gateways have to do for it is what it is scaled by; what its replicas still have, and how they served, is what they are
drained and judged by.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

from registry import clock
from registry.db import Database, StorageError, data_version, open_reader, rows, snapshot, transaction

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Demand:
    deployment: str
    at: str  # when it was last called, or a request was still in flight; ISO 8601 in UTC
    waiting: int  # requests that waited then because no replica was ready


@dataclass(frozen=True, slots=True)
class Load:
    """What one gateway has to do for a deployment, as it last said; or the sum of all gateways' that live."""

    deployment: str
    at: str  # ISO 8601 in UTC
    running: int  # requests given to replicas and not done
    running_tokens: int  # their prompt tokens not computed yet, and the output expected of them
    queued: int  # requests that wait: in line for a replica, or for the first one to be ready
    queued_tokens: int  # estimated: prompt and expected output
    waited_s: float  # how long the one that waits longest has waited


@dataclass(frozen=True, slots=True)
class Served:
    """What became of the requests that a replica was given, by one gateway since it began; or by all together."""

    replica: str
    at: str  # when it was last said: of all together, since when no gateway that lives has said it anew
    outstanding: int | None  # given to it and not done; of all together, None while no gateway lives
    requests: int = 0  # that ended, whatever came of them
    failures: int = 0  # of these, the replica's own: refused, lost, a 5xx, an abort, silence
    first_outputs: int = 0  # of how many streams the time to the first output is known,
    first_output_s: float = 0.0  # and the sum of those times, in seconds

    def left(self, draining_at: str) -> int | None:
        """Requests that a replica still has which drains since then; None while no gateway lives.

        A gateway learns within NOTICED_S that a replica takes no more: what it said before does not say that it has
        nothing left. Nor does what it says after its clock was set back: then the time to drain decides.
        """
        noticed = clock.text(clock.parse(draining_at) + timedelta(seconds=NOTICED_S))
        return self.outstanding if self.outstanding is None or self.at >= noticed else max(self.outstanding, 1)


GATEWAY_LIVES_S = 15.0  # a gateway that has said nothing for so long has nothing running
NOTICED_S = 1.0  # after it was written, every gateway has read what a replica's state is
KEPT_S = 86400.0  # for which what a gateway said last is kept; those that live say it anew more often
HEARTBEAT = ""  # no deployment's name: a gateway's row that only says that it lives


def note_demand(db: Database, noted: Iterable[Demand]) -> None:
    """The gateway's writer only. Time never goes backwards. Raises StorageError."""
    with transaction(db) as c:
        c.executemany(
            """INSERT INTO demand (deployment, at, waiting) VALUES (?, ?, ?)
               ON CONFLICT (deployment) DO UPDATE SET at = max(at, excluded.at), waiting = excluded.waiting""",
            [(d.deployment, d.at, d.waiting) for d in noted],
        )


def note_load(db: Database, gateway: str, at: str, loads: Iterable[Load]) -> None:
    """The gateway's writer only: what has changed, and that the rest is as it was. Raises StorageError.

    `gateway`: the name of its journal, by which its holds are known too.
    """
    alive = Load(HEARTBEAT, at, 0, 0, 0, 0, 0.0)
    with transaction(db) as c:
        c.executemany(
            """INSERT OR REPLACE INTO load VALUES
               (:deployment, :gateway, :at, :running, :running_tokens, :queued, :queued_tokens, :waited_s)""",
            [asdict(one) | {"gateway": gateway} for one in (alive, *loads)],
        )


def note_served(db: Database, gateway: str, served: Iterable[Served]) -> None:
    """The gateway's writer only: of each replica, all that this gateway has counted. Raises StorageError."""
    with transaction(db) as c:
        c.executemany(
            """INSERT OR REPLACE INTO served VALUES
               (:replica, :gateway, :at, :outstanding, :requests, :failures, :first_outputs, :first_output_s)""",
            [asdict(one) | {"gateway": gateway} for one in served],
        )


def forget(db: Database, gateway: str, deployments: Iterable[str], now: str) -> None:
    """The gateway's writer only: no rows of its own for deployments that are gone, and nobody's that are old."""
    old = clock.text(clock.parse(now) - timedelta(seconds=KEPT_S))
    with transaction(db) as c:
        c.executemany("DELETE FROM load WHERE gateway = ? AND deployment = ?", [(gateway, d) for d in deployments])
        for table in ("load", "served"):
            c.execute(f"DELETE FROM {table} WHERE at < ?", (old,))


def demand(db: Database) -> dict[str, Demand]:
    """The latest of each deployment, by name."""
    return {r["deployment"]: Demand(r["deployment"], r["at"], r["waiting"]) for r in rows(db, "SELECT * FROM demand")}


@dataclass(frozen=True, slots=True)
class _Said:
    """By every gateway there ever was, as the file has it."""

    demand: Mapping[str, Demand] = field(default_factory=dict)
    loads: Sequence[tuple[str, Load]] = ()  # with the gateway's name
    served: Sequence[tuple[str, Served]] = ()
    held: Sequence[tuple[str, str, int]] = ()  # replica, the gateway's name, requests that it has there


class DemandReader:
    """The controller's look at the gateways' file. What cannot be read now is as it was last read.

    Whether a gateway lives is told by whether it says anything new, not by its clock, which may be set.
    """

    def __init__(self, ledger_db: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = ledger_db
        self._monotonic = monotonic
        self._db: Database | None = None
        self._version: int | None = None
        self._said = _Said()
        self._heard: dict[str, tuple[str, float]] = {}  # by gateway: its last word, and when that was new
        self._failure: str | None = None

    def latest(self) -> Mapping[str, Demand]:
        """By the deployment's name; empty while no gateway has ever run here."""
        return self._read().demand

    def loads(self) -> Mapping[str, Load]:
        """By the deployment's name: what the gateways that live have to do; none of those that no such one knows."""
        found: dict[str, Load] = {}
        said, alive = self._read(), self._alive()
        for gateway, load in said.loads:
            if gateway in alive and load.deployment != HEARTBEAT:
                before = found.get(load.deployment)
                found[load.deployment] = load if before is None else _together(before, load)
        return found

    def served(self) -> Mapping[str, Served]:
        """By the replica's id.

        `outstanding` counts what gateways that live say they have there, and what those have that can no longer speak:
        one that was taken over from finishes its streams, and their holds are in the ledger.
        """
        said, alive = self._read(), self._alive()
        at = min(alive.values(), default="")
        outstanding: Counter[str] = Counter()
        for gateway, one in said.served:
            outstanding[one.replica] += (one.outstanding or 0) if gateway in alive else 0
        for replica, gateway, held in said.held:
            outstanding[replica] += held if gateway not in alive else 0
        found: dict[str, Served] = {}
        for _, one in said.served:
            before = found.get(one.replica) or Served(one.replica, at, outstanding[one.replica] if alive else None)
            found[one.replica] = Served(
                one.replica,
                before.at if alive else max(before.at, one.at),
                before.outstanding,
                before.requests + one.requests,
                before.failures + one.failures,
                before.first_outputs + one.first_outputs,
                before.first_output_s + one.first_output_s,
            )
        return found

    def close(self) -> None:
        if self._db is not None:
            self._db.close()

    def _alive(self) -> dict[str, str]:
        """The gateways that live, and when each of them last spoke."""
        now = self._monotonic()
        return {name: at for name, (at, heard) in self._heard.items() if now - heard <= GATEWAY_LIVES_S}

    def _read(self) -> _Said:
        if self._db is None and not self._path.exists():
            return self._said
        try:
            if self._db is None:
                self._db = open_reader(self._path)
            if (version := data_version(self._db)) != self._version:
                self._said, self._version = _read(self._db), version
                self._hear()
            self._failure = None
        except (StorageError, sqlite3.Error) as e:
            if str(e) != self._failure:
                log.warning("what gateways have to do cannot be read: %s", e)
            self._failure = str(e)
        return self._said

    def _hear(self) -> None:
        now = self._monotonic()
        lately = clock.text(clock.parse(clock.now()) - timedelta(seconds=GATEWAY_LIVES_S))
        heard = {}
        for gateway, load in self._said.loads:
            if load.deployment == HEARTBEAT:
                at, moment = self._heard.get(gateway) or (
                    load.at,
                    now if load.at >= lately else now - 2 * GATEWAY_LIVES_S,
                )
                heard[gateway] = (at, moment) if load.at == at else (load.at, now)
        self._heard = heard


def _read(db: Database) -> _Said:
    with snapshot(db):
        if not rows(db, "SELECT 1 FROM sqlite_master WHERE name = 'served'"):
            return _Said(demand(db))  # the gateway is of a Headgate before that: the controller is updated first
        return _Said(
            demand(db),
            [(r["gateway"], Load(r["deployment"], *tuple(r)[2:])) for r in rows(db, "SELECT * FROM load")],
            [(r["gateway"], Served(r["replica"], *tuple(r)[2:])) for r in rows(db, "SELECT * FROM served")],
            [tuple(r) for r in rows(db, "SELECT replica, journal, count(*) FROM holds GROUP BY replica, journal")],
        )


def _together(one: Load, other: Load) -> Load:
    return Load(
        one.deployment,
        min(one.at, other.at),
        one.running + other.running,
        one.running_tokens + other.running_tokens,
        one.queued + other.queued,
        one.queued_tokens + other.queued_tokens,
        max(one.waited_s, other.waited_s),
    )
