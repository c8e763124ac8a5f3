"""The thread that writes `ledger.db`: it follows the journals of this gateway and of every other on this state_dir.

Whoever holds the file's lock projects. A gateway that finds it taken looks again every turn: its journal is projected
by the other meanwhile, and the day that one lets go, this one takes over.

Should the thread die of a bug, the process ends at once, so that whoever manages it starts it again: what the journals
hold is not lost, and the next start projects it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from registry import ledger
from registry.db import AnotherWriter, Database, RegistryError, StorageError
from registry.projection import Projection
from registry.rollup import RollUp

log = logging.getLogger(__name__)

TURN_S = 0.08  # between two projections: large batches are cheap, small ones keep requests waiting less for a core
RETRY_S = 0.25  # after one that failed
LOCKED_MS = 2000  # waited for another connection's lock before that counts as a failure
ERRANDS = 1000  # kept while the file cannot be written; the oldest go first
STOPPED = "its writer has stopped"
DIED = 70  # the process's exit code: EX_SOFTWARE

Errand = Callable[[Database], object]


def end_process() -> None:
    """Now, with its streams: each would go on unbilled. Only os._exit ends a process from a thread for certain."""
    os._exit(DIED)


class Projector:
    """Raises StorageError when the ledger cannot be opened; that another process writes it is no failure.

    Once it is made, everything that ended gateways left is in the ledger, unless another process sees to that.
    `died` is called in the thread. `keep_months`: registry.settings.Ledger's.
    """

    def __init__(
        self, ledger_db: Path, journals: Path, died: Callable[[], object], keep_months: int | None = None
    ) -> None:
        self._path = ledger_db
        self._journals = journals
        self._died = died
        self._keep_months = keep_months
        self._roll_up: RollUp | None = None
        self.conflicts = 0  # steps that were refused since this process began
        self._db: Database | None = None
        self._projection: Projection | None = None
        self._errands: deque[Errand] = deque(maxlen=ERRANDS)
        self._stop = threading.Event()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="projector", daemon=True)
        try:
            self._project()
        except AnotherWriter:
            log.info("another gateway writes the ledger; this one takes over when it lets go")
        except (sqlite3.Error, OSError) as e:
            self._let_go()
            raise StorageError(f"{ledger_db}: {e}") from e
        except StorageError:
            self._let_go()
            raise

    @property
    def failure(self) -> str | None:
        """Why the ledger is not being written; None when it is, here or by another process."""
        return self._failure

    def start(self) -> None:
        self._thread.start()

    def run_soon(self, errand: Errand) -> None:
        """Run something on the ledger's connection, in transactions of its own. Any thread may ask."""
        self._errands.append(errand)

    def stop(self) -> None:
        """Project what is there for the last time, end the thread, and let go of the file. Blocks until then."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._let_go()
        if self._failure != STOPPED:
            self._failure = None  # whoever has the file now knows better

    def _run(self) -> None:
        try:
            while not self._stop.wait(RETRY_S if self._failure else TURN_S):
                self._turn()
            self._turn()
            if self._failure:
                log.error("the ledger cannot be written: %s; the journals keep what it lacks", self._failure)
        except BaseException:
            self._failure = STOPPED
            log.critical("the ledger's writer died; the process ends", exc_info=True)
            self._died()
            raise

    def _turn(self) -> None:
        try:
            self._project()
        except AnotherWriter:
            self._failure = None
        except (StorageError, sqlite3.Error, OSError) as e:
            if self._failure is None:
                log.error("the ledger cannot be written: %s", e)
            self._failure = str(e)
        else:
            self._failure = None

    def _project(self) -> None:
        if self._db is None:
            self._db = ledger.open_ledger(self._path)
            self._db.conn.execute(f"PRAGMA busy_timeout={LOCKED_MS}")
        if self._projection is None:
            if self._keep_months is not None:
                self._roll_up = RollUp(self._db, self._keep_months, lambda: datetime.now(UTC))
            self._projection = Projection(self._db, self._journals)
        try:
            self._projection.turn()
        finally:
            self.conflicts = self._projection.refused
        if self._errands:
            self._run_errands(self._db)
        if self._roll_up is not None:
            self._roll_up.turn()

    def _run_errands(self, db: Database) -> None:
        for _ in range(len(self._errands)):
            try:
                self._errands.popleft()(db)
            except (RegistryError, sqlite3.Error) as e:  # notes for others to read: what is billed is not at stake
                log.error("a note beside the ledger could not be written: %s", e)

    def _let_go(self) -> None:
        self._projection = self._roll_up = None
        if self._db is not None:
            self._db.close()
            self._db = None
