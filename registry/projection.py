"""`ledger.db` as the image of the journals in a directory, brought up to date by whoever holds the file's lock.

How far each segment is projected is written in the transaction that writes its records, so that every record counts
exactly once, whenever this process ends. A segment is deleted only behind that, and the file's commits are flushed.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from registry import clock, journal, ledger, ledger_bulk
from registry.db import Database, StorageError, rows, transaction
from registry.steps import decode

log = logging.getLogger(__name__)

CHECKPOINT_PAGES = 4000  # of 4 KiB; SQLite's own 1,000 are a second's worth here, and pages are copied more than once


class Projection:
    """Owns nothing: `db` is open as its writer, and stays its owner's."""

    def __init__(self, db: Database, directory: Path) -> None:
        db.conn.execute("PRAGMA synchronous=FULL")  # what was projected must survive the power loss that a journal did
        db.conn.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        self._db = db
        self._directory = directory
        self.refused = 0  # steps, so far: table `conflicts` has them
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
        if segment not in self._offsets:  # it is known before anything is held in it
            with transaction(self._db) as c:
                _note_offset(c, segment, 0)
            self._offsets[segment] = 0
        offset = self._offsets[segment]
        for data in journal.lines(self._directory / segment, offset):
            end = offset + len(data)
            try:
                self._write(name, segment, data, end)
            except ValueError as e:
                raise StorageError(f"journal {segment}, after byte {offset}: written by a newer Headgate: {e}") from e
            offset = self._offsets[segment] = end

    def _write(self, name: str, segment: str, data: bytes, end: int) -> None:
        """Whole lines of a segment, and that it is projected to `end`. Raises ValueError for what is no step."""
        records, bad = journal.parse(data)
        if bad:
            log.error("journal %s: %d lines before byte %d are torn and skipped", segment, bad, end)
        try:
            with transaction(self._db) as c:
                ledger_bulk.write(c, records, clock.now(), name)
                _note_offset(c, segment, end)
        except ledger_bulk.NotPlain:
            with transaction(self._db) as c:
                results = ledger.write(c, [decode(r) for r in records], clock.now(), name)
                _note_offset(c, segment, end)
            for refused in filter(None, results):
                self.refused += 1
                log.error("the ledger refused a step: %s", refused)

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


def _note_offset(c: sqlite3.Connection, segment: str, offset: int) -> None:
    c.execute("INSERT OR REPLACE INTO journals VALUES (?, ?)", (segment, offset))
