"""Complete checkpoints, by run and iteration. A checkpoint is recorded only after its manifest was written."""

from __future__ import annotations

from dataclasses import dataclass

from registry import clock
from registry.db import Database, NotFound, row, rows, transaction


@dataclass(frozen=True, slots=True)
class Checkpoint:
    id: str  # RUN/ITERATION
    run: str
    owner: str
    iteration: int
    path: str
    bytes: int
    manifest_sha256: str
    created_at: str
    pruned_at: str | None = None


def add(
    db: Database, run: str, owner: str, *, iteration: int, path: str, size: int, manifest_sha256: str
) -> Checkpoint:
    """Idempotent: the same run and iteration again (a resumed attempt wrote it once more) replaces the facts."""
    with transaction(db) as c:
        c.execute(
            """INSERT INTO checkpoints (id, run, owner, iteration, path, bytes, manifest_sha256, created_at)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run, iteration) DO UPDATE SET path = excluded.path,
               bytes = excluded.bytes, manifest_sha256 = excluded.manifest_sha256, pruned_at = NULL""",
            (f"{run}/{iteration}", run, owner, iteration, path, size, manifest_sha256, clock.now()),
        )
    return get(db, f"{run}/{iteration}")


def prune(db: Database, run: str, iteration: int) -> None:
    """It was deleted, as its run's retention or its owner wanted. What was made of it stays, and names it."""
    with transaction(db) as c:
        c.execute("UPDATE checkpoints SET pruned_at = ? WHERE run = ? AND iteration = ?", (clock.now(), run, iteration))


def get(db: Database, ref: str) -> Checkpoint:
    """By id (RUN/ITERATION), or by run id or run name: then its newest. Of several runs of a name the newest counts
    that has what is asked for."""
    run, _, iteration = ref.partition("/")
    found = row(db, "SELECT * FROM checkpoints WHERE id = ? AND pruned_at IS NULL", ref) or row(
        db,
        "SELECT c.* FROM checkpoints c JOIN runs r ON r.id = c.run "
        "WHERE ? IN (r.id, r.name) AND ? IN ('', CAST(c.iteration AS TEXT)) AND pruned_at IS NULL "
        "ORDER BY r.created_at DESC, c.iteration DESC",
        run,
        iteration,
    )
    if found is None:
        raise NotFound(f"no complete checkpoint is called {ref!r} (RUN or RUN/ITERATION); see `headgate checkpoints`")
    return Checkpoint(**dict(found))


def everything(db: Database) -> list[Checkpoint]:
    """Those that are there."""
    there = "SELECT * FROM checkpoints WHERE pruned_at IS NULL ORDER BY created_at, iteration"
    return [Checkpoint(**dict(r)) for r in rows(db, there)]


def of_run(db: Database, run: str) -> list[Checkpoint]:
    """Those of it that are there, by iteration."""
    there = "SELECT * FROM checkpoints WHERE run = ? AND pruned_at IS NULL ORDER BY iteration"
    return [Checkpoint(**dict(r)) for r in rows(db, there, run)]
