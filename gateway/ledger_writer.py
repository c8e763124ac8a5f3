"""The one thread that writes the ledger: whatever is queued becomes one transaction (group commit).

Handlers await the commit of their hold before they dispatch, and hand in the rest without waiting. What is owed to the
ledger (settlements and releases) survives a failed write: it is tried again, first, until it is written.

A step that the ledger refuses fails alone. Should the thread die of anything else, the process ends at once, so that
whoever manages it starts it again: nothing can be billed any more, and the next start settles what was open.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.errors import BadRequest, LedgerUnwritable
from registry import ledger
from registry.db import Conflict, Database, StorageError

log = logging.getLogger(__name__)

BATCH = 1000  # steps in one transaction at most
RETRY_S = 1.0  # between two attempts to write what is owed
STOPPED = "its writer has stopped"
DIED = 70  # the process's exit code: EX_SOFTWARE


def end_process() -> None:
    """Now, with its streams: each would go on unbilled. Only os._exit ends a process from a thread for certain."""
    os._exit(DIED)


@dataclass(frozen=True, slots=True)
class _Queued:
    step: ledger.Step
    committed: asyncio.Future[None] | None  # None: nobody waits


class LedgerWriter:
    """Owns `db`, which must be open as its writer, from construction to close(). `died` is called in its thread."""

    def __init__(self, db: Database, loop: asyncio.AbstractEventLoop, died: Callable[[], object] = end_process) -> None:
        self._db = db
        self._died = died
        self._loop = loop
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self._failure: str | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str | None:
        """Why the last write failed; None when it did not."""
        return self._failure

    async def hold(self, hold: ledger.Hold) -> None:
        """Returns once the hold is committed. Raises LedgerUnwritable or BadRequest: then nothing may be sent."""
        committed: asyncio.Future[None] = self._loop.create_future()
        self._queue.put(_Queued(hold, committed))
        if self._stopped:  # looked at after queueing: the thread sets it before it empties the queue for the last time
            committed.cancel()
            raise LedgerUnwritable(self._failure or STOPPED)
        try:
            await committed
        except ledger.TooMuch as e:
            raise BadRequest(f"this request asks for too much: {e}") from e
        except (StorageError, Conflict) as e:
            raise LedgerUnwritable(str(e)) from e

    def record(self, step: ledger.Note | ledger.UsageEvent | ledger.Release) -> None:
        self._queue.put(_Queued(step, None))

    async def close(self) -> None:
        """Write what is queued, stop the thread, close the file."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._db.close()

    def _run(self) -> None:
        batch: list[_Queued] = []
        owed: list[_Queued] = []
        open_ = True
        alive = True
        try:
            while open_:
                batch, open_ = self._take(waiting=RETRY_S if owed else None)
                owed = self._write([*owed, *batch])
        except BaseException:
            alive = False
            log.critical("the ledger's writer died; the process ends", exc_info=True)
            raise
        finally:
            self._failure = self._failure or STOPPED
            self._stopped = True
            if owed:
                log.error("%d settlements could not be written: %s; they stay held", len(owed), self._failure)
            while not self._queue.empty():  # only after a bug in here: nobody shall wait for ever
                batch += filter(None, [self._queue.get()])
            self._tell(batch, [StorageError(self._failure)] * len(batch))
            if not alive:
                self._died()

    def _take(self, waiting: float | None) -> tuple[list[_Queued], bool]:
        """Up to BATCH queued steps, after waiting for the first; and whether more may come."""
        batch: list[_Queued] = []
        try:
            item = self._queue.get(timeout=waiting)
            while item is not None:
                batch.append(item)
                if len(batch) == BATCH:
                    return batch, True
                item = self._queue.get_nowait()
        except queue.Empty:
            return batch, True
        return batch, False

    def _write(self, batch: Sequence[_Queued]) -> list[_Queued]:
        """One transaction. Returns what is still owed when it failed."""
        if not batch:
            return []
        results: Sequence[Exception | None]
        owed: list[_Queued] = []
        try:
            results = ledger.record(self._db, [q.step for q in batch])
            self._failure = None
        except (StorageError, sqlite3.Error) as e:
            failure = StorageError(str(e))
            if self._failure is None:
                log.error("the ledger cannot be written: %s", e)
            self._failure = str(e)
            results = [failure] * len(batch)
            owed = [q for q in batch if isinstance(q.step, ledger.UsageEvent | ledger.Release)]
        for queued, result in zip(batch, results, strict=True):
            if isinstance(result, Conflict) and queued.committed is None:
                log.error("the ledger refused a step: %s", result)
        self._tell(batch, results)
        return owed

    def _tell(self, batch: Sequence[_Queued], results: Sequence[Exception | None]) -> None:
        waiting = [(q.committed, r) for q, r in zip(batch, results, strict=True) if q.committed is not None]
        if waiting:
            self._loop.call_soon_threadsafe(_wake, waiting)


def _wake(waiting: Sequence[tuple[asyncio.Future[None], Exception | None]]) -> None:
    for committed, error in waiting:
        if committed.done():  # its client left meanwhile
            continue
        if error is None:
            committed.set_result(None)
        else:
            committed.set_exception(error)
