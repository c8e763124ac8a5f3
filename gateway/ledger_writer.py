"""The gateway's end of the ledger: steps go into a journal on the event loop, and from there into SQLite by a thread.

All steps of one turn of the loop go out in one write(), which survives kill -9; requests whose holds are among them are
dispatched after it. Only an answer that ends does not wait for the turn's end: its settlement is written, with all that
is pending, before its client hears of it. What is owed to the ledger (settlements and releases) survives a failed
write: it is tried again, first, until it is written.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from gateway.errors import BadRequest, LedgerUnwritable
from gateway.projector import STOPPED, Errand, Projector, end_process
from registry import journal, ledger
from registry.db import StorageError, open_reader
from registry.own_steps import JOURNALS
from registry.steps import Fields, Hold, Note, Release, TooMuch, UsageEvent, encode_all, fields, may_be_lost

log = logging.getLogger(__name__)

RETRY_S = 0.25  # between two attempts to write what is owed


class LedgerWriter:
    """Not thread-safe: `loop`'s thread uses it.

    Raises StorageError when the ledger or its journal cannot be opened for writing. Once it is made, all that ended
    gateways left is settled. `died` is called in a thread when the ledger can no longer be written because of a bug.
    `keep_months`: registry.settings.Ledger's.
    """

    def __init__(
        self,
        ledger_db: Path,
        loop: asyncio.AbstractEventLoop,
        died: Callable[[], object] = end_process,
        keep_months: int | None = None,
    ) -> None:
        self._path = ledger_db
        self._loop = loop
        self._died = died
        self._pending: list[Fields] = []
        self._waiting: list[tuple[Callable[[], object], Callable[[LedgerUnwritable], object]]] = []
        self._scheduled = False
        self._retry: asyncio.TimerHandle | None = None
        self._failure: str | None = None  # of the journal
        self._closed = False
        self.failed_writes = 0  # what was pending at one of them, and may be lost, is
        directory = ledger_db.parent / JOURNALS
        self._projector = Projector(ledger_db, directory, died, keep_months)
        try:
            self._journal = journal.Journal(directory, self._lost)
        except OSError as e:
            self._projector.stop()
            raise StorageError(f"{directory}: cannot be written: {e.strerror or e}") from e
        self._projector.start()

    @property
    def name(self) -> str:
        """No other gateway's: by it this one's holds are known, and what it says beside the ledger."""
        return self._journal.name

    @property
    def failure(self) -> str | None:
        """Why nothing can be billed now; None when it can."""
        return self._failure or self._projector.failure

    @property
    def unwritten(self) -> str | None:
        """Why the journal's last write failed, of which what is owed waits to be tried again; None when it did not."""
        return self._failure

    @property
    def conflicts(self) -> int:
        """Steps that the ledger refused since this process began; its table `conflicts` has them all."""
        return self._projector.conflicts

    def used(self, *periods: str) -> ledger.Used:
        """What is settled, as the ledger has it now. Raises StorageError."""
        db = open_reader(self._path)
        try:
            return ledger.used(db, *periods)
        except sqlite3.Error as e:
            raise StorageError(f"{self._path}: cannot be read: {e}") from e
        finally:
            db.close()

    def hold(self, hold: Hold) -> None:
        """To be journaled at the end of this turn of the loop. Raises LedgerUnwritable or BadRequest."""
        if self._closed or self._projector.failure is not None:
            raise LedgerUnwritable(self._projector.failure or STOPPED)
        try:
            self._pending.append(fields(hold))
        except TooMuch as e:
            raise BadRequest(f"this request asks for too much: {e}") from e
        self._schedule()

    def when_journaled(self, then: Callable[[], object], failed: Callable[[LedgerUnwritable], object]) -> None:
        """Call `then` once all holds so far are journaled, or `failed` when they cannot be: nothing may be sent.

        So all requests that arrive in one turn of the loop are dispatched after one write.
        """
        if self._pending:
            self._waiting.append((then, failed))
        else:
            then()

    def record(self, step: Note | UsageEvent | Release) -> None:
        """To be journaled at the end of this turn of the loop."""
        try:
            self._pending.append(fields(step))
        except TooMuch as e:
            log.error("the ledger refused a step: %s", e)
            return
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Journal now what is recorded. A failure is kept for the next attempt."""
        self._scheduled = False
        if self._pending:
            self._write()

    def on_projector(self, errand: Errand) -> None:
        """Run something on the ledger's connection within 100 ms, in the projector's thread and its own transactions.

        Nothing runs while another gateway has the ledger; the latest thousand wait until this one has it.
        """
        self._projector.run_soon(errand)

    async def stop_projecting(self) -> None:
        """Let go of the ledger, for the gateway that takes over; this one goes on journaling."""
        await asyncio.to_thread(self._projector.stop)

    async def close(self) -> None:
        """Journal and project what is pending, close the files. A second time does nothing."""
        if self._closed:
            return
        self.flush()
        self.flush()  # of what was recorded by those who waited for the first
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._pending:
            log.error("%d settlements could not be written: %s; they stay held", len(self._pending), self._failure)
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._journal.close()  # first: the projector treats it as any dead process's, and leaves nothing of it
        self._projector.stop()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            self._journal.write([journal.line(encode_all(self._pending))])
        except OSError as e:
            self._failed(e)
            for _, failed in waiting:
                failed(LedgerUnwritable(str(self._failure)))
        else:
            self._pending.clear()
            self._failure = None
            for then, _ in waiting:
                then()

    def _failed(self, error: OSError) -> None:
        self.failed_writes += 1
        if self._failure is None:
            log.error("the journal cannot be written: %s", error)
        self._failure = f"the journal cannot be written: {error.strerror or error}"
        # Running counts come again, and what is held for is not dispatched; what is owed does not come again.
        self._pending = [step for step in self._pending if not may_be_lost(step)]
        if self._retry is None and not self._closed:
            self._retry = self._loop.call_later(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if self._failure is not None:
            self._write()  # of nothing, too: that tells whether the disk takes writes again

    def _lost(self, error: OSError) -> None:
        """The disk lost what it had taken. Whatever goes on now would be billed on sand."""
        log.critical("the journal could not be flushed; the process ends: %s", error)
        self._died()
