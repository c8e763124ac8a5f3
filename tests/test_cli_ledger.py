"""`headgate ledger`: what it proves, hands on and takes back, on a real ledger, control API and projector."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from cli.main import main
from gateway.projector import Projector
from launchers import control_ledger
from launchers.control import make_app
from launchers.local_scheduler import LocalScheduler
from registry import ledger
from registry.db import open_reader
from registry.ledger import Attempt, Hold, Outcome, UsageEvent
from registry.own_steps import JOURNALS
from registry.site import Site, load_site

EVENT = "0000000000000000000000aa:1"


@pytest.fixture
def site_file() -> Iterator[Path]:
    # Not pytest's own temporary directory: its path is long, and Unix sockets' are not.
    root = Path(tempfile.mkdtemp(prefix="headgate-"))
    file = root / "site.toml"
    file.write_text(
        f'name = "test"\nstate_dir = "{root}/state"\nshared_dir = "{root}/shared"\n[scheduler]\nkind = "local"\n'
    )
    yield file
    shutil.rmtree(root)


@pytest.fixture
def site(site_file: Path) -> Site:
    """With a ledger of one event, which nobody writes any more."""
    found = load_site(site_file, {}, ())
    attempt = Attempt(EVENT, "physics", "k1", "tiny", "r1", "chat", "2026-11-28T10:00:00.000000Z", "ada")
    used = UsageEvent(attempt, 7, 5, 17, Outcome.COMPLETED, "2026-11-28T10:00:01.000000Z")
    with closing(ledger.open_ledger(found.ledger_db)) as db:
        assert ledger.record(db, [Hold(attempt, 20, 40), used]) == [None, None]
    return found


def headgate(site_file: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--site", str(site_file), "ledger", *words])


def test_a_sound_ledger_is_said_to_be_also_while_somebody_writes_it(site_file: Path, site: Site) -> None:
    assert headgate(site_file, "verify").exit_code == 0
    with closing(ledger.open_ledger(site.ledger_db)):
        done = headgate(site_file, "verify")
    assert done.exit_code == 0
    assert done.stdout.startswith("2 entries, 1 events, 0 open holds, 0 reversals;") and "sums to zero" in done.stdout


def test_a_ledger_that_does_not_add_up_fails_and_says_where(site_file: Path, site: Site) -> None:
    with closing(ledger.open_ledger(site.ledger_db)) as db:
        db.conn.execute("UPDATE balances SET consumed = consumed + 1")
    done = headgate(site_file, "verify")
    assert done.exit_code == 1 and "tenant physics" in done.stdout and "sums to zero" not in done.stdout
    assert "ledger.db does not add up" in done.stderr


@pytest.mark.parametrize("words", [["verify"], ["backup", "copy.db"]])
def test_without_a_ledger_its_absence_is_named(site_file: Path, words: list[str]) -> None:
    done = headgate(site_file, *words)
    assert done.exit_code == 1 and "ledger.db: cannot be read" in done.output and "Traceback" not in done.output


def test_a_month_goes_to_standard_output_or_to_a_file_that_is_not_replaced(site_file: Path, site: Site) -> None:
    asked = ("export", "--format", "jsonl", "--month", "2026-11")
    (event,) = map(json.loads, headgate(site_file, *asked, "-o", "-").stdout.splitlines())
    assert (event["event_id"], event["completion_tokens"], event["user"]) == (EVENT, 5, "ada")
    file = site_file.with_name("out.jsonl")
    done = headgate(site_file, *asked, "-o", str(file))
    assert done.exit_code == 0 and "1 rows" in done.output
    before = file.read_bytes()
    done = headgate(site_file, *asked, "--tenant", "nobody", "-o", str(file))
    assert done.exit_code == 1 and "--force" in done.output and file.read_bytes() == before
    done = headgate(site_file, *asked, "--tenant", "nobody", "-o", str(file), "--force")
    assert done.exit_code == 1 and "nothing of a tenant 'nobody'; there are: physics" in done.output
    assert file.read_bytes() == before
    assert headgate(site_file, *asked[:-1], "2026-10", "-o", str(file), "--force").exit_code == 0
    assert file.read_bytes() == b""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "csv", "--month", "2026-13", "-o", "-"], "no month; allowed: 2026-11"),
        (["--format", "parquet", "--month", "2026-11", "-o", "-"], "say --output FILE"),
        (["--format", "xml", "--month", "2026-11", "-o", "-"], "'csv', 'jsonl', 'parquet'"),
        (["--format", "csv", "--month", "2026-11", "-o", "/nowhere/out.csv"], "/nowhere"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_what_can(
    site_file: Path, site: Site, words: list[str], told: str
) -> None:
    done = headgate(site_file, "export", *words)
    assert done.exit_code != 0 and told in done.output and "Traceback" not in done.output


def test_a_copy_is_made_once(site_file: Path, site: Site) -> None:
    copy = site_file.with_name("copy.db")
    assert headgate(site_file, "backup", str(copy)).exit_code == 0
    assert headgate(site_file, "backup", str(copy)).exit_code == 1
    with closing(open_reader(copy)) as db:
        assert len(ledger.usage_events(db)) == 1


# -- reversals --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def controller(site: Site) -> AsyncIterator[None]:
    runner = web.AppRunner(make_app(site, LocalScheduler(site.shared_dir / "local-jobs")))
    await runner.setup()
    await web.UnixSite(runner, str(site.control_socket)).start()
    try:
        yield
    finally:
        await runner.cleanup()


@contextmanager
def projecting(site: Site) -> Iterator[None]:
    """What a running gateway does to the ledger."""
    projector = Projector(site.ledger_db, site.state_dir / JOURNALS, died=lambda: None)
    projector.start()
    try:
        yield
    finally:
        projector.stop()


async def reverse(site_file: Path, event_id: str, reason: str = "a test's") -> Result:
    return await asyncio.to_thread(headgate, site_file, "reverse", event_id, "--reason", reason)


def consumed(site: Site) -> int:
    with closing(open_reader(site.ledger_db)) as db:
        assert ledger.check(db) == []
        return sum(event.microcredits for event in ledger.usage_events(db))


async def test_an_event_is_taken_back_once_by_an_event_of_its_own(site_file: Path, site: Site) -> None:
    async with controller(site):
        with projecting(site):
            assert consumed(site) == 17
            done = await reverse(site_file, EVENT)
            assert done.exit_code == 0 and f"{EVENT} is reversed by" in done.stdout
            assert consumed(site) == 0
            again = await reverse(site_file, EVENT)
            assert again.exit_code == 1 and "was reversed before" in again.output
            assert consumed(site) == 0
    shown = headgate(site_file, "verify")
    assert shown.exit_code == 0 and "refused: " in shown.stdout and "was reversed before" in shown.stdout
    with closing(open_reader(site.ledger_db)) as db:
        (row,) = db.conn.execute("SELECT corrects, reason FROM reversals").fetchall()
        assert tuple(row) == (EVENT, "a test's")
        assert [e.outcome for e in ledger.usage_events(db)] == [Outcome.COMPLETED, Outcome.REVERSED]


async def test_without_a_gateway_a_reversal_is_written_and_taken_in_by_the_next(
    site_file: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_ledger, "TAKEN_IN_S", 0.1)
    async with controller(site):
        done = await reverse(site_file, EVENT)
        assert done.exit_code == 0 and "once a gateway runs" in done.stdout
        assert consumed(site) == 17
    with projecting(site):
        assert consumed(site) == 0  # with its very start


@pytest.mark.parametrize(
    ("event_id", "reason", "told"),
    [("0000000000000000000000bb:1", "wrong id", "is not in the ledger"), (EVENT, " ", "'reason' must say why")],
)
async def test_a_reversal_of_nothing_or_for_no_reason_writes_nothing(
    site_file: Path, site: Site, event_id: str, reason: str, told: str
) -> None:
    async with controller(site):
        done = await reverse(site_file, event_id, reason)
    assert done.exit_code == 1 and told in done.output
    assert not list((site.state_dir / JOURNALS).glob("*"))
