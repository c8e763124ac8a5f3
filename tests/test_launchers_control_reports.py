"""Reports through the control API's real socket and the command line: who may read what, and a silent scheduler."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from click.testing import CliRunner
from report_books import HOUR, allocation

from cli.main import main
from launchers import control, control_reports
from launchers.control import CONTROLLER, make_app
from launchers.control_reports import account_limits
from launchers.local_scheduler import LocalScheduler
from launchers.scheduler import SchedulerUnavailable
from registry import clock, ledger, limits, tenants
from registry import site as settings
from registry.access import Principal
from registry.attribution import Books
from registry.limits import Subject
from registry.report import Report, from_json
from registry.report_quota import AccountLimit
from registry.steps import Attempt, Hold, Outcome, UsageEvent
from slurm.model import Association, Limit
from slurm.sight import Limits

ROOT = Principal("root", 0, admin=True)
ADA, EVE = Principal("ada", 1001, admin=False), Principal("eve", 1002, admin=False)


class Told(LocalScheduler):
    """This machine, with an hour of a GPU in its books; it can be told to fall silent."""

    silent = False

    def books(self, start: datetime, end: datetime) -> Books:
        if self.silent:
            raise SchedulerUnavailable("sacct did not answer within 30 s")
        begun = int(start.timestamp())
        job = allocation("7", begun, begun + HOUR, purpose=None, subject=None)
        return Books((job,), job.gpu_s, job.cpu_s, None)


@dataclass
class Api:
    site: settings.Site
    scheduler: Told
    session: aiohttp.ClientSession
    caller: Principal = ROOT

    async def get(self, path: str, status: int = 200) -> Any:
        async with self.session.get(f"http://control/v1/report/{path}") as response:
            body = await response.json()
            assert response.status == status, body
            return body["error"]["message"] if status >= 400 else body

    async def report(self, path: str) -> Report:
        return from_json(await self.get(path))

    async def cli(self, *words: str) -> Any:
        """`headgate` in a thread, as the loop serves what it calls."""
        site_file = self.site.state_dir / "site.toml"
        site_file.write_text(
            f'name = "test"\nstate_dir = "{self.site.state_dir}"\nshared_dir = "{self.site.shared_dir}"\n'
            '[scheduler]\nkind = "local"\n'
        )
        return await asyncio.to_thread(CliRunner().invoke, main, ["--site", str(site_file), *words])


@pytest.fixture
def root() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="headgate-"))  # short, for a Unix socket
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def api(root: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """ada belongs to physics, eve to biology and chemistry; physics and biology have used something today."""
    site = settings.Site(
        name="test",
        state_dir=root,
        shared_dir=root,
        scheduler=settings.Scheduler(kind="local"),
        gpu_prices={"default": settings.GpuPrice(hour=2.0)},
    )
    scheduler = Told(root / "jobs")
    app = make_app(site, scheduler)
    made: list[Api] = []

    def caller(connection: socket.socket, service_uid: int) -> Principal:
        return made[0].caller

    monkeypatch.setattr(control, "principal_of", caller)
    db = app[CONTROLLER].db
    for tenant, user, account in (("physics", "ada", "phys"), ("biology", "eve", "bio"), ("chemistry", "eve", None)):
        tenants.create(db, tenant, "root", account=account)
        tenants.add_member(db, tenant, user)
    limits.put(db, Subject.TENANT, "physics", {"token_budget": 1000}, "root")
    written = ledger.open_ledger(site.ledger_db)
    for n, (tenant, user) in enumerate((("physics", "ada"), ("biology", "eve"))):
        attempt = Attempt(f"{n}:1", tenant, "key-1", "chat", "replica-1", "chat", clock.now(), user)
        event = UsageEvent(attempt, 100 + n, 20, 140, Outcome.COMPLETED, clock.now())
        ledger.record(written, [Hold(attempt, 200, 200), event])
    written.close()
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(site.control_socket)).start()
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(site.control_socket))) as session:
            made.append(Api(site, scheduler, session))
            yield made[0]
    finally:
        await runner.cleanup()


def values(of: Report, key: str, column: str) -> list[Any]:
    return [row[column] for section in of.sections if section.key == key for row in section.rows]


async def test_an_administrator_reads_everybodys_and_whichever_tenant_he_names(api: Api) -> None:
    everybody = await api.report("usage?by=tenant,user")
    assert everybody.of == "all tenants" and values(everybody, "usage", "prompt_tokens") == [101, 100]
    assert all(check.holds for check in everybody.checks)
    assert values(await api.report("usage?tenant=biology"), "usage", "tenant") == ["biology"]
    assert "no tenant is called 'geology'" in await api.get("usage?tenant=geology", 404)


async def test_a_member_reads_his_own_tenants_and_no_other(api: Api) -> None:
    api.caller = EVE
    mine = await api.report("usage")
    assert mine.of == "tenant biology, chemistry" and values(mine, "usage", "tenant") == ["biology"]
    assert values(await api.report("usage?tenant=biology"), "usage", "prompt_tokens") == [101]
    for kind in ("quota", "usage", "gpu", "models", "efficiency", "statement", "mine"):
        assert "eve may not read" in await api.get(f"{kind}?tenant=physics", 403)
        assert "eve may not read" in await api.get(f"{kind}?tenant=geology", 403)  # nor learns that it is none
        own = json.dumps(await api.get(kind))
        assert "physics" not in own and "ada" not in own, kind


async def test_who_belongs_to_no_tenant_reads_no_report(api: Api) -> None:
    api.caller = Principal("mallory", 1003, admin=False)
    assert "mallory may not read" in await api.get("usage", 403)
    assert "mallory may not read" in await api.get("mine", 403)


async def test_a_report_of_gpu_time_has_the_schedulers_books(api: Api) -> None:
    report = await api.report("gpu")
    assert values(report, "gpu", "tenant") == ["physics"] and values(report, "gpu", "credits") == [2.0]
    assert [check.holds for check in report.checks] == [True, True]
    api.caller = EVE
    assert values(await api.report("gpu"), "gpu", "tenant") == []


async def test_a_report_is_made_while_the_scheduler_is_silent_and_says_so(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.scheduler.silent = True
    report = await api.report("statement?tenant=physics")
    assert "sacct did not answer within 30 s" in report.notes[0]
    assert values(report, "physics/model", "prompt_tokens") == [100]
    asked = asyncio.Event()

    async def never(*_: object) -> Books:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(control_reports, "_books", never)
    monkeypatch.setattr(control_reports, "BOOKS_WAIT_S", 0.1)
    assert "no answer within 0.1 s" in (await api.report("gpu")).notes[0]
    assert asked.is_set()


async def test_without_a_ledger_there_is_no_report(api: Api) -> None:
    api.site.ledger_db.unlink()
    assert "ledger.db" in await api.get("usage", 503)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("money", "no report is called 'money'; there are: quota, usage, gpu"),
        ("usage?by=tenant,qos", "cannot be by 'qos'; allowed: tenant, user"),
        ("usage?month=2026-13", "month '2026-13' is no such time; it is written as 2026-11"),
        ("usage?by=user&colour=red", "parameter 'colour' is unknown; allowed: month, since, until, by, tenant"),
    ],
)
async def test_what_cannot_be_asked_is_refused_with_what_is_allowed(api: Api, path: str, why: str) -> None:
    assert why in await api.get(path, 400)


async def test_the_command_prints_any_report_in_any_format_and_into_a_file(api: Api, root: Path) -> None:
    for kind, part in (
        ("quota", "token_budget"),
        ("usage", "physics"),
        ("gpu", "physics"),
        ("models", "chat"),
        ("efficiency", "Waits in the queue"),
        ("statement", "physics: summary"),
    ):
        done = await api.cli("report", kind)
        assert done.exit_code == 0 and part in done.output, done.output
    said = from_json(json.loads((await api.cli("report", "usage", "--by", "user", "--format", "json")).output))
    assert values(said, "usage", "user") == ["ada", "eve"]
    csv = (await api.cli("report", "usage", "--by", "user", "--format", "csv", "--tenant", "physics")).output
    assert "ada" in csv and "eve" not in csv
    page = root / "usage.html"
    done = await api.cli("report", "usage", "--format", "html", "-o", str(page))
    assert (done.exit_code, done.output) == (0, "") and page.read_text().startswith("<!doctype html>")


async def test_a_check_that_does_not_hold_fails_the_command_whose_file_is_written(api: Api, root: Path) -> None:
    with closing(sqlite3.connect(api.site.ledger_db)) as db, db:
        db.execute("UPDATE daily SET microcredits = microcredits + 1")
    page = root / "usage.html"
    for output, into in ((("-o", str(page)), page), ((), None)):
        done = await api.cli("report", "usage", "--format", "html", *output)
        assert done.exit_code == 1 and "Error: 2 of 3 checks do not hold: the micro-credits of" in done.stderr
        assert (into.read_text() if into else done.stdout).startswith("<!doctype html>")


async def test_what_a_csv_has_no_room_for_is_said_beside_it(api: Api) -> None:
    done = await api.cli("report", "usage", "--format", "csv")
    assert done.exit_code == 0 and done.stdout.startswith("section,tenant")
    assert "note: Tokens and credits: Cached tokens are among the prompt's" in done.stderr
    assert "note:" not in done.stdout


async def test_the_command_says_what_is_wrong_and_fails(api: Api, root: Path) -> None:
    wrong = await api.cli("report", "usage", "--by", "partition")
    assert wrong.exit_code == 1 and "cannot be by 'partition'; allowed: tenant, user" in wrong.output
    nowhere = await api.cli("report", "usage", "-o", str(root / "no" / "such"))
    assert nowhere.exit_code == 1 and "cannot be written: No such file or directory" in nowhere.output
    unknown = await api.cli("report", "money")
    assert unknown.exit_code == 2 and "quota" in unknown.output
    both = await api.cli("usage", "--mine", "--account", "phys")
    assert both.exit_code == 2 and "--mine is of tenants" in both.output


async def test_usage_mine_is_of_my_tenants_with_what_is_left_even_for_an_administrator(api: Api) -> None:
    api.caller = ADA
    shown = (await api.cli("usage", "--mine")).output
    assert "physics" in shown and "880" in shown and "biology" not in shown
    api.caller = Principal("ada", 1001, admin=True)
    made = from_json(json.loads((await api.cli("usage", "--mine", "--json")).output))
    assert made.of == "tenant physics" and values(made, "tokens", "left") == [880]


NOW = datetime(2026, 11, 15, 12, tzinfo=UTC)


def association(account: str, parent: str | None, *of: Limit) -> Association:
    return Association("test", account, None, None, parent, False, of)


def test_slurms_limits_are_in_hours_with_the_rate_of_the_account_and_those_below_it() -> None:
    limited = Limits(
        NOW,
        (
            association("root", None),
            association("phys", "root", Limit("GrpTRESMins", "gres/gpu:h100", 500 * HOUR, 480 * HOUR)),
            association("lab", "phys", Limit("GrpTRESMins", "cpu", 100 * HOUR, None), Limit("GrpTRES", "cpu", 4, 2)),
            association("bio", "root", Limit("GrpTRESMins", "mem", 1024**3 * HOUR, 0)),
        ),
        (),
    )
    jobs = (
        allocation("1", 0, 13 * HOUR, account="phys"),
        allocation("2", 0, 13 * HOUR, account="lab", gpus=2),
        allocation("3", 0, HOUR, account="bio"),
    )
    found = account_limits(limited, Books(jobs, 0, 0, None), NOW)
    assert found == (
        AccountLimit("bio", "GiB-hours", 1, 0, None),
        AccountLimit("lab", "CPU-hours", 100, 0, pytest.approx(8 * 26 / 6.5)),
        AccountLimit("phys", "H100-hours", 500, 480, pytest.approx(39 / 6.5)),
    )
    assert [one.per_day for one in account_limits(limited, None, NOW)] == [None, None, None]
