"""A month of the ledger as a file: the same rows in each format, in memory that does not grow; and a copy of it all."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from registry import ledger, ledger_backup
from registry.db import Conflict, Database, NotFound, StorageError, open_reader, transaction
from registry.ledger import Attempt, Hold, Outcome, UsageEvent
from registry.ledger_export import TABLES, Format, export, whole_file
from registry.rollup import RollUp

CUT = datetime(2026, 11, 30, 23, 59, 59, 999999, tzinfo=UTC)


def used(number: int, tenant: str, ended_at: str, completion: int = 5) -> list[Hold | UsageEvent]:
    attempt = Attempt(f"{number:024x}:1", tenant, "k1", "tiny", "r1", "chat", "2026-11-01T00:00:00.000000Z", "ada")
    outcome = Outcome.COMPLETED if completion else Outcome.ORPHANED
    return [Hold(attempt, 10, 100), UsageEvent(attempt, 7, completion, 17, outcome, ended_at, 2, 1)]


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Database]:
    with closing(ledger.open_ledger(tmp_path / "ledger.db")) as db:
        for n, (tenant, at) in enumerate(
            [
                ("physics", "2026-10-31T23:59:59.999999Z"),
                ("physics", "2026-11-01T00:00:00.000000Z"),
                ('he said "no, yes"\n', "2026-11-15T12:00:00.250000Z"),
                ("physics", "2026-11-30T23:59:59.999999Z"),
                ("physics", "2026-12-01T00:00:00.000000Z"),
            ]
        ):
            assert ledger.record(db, used(n, tenant, at, completion=n)) == [None, None]
        yield db


def exported(db: Database, form: Format, table: str = "events", tenant: str | None = None) -> bytes:
    file = io.BytesIO()
    export(db, table, "2026-11", tenant, form, file)
    return file.getvalue()


def as_rows(form: Format, data: bytes) -> list[dict[str, Any]]:
    """With the types that the format has."""
    match form:
        case Format.CSV:
            return list(csv.DictReader(io.StringIO(data.decode(), newline="")))
        case Format.JSONL:
            return [json.loads(line) for line in data.splitlines()]
        case Format.PARQUET:
            rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(data)).to_pylist()
            return rows


@pytest.mark.parametrize("form", Format)
def test_a_month_begins_and_ends_in_utc_and_its_events_are_all_there(book: Database, form: Format) -> None:
    rows = as_rows(form, exported(book, form))
    assert [int(r["completion_tokens"]) for r in rows] == [1, 2, 3]
    assert [r["tenant"] for r in rows] == ["physics", 'he said "no, yes"\n', "physics"]
    assert list(rows[0]) == list(TABLES["events"].columns)


def test_one_tenants_rows_are_its_own(book: Database) -> None:
    assert [r["tenant"] for r in as_rows(Format.JSONL, exported(book, Format.JSONL, tenant="physics"))] == [
        "physics",
        "physics",
    ]
    with pytest.raises(NotFound, match=r"(?s)tenant 'nobody'; there are: he said .*, physics$"):
        exported(book, Format.JSONL, tenant="nobody")


def test_parquet_has_integers_and_instants_and_json_has_integers(book: Database) -> None:
    last = as_rows(Format.PARQUET, exported(book, Format.PARQUET))[-1]
    assert last["ended_at"] == CUT and last["microcredits"] == 17 and last["cached_tokens"] == 2
    schema = pq.read_schema(pa.BufferReader(exported(book, Format.PARQUET)))
    assert schema.field("ended_at").type == pa.timestamp("us", tz="UTC")
    assert schema.field("microcredits").type == pa.int64()
    assert as_rows(Format.JSONL, exported(book, Format.JSONL))[-1]["ended_at"] == "2026-11-30T23:59:59.999999Z"


@pytest.mark.parametrize("form", Format)
def test_a_month_without_rows_is_a_file_without_rows(book: Database, form: Format) -> None:
    file = io.BytesIO()
    assert export(book, "events", "2020-01", None, form, file) == 0
    assert as_rows(form, file.getvalue()) == []


def test_entries_sum_to_zero_and_days_to_their_events(book: Database) -> None:
    month = datetime.now(UTC).strftime("%Y-%m")  # entries are of when they were posted
    file = io.BytesIO()
    assert export(book, "entries", month, None, Format.JSONL, file) == 10
    entries = as_rows(Format.JSONL, file.getvalue())
    assert [e["seq"] for e in entries] == list(range(1, 11))
    assert all(e["available"] + e["held"] + e["consumed"] == 0 for e in entries)
    days = as_rows(Format.JSONL, exported(book, Format.JSONL, "daily"))
    assert sum(d["completion_tokens"] for d in days) == 6 and sum(d["requests"] for d in days) == 3
    assert [d["day"] for d in days] == sorted(d["day"] for d in days)


def test_a_month_that_was_rolled_up_says_what_is_left_of_it(book: Database) -> None:
    rolling = RollUp(book, 1, lambda: datetime(2027, 1, 15, tzinfo=UTC))
    while rolling.turn():
        pass
    for table in ("events", "entries"):
        with pytest.raises(Conflict, match=r"2026-11 is rolled up.*daily"):
            exported(book, Format.CSV, table)
    assert exported(book, Format.CSV, "daily")


def test_entries_of_a_month_are_all_there_or_refused_after_a_roll_up(tmp_path: Path) -> None:
    posted = {"2026-10-31T23:00": 1, "2026-11-01T01:00": 2, "2026-12-02T00:00": 3}  # events end at 23:59:59 in October
    with closing(ledger.open_ledger(tmp_path / "ledger.db")) as db:
        for at, n in posted.items():
            ended = f"{at}:00.000000Z" if n == 3 else "2026-10-31T22:59:59.000000Z"
            with transaction(db) as c:
                ledger.write(c, used(n, "physics", ended), f"{at}:01.000000Z")
        rolling = RollUp(db, 1, lambda: datetime(2026, 12, 3, tzinfo=UTC))
        while rolling.turn():
            pass
        for month in ("2026-10", "2026-11"):  # the second event's entries were posted in November
            with pytest.raises(Conflict, match=f"{month} is rolled up"):
                export(db, "entries", month, None, Format.CSV, io.BytesIO())
        file = io.BytesIO()
        assert export(db, "events", "2026-11", None, Format.CSV, file) == 0  # of those it has lost none
        assert export(db, "entries", "2026-12", None, Format.JSONL, file := io.BytesIO()) == 2
        assert [e["step"] for e in as_rows(Format.JSONL, file.getvalue())] == ["hold", "settle"], "nothing carried"


def test_a_file_that_fails_leaves_nothing_and_what_was_there_before(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_bytes(b"before")
    with pytest.raises(ValueError), whole_file(path) as file:
        file.write(b"half")
        raise ValueError
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"] and path.read_bytes() == b"before"
    with whole_file(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole" and path.stat().st_mode & 0o077 == 0


MANY = """
import resource, sys
from pathlib import Path
from registry import ledger_export
from registry.db import open_reader
db = open_reader(Path(sys.argv[1]))
form = ledger_export.Format(sys.argv[2])
with open("/dev/null", "wb") as sink:
    ledger_export.export(db, "events", "2026-10", None, form, sink)  # imports, and what is there once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = ledger_export.export(db, "events", "2026-11", None, form, sink)
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("form", Format)
def test_memory_does_not_grow_with_the_month(book: Database, tmp_path: Path, form: Format) -> None:
    rows = 60_000  # 20 MB as JSON
    book.conn.execute(
        f"""WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
            INSERT INTO usage_events SELECT printf('x%023x:1', i), tenant, key_id, model, replica, kind, started_at,
            user, prompt_tokens, completion_tokens, microcredits, outcome, ended_at, cached_tokens, reasoning_tokens
            FROM n JOIN (SELECT * FROM usage_events WHERE completion_tokens = 1)"""
    )
    book.conn.execute("UPDATE usage_totals SET tokens = tokens")  # another transaction: what was inserted is there
    words = [sys.executable, "-c", MANY, str(tmp_path / "ledger.db"), form]
    said = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, check=True).stdout
    count, grown_kib = map(int, said.split())
    assert count == rows + 3
    assert grown_kib < 32 << 10  # all of it at once would be 75 MiB and more


# -- a copy -----------------------------------------------------------------------------------------------------------


def test_a_copy_is_the_ledger_at_one_moment_while_it_is_written(
    book: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_backup, "PAGES", 1)
    to, looks = tmp_path / "copy.db", []

    def write_on(left: int, total: int) -> None:
        """Between two steps of the copy, as a gateway does: the copy neither waits for it nor begins anew."""
        looks.append(left)
        number = 100 + len(looks)
        assert ledger.record(book, used(number, "physics", "2026-11-20T00:00:00.000000Z")) == [None, None]

    size = ledger_backup.backup(tmp_path / "ledger.db", to, write_on)
    assert len(looks) > 5 and looks == sorted(looks, reverse=True)
    assert len(ledger.usage_events(book)) == 5 + len(looks)
    assert size == to.stat().st_size and not list(tmp_path.glob("*copy.db?*"))  # neither -wal, nor a temporary name
    with closing(open_reader(to)) as copy:
        assert len(ledger.usage_events(copy)) == 5 and ledger.check(copy) == []


def test_a_restored_copy_is_a_ledger_that_goes_on(book: Database, tmp_path: Path) -> None:
    ledger_backup.backup(tmp_path / "ledger.db", tmp_path / "copy.db")
    assert ledger.record(book, used(7, "physics", "2026-11-20T00:00:00.000000Z")) == [None, None]
    book.close()
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "copy.db").rename(tmp_path / "ledger.db")
    with closing(ledger.open_ledger(tmp_path / "ledger.db")) as db:
        assert len(ledger.usage_events(db)) == 5
        assert ledger.record(db, used(7, "physics", "2026-11-20T00:00:00.000000Z")) == [None, None]
        assert ledger.check(db) == []


def test_a_copy_replaces_nothing(book: Database, tmp_path: Path) -> None:
    to = tmp_path / "copy.db"
    to.write_bytes(b"mine")
    with pytest.raises(Conflict, match=r"copy\.db: is there already"):
        ledger_backup.backup(tmp_path / "ledger.db", to)
    assert to.read_bytes() == b"mine"


def test_of_two_copies_to_one_name_the_first_stays(book: Database, tmp_path: Path) -> None:
    to = tmp_path / "copy.db"

    def meanwhile(left: int, total: int) -> None:
        to.write_bytes(b"theirs")

    with pytest.raises(Conflict, match="is there already"):
        ledger_backup.backup(tmp_path / "ledger.db", to, meanwhile)
    assert to.read_bytes() == b"theirs" and not list(tmp_path.glob(".copy*"))


def test_a_ledger_that_does_not_add_up_is_not_copied_as_if_it_did(book: Database, tmp_path: Path) -> None:
    book.conn.execute("UPDATE balances SET consumed = consumed + 1")
    with pytest.raises(Conflict, match="not sound: tenant"):
        ledger_backup.backup(tmp_path / "ledger.db", tmp_path / "copy.db")
    assert not list(tmp_path.glob("*copy*"))


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"ledger\.db: cannot be read"):
        ledger_backup.backup(tmp_path / "ledger.db", tmp_path / "copy.db")
    with pytest.raises(StorageError, match=r"nowhere/copy\.db: cannot be written"):
        ledger_backup.backup(tmp_path / "ledger.db", tmp_path / "nowhere" / "copy.db")
