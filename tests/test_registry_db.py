"""One writer per file, on a local disk, with a schema that moves forward only."""

from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from registry import db as storage
from registry.db import Conflict, Database, StorageError, data_version, open_reader, open_writer, row, rows, transaction

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
tmpfs /run tmpfs rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local xfs rw 0 0
scratch /lustre/my\\040scratch lustre rw 0 0
user@host:/ /mnt/remote fuse.sshfs rw 0 0
ceph-fuse /mnt/ceph fuse.ceph-fuse rw 0 0
server:/d /mnt/données nfs rw 0 0
/dev/sdc1 /mnt/données/ssd btrfs rw 0 0
/dev/fuse /mnt/here fuse.mergerfs rw 0 0
"""


def m001_notes(db: Database) -> None:
    db.conn.execute("CREATE TABLE notes (text TEXT PRIMARY KEY)")


def m002_blobs(db: Database) -> None:
    db.conn.execute("CREATE TABLE blobs (data BLOB)")


def m002_broken(db: Database) -> None:
    db.conn.execute("CREATE TABLE half (a TEXT)")
    db.conn.execute("this is not SQL")


def applied(db: Database) -> list[str]:
    return [r["name"] for r in rows(db, "SELECT name FROM migrations ORDER BY name")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "truth.db"


def test_the_file_and_its_directory_are_made_and_nobody_else_may_read_it(path: Path) -> None:
    db = open_writer(path, [m001_notes])
    assert row(db, "PRAGMA journal_mode")[0] == "wal"
    with transaction(db) as c:
        c.execute("INSERT INTO notes VALUES ('secret')")
    files = list(path.parent.iterdir())
    assert {p.name for p in files} >= {"truth.db", "truth.db-wal"}
    assert [p.name for p in files if stat.S_IMODE(p.stat().st_mode) & 0o077] == []
    db.close()


def test_a_second_writer_is_refused_by_name_until_the_first_closes(path: Path) -> None:
    first = open_writer(path, [m001_notes])
    with pytest.raises(StorageError, match=r"truth\.db: another process is its writer already"):
        open_writer(path, [m001_notes])
    first.close()
    open_writer(path, [m001_notes]).close()


def test_a_writer_that_failed_to_open_keeps_nobody_out(path: Path) -> None:
    with pytest.raises(StorageError):
        open_writer(path, [m001_notes, m002_broken])
    open_writer(path, [m001_notes]).close()


def test_what_is_no_database_is_refused_by_name(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(StorageError, match=r"truth\.db: file is not a database"):
        open_writer(path, [])
    with pytest.raises(StorageError, match=r"truth\.db: cannot be read"):
        open_reader(path)


def test_a_reader_reads_what_was_committed_and_cannot_write(path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be read"):
        open_reader(path)
    writer = open_writer(path, [m001_notes])
    reader = open_reader(path)
    with transaction(writer) as c:
        c.execute("INSERT INTO notes VALUES ('a')")
        assert rows(reader, "SELECT * FROM notes") == []
    assert [r["text"] for r in rows(reader, "SELECT * FROM notes")] == ["a"]
    with pytest.raises(StorageError, match="readonly"), transaction(reader) as c:
        c.execute("INSERT INTO notes VALUES ('b')")
    reader.close()
    writer.close()


def test_a_reader_notices_a_commit_by_the_data_version_and_a_rollback_changes_nothing(path: Path) -> None:
    writer, reader = open_writer(path, [m001_notes]), open_reader(path)
    before = data_version(reader)
    assert data_version(reader) == before
    with pytest.raises(KeyError), transaction(writer) as c:
        c.execute("INSERT INTO notes VALUES ('gone')")
        raise KeyError
    assert data_version(reader) == before
    with transaction(writer) as c:
        c.execute("INSERT INTO notes VALUES ('a')")
    assert data_version(reader) != before
    reader.close()
    writer.close()


def test_every_read_of_a_snapshot_sees_one_state(path: Path) -> None:
    writer, reader = open_writer(path, [m001_notes]), open_reader(path)
    with storage.snapshot(reader):
        assert rows(reader, "SELECT * FROM notes") == []
        with transaction(writer) as c:
            c.execute("INSERT INTO notes VALUES ('a')")
        assert rows(reader, "SELECT * FROM notes") == []
    assert len(rows(reader, "SELECT * FROM notes")) == 1
    reader.close()
    writer.close()


# -- migrations -------------------------------------------------------------------------------------------------------


def test_migrations_are_applied_once_and_in_order(path: Path) -> None:
    open_writer(path, [m001_notes]).close()
    db = open_writer(path, [m001_notes, m002_blobs])
    assert applied(db) == ["m001_notes", "m002_blobs"]
    assert rows(db, "SELECT * FROM blobs") == []
    db.close()


def test_a_migration_that_fails_leaves_nothing_of_itself(path: Path) -> None:
    with pytest.raises(StorageError, match="syntax error"):
        open_writer(path, [m001_notes, m002_broken])
    db = open_writer(path, [m001_notes])
    assert applied(db) == ["m001_notes"]
    assert row(db, "SELECT 1 FROM sqlite_master WHERE name = 'half'") is None
    db.close()


def test_a_file_written_by_a_newer_headgate_is_refused(path: Path) -> None:
    open_writer(path, [m001_notes, m002_blobs]).close()
    with pytest.raises(StorageError, match="written by a newer Headgate: migrations m002_blobs are not known here"):
        open_writer(path, [m001_notes])


# -- transactions -----------------------------------------------------------------------------------------------------


def test_a_block_that_raises_leaves_nothing_and_the_next_one_works(path: Path) -> None:
    db = open_writer(path, [m001_notes])
    with pytest.raises(KeyError), transaction(db) as c:
        c.execute("INSERT INTO notes VALUES ('a')")
        raise KeyError
    with transaction(db) as c:
        c.execute("INSERT INTO notes VALUES ('b')")
    assert [r["text"] for r in rows(db, "SELECT * FROM notes")] == ["b"]
    db.close()


def test_a_full_disk_is_a_storage_error_and_rolls_back(path: Path) -> None:
    db = open_writer(path, [m001_notes, m002_blobs])
    pages = row(db, "PRAGMA page_count")[0]
    db.conn.execute(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(StorageError, match=r"cannot be written: .*full"), transaction(db) as c:
        c.execute("INSERT INTO notes VALUES ('a')")
        c.execute("INSERT INTO blobs VALUES (zeroblob(1000000))")
    assert rows(db, "SELECT * FROM notes") == []
    with transaction(db) as c:
        c.execute("INSERT INTO notes VALUES ('b')")
    assert len(rows(db, "SELECT * FROM notes")) == 1
    db.close()


def test_a_row_that_breaks_the_schemas_rules_is_a_conflict(path: Path) -> None:
    db = open_writer(path, [m001_notes])
    with pytest.raises(Conflict, match=r"UNIQUE constraint failed: notes\.text"), transaction(db) as c:
        c.execute("INSERT INTO notes VALUES ('a')")
        c.execute("INSERT INTO notes VALUES ('a')")
    assert rows(db, "SELECT * FROM notes") == []
    db.close()


def test_a_file_that_somebody_keeps_locked_is_a_storage_error(path: Path) -> None:
    db = open_writer(path, [m001_notes])
    db.conn.execute("PRAGMA busy_timeout = 50")
    intruder = sqlite3.connect(path, isolation_level=None)
    intruder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked"), transaction(db):
        raise AssertionError("entered although another connection holds the lock")
    intruder.close()
    db.close()


def test_another_thread_may_be_the_one_that_writes(path: Path) -> None:
    db = open_writer(path, [m001_notes])

    def write() -> None:
        with transaction(db) as c:
            c.execute("INSERT INTO notes VALUES ('from a thread')")

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert len(rows(db, "SELECT * FROM notes")) == 1
    db.close()


# -- where the file stands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/home/a/registry.db", "nfs4"),
        ("/lustre/my scratch/registry.db", "lustre"),
        ("/mnt/remote/registry.db", "fuse.sshfs"),
        ("/mnt/ceph/registry.db", "fuse.ceph-fuse"),
        ("/mnt/données/registry.db", "nfs"),
    ],
)
def test_a_remote_file_system_is_refused_with_its_type_and_the_remedy(place: str, kind: str) -> None:
    with pytest.raises(
        StorageError, match=rf"stands on {kind} .* set state_dir to a directory on this host's own disk"
    ):
        storage.refuse_remote(Path(place), MOUNTS)


@pytest.mark.parametrize(
    "place",
    ["/var/registry.db", "/home/local/registry.db", "/homework/registry.db", "/run/registry.db", "/mnt/here/x.db",
     "/mnt/données/ssd/x.db"],
)  # fmt: skip
def test_a_local_file_system_is_accepted(place: str) -> None:
    storage.refuse_remote(Path(place), MOUNTS)


def test_the_mount_made_last_over_a_directory_counts() -> None:
    mounts = "/dev/sda1 / ext4 rw 0 0\nautofs /data autofs rw 0 0\nserver:/data /data nfs rw 0 0\n"
    with pytest.raises(StorageError, match="stands on nfs"):
        storage.refuse_remote(Path("/data/registry.db"), mounts)


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "state").symlink_to("/home/a")
    with pytest.raises(StorageError, match="stands on nfs4"):
        storage.refuse_remote(tmp_path / "state" / "registry.db", MOUNTS)
