"""The journal's files, and the ledger as their image: torn, cut short, of dead and of living processes."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_for

from registry import journal, ledger, ledger_bulk, steps
from registry.db import Database, StorageError
from registry.journal import Journal
from registry.ledger import Attempt, Hold, Note, Outcome, Release, Step, UsageEvent
from registry.projection import Projection

ROOT = Path(__file__).resolve().parent.parent


def attempt(n: int) -> Attempt:
    return Attempt(f"event-{n:06}", "physics", "key-1", "tiny", "replica-1", "chat", "2026-01-01T12:00:00.000000Z")


def hold(n: int) -> Hold:
    return Hold(attempt(n), 100, 300)


def event(n: int) -> UsageEvent:
    return UsageEvent(attempt(n), 10, 20, 50, Outcome.COMPLETED, "2026-01-01T12:00:01.000000Z")


def lines(*some: Step) -> list[bytes]:
    return [journal.line(steps.encode(step)) for step in some]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = ledger.open_ledger(tmp_path / "ledger.db")
    yield db
    db.close()


@pytest.fixture
def living(directory: Path) -> Iterator[Journal]:
    journal = Journal(directory, pytest.fail)
    yield journal
    journal.close()


def of_dead(directory: Path, data: bytes, name: str = "dead.000000") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(data)
    return directory / name


def billed(db: Database) -> list[tuple[str, int, Outcome]]:
    assert ledger.check(db) == []
    return [(e.attempt.event_id, e.completion_tokens, e.outcome) for e in ledger.usage_events(db)]


def test_what_is_written_is_read_back_and_only_its_owner_may_read_it(directory: Path, living: Journal) -> None:
    living.write(lines(hold(1), event(1)))
    (path,) = directory.iterdir()
    assert path.name == f"{living.name}.000000"
    assert (directory.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    (data,) = journal.lines(path, 0)
    assert journal.parse(data) == ([steps.record(hold(1)), steps.record(event(1))], 0)


def test_the_last_line_is_read_when_it_is_whole(directory: Path) -> None:
    (one, two) = lines(hold(1), hold(2))
    path = of_dead(directory, one + two[:-1])
    assert list(journal.lines(path, 0)) == [one]
    with path.open("ab") as file:
        file.write(b"\n")
    assert list(journal.lines(path, len(one))) == [two]


def test_a_line_longer_than_one_reading_is_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "READ_BYTES", 16)
    some = lines(hold(1), event(1))
    assert b"".join(journal.lines(of_dead(directory, b"".join(some)), 0)) == b"".join(some)


def test_torn_lines_are_skipped_and_counted(directory: Path) -> None:
    (one, two) = lines(hold(1), hold(2))
    for torn in (b"\0" * 100 + b"\n", one[:50] + b"\n", one.replace(b"physics", b"biology"), b"zzzzzzzz []\n", b"x\n"):
        assert journal.parse(one + torn + two) == ([steps.record(hold(1)), steps.record(hold(2))], 1)
    assert journal.parse(journal.line(b"[]")) == ([], 0)


def test_a_line_of_several_steps_counts_whole_or_not_at_all() -> None:
    several = journal.line(steps.encode_all([steps.fields(hold(1)), steps.fields(event(1))]))
    both = [steps.record(hold(1)), steps.record(event(1))]
    assert journal.parse(several + lines(hold(2))[0]) == ([*both, steps.record(hold(2))], 0)
    assert journal.parse(several[:-9] + b"\n" + lines(hold(2))[0]) == ([steps.record(hold(2))], 1)


def test_a_disk_that_takes_half_a_write_keeps_its_whole_lines(directory: Path, living: Journal) -> None:
    (path,) = directory.iterdir()
    pending = lines(event(1), event(2), hold(3))
    wanted = list(pending)
    room = len(pending[0]) + len(pending[1]) // 2
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        for _ in range(2):
            with pytest.raises(OSError) as failure:
                living.write(pending)
            assert failure.value.errno in (errno.ENOSPC, errno.EFBIG)
            assert pending == wanted[1:]
            assert path.read_bytes() == wanted[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    living.write(pending)
    assert pending == []
    assert path.read_bytes() == b"".join(wanted)


def test_what_is_written_is_flushed_within_ten_milliseconds(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = threading.Event()
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        real(fd)
        flushed.set()

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    living = Journal(directory, pytest.fail)
    for n in range(20):
        flushed.clear()
        living.write(lines(hold(n)))
        assert flushed.wait(5), "what is written is flushed, however long nothing was"
        if n % 5 == 0:
            wait_for(lambda: not living._written.is_set(), every=0.001)  # the thread sleeps
    living.close()
    assert journal.SYNC_S < 0.010


def test_a_disk_that_loses_what_it_took_is_told_of(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fdatasync(fd: int) -> None:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    told: list[OSError] = []
    living = Journal(directory, told.append)
    living.write(lines(hold(1)))
    wait_for(lambda: told)
    living.close()
    assert told[0].errno == errno.EIO


def test_full_segments_are_followed_and_deleted_once_they_are_in_the_ledger(directory: Path, db: Database) -> None:
    living = Journal(directory, pytest.fail, segment_bytes=1000)
    projection = Projection(db, directory)
    for n in range(50):
        living.write(lines(hold(n)))
        living.write(lines(event(n - 7)) if n >= 7 else [])
        if n % 10 == 0:
            projection.turn()
            assert len(list(directory.iterdir())) == 1, "only the one that is written"
    projection.turn()
    assert len(ledger.usage_events(db)) == 43
    assert ledger.open_holds(db) == 7, "they are a living process's"
    living.close()
    projection.turn()
    assert ledger.open_holds(db) == 0
    assert list(directory.iterdir()) == []
    assert db.conn.execute("SELECT count(*) FROM journals").fetchone()[0] == 0
    assert ledger.check(db) == []


def test_a_dead_process_is_billed_what_it_noted_and_a_living_ones_holds_stay(
    directory: Path, db: Database, living: Journal
) -> None:
    living.write(lines(hold(1), hold(2)))
    of_dead(directory, b"".join(lines(hold(3), hold(4), hold(5), Note(attempt(4).event_id, 7, 3, 13), event(5))))
    projection = Projection(db, directory)
    projection.turn()
    assert billed(db) == [("event-000004", 3, Outcome.ORPHANED), ("event-000005", 20, Outcome.COMPLETED)]
    assert ledger.open_holds(db) == 2
    living.write(lines(event(1), Release(attempt(2).event_id)))
    projection.turn()
    assert [e[0][-1] for e in billed(db)] == ["1", "4", "5"]
    assert ledger.open_holds(db) == 0


def test_a_torn_tail_of_a_dead_process_takes_nothing_else_with_it(directory: Path, db: Database) -> None:
    whole = b"".join(lines(hold(1), event(1), hold(2)))
    path = of_dead(directory, whole + lines(event(2))[0][:-20])
    Projection(db, directory).turn()
    assert billed(db) == [("event-000001", 20, Outcome.COMPLETED)]
    assert ledger.open_holds(db) == 0
    assert not path.exists()


def test_a_projection_that_is_cut_off_anywhere_counts_every_record_once(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "READ_BYTES", 700)  # a few records to a transaction
    data = b"".join(line for n in range(12) for line in lines(hold(n), event(n)))

    class Cut(Exception):
        pass

    class Countdown:
        def __init__(self, left: int) -> None:
            self.left = left

        def tick(self) -> None:
            self.left -= 1
            if self.left == 0:
                raise Cut

    cuts = 0
    for left in range(1, 60):
        name = f"dead{left:03}.000000"
        path = of_dead(directory, data, name)
        db = ledger.open_ledger(tmp_path / f"{left}.db")
        count = Countdown(left)
        with monkeypatch.context() as patch:
            # Before and after each batch's rows, and before a segment is deleted: each in and out of its transaction.
            real_write, real_unlink = ledger_bulk.write, Path.unlink

            def write(*given: object, real=real_write, count=count) -> None:
                count.tick()
                real(*given)
                count.tick()

            def unlink(self: Path, real=real_unlink, count=count) -> None:
                count.tick()
                real(self)
                count.tick()

            patch.setattr(ledger_bulk, "write", write)
            patch.setattr(Path, "unlink", unlink)
            try:
                Projection(db, directory).turn()
            except Cut:
                cuts += 1
        db.close()
        db = ledger.open_ledger(tmp_path / f"{left}.db")
        Projection(db, directory).turn()
        Projection(db, directory).turn()
        assert len(billed(db)) == 12
        assert ledger.open_holds(db) == 0
        assert not path.exists()
        assert db.conn.execute("SELECT count(*) FROM journals").fetchone()[0] == 0
        db.close()
    assert 10 < cuts < 59, "from the first step to behind the last"


def test_holds_of_a_headgate_without_journals_are_settled(directory: Path, db: Database) -> None:
    ledger.record(db, [hold(1), Note(attempt(1).event_id, 7, 3, 13)])
    Projection(db, directory).turn()
    assert billed(db) == [("event-000001", 3, Outcome.ORPHANED)]


def test_a_ledger_that_cannot_be_written_gets_everything_later(directory: Path, db: Database, living: Journal) -> None:
    projection = Projection(db, directory)
    living.write(lines(hold(1), event(1)))
    db.conn.execute("PRAGMA query_only = 1")
    with pytest.raises(StorageError):
        projection.turn()
    db.conn.execute("PRAGMA query_only = 0")
    projection.turn()
    assert billed(db) == [("event-000001", 20, Outcome.COMPLETED)]


def test_steps_of_a_newer_headgate_are_refused_and_kept(directory: Path, db: Database) -> None:
    path = of_dead(directory, lines(hold(1))[0] + journal.line(b'["rebate","event-000001",5]'))
    with pytest.raises(StorageError, match="newer Headgate"):
        Projection(db, directory).turn()
    assert path.exists()
    assert billed(db) == [] and ledger.open_holds(db) == 0


def test_wrong_steps_are_told_of_and_take_nothing_else_with_them(
    directory: Path, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    twice = event(2)._replace(completion_tokens=21)
    of_dead(
        directory, b"".join(lines(hold(1), hold(2), hold(2)._replace(tokens=9), event(2), twice, event(3), event(1)))
    )
    projection = Projection(db, directory)
    projection.turn()
    assert billed(db) == [("event-000001", 20, Outcome.COMPLETED), ("event-000002", 20, Outcome.COMPLETED)]
    assert (
        projection.refused
        == 3
        == db.conn.execute("SELECT count(*) FROM conflicts WHERE journal = 'dead'").fetchone()[0]
    )
    refused = [r.message for r in caplog.records if "refused a step" in r.message]
    assert len(refused) == 3
    assert ["held already" in refused[0], "other contents" in refused[1], "nothing is held" in refused[2]] == [True] * 3


def test_what_a_process_journaled_outlives_its_kill(directory: Path, db: Database) -> None:
    program = f"""
import sys, time
from pathlib import Path
from registry import journal
living = journal.Journal(Path({str(directory)!r}), print)
living.write([bytes.fromhex(line) for line in sys.argv[1:]])
print("written", flush=True)
time.sleep(60)
"""
    hexed = [line.hex() for line in lines(hold(1), event(1), hold(2))]
    with subprocess.Popen([sys.executable, "-c", program, *hexed], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        projection = Projection(db, directory)
        projection.turn()
        assert ledger.open_holds(db) == 1, "its process lives"
        process.kill()
        process.wait()
        projection.turn()
    assert billed(db) == [("event-000001", 20, Outcome.COMPLETED)]
    assert ledger.open_holds(db) == 0
