"""GET /v1/usage: a tenant sees its own, an administrator all, nobody another's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from engine import Engine
from gateway_fixtures import HELLO, Platform, gateway, prepared, site_at, started, until

from registry import clock, keys, ledger, limits
from registry.db import Database
from registry.keys import Scope
from registry.ledger import Attempt, Outcome, UsageEvent
from registry.limits import Subject
from registry.steps import PLATFORM

Answer = tuple[int, dict[str, Any]]


async def ask(platform: Platform, key: str, query: str = "") -> Answer:
    async with platform.http(key) as session, session.get(f"/v1/usage{query}") as answer:
        return answer.status, await answer.json()


async def use(platform: Platform, key: str) -> None:
    async with platform.http(key) as session, session.post("/v1/chat/completions", json=HELLO) as answer:
        assert answer.status == 200, await answer.text()


@contextmanager
def books(platform: Platform) -> Iterator[Database]:
    db = ledger.open_ledger(platform.site.ledger_db)
    yield db
    db.close()


def book(db: Database, events: Sequence[tuple[str, str, str, str]]) -> None:
    """Events of ten tokens each, by (tenant, user, model, day)."""
    for n, (tenant, user, model, day) in enumerate(events):
        at = f"{day}T12:00:00.000000Z"
        attempt = Attempt(f"{n:024x}:1", tenant, f"key-{user}", model, "replica-1", "chat", at, user)
        cut = Outcome.CLIENT_LEFT if user == "bob" else Outcome.COMPLETED
        refused = ledger.record(
            db, [ledger.Hold(attempt, 20, 20), UsageEvent(attempt, 6, 4, 14, cut, at, cached_tokens=2)]
        )
        assert refused == [None, None]


ROW = {
    "requests": 1,
    "cut": 0,
    "prompt_tokens": 6,
    "cached_tokens": 2,
    "completion_tokens": 4,
    "reasoning_tokens": 0,
    "credits": 0.000014,
}


def row(tenant: str, user: str, model: str, times: int = 1) -> dict[str, Any]:
    cut = times if user == "bob" else 0
    return {"tenant": tenant, "user": user, "model": model} | {n: v * times for n, v in ROW.items()} | {"cut": cut}


async def test_a_tenant_sees_what_each_user_used_of_each_model_and_nothing_of_others(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        ann, bob = platform.new_key(user="ann"), platform.new_key(user="bob")
        other = platform.tenant("biology")
        for key in (ann, ann, bob, other):
            await use(platform, key)
        await platform.settled(4)
        status, said = await ask(platform, ann)
        assert status == 200
        assert (said["object"], said["month"], said["tenant"]) == ("usage", clock.now()[:7], "physics")
        assert [(r["tenant"], r["user"], r["model"], r["requests"]) for r in said["data"]] == [
            ("physics", "ann", "tiny", 2),
            ("physics", "bob", "tiny", 1),
        ]
        counts = said["total"]
        assert (counts["requests"], counts["prompt_tokens"], counts["completion_tokens"]) == (3, 21, 12)
        assert counts["credits"] == pytest.approx(3 * (7 + 2 * 4) / 1e6)
        assert "biology" not in str(said)
        status, said = await ask(platform, other)
        assert [(r["tenant"], r["requests"]) for r in said["data"]] == [("biology", 1)]
        assert "physics" not in str(said)


@pytest.mark.parametrize("tenant", ["biology", "absent", PLATFORM, "*"])
async def test_another_tenant_is_an_administrators_to_see(tmp_path: Path, tenant: str) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        await use(platform, platform.tenant("biology"))
        await platform.settled(1)
        for key in (platform.key, platform.new_key(scopes=(Scope.CONTROL, Scope.INFERENCE))):
            status, said = await ask(platform, key, f"?tenant={tenant}")
            assert (status, said["error"]["type"]) == (403, "invalid_request_error")
            assert "sees tenant physics only" in said["error"]["message"] and "biology" not in said["error"]["message"]
        status, said = await ask(platform, platform.new_key(scopes=(Scope.ADMIN,)), f"?tenant={tenant}")
        if tenant == "absent":
            assert (status, said["error"]["message"]) == (
                404,
                "no tenant is called 'absent'; there are: biology, physics, and * for all",
            )
        else:
            assert (status, len(said["data"])) == (200, 0 if tenant == PLATFORM else 1)


async def test_months_are_kept_apart_and_an_administrator_sees_everybodys(tmp_path: Path) -> None:
    platform = prepared(site_at(tmp_path))
    platform.tenant("biology")
    admin = platform.new_key(scopes=(Scope.ADMIN,))
    with books(platform) as db:
        book(
            db,
            [
                ("physics", "ann", "tiny", "2026-09-30"),
                ("physics", "ann", "tiny", "2026-10-01"),
                ("physics", "ann", "large", "2026-10-31"),
                ("physics", "bob", "tiny", "2026-10-15"),
                ("physics", "bob", "tiny", "2026-10-16"),
                ("biology", "ann", "tiny", "2026-10-16"),
                ("physics", "ann", "tiny", "2026-11-01"),
            ],
        )
    own = [row("physics", "ann", "large"), row("physics", "ann", "tiny"), row("physics", "bob", "tiny", 2)]
    async with started(platform):
        _, said = await ask(platform, platform.key, "?month=2026-10")
        assert said["data"] == own
        assert said["total"] == {n: v * 4 for n, v in ROW.items()} | {"cut": 2}
        _, said = await ask(platform, admin, "?month=2026-10&tenant=*")
        assert (said["tenant"], said["data"]) == ("*", [row("biology", "ann", "tiny"), *own])
        _, said = await ask(platform, admin, "?tenant=biology&month=2026-09")
        assert (said["data"], said["total"]["requests"]) == ([], 0)
    platform.registry.close()


async def test_what_is_left_of_each_limit_of_key_user_and_tenant_is_told(tmp_path: Path) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform:
        key = platform.tenant("biology", requests_per_minute=100, token_budget=1000)
        platform.tenant("physics2", token_budget=5)
        (mine,) = (k for k in keys.everything(platform.registry) if k.tenant == "biology")
        limits.put(platform.registry, Subject.KEY, mine.id, {"tokens_per_day": 500}, "root")
        limits.put(platform.registry, Subject.USER, mine.user, {"credits_per_month": 1.5}, "root")
        limits.put(platform.registry, Subject.MODEL, "tiny", {"token_budget": 10**6}, "root")
        await use(platform, key)
        await platform.settled(1)
        _, said = await ask(platform, key)
        midnight, month = (one["ends"] for one in said["limits"][:2])
        assert midnight > clock.now() and midnight.endswith("T00:00:00.000000Z")
        assert month >= midnight and month.endswith("-01T00:00:00.000000Z")
        kept = ("subject", "name", "limit", "allowed", "used", "held", "left", "ends")
        assert [tuple(one[name] for name in kept) for one in said["limits"]] == [
            ("key", mine.id, "tokens_per_day", 500, 11, 0, 489, midnight),
            ("user", "root", "credits_per_month", 1.5, 0.000015, 0, 1.499985, month),
            ("tenant", "biology", "requests_per_minute", 100, 1, 0, 99, None),
            ("tenant", "biology", "token_budget", 1000, 11, 0, 989, None),
        ]
        admin = platform.new_key(scopes=(Scope.ADMIN,))
        _, said = await ask(platform, admin, "?tenant=biology")
        assert {one["subject"] for one in said["limits"]} == {"tenant"}
        _, said = await ask(platform, admin, "?tenant=*")
        assert {one["name"] for one in said["limits"]} == {"biology", "physics2"}


async def test_what_a_running_request_holds_is_told(tmp_path: Path) -> None:
    engine = Engine(hold_after=0)
    async with gateway(tmp_path, engine) as platform:
        key = platform.tenant("biology", token_budget=1000)
        running = asyncio.create_task(use(platform, key))
        await until(lambda: engine.running)
        _, said = await ask(platform, key)
        (limit,) = said["limits"]
        assert 50 < limit["held"] < 200 and limit["left"] == 1000 - limit["held"] and limit["used"] == 0
        engine.go.set()
        await running
        await platform.settled(1)


@pytest.mark.parametrize(
    ("query", "message", "param"),
    [
        ("?month=2026-13", "month '2026-13' is no such time; it is written as 2026-11", "month"),
        ("?month=november", "month 'november' is no such time; it is written as 2026-11", "month"),
        ("?since=2026-11-01", "there is no parameter 'since'; allowed: month, tenant", "since"),
    ],
)
async def test_what_cannot_be_asked_for_is_400(tmp_path: Path, query: str, message: str, param: str) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        status, said = await ask(platform, platform.key, query)
        error = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
        assert (status, said["error"]) == (400, error)


async def test_nothing_is_told_without_a_key(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        assert (await ask(platform, "sk-hg-nobody's"))[0] == 401


async def test_a_ledger_that_cannot_be_read_is_503(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        moved = platform.site.ledger_db.rename(tmp_path / "moved.db")
        status, said = await ask(platform, platform.key)
        assert (status, said["error"]["code"]) == (503, "ledger_unreadable")
        moved.rename(platform.site.ledger_db)
