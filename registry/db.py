"""Open the two files of durable truth, each with one writer: `registry.db` (controller) and `ledger.db` (gateway).

Both are SQLite in WAL mode on the service host's own disk. WAL needs shared memory between the processes that have the
file open, which network and parallel file systems do not give: there it corrupts silently, so it is refused.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlite_utils import Database as Database

Migration = Callable[[Database], None]

# Types as /proc/self/mounts spells them. fuse.* is judged by its second half.
REMOTE_FILE_SYSTEMS = frozenset(
    "9p afs beegfs ceph ceph-fuse cifs dfuse glusterfs gpfs juicefs lustre ncpfs nfs nfs4 orangefs pvfs2 s3fs smb3 "
    "smbfs sshfs weka wekafs".split()
)


MIN_FREE_BYTES = 16 << 20  # below this nothing is started: the first requests would find the disk full


class RegistryError(Exception):
    """The registry cannot do what was asked. Everything below says what, where and what is allowed."""


class StorageError(RegistryError):
    """The file cannot be opened or written: wrong file system, no space, no permission, another writer."""


class AnotherWriter(StorageError):
    """The file has a writer already, and only one process may be it."""


class NotFound(RegistryError):
    """No object of this kind has this name."""


class Conflict(RegistryError):
    """The name is taken, or the object is not in a state that allows this."""


class WrittenDatabase(Database):
    """A Database that holds the writer's lock for as long as it is open."""

    def __init__(self, connection: sqlite3.Connection, lock: int) -> None:
        super().__init__(connection)
        self._lock: int | None = lock

    def close(self) -> None:
        super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def open_writer(path: Path, migrations: Sequence[Migration]) -> Database:
    """Open a file as its one writer, bring its schema up to date, and keep every other writer out.

    Raises StorageError when the file system is remote, full or not writable, or another process writes it.
    """
    refuse_remote(path)
    require_room(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(fd)
        lock = os.open(f"{path}.writer", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StorageError(f"{path}: cannot be written: {e.strerror}") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise AnotherWriter(f"{path}: another process is its writer already (only one may be)") from None
    try:
        connection = sqlite3.connect(path, timeout=10, check_same_thread=False, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")
        db = WrittenDatabase(connection, lock)
        migrate(db, migrations)
    except sqlite3.Error as e:
        os.close(lock)
        raise StorageError(f"{path}: {e}") from e
    except StorageError:
        os.close(lock)
        raise
    return db


def open_reader(path: Path) -> Database:
    """Open a file that another process writes, read-only. Raises StorageError when it is not there yet."""
    refuse_remote(path)
    try:
        connection = sqlite3.connect(
            f"file:{path}?mode=ro", uri=True, timeout=10, check_same_thread=False, isolation_level=None
        )
        connection.row_factory = sqlite3.Row
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.Error as e:
        raise StorageError(f"{path}: cannot be read: {e}") from e
    return Database(connection)


def data_version(db: Database) -> int:
    """A number that changes when another connection has committed to this file."""
    return int(db.conn.execute("PRAGMA data_version").fetchone()[0])


def migrate(db: Database, migrations: Sequence[Migration]) -> None:
    """Apply what is missing, in order; applying and recording are one transaction each.

    Raises StorageError when the file was written by a newer Headgate.
    """
    connection = db.conn
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)")
    applied = [row[0] for row in connection.execute("SELECT name FROM migrations")]
    unknown = set(applied) - {m.__name__ for m in migrations}
    if unknown:
        raise StorageError(f"written by a newer Headgate: migrations {', '.join(sorted(unknown))} are not known here")
    for migration in migrations:
        if migration.__name__ in applied:
            continue
        with transaction(db):
            migration(db)
            connection.execute("INSERT INTO migrations VALUES (?, datetime('now'))", (migration.__name__,))


class transaction:
    """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK when the block raises. Inside another one: a part of that.

    A full disk becomes StorageError; a row that breaks the schema's rules becomes Conflict.
    """

    def __init__(self, db: Database) -> None:
        self.connection = db.conn
        self.outermost = True

    def __enter__(self) -> sqlite3.Connection:
        self.outermost = not self.connection.in_transaction
        if not self.outermost:
            return self.connection
        try:
            self.connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as e:
            raise StorageError(f"the registry cannot be written: {e}") from e
        return self.connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        if kind is not None:
            if self.outermost and self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise StorageError(f"the registry cannot be written: {error}") from error
            if isinstance(error, sqlite3.IntegrityError):
                raise Conflict(f"the registry refuses this: {error}") from error
            return
        if not self.outermost:
            return  # the outermost commits
        try:
            self.connection.execute("COMMIT")
        except sqlite3.OperationalError as e:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise StorageError(f"the registry cannot be written: {e}") from e


class snapshot:
    """Every read inside the block sees one state of the file, whatever its writer commits meanwhile."""

    def __init__(self, db: Database) -> None:
        self.connection = db.conn

    def __enter__(self) -> None:
        self.connection.execute("BEGIN")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        self.connection.execute("ROLLBACK")


def require_room(directory: Path) -> None:
    """Raise StorageError when the disk that holds (or will hold) `directory` is as good as full."""
    existing = next(p for p in (directory, *directory.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise StorageError(
            f"{directory}: the disk has {free >> 10:,} KiB left, and the registry and its logs want at least "
            f"{MIN_FREE_BYTES >> 10:,} KiB; free some, or set state_dir to another disk"
        )


def refuse_remote(path: Path, mounts: str | None = None) -> None:
    """Raise StorageError when `path` would stand on a network or parallel file system.

    `mounts` is the text of /proc/self/mounts; read from there when None.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return  # not Linux: nothing to judge by
    kind, point = file_system(path, mounts)
    if remote(kind):
        raise StorageError(
            f"{path}: stands on {kind} (mounted at {point}), where SQLite's WAL mode is not safe; "
            "set state_dir to a directory on this host's own disk"
        )


def remote(kind: str) -> bool:
    """Whether a type of file system (as /proc/self/mounts spells it) is a network or parallel one."""
    return kind.removeprefix("fuse.") in REMOTE_FILE_SYSTEMS


def remote_mounts(mounts: str) -> list[tuple[str, str]]:
    """(type, mount point) of every mount that may hold no registry."""
    return [(kind, point) for kind, point in _mounted(mounts) if remote(kind)]


def file_system(path: Path, mounts: str) -> tuple[str, str]:
    """(type, mount point) of the mount that holds `path`, by the longest mount point above it."""
    target = os.path.realpath(path)
    best = ("unknown", "")
    for kind, point in _mounted(mounts):
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[1]):
            best = (kind, point)
    return best


def _mounted(mounts: str) -> Iterator[tuple[str, str]]:
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) >= 3:
            # /proc writes a space as \040
            yield fields[2], re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[1])


def fields(of: type, found: sqlite3.Row) -> dict[str, Any]:
    """What a dataclass has of a row. Columns of a newer controller are left out: a gateway goes on beside it."""
    known = of.__dict__["__dataclass_fields__"]
    return {name: value for name, value in zip(found.keys(), found, strict=True) if name in known}


def row(db: Database, sql: str, *args: Any) -> sqlite3.Row | None:
    found: sqlite3.Row | None = db.conn.execute(sql, args).fetchone()
    return found


def rows(db: Database, sql: str, *args: Any) -> list[sqlite3.Row]:
    return db.conn.execute(sql, args).fetchall()
