"""A copy of `ledger.db` while a gateway goes on writing it, by SQLite's own backup.

All of it is read in one transaction, so the copy is the ledger at one moment; the writer waits for nobody, because
SQLite's WAL keeps what it writes apart meanwhile. The copy is a single file, proven sound before it has its name.

To restore one: stop the gateway (`headgate down`), remove ledger.db-wal and ledger.db-shm, put the copy in the place of
ledger.db, start the gateway. How far each journal was taken in is in the copy itself, so what the journals still have
is taken in again, exactly once. What came after the copy and whose journal is deleted since is not in it; a request
that was open then is settled at its last running count, like one whose gateway died at that moment.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from registry import ledger
from registry.db import Conflict, Database, StorageError, open_reader, snapshot

PAGES = 1024  # of 4 KiB, between two words on how far it is


def backup(ledger_db: Path, to: Path, progress: Callable[[int, int], object] = lambda left, total: None) -> int:
    """Copy the ledger; the size of the copy in bytes. `progress` is told how many pages are left, of how many.

    Raises Conflict when `to` is there already or the copy is not sound, StorageError when there is no ledger or the
    copy cannot be written; nothing is left at `to` then.
    """
    if to.exists():
        raise Conflict(f"{to}: is there already, and a backup replaces nothing")
    try:
        fd, whole = tempfile.mkstemp(prefix=f".{to.name}.", dir=to.parent)
    except OSError as e:
        raise StorageError(f"{to}: cannot be written: {e.strerror}") from e
    os.close(fd)
    try:
        _copy(ledger_db, whole, progress)
        os.link(whole, to)  # not a rename: what somebody put there meanwhile stays
    except FileExistsError as e:
        raise Conflict(f"{to}: is there already, and a backup replaces nothing") from e
    except (sqlite3.Error, OSError) as e:
        raise StorageError(f"{to}: cannot be written: {e}") from e
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(whole)
    return to.stat().st_size


def _copy(ledger_db: Path, to: str, progress: Callable[[int, int], object]) -> None:
    with closing(open_reader(ledger_db)) as source, closing(sqlite3.connect(to, isolation_level=None)) as copy:
        with snapshot(source):
            # Without a transaction that is open already, each commit of the gateway would begin the copy anew.
            source.conn.execute("SELECT 1 FROM sqlite_master").fetchone()
            source.conn.backup(copy, pages=PAGES, progress=lambda _, left, total: progress(left, total))
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a -wal beside it
        copy.row_factory = sqlite3.Row
        damage = [str(r[0]) for r in copy.execute("PRAGMA integrity_check(5)") if r[0] != "ok"]
        if wrong := damage or ledger.check(Database(copy)):
            raise Conflict(f"the copy of {ledger_db} is not sound: {'; '.join(wrong[:5])}")
        with open(to, "rb") as f:
            os.fsync(f.fileno())
