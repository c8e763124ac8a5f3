"""The journal of one gateway process: an append-only file of the ledger's steps, in front of `ledger.db`.

A line is the CRC-32 of its body as 8 hex digits, a space, the body: one record (registry.steps.encode) or a list of
them (encode_all). Once `Journal.write` returns, it survives the death of the process; power loss from `sync_s` later (a
thread flushes what was written).

A journal is a row of segments, `NAME.NUMBER`: the process writes the last one and holds a lock on it for as long as it
lives, so that whoever reads a directory of journals (registry.projection) knows the dead from the living. Lines are
never taken back: readers may have acted on them.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import orjson

from registry.steps import Record

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20
SYNC_S = 0.008  # between two flushes: power loss costs what the last 10 ms brought
READ_BYTES = 1 << 19  # some 3,000 records, which become one transaction


def line(body: bytes) -> bytes:
    """A body as it stands in the file."""
    return b"%08x %b\n" % (crc32(body), body)


def parse(data: bytes) -> tuple[list[Record], int]:
    """The records of whole lines, and how many lines were none (torn by a power loss, say)."""
    records: list[Record] = []
    bad = 0
    for text in data.split(b"\n"):
        body = text[9:]
        try:
            sound = int(text[:8], 16) == crc32(body)
        except ValueError:
            sound = False
        if not sound:
            bad += bool(text)
        elif found := orjson.loads(body):  # a list of none tries whether a disk takes writes again
            if isinstance(found[0], list):
                records += found
            else:
                records.append(found)
    return records, bad


class Journal:
    """Opens a new journal in `directory`. Raises OSError. Not thread-safe: one thread writes.

    `broken` is called, in the flushing thread, when the disk reports that it lost what was written.
    """

    def __init__(
        self,
        directory: Path,
        broken: Callable[[OSError], object],
        segment_bytes: int = SEGMENT_BYTES,
        sync_s: float = SYNC_S,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.name = f"{time.time_ns():016x}-{os.getpid()}"
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._sync_s = sync_s
        self._broken = broken
        self._number = 0
        self._retired: list[int] = []  # segments that are full: to be flushed and closed
        self._fd = self._segment()
        self._end = 0
        self._dirty = False
        self._closed = False
        self._written = threading.Event()
        self._thread = threading.Thread(target=self._keep_flushing, name="journal-flush", daemon=True)
        self._thread.start()

    def write(self, lines: list[bytes]) -> None:
        """Append lines with one system call, and take from `lines` what is written: all of it, unless it raises.

        Raises OSError when the disk does not take them; the file stays whole lines.
        """
        data = b"".join(lines)
        # At an offset, so that half a line that could not be cut off is written over.
        written = os.pwrite(self._fd, data, self._end)
        if written != len(data):
            kept = data.rfind(b"\n", 0, written) + 1
            os.ftruncate(self._fd, self._end + kept)
            self._end += kept
            del lines[: data.count(b"\n", 0, kept)]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end += written
        lines.clear()
        self._dirty = True  # before the look at the event: see _keep_flushing
        if not self._written.is_set():
            self._written.set()
        if self._end >= self._segment_bytes:
            self._rotate()

    def close(self) -> None:
        """Flush and let go: from now on the journal counts as a dead process's. May block for a flush."""
        self._closed = True
        self._written.set()
        self._thread.join()
        try:
            self._flush()
        except OSError as e:
            self._broken(e)
        os.close(self._fd)
        self._fd = -1  # so that a late write fails, and does not land in whatever is opened next

    def _segment(self) -> int:
        """A new segment, locked before it can be seen."""
        path = self._directory / f"{self.name}.{self._number:06}"
        hidden = path.with_name(f".{path.name}")
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.rename(hidden, path)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _rotate(self) -> None:
        self._number += 1
        try:
            fd = self._segment()
        except OSError as e:  # written is what was asked for; the next write tries again
            self._number -= 1
            log.warning("the journal goes on in the same segment: %s", e)
            return
        self._retired.append(self._fd)
        self._fd, self._end = fd, 0

    def _keep_flushing(self) -> None:
        try:
            _flush_names(self._directory)
            while not self._closed:
                self._written.wait()
                self._dirty = False
                self._flush()
                time.sleep(self._sync_s)
                if not self._is_dirty():
                    self._written.clear()
                    if self._is_dirty():  # since the look above, by a writer who saw no need to wake us
                        self._written.set()
        except OSError as e:
            self._broken(e)

    def _is_dirty(self) -> bool:
        return self._dirty

    def _flush(self) -> None:
        if self._retired:
            _flush_names(self._directory)
        while self._retired:
            os.fdatasync(self._retired[0])
            os.close(self._retired.pop(0))
        os.fdatasync(self._fd)


def segments(directory: Path) -> dict[str, list[str]]:
    """The file names of each journal's segments, oldest first, by the journal's name."""
    found: dict[str, list[str]] = {}
    try:
        names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except FileNotFoundError:
        return {}
    for name in names:
        found.setdefault(name.partition(".")[0], []).append(name)
    return found


def lives(directory: Path, name: str) -> bool:
    """Whether the process that writes this journal is alive."""
    while True:
        newest = segments(directory)[name][-1]
        if _locked(directory / newest):
            return True
        # A segment is let go only after its successor stands in its place.
        if segments(directory)[name][-1] == newest:
            return False


def lines(path: Path, offset: int) -> Iterator[bytes]:
    """Whole lines from `offset` on, some READ_BYTES at a time, until there are no more."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = READ_BYTES
        while data := os.pread(fd, size, offset):
            end = data.rfind(b"\n") + 1
            if end:
                yield data[:end]
                offset += end
                size = READ_BYTES
            elif len(data) < size:
                return
            else:
                size *= 2
    finally:
        os.close(fd)


def _locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _flush_names(directory: Path) -> None:
    """A file is safe from power loss once its name is, too."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
