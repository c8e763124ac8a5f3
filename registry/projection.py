"""`ledger.db` as the image of the journals in a directory, brought up to date by whoever holds the file's lock.

How far each segment is projected is written in the transaction that writes its records, so that every record counts
exactly once, whenever this process ends. A segment is deleted only behind that, and the file's commits are flushed.
"""

from __future__ import annotations

import logging
from pathlib import Path

from registry import clock, journal, ledger, ledger_bulk
from registry.db import Database, rows, transaction

log = logging.getLogger(__name__)


class Projection:
    """Owns nothing: `db` is open as its writer, and stays its owner's."""

    def __init__(self, db: Database, directory: Path) -> None:
        db.conn.execute("PRAGMA synchronous=FULL")  # what was projected must survive the power loss that a journal did
        self._db = db
        self._directory = directory
        self._offsets: dict[str, int] = {r[0]: r[1] for r in rows(db, "SELECT segment, offset FROM journals")}
        self._settle_leftovers()

    def turn(self) -> None:
        """Project all there is; settle the holds of dead processes, and delete what is no longer needed.

        Raises StorageError, sqlite3.Error or OSError when a file cannot be read or written; the next turn goes on.
        """
        ended: list[str] = []  # names of segments that are in the ledger to their last record
        for name, segments in journal.segments(self._directory).items():
            alive = journal.lives(self._directory, name)  # before reading: what a dead process left is all there is
            if not alive:
                segments = journal.segments(self._directory)[name]
            for segment in segments:
                self._catch_up(name, segment)
            if alive:
                ended += segments[:-1]
            else:
                self._bury(name)
                ended += segments
        for segment in ended:
            (self._directory / segment).unlink()
        self._forget([s for s in ended if s in self._offsets])

    def _catch_up(self, name: str, segment: str) -> None:
        offset = self._offsets.get(segment, 0)
        for data in journal.lines(self._directory / segment, offset):
            records, bad = journal.parse(data)
            if bad:
                log.error("journal %s: %d lines after byte %d are torn and skipped", segment, bad, offset)
            offset += len(data)
            with transaction(self._db) as c:
                refused = ledger_bulk.write(c, records, clock.now(), name)
                c.execute("INSERT OR REPLACE INTO journals VALUES (?, ?)", (segment, offset))
            self._offsets[segment] = offset
            for why in refused:
                log.error("the ledger refused a step: %s", why)

    def _bury(self, name: str) -> None:
        """A dead process's journal is in the ledger: its requests are over."""
        living = [other for other in journal.segments(self._directory) if other != name]
        if orphans := ledger.settle_orphans(self._db, living):
            log.warning("settled %d requests that a gateway left open when it died", orphans)

    def _settle_leftovers(self) -> None:
        """Holds of journals that are gone, and of a Headgate that had none."""
        here = journal.segments(self._directory)
        if orphans := ledger.settle_orphans(self._db, here):
            log.warning("settled %d requests that a gateway left open when it died", orphans)
        existing = {segment for segments in here.values() for segment in segments}
        self._forget([s for s in self._offsets if s not in existing])

    def _forget(self, segments: list[str]) -> None:
        if segments:
            with transaction(self._db) as c:
                c.executemany("DELETE FROM journals WHERE segment = ?", [(s,) for s in segments])
            for segment in segments:
                del self._offsets[segment]
