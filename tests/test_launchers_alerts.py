"""The loop that tells: a real registry and ledger, a webhook and a mail relay on sockets, a real Slurm's limits."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import pwd
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import certificates
import pytest
from aiohttp import web
from conftest import PrivateCluster
from slurm_fixtures import NOON
from slurm_fixtures import job as queued
from waiting import eventually, wait_for

from launchers import account_limits, notify
from launchers import alerts as alerts_loop
from launchers.alerts import Alerting, serves
from launchers.controller import Controller
from launchers.local_scheduler import LocalScheduler
from launchers.schedulers import slurm_environment
from launchers.slurm_scheduler import SlurmScheduler
from launchers.subjects import Subject
from registry import alerts, clock, deployments, endpoints, ledger, limits, tenants
from registry.db import open_writer
from registry.ledger_migrations import MIGRATIONS as LEDGER_MIGRATIONS
from registry.migrations import MIGRATIONS
from registry.settings import Alerts, Mail, Scheduler
from registry.site import Site
from registry.steps import Attempt, Hold, Outcome, UsageEvent
from slurm.commands import CommandClient
from slurm.model import TRES, Association, JobState, Limit

HOUR = 3600
US = pwd.getpwuid(os.getuid()).pw_name


class House:
    """A controller with a ledger beside it, whose limits are looked at when a test says so."""

    def __init__(self, controller: Controller, settings: Alerts) -> None:
        self.controller = controller
        self.alerting = Alerting(controller, notify.channels(settings, "test", {"MAIL_PASSWORD": "swordfish"}))
        self._ledger = open_writer(controller.site.ledger_db, LEDGER_MIGRATIONS)
        self._requests = 0

    def uses(self, tokens: int, tenant: str = "physics") -> None:
        self._requests += 1
        attempt = Attempt(f"{self._requests:024x}:1", tenant, "k1", "chat", "r1", "chat", clock.now(), "ada")
        event = UsageEvent(attempt, tokens, 0, 7, Outcome.COMPLETED, clock.now())
        assert ledger.record(self._ledger, [Hold(attempt, 0, 0), event]) == [None, None]

    async def looks(self, later: timedelta = timedelta()) -> None:
        await self.alerting.turn(datetime.now(UTC) + later)

    def waiting(self) -> list[tuple[str, ...]]:
        return [alert.waiting for alert in alerts.waiting(self.controller.db)]

    def ledger_closed(self) -> None:
        """As no process has it open, all of it is in the one file."""
        self._ledger.close()

    def close(self) -> None:
        self.ledger_closed()
        self.controller.close()


@asynccontextmanager
async def house(root: Path, scheduler: Any = None, **settings: Any) -> AsyncIterator[House]:
    told = Alerts(**settings)
    site = Site(
        name="test", state_dir=root, shared_dir=root, scheduler=Scheduler(kind="local"), alerts=told
    )  # fmt: skip
    db = open_writer(site.registry_db, MIGRATIONS)
    made = House(Controller(site, db, scheduler or LocalScheduler(root / "jobs")), told)
    try:
        tenants.create(db, "physics", "root")
        limits.put(db, limits.Subject.TENANT, "physics", {"token_budget": 1000}, "root")
        yield made
    finally:
        made.close()


class Webhook:
    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 204
        self.refused: int | None = None  # a threshold, whose alert is never taken

    async def answer(self, request: web.Request) -> web.Response:
        alert = await request.json()
        if alert["threshold"] == self.refused:
            return web.Response(status=400)
        if self.status == 204:
            self.got.append(alert)
        return web.Response(status=self.status)


@asynccontextmanager
async def listening(hook: Webhook) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/hook", hook.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await (site := web.TCPSite(runner, "127.0.0.1", 0)).start()
    assert site._server is not None
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/hook"  # type: ignore[attr-defined]
    finally:
        await runner.cleanup()


class Relay:
    """As much of SMTP as a client needs to hand over a mail."""

    def __init__(self, tls: ssl.SSLContext | None = None, refuses: bool = False) -> None:
        self.mails: list[str] = []
        self.logins: list[str] = []
        self.encrypted = False
        self._tls, self._refuses = tls, refuses

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 relay\r\n")
        while line := (await reader.readline()).decode().strip():
            match line.split()[0].upper():
                case "EHLO":
                    offers = "AUTH PLAIN" if self.encrypted or self._tls is None else "STARTTLS"
                    writer.write(f"250-relay\r\n250 {offers}\r\n".encode())
                case "STARTTLS":
                    writer.write(b"220 go on\r\n")
                    await writer.drain()
                    assert self._tls is not None
                    await writer.start_tls(self._tls)
                    self.encrypted = True
                case "AUTH":
                    self.logins.append(base64.b64decode(line.split()[2]).decode())
                    writer.write(b"235 welcome\r\n")
                case "MAIL" if self._refuses:
                    writer.write(b"451 later\r\n")
                case "DATA":
                    writer.write(b"354 go on\r\n")
                    self.mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
                    writer.write(b"250 taken\r\n")
                case "QUIT":
                    writer.write(b"221 bye\r\n")
                    break
                case _:
                    writer.write(b"250 ok\r\n")
        writer.close()


@asynccontextmanager
async def relaying(relay: Relay) -> AsyncIterator[int]:
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def mail(port: int, **others: Any) -> Mail:
    return Mail(
        **({"host": "127.0.0.1", "port": port, "sender": "hg@example.org", "to": ("a@x.org", "b@x.org")} | others)
    )


# -- the loop -------------------------------------------------------------------------------------------------------


async def test_a_threshold_is_told_by_log_webhook_and_mail_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook, relay = Webhook(), Relay()
    async with listening(hook) as url, relaying(relay) as port, house(tmp_path, webhook=url, mail=mail(port)) as h:
        await h.looks()  # nothing is used
        h.uses(850)
        for _ in range(3):
            await h.looks()
        assert [(x["site"], x["subject"], x["name"], x["limit"], x["threshold"]) for x in hook.got] == [
            ("test", "tenant", "physics", "token_budget", 80)
        ]
        words = "tenant physics has used 850 of 1,000 tokens, 85 % of its token_budget"
        (letter,) = relay.mails
        flat = letter.replace("\r\n ", " ")
        assert f"Subject: [headgate test] {words}" in flat and "To: a@x.org, b@x.org" in flat
        assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [words]
        assert h.waiting() == []
        limits.put(h.controller.db, limits.Subject.TENANT, "physics", {"token_budget": 1600}, "root")  # a top-up
        await h.looks()
        assert [x["threshold"] for x in hook.got] == [80, 50]


async def test_a_webhook_that_fails_is_tried_again_and_keeps_the_mail_from_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook, relay = Webhook(), Relay()
    hook.status = 500
    async with listening(hook) as url, relaying(relay) as port, house(tmp_path, webhook=url, mail=mail(port)) as h:
        h.uses(850)
        for _ in range(3):
            await h.looks()
        assert (hook.got, len(relay.mails), h.waiting()) == ([], 1, [("webhook",)])
        failures = [r.message for r in caplog.records if r.levelno == logging.ERROR]
        assert len(failures) == 1 and "answered 500" in failures[0] and "/hook" not in failures[0]
        hook.status = 204
        h.uses(100)
        await h.looks()
        assert ([x["threshold"] for x in hook.got], len(relay.mails), h.waiting()) == ([80, 90], 2, [])


async def test_an_alert_that_a_webhook_refuses_keeps_no_other_back_and_is_given_up_after_a_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook = Webhook()
    hook.refused = 50
    async with listening(hook) as url, house(tmp_path, webhook=url) as h:
        for tokens in (500, 300, 100):
            h.uses(tokens)
            await h.looks()
        assert ([x["threshold"] for x in hook.got], h.waiting()) == ([80, 90], [("webhook",)])
        await h.looks(timedelta(hours=23))
        assert h.waiting() == [("webhook",)]
        await h.looks(timedelta(hours=25))
        assert h.waiting() == []
        given_up = [r.message for r in caplog.records if "given up" in r.message]
        assert len(given_up) == 1 and "webhook" in given_up[0] and "500 of 1,000 tokens" in given_up[0]


async def test_of_more_alerts_than_a_channel_ever_takes_the_oldest_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(alerts_loop, "MOST_WAITING", 2)
    hook = Webhook()
    hook.status = 400
    async with listening(hook) as url, house(tmp_path, webhook=url) as h:
        for tokens in (500, 300, 100, 100):
            h.uses(tokens)
            await h.looks()
        assert [a.document["threshold"] for a in alerts.waiting(h.controller.db)] == [90, 100]
        assert len([r for r in caplog.records if "given up" in r.message]) == 2


async def test_a_webhook_that_nobody_answers_at_is_tried_once_a_look(tmp_path: Path) -> None:
    tried = []

    async def dead(alert: notify.Document) -> None:
        tried.append(alert["threshold"])
        raise notify.NotTold("nobody there")

    async with house(tmp_path) as h:
        h.alerting = Alerting(h.controller, {"webhook": dead})
        for tokens in (500, 300):
            h.uses(tokens)
            await h.looks()
        assert tried == [50, 50] and h.waiting() == 2 * [("webhook",)]


async def test_what_nobody_took_outlives_the_controller(tmp_path: Path) -> None:
    hook = Webhook()
    async with house(tmp_path, webhook="http://127.0.0.1:9/hook") as h:  # nobody listens there
        h.uses(1000)
        await h.looks()
        assert h.waiting() == [("webhook",)]
        site = h.controller.site
    async with listening(hook) as url:
        db = open_writer(site.registry_db, MIGRATIONS)
        controller = Controller(site, db, LocalScheduler(tmp_path / "jobs"))
        await Alerting(controller, notify.channels(Alerts(webhook=url), "test", {})).turn(datetime.now(UTC))
        controller.close()
    assert [x["threshold"] for x in hook.got] == [100]


async def test_a_channel_that_is_no_longer_configured_is_not_waited_for(tmp_path: Path) -> None:
    async with house(tmp_path, webhook="http://127.0.0.1:9/hook") as h:
        h.uses(1000)
        await h.looks()
        await Alerting(h.controller, {}).turn(datetime.now(UTC))
        assert h.waiting() == []


async def test_the_loop_goes_on_after_a_ledger_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook = Webhook()
    async with listening(hook) as url, house(tmp_path, webhook=url, every_s=0.02) as h:
        h.uses(1000)
        path, away = h.controller.site.ledger_db, tmp_path / "away.db"
        h.ledger_closed()
        path.rename(away)
        path.write_bytes(b"no database" * 100)
        loop = asyncio.create_task(h.alerting.run())

        async def said() -> bool:
            return any("limits cannot be looked at now" in r.message for r in caplog.records)

        await eventually(said)
        away.rename(path)

        async def told() -> bool:
            return len(hook.got) == 1

        await eventually(told)
        assert not loop.done()
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


# -- channels -------------------------------------------------------------------------------------------------------


ALERT = {"at": clock.text(NOON), "message": "tenant physics has used it all"}


async def test_a_mail_goes_through_tls_with_a_login_where_the_relay_wants_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certificates.minted()
    (trusted := tmp_path / "ca.pem").write_text(certificate.certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    relay = Relay(certificates.serving(certificate))
    async with relaying(relay) as port:
        settings = mail(port, starttls=True, user="hg", password_env="MAIL_PASSWORD")
        await asyncio.to_thread(notify.send, settings, "test", ALERT, {"MAIL_PASSWORD": "swordfish"})
    assert (relay.encrypted, relay.logins, len(relay.mails)) == (True, ["\0hg\0swordfish"], 1)


@pytest.mark.parametrize(
    ("others", "relay", "why"),
    [
        ({"user": "hg", "password_env": "NOWHERE"}, Relay(), "NOWHERE is not set"),
        ({"starttls": True}, Relay(), "STARTTLS extension not supported"),
        ({}, Relay(refuses=True), "451"),
        ({"user": "hg", "password_env": "WORD"}, Relay(), "WORD is not ASCII"),
        ({"host": "a..b"}, Relay(), "label"),
        ({"sender": "hg@example.org\nBcc: all"}, Relay(), "linefeed"),
    ],
)
async def test_a_mail_that_does_not_get_through_says_why(others: dict[str, Any], relay: Relay, why: str) -> None:
    async with relaying(relay) as port:
        with pytest.raises(notify.NotTold, match=why):
            await asyncio.to_thread(notify.send, mail(port, **others), "test", ALERT, {"WORD": "schwörtfisch"})
    assert relay.mails == []


async def test_a_webhook_that_is_no_url_or_answers_nothing_is_said_without_its_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for url in ("slack/secret", "http://[secret"):
        with pytest.raises(notify.NotTold) as failed:
            await notify.post(url, ALERT)
        assert "secret" not in str(failed.value)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(notify, "TIMEOUT_S", 0.2)
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(notify.NotTold, match=rf"127.0.0.1:{port} has not answered") as failed:
            await notify.post(f"http://me:word@127.0.0.1:{port}/secret", ALERT)
    assert "secret" not in str(failed.value) and "word" not in str(failed.value)


def test_a_jobs_environment_does_not_get_the_mails_password(tmp_path: Path) -> None:
    site = Site(
        name="test",
        state_dir=tmp_path,
        shared_dir=tmp_path,
        scheduler=Scheduler(kind="slurm"),
        alerts=Alerts(mail=mail(25, user="hg", password_env="MAIL_PASSWORD")),
    )
    assert slurm_environment(site, {"MAIL_PASSWORD": "swordfish", "PATH": "/bin"}) == {"PATH": "/bin"}


# -- Slurm's limits -------------------------------------------------------------------------------------------------


def account(name: str, parent: str | None = "root", *allowed: Limit, user: str | None = None) -> Association:
    return Association("big", name, user, None, parent, False, allowed)


def gpu_hours(allowed: int, used: int, tres: str = "gres/gpu") -> Limit:
    return Limit("GrpTRESMins", tres, allowed * HOUR, used * HOUR)


def test_an_accounts_limit_is_used_up_by_what_runs_in_it_and_below_it() -> None:
    associations = [
        account("root", None),
        account("science", "root", gpu_hours(500, 480), Limit("GrpTRES", "gres/gpu", 8, 4)),
        account("physics", "science", gpu_hours(1000, 10, "gres/gpu:h100"), gpu_hours(0, 0, "cpu")),
        account("physics", "physics", gpu_hours(1, 1), user="ada"),
        account("arts", "root", gpu_hours(9, 3)),
    ]
    two = TRES(gpus=2, gpus_by_type=(("h100", 2),))
    jobs = [
        queued(1, account="physics", tres=two),
        queued(2, account="science", tres=TRES(gpus=3)),
        queued(3, account="science", tres=TRES(gpus=9), state=JobState.PENDING),
    ]
    found = account_limits.standings(associations, jobs, {"1": "deployment chat", "9": "another"}, NOON)
    assert {(s.key.name, s.key.limit): (s.words, s.runs_out_at, s.stops) for s in found} == {
        ("science", "GrpTRESMins=gres/gpu"): (
            "480 of 500 GPU-hours", NOON + timedelta(hours=20 / 5), ("deployment chat",)
        ),
        ("physics", "GrpTRESMins=gres/gpu:h100"): (
            "10 of 1,000 H100-hours", NOON + timedelta(hours=990 / 2), ("deployment chat",)
        ),
        ("arts", "GrpTRESMins=gres/gpu"): ("3 of 9 GPU-hours", None, ()),
    }  # fmt: skip


def test_a_job_serves_what_its_replica_does_and_nobody_elses_comment_counts() -> None:
    subjects = {"r1": Subject("r1", "replica", "chat-v1", "ada", "headgate"), "t1": Subject("t1", "run", "x", "a", "a")}
    front = endpoints.Endpoint("chat", "ada", (("chat-v1", 1), ("chat-v2", 1)), None, (), (), "", "")
    jobs = [
        queued(1, comment="r1", user="headgate"),
        queued(2, comment="r1", user="mallory"),
        queued(3, comment="t1", user="a"),
    ]
    assert serves(jobs, subjects, [front]) == {"1": "endpoint chat (deployment chat-v1)"}
    assert serves(jobs, subjects, []) == {"1": "deployment chat-v1"}


@pytest.fixture
def thirsty(slurm_cluster: PrivateCluster) -> Iterator[PrivateCluster]:
    """A Slurm with an account of this name, which may use ten GPU-hours; its jobs are cancelled at the end."""
    for words in ("account thirsty", f"user {US} account=thirsty"):
        slurm_cluster.run("sacctmgr", "-i", "-Q", "add", *words.split())
    slurm_cluster.run(*"sacctmgr -i -Q modify account thirsty set GrpTRESMins=gres/gpu=600".split())
    yield slurm_cluster
    slurm_cluster.run("scancel", "-A", "thirsty")
    wait_for(lambda: not slurm_cluster.run("squeue", "-h", "-A", "thirsty"))
    slurm_cluster.run("sacctmgr", "-i", "-Q", "delete", "account", "thirsty")


@pytest.mark.slurm
async def test_an_endpoint_that_a_real_slurms_limit_will_stop_is_named_with_the_time(
    thirsty: PrivateCluster, tmp_path: Path
) -> None:
    client = CommandClient(environment=thirsty.env)
    words = "sbatch --parsable --output=/dev/null --chdir=/ -p gpu --gpus=4 -t 10 -A thirsty --comment=r1"
    job_id = (await asyncio.to_thread(thirsty.run, *words.split(), "--wrap=exec sleep 600")).strip()
    await asyncio.to_thread(wait_for, lambda: client.jobs([job_id])[0].state is JobState.RUNNING)
    hook = Webhook()
    async with listening(hook) as url, house(tmp_path, SlurmScheduler(client), webhook=url) as h:
        db = h.controller.db
        deployments.create(
            db,
            "chat-v1",
            "root",
            model="m",
            version=1,
            model_path="/m",
            min_replicas=1,
            max_replicas=1,
            request={},
            by="root",
            why="served",
        )
        deployments.add_replica(db, "r1", "chat-v1", "root", "/runs/r1")
        endpoints.put(db, "chat", "root", targets=[("chat-v1", 1)])
        before = datetime.now(UTC)
        await h.looks()
        (alert,) = hook.got
        runs_out_at = clock.parse(alert["runs_out_at"])
        # Ten GPU-hours, of which a job with four uses what it has since it started.
        assert before + timedelta(hours=2) < runs_out_at <= datetime.now(UTC) + timedelta(hours=2.5)
        assert (alert["kind"], alert["name"], alert["limit"]) == ("forecast", "thirsty", "GrpTRESMins=gres/gpu")
        assert alert["message"].startswith(
            "endpoint chat (deployment chat-v1) will be stopped by GrpTRESMins of account thirsty on "
        )
        assert alert["message"].endswith(f"{runs_out_at:%H:%M} UTC: {alert['used'] / HOUR:.2g} of 10 GPU-hours used")
        await h.looks()
        assert len(hook.got) == 1
