"""The gateway's end of the ledger: what it refuses, what it keeps, who projects, and what happens when that dies."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway_fixtures import ROOT, prepared, site_at, until

from gateway import calls, projector
from gateway.admission import Admission
from gateway.billing import Billing
from gateway.calls import Kind
from gateway.errors import BadRequest, LedgerUnwritable
from gateway.ledger_writer import LedgerWriter
from gateway.metering import Meter, Usage
from gateway.projector import DIED
from registry import clock, journal, ledger
from registry.db import Database, StorageError, open_reader, open_writer, transaction
from registry.keys import LiveKey, Scope
from registry.ledger import Attempt, Hold, Note, Outcome, UsageEvent, Used
from registry.ledger_migrations import MIGRATIONS
from registry.projection import Projection
from registry.settings import Price
from registry.tenants import Tenant


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@asynccontextmanager
async def writing(path: Path, died: Callable[[], object] = pytest.fail) -> AsyncIterator[LedgerWriter]:
    writer = LedgerWriter(path, asyncio.get_running_loop(), died)
    try:
        yield writer
    finally:
        await writer.close()


def hold(event_id: str, tokens: int = 5) -> Hold:
    return Hold(Attempt(event_id, "physics", "key-1", "tiny", "replica-1", "chat", ""), tokens, tokens)


def event(event_id: str) -> UsageEvent:
    return UsageEvent(hold(event_id).attempt, 10, 20, 50, Outcome.COMPLETED, "2026-01-01T12:00:01.000000Z")


def books(path: Path) -> tuple[list[str], int]:
    """The ids of what is billed; and how much is held."""
    reader = open_reader(path)
    try:
        assert ledger.check(reader) == []
        return [e.attempt.event_id for e in ledger.usage_events(reader)], ledger.open_holds(reader)
    finally:
        reader.close()


def held(writer: LedgerWriter, hold: Hold) -> None:
    """Returns once the hold is journaled; raises what it could not be journaled for."""
    writer.hold(hold)
    failures: list[LedgerUnwritable] = []
    writer.when_journaled(lambda: None, failures.append)
    writer.flush()
    if failures:
        raise failures[0]


def journals(path: Path) -> list[Path]:
    return sorted((path.parent / "journal").iterdir())


def broken_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Journals cannot be written until the returned function is called."""
    write = journal.Journal.write

    def full(self: journal.Journal, lines: list[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal.Journal, "write", full)
    return lambda: monkeypatch.setattr(journal.Journal, "write", write)


async def test_a_hold_is_in_the_journal_when_it_returns_and_in_the_ledger_soon(path: Path) -> None:
    async with writing(path) as writer:
        held(writer, hold("one"))
        assert b'"one"' in journals(path)[0].read_bytes()
        writer.record(event("one"))
        assert b'"s"' not in journals(path)[0].read_bytes()
        await asyncio.sleep(0)
        assert b'"s"' in journals(path)[0].read_bytes()
        await until(lambda: books(path) == (["one"], 0))


async def test_what_is_recorded_goes_out_with_the_next_hold_in_one_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with writing(path) as writer:
        held(writer, hold("one"))
        writes: list[int] = []
        real = journal.Journal.write

        def write(self: journal.Journal, lines: list[bytes]) -> None:
            writes.append(len(lines))
            real(self, lines)

        monkeypatch.setattr(journal.Journal, "write", write)
        writer.record(event("one"))
        held(writer, hold("two"))
        await asyncio.sleep(0)
        assert writes == [1], "a line of both"
        await until(lambda: books(path) == (["one"], 1))


async def test_what_is_recorded_is_written_before_the_ledger_closes_and_no_journal_is_left(path: Path) -> None:
    async with writing(path) as writer:
        for n in range(50):
            held(writer, hold(f"{n:02}"))
        for n in range(50):
            writer.record(event(f"{n:02}"))
    assert books(path) == ([f"{n:02}" for n in range(50)], 0)
    assert journals(path) == []
    with pytest.raises(LedgerUnwritable, match="stopped"):
        held(writer, hold("late"))


async def test_an_amount_that_cannot_be_one_fails_its_own_request_only(path: Path) -> None:
    async with writing(path) as writer:
        for absurd in (2**53 + 1, 2**63, 10**30, -1):
            with pytest.raises(BadRequest, match=str(absurd)):
                held(writer, hold(f"bad-{absurd}", absurd))
            held(writer, hold(f"good-{absurd}"))
        writer.record(Note("good--1", 2**64, 1, 1))  # an engine may count nonsense
        held(writer, hold("last"))
        assert writer.failure is None
        await until(lambda: books(path) == ([], 5))


async def test_a_full_journal_refuses_holds_and_keeps_settlements_until_there_is_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with writing(path) as writer:
        held(writer, hold("one"))
        repair = broken_disk(monkeypatch)
        with pytest.raises(LedgerUnwritable, match="No space left"):
            held(writer, hold("refused"))
        writer.record(event("one"))
        writer.record(Note("one", 1, 1, 1))
        with pytest.raises(LedgerUnwritable):
            held(writer, hold("refused too"))
        assert writer.failure is not None and "No space left" in writer.failure
        repair()
        await until(lambda: writer.failure is None)  # by itself: nobody asks a gateway that says it is not ready
        await until(lambda: books(path) == (["one"], 0))
        held(writer, hold("two"))
        await until(lambda: books(path) == (["one"], 1))


async def test_a_full_journal_with_nothing_owed_finds_out_by_itself_that_there_is_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with writing(path) as writer:
        repair = broken_disk(monkeypatch)
        with pytest.raises(LedgerUnwritable):
            held(writer, hold("refused"))
        repair()
        await until(lambda: writer.failure is None)
    assert books(path) == ([], 0)


@pytest.mark.parametrize("how", ["full", "locked"])
async def test_a_ledger_that_cannot_be_written_refuses_holds_until_it_can(
    path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "LOCKED_MS", 50)
    async with writing(path) as writer:
        held(writer, hold("one"))
        await until(lambda: books(path) == ([], 1))
        other = sqlite3.connect(path, isolation_level=None)
        if how == "full":
            writer.on_projector(lambda db: db.conn.execute("PRAGMA max_page_count = 1"))  # what it has
        else:
            other.execute("BEGIN IMMEDIATE")
        served = 0
        with pytest.raises(LedgerUnwritable, match=how):
            for n in range(100_000):
                held(writer, hold(f"more {n}"))
                served += 1
                await asyncio.sleep(0.001)
        writer.record(event("one"))  # what runs already is billed
        await asyncio.sleep(0.1)
        assert books(path)[0] == []
        if how == "full":
            writer._projector._db.conn.execute("PRAGMA max_page_count = 1000000")  # type: ignore[union-attr] # test
        else:
            other.execute("ROLLBACK")
        other.close()
        await until(lambda: writer.failure is None)
        held(writer, hold("last"))
        await until(lambda: books(path) == (["one"], served + 1))


async def test_a_second_gateway_journals_at_once_and_projects_once_the_first_lets_go(path: Path) -> None:
    async with writing(path) as old:
        held(old, hold("old 1"))
        held(old, hold("old 2"))
        async with writing(path) as new:
            held(new, hold("new 1"))
            new.record(event("new 1"))
            assert new.failure is None
            assert new.used("all").totals == {}
            await until(lambda: books(path) == (["new 1"], 2))  # by the first
            await old.stop_projecting()
            held(new, hold("new 2"))
            await until(lambda: books(path) == (["new 1"], 3))  # by the second; the first lives, and so do its holds
            old.record(event("old 1"))
            held(old, hold("old 3"))
            await until(lambda: books(path) == (["new 1", "old 1"], 3))
            old.record(event("old 3"))
            await old.close()  # with "old 2" still open, as after a stream that never ended
            await until(lambda: books(path) == (["new 1", "old 1", "old 3"], 1))
            await until(lambda: len(journals(path)) == 1)
            assert (old.failure, new.failure) == (None, None)
            assert new.used("all").totals["all", "tenant", "physics"][0] == 90


async def test_a_file_that_a_gateway_of_before_still_writes_tells_budgets_all_the_same(path: Path) -> None:
    old = open_writer(path, MIGRATIONS[:4])  # keeps its lock
    for n, day in enumerate(("2026-10-31", "2026-11-01", "2026-11-28")):
        at = f"{day}T12:00:00.000000Z"
        event_ = (f"old {n}", "physics", "key-1", "tiny", "replica-1", "chat", at, 10, 20, 50, "completed", at)
        old.conn.execute(f"INSERT INTO usage_events VALUES ({','.join('?' * 12)})", event_)
    periods = ("2026-11-28", "2026-11", "all")
    async with writing(path) as new:
        had = asyncio.Event()
        loop = asyncio.get_running_loop()
        new.on_projector(lambda _: loop.call_soon_threadsafe(had.set))
        before = new.used(*periods)
        assert before.totals == {
            (period, *who): (30 * n, 50 * n)
            for n, period in enumerate(periods, start=1)
            for who in (("tenant", "physics"), ("key", "key-1"), ("model", "tiny"))
        }
        assert new.failure is None and not had.is_set()
        old.close()
        await had.wait()
        assert new.used(*periods) == before


async def test_what_a_dead_gateway_left_is_settled_before_a_budget_is_looked_at(path: Path) -> None:
    async with writing(path) as writer:
        held(writer, hold("one"))
        writer.record(event("one"))
        writer.flush()
        data = journals(path)[0].read_bytes()
    other = path.with_name("other") / "ledger.db"
    (other.parent / "journal").mkdir(parents=True)
    (other.parent / "journal" / "dead.000000").write_bytes(data)
    async with writing(other) as writer:
        assert writer.used("all").totals["all", "tenant", "physics"][0] == 30


async def test_an_errand_runs_on_the_ledgers_connection_and_one_that_fails_harms_nobody(path: Path) -> None:
    async with writing(path) as writer:
        writer.on_projector(lambda db: db.conn.execute("SELECT * FROM nonsense"))

        def note(db: Database) -> None:
            with transaction(db) as c:
                c.execute("INSERT INTO journals VALUES ('a note', 1)")

        writer.on_projector(note)

        def noted() -> Any:
            reader = open_reader(path)
            try:
                return reader.conn.execute("SELECT 1 FROM journals WHERE segment = 'a note'").fetchone()
            finally:
                reader.close()

        await until(noted)
        assert writer.failure is None


async def test_what_the_ledger_refuses_is_counted_and_kept(path: Path) -> None:
    async with writing(path) as writer:
        held(writer, hold("one"))
        writer.record(event("one"))
        writer.record(event("one"))  # once more: nothing
        writer.record(event("one")._replace(completion_tokens=21))
        await until(lambda: writer.conflicts)
        assert writer.conflicts == 1
        assert books(path) == (["one"], 0)
    reader = open_reader(path)
    assert [r["why"] for r in reader.conn.execute("SELECT why FROM conflicts")] == [
        "event one: is in the ledger with other contents"
    ]
    reader.close()


async def test_old_months_are_rolled_up_while_others_are_billed(path: Path) -> None:
    writer = LedgerWriter(path, asyncio.get_running_loop(), pytest.fail, keep_months=1)
    held(writer, hold("old"))
    writer.record(event("old"))  # of January 2026
    now = clock.now()
    await until(lambda: books(path) == (["old"], 0))
    await writer.close()
    writer = LedgerWriter(path, asyncio.get_running_loop(), pytest.fail, keep_months=1)
    held(writer, hold("new"))
    writer.record(event("new")._replace(ended_at=now))
    await until(lambda: books(path) == (["new"], 0))
    await writer.close()
    reader = open_reader(path)
    assert ledger.totals(reader, "all")["all", "tenant", "physics"][0] == 60
    reader.close()


async def test_what_waited_for_a_hold_when_the_ledger_closes_is_billed(path: Path) -> None:
    async with writing(path) as writer:
        writer.hold(hold("one"))
        writer.when_journaled(lambda: writer.record(event("one")), pytest.fail)
    assert books(path) == (["one"], 0)


async def test_a_directory_that_cannot_be_written_is_told_at_the_start(path: Path) -> None:
    (path.parent / "journal").write_text("in the way")
    with pytest.raises(StorageError, match="journal"):
        LedgerWriter(path, asyncio.get_running_loop())
    ledger.open_ledger(path).close()  # it has let go of it


@pytest.mark.parametrize(
    ("outcome", "usage", "tokens"),
    [
        (Outcome.COMPLETED, Usage(10, 20), 30),
        (Outcome.COMPLETED, None, None),  # as held
        (Outcome.CLIENT_LEFT, Usage(10, 3), 13),
        (Outcome.CLIENT_LEFT, None, 0),
        (Outcome.UPSTREAM_FAILED, Usage(10, 2), 12),
        (Outcome.ORPHANED, Usage(10, 1), 11),
        (None, Usage(10, 2), 0),
    ],
)
async def test_an_attempt_is_billed_by_how_it_ended(
    path: Path, outcome: Outcome | None, usage: Usage | None, tokens: int | None
) -> None:
    caller = LiveKey("key-1", Tenant("physics", "root", None, ""), frozenset({Scope.INFERENCE}), "ada")
    call = calls.read(Kind.COMPLETION, b'{"model":"tiny","prompt":"x","max_tokens":9}')
    admission = Admission(Used({}, {}), lambda: 0.0)
    async with writing(path) as writer:
        billing = Billing(writer, {"default": Price(prompt=1, completion=2)}, lambda: 1_767_268_800_123_456_789)
        meter = Meter(call)
        with admission.admit(caller, call.model, call.tokens, 0) as held:
            with billing.attempt(caller, call, "replica-1", held, meter) as bill:
                assert [e for bills in billing.running for e in bills] == [bill.attempt.event_id]
                if usage is not None:
                    meter.count(usage)
                bill.outcome = outcome
            expected = call.tokens if tokens is None else tokens
            assert held.used == expected
            assert not any(billing.running)
    reader = open_reader(path)
    events = ledger.usage_events(reader)
    reader.close()
    assert sum(e.prompt_tokens + e.completion_tokens for e in events) == expected
    for e in events:
        assert (e.outcome, e.microcredits) == (outcome, bill.microcredits)
        assert e.microcredits == e.prompt_tokens + 2 * e.completion_tokens
        assert e.attempt == (
            e.attempt.event_id,
            "physics",
            "key-1",
            "tiny",
            "replica-1",
            "completion",
            e.ended_at,
            "ada",
        )
        assert e.ended_at == "2026-01-01T12:00:00.123456Z"
    assert books(path)[1] == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_projector_that_broke_refuses_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died = threading.Event()
    async with writing(path, died.set) as writer:

        def broken(self: Projection) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(Projection, "turn", broken)
        await until(died.is_set)
        with pytest.raises(LedgerUnwritable, match="stopped"):
            held(writer, hold("one"))
        assert writer.failure is not None


async def test_a_gateway_whose_projector_dies_ends_so_that_it_can_be_started_again(tmp_path: Path) -> None:
    prepared(site_at(tmp_path)).registry.close()
    program = f"""
from pathlib import Path
from gateway import projector, serve
from registry.site import Gateway, Scheduler, Site

here = Path({str(tmp_path)!r})
projector.Projector._turn = lambda self: 1 / 0
local = Scheduler(kind="local")
serve.run(Site(name="test", state_dir=here, shared_dir=here, gateway=Gateway(port=0), scheduler=local))
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        _, said = await process.communicate()
    assert process.returncode == DIED, said.decode()
    assert b"ZeroDivisionError" in said and b"the process ends" in said
