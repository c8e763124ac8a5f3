"""Who is asked for: the gateway writes into `ledger.db` when each deployment was last called, the controller reads it.

That is what wakes a deployment of which no replica runs, and keeps one running that is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from registry.db import Database, rows, transaction


@dataclass(frozen=True, slots=True)
class Demand:
    deployment: str
    at: str  # when it was last called, or a request was still in flight; ISO 8601 in UTC
    waiting: int  # requests that waited then because no replica was ready


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
