"""Who is asked for: the gateway writes into `ledger.db` when each deployment was last called, the controller reads it.

That is what wakes a deployment of which no replica runs, and keeps one running that is used.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from registry.db import Database, StorageError, data_version, open_reader, rows, transaction

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
    """What became of the requests that a replica was given: counts since it was first given one, of all gateways."""

    replica: str
    at: str  # when it was last said
    outstanding: int  # given to it and not done, by the gateways that live
    requests: int  # that ended, whatever came of them
    failures: int  # of these, the replica's own: refused, lost, a 5xx, an abort, silence
    first_outputs: int  # of how many the time to the first output is known,
    first_output_s: float  # and the sum of those times, in seconds


GATEWAY_LIVES_S = 15.0  # a gateway that has said nothing for so long has nothing running


def note_demand(db: Database, noted: Iterable[Demand]) -> None:
    """The gateway's writer only. Time never goes backwards. Raises StorageError."""
    with transaction(db) as c:
        c.executemany(
            """INSERT INTO demand (deployment, at, waiting) VALUES (?, ?, ?)
               ON CONFLICT (deployment) DO UPDATE SET at = max(at, excluded.at), waiting = excluded.waiting""",
            [(d.deployment, d.at, d.waiting) for d in noted],
        )


def demand(db: Database) -> dict[str, Demand]:
    """The latest of each deployment, by name."""
    return {r["deployment"]: Demand(r["deployment"], r["at"], r["waiting"]) for r in rows(db, "SELECT * FROM demand")}


class DemandReader:
    """The controller's look at the gateway's file. What cannot be read now is as it was last read."""

    def __init__(self, ledger_db: Path) -> None:
        self._path = ledger_db
        self._db: Database | None = None
        self._version: int | None = None
        self._latest: Mapping[str, Demand] = {}
        self._failure: str | None = None

    def latest(self) -> Mapping[str, Demand]:
        """By the deployment's name; empty while no gateway has ever run here."""
        if self._db is None and not self._path.exists():
            return self._latest
        try:
            if self._db is None:
                self._db = open_reader(self._path)
            if (version := data_version(self._db)) != self._version:
                self._latest, self._version = demand(self._db), version
            self._failure = None
        except (StorageError, sqlite3.Error) as e:
            if str(e) != self._failure:
                log.warning("which deployments are called cannot be read: %s", e)
            self._failure = str(e)
        return self._latest

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
