"""Limits in a whole gateway: what clients are told, what is held of answers, and that nothing leaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import orjson
import pytest
from anthropic import AsyncAnthropic
from engine import PROMPT_TOKENS, Engine, running
from gateway_fixtures import HELLO, Platform, gateway, prepared, site_at, started, until
from waiting import eventually

from gateway import calls
from gateway.app_keys import GATEWAY
from gateway.calls import Kind
from registry import clock, endpoints, keys, ledger, limits
from registry.db import open_reader
from registry.limits import Subject


def estimate(call: dict[str, Any]) -> int:
    """What is held for it, sent as JSON by `asking`."""
    return len(orjson.dumps(call)) // calls.BYTES_PER_TOKEN + int(call["max_tokens"])


async def asking(session: aiohttp.ClientSession, call: dict[str, Any]) -> int:
    """The answer's status."""
    async with session.post("/v1/chat/completions", data=orjson.dumps(call)) as answer:
        await answer.read()
        return answer.status


async def test_too_many_requests_are_429_with_the_seconds_to_wait(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        async with platform.openai(platform.tenant("biology", requests_per_minute=2)) as client:
            for _ in range(2):
                await client.chat.completions.create(**HELLO)
            with pytest.raises(openai.RateLimitError, match="2 requests a minute") as refused:
                await client.chat.completions.create(**HELLO)
            assert 0 < int(refused.value.response.headers["Retry-After"]) <= 60
        await platform.settled(2)


async def test_a_spent_budget_is_429_and_not_worth_retrying(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        async with platform.openai(platform.tenant("biology", token_budget=120)) as client:
            with pytest.raises(openai.RateLimitError, match="token") as refused:
                while True:
                    await client.chat.completions.create(**HELLO)
            assert refused.value.code == "insufficient_quota"
            assert "Retry-After" not in refused.value.response.headers
            assert refused.value.response.headers["x-should-retry"] == "false"
        used = sum(e.prompt_tokens + e.completion_tokens for e in await until(platform.events))
        assert 0 < used <= 120


async def test_limits_are_changed_up_and_down_in_a_running_gateway(tmp_path: Path) -> None:
    """And a limit that is new counts what its subject used when it had none."""
    async with gateway(tmp_path, Engine()) as platform, platform.http(platform.new_key(user="ann")) as session:

        def limit(**changes: Any) -> None:
            limits.put(platform.registry, Subject.USER, "ann", changes, "root")

        async def answers(status: int) -> bool:
            return await asking(session, HELLO) == status

        assert await answers(200)
        await platform.settled(1)
        limit(token_budget=estimate(HELLO) + 5)  # room for one, were it the first
        await eventually(lambda: answers(429))
        limit(token_budget=10**6)
        await eventually(lambda: answers(200))
        limit(concurrent_requests=0)
        await eventually(lambda: answers(429))
        limit(concurrent_requests=None, token_budget=None)
        await eventually(lambda: answers(200))


async def test_rotating_a_key_sheds_neither_its_limits_nor_what_it_has_used(tmp_path: Path) -> None:
    """Neither of requests that were just made, nor of those that only the ledger knows of."""
    platform = prepared(site_at(tmp_path))
    (old,) = keys.everything(platform.registry)
    limits.put(platform.registry, Subject.KEY, old.id, {"token_budget": estimate(HELLO) + 5}, "root")
    secret = keys.read_secret(platform.site.key_secret)

    async def refused(session: aiohttp.ClientSession) -> bool:
        return await asking(session, HELLO) == 429

    async with started(platform), running(Engine()) as engine:
        platform.ready(engine)
        async with platform.http() as session:
            assert await asking(session, HELLO) == 200  # no room for another
        (event,) = await platform.settled(1)
        new, shown = keys.rotate(platform.registry, secret, old.id, "root", clock.now())
        async with platform.http(shown) as session:
            assert await refused(session)
    newest, shown = keys.rotate(platform.registry, secret, new.id, "root", clock.now())
    async with started(platform), platform.http(shown) as session:
        assert await refused(session)
        async with session.get("/v1/usage") as answer:
            (left, *_) = (await answer.json())["limits"]
    assert (left["name"], left["used"]) == (old.id, event.prompt_tokens + event.completion_tokens)
    assert event.attempt.key_id == old.id != newest.id
    platform.registry.close()


async def test_applications_of_one_name_in_two_tenants_do_not_share_a_limit(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        platform.tenant("biology")
        limits.put(platform.registry, Subject.USER, "biology/app:web", {"requests_per_minute": 1}, "root")
        theirs, ours = (platform.new_key(tenant, "app:web") for tenant in ("biology", "physics"))
        async with platform.http(theirs) as limited, platform.http(ours) as free:
            assert [await asking(limited, HELLO), await asking(limited, HELLO)] == [200, 429]
            assert [await asking(free, HELLO), await asking(free, HELLO)] == [200, 200]
            async with limited.get("/v1/usage") as answer:
                (shown,) = (await answer.json())["limits"]
        assert (shown["name"], shown["left"]) == ("biology/app:web", 0)
        await platform.settled(3)
        db = open_reader(platform.site.ledger_db)
        try:
            users = {name for _, subject, name in ledger.totals(db, "all") if subject == "user"}
        finally:
            db.close()
        assert users == {"biology/app:web", "physics/app:web"}


async def test_a_refusal_and_what_is_left_have_anthropics_shape_for_its_sdks(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        key = platform.tenant("biology", tokens_per_day=150, requests_per_minute=9)
        client = AsyncAnthropic(base_url=platform.url, api_key=key, max_retries=0, timeout=20)
        ask: Any = {"model": "tiny", "max_tokens": 60, "messages": HELLO["messages"]}
        async with client:
            answer = await client.messages.with_raw_response.create(**ask)
            said = {name.removeprefix("anthropic-ratelimit-"): value for name, value in answer.headers.items()}
            assert (said["requests-limit"], said["requests-remaining"]) == ("9", "8")
            assert said["tokens-limit"] == "150" and 0 < int(said["tokens-remaining"]) < 90
            assert said["tokens-reset"].endswith("T00:00:00Z")
            with pytest.raises(anthropic.RateLimitError, match=r"tenant biology may use 150 tokens a day: ") as refused:
                while True:
                    await client.messages.create(**ask)
            error: Any = refused.value.body
            assert (error["type"], error["error"]["type"]) == ("error", "rate_limit_error")
            assert "the day ends in" in error["error"]["message"]


async def test_a_limit_of_a_model_behind_an_endpoint_counts_under_the_name_that_was_called(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.http() as session:
        endpoints.put(platform.registry, "chat", "root", targets=[("tiny", 1)])
        limits.put(platform.registry, Subject.MODEL, "tiny", {"requests_per_minute": 1}, "root")
        assert await asking(session, {**HELLO, "model": "chat"}) == 200
        async with session.post("/v1/chat/completions", json={**HELLO, "model": "chat"}) as answer:
            said = (await answer.json())["error"]
        assert (answer.status, said["code"]) == (429, "rate_limit_exceeded")
        assert said["message"].startswith("model chat may start 1 requests a minute (any 60 s): 0 left")
        assert await asking(session, HELLO) == 429


async def test_a_budget_outlives_the_gateway(tmp_path: Path) -> None:
    platform = prepared(site_at(tmp_path))
    db = ledger.open_ledger(platform.site.ledger_db)
    old = ledger.Attempt("event-1", "biology", "key-1", "tiny", "replica-1", "chat", clock.now())
    ended = ledger.UsageEvent(old, 60, 40, 1, ledger.Outcome.COMPLETED, clock.now())
    ledger.record(db, [ledger.Hold(old, 1, 1), ended])
    db.close()
    key = platform.tenant("biology", token_budget=100)
    async with started(platform), platform.openai(key) as client:
        with pytest.raises(openai.RateLimitError, match="100 tokens in all: 0 left"):
            await client.chat.completions.create(**HELLO)
    platform.registry.close()


async def test_concurrent_requests_cannot_overspend_a_budget(tmp_path: Path) -> None:
    engine = Engine(hold_after=0, pieces=["x"] * 50)  # every request uses all it may
    budget = 400
    async with gateway(tmp_path, engine) as platform:
        async with platform.openai(platform.tenant("biology", token_budget=budget)) as client:
            tasks = [asyncio.create_task(client.chat.completions.create(**HELLO)) for _ in range(20)]
            await until(lambda: engine.running + sum(t.done() for t in tasks) == len(tasks))
            engine.go.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [r for r in results if isinstance(r, openai.RateLimitError)]
        served = len(results) - len(refused)
        assert refused and served > 1
        events = await platform.settled(served)
        used = sum(e.prompt_tokens + e.completion_tokens for e in events)
        assert used == served * (PROMPT_TOKENS + 50) <= budget


BARE = {"model": "tiny", "messages": HELLO["messages"]}


@pytest.mark.parametrize("stream", [False, True])
async def test_whose_tokens_are_budgeted_gets_no_more_of_an_answer_than_was_held(tmp_path: Path, stream: bool) -> None:
    engine = Engine(pieces=["x"] * 3000, heeds_max_tokens=True)
    async with gateway(tmp_path, engine) as platform:
        async with platform.openai(platform.tenant("biology", token_budget=1500)) as client:
            answer = await client.chat.completions.create(**BARE, stream=stream)
            if stream:
                async for _ in answer:
                    pass
            with pytest.raises(openai.RateLimitError, match=r"1500 tokens in all: 469 left.* max_tokens"):
                await client.chat.completions.create(**BARE)
        assert [r["max_tokens"] for r in engine.requests] == [calls.COMPLETION_CAP]
        (event,) = await platform.settled()
        assert event.completion_tokens == calls.COMPLETION_CAP


async def test_whose_tokens_are_not_budgeted_has_its_request_passed_on_as_it_is(tmp_path: Path) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, platform.openai() as client:
        await client.chat.completions.create(**BARE)
        assert engine.requests == [BARE]


async def test_long_answers_asked_for_at_once_cannot_overspend_a_budget(tmp_path: Path) -> None:
    engine = Engine(hold_after=0, pieces=["x"] * 4000, heeds_max_tokens=True)  # far above the cap of other holds
    async with gateway(tmp_path, engine) as platform:
        async with platform.openai(platform.tenant("biology", token_budget=9000)) as client:
            ask = {**BARE, "max_tokens": 4000}
            tasks = [asyncio.create_task(client.chat.completions.create(**ask)) for _ in range(6)]
            await until(lambda: engine.running + sum(t.done() for t in tasks) == len(tasks))
            engine.go.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(r, openai.RateLimitError) for r in results) == 4
            with pytest.raises(openai.RateLimitError, match="9000 tokens in all: 986 left"):
                await client.chat.completions.create(**ask)
        events = await platform.settled(2)
        assert sum(e.prompt_tokens + e.completion_tokens for e in events) == 2 * (PROMPT_TOKENS + 4000)


@pytest.mark.parametrize(
    ("kind", "asked", "sent", "held"),
    [
        (Kind.CHAT, {}, {"max_tokens": 1024}, 1024),
        (Kind.CHAT, {"max_tokens": None, "n": 3}, {"max_tokens": 1024, "n": 3}, 3 * 1024),
        (Kind.CHAT, {"max_tokens": 5000, "n": 2}, {"max_tokens": 5000, "n": 2}, 10_000),
        (Kind.CHAT, {"max_completion_tokens": 5000}, {"max_completion_tokens": 5000}, 5000),
        # Engines and providers differ in which of both they heed.
        (Kind.CHAT, {"max_completion_tokens": 6, "max_tokens": 9999}, {"max_completion_tokens": 6}, 6),
        (Kind.COMPLETION, {}, {"max_tokens": 16}, 16),  # as the engine would by itself
        (Kind.COMPLETION, {"max_tokens": 0}, {"max_tokens": 0}, 0),
        (Kind.COMPLETION, {"best_of": 2, "max_tokens": 3}, {"best_of": 2, "max_tokens": 3}, 6),
        # Completions know no max_completion_tokens: engines ignore it there.
        (Kind.COMPLETION, {"max_completion_tokens": 1}, {"max_completion_tokens": 1, "max_tokens": 16}, 16),
    ],
)
def test_what_is_held_of_a_budget_is_what_the_engine_is_allowed(
    kind: Kind, asked: dict[str, Any], sent: dict[str, Any], held: int
) -> None:
    question = {"model": "tiny", "messages": [{}]} if kind is Kind.CHAT else {"model": "tiny", "prompt": "x"}
    body = orjson.dumps({**question, **asked})
    call = calls.bounded(calls.read(kind, body))
    assert call.completion_tokens == held
    assert orjson.loads(calls.upstream_body(call, body)) == {**question, **sent}


@pytest.mark.parametrize(("context", "allowed"), [(None, 1024), (512, 512), (131072, 1024)])
def test_a_bound_that_the_client_did_not_state_fits_the_models_context(context: int | None, allowed: int) -> None:
    """An engine refuses a max_tokens above the longest sequence it takes; one that merely does not fit it cuts."""
    call = calls.bounded(calls.read(Kind.CHAT, b'{"model": "tiny", "messages": [{}]}'), context)
    assert (call.fields["max_tokens"], call.completion_tokens) == (allowed, allowed)


def budget_of_ten(platform: Platform) -> str:
    return platform.tenant("biology", token_budget=10 * estimate(HELLO))


def budgets_of_two_levels(platform: Platform) -> str:
    """Room for ten in the tenant's tokens, and for seven in the key's credits."""
    key = budget_of_ten(platform)
    (mine,) = (k for k in keys.everything(platform.registry) if k.tenant == "biology")
    cost = estimate(HELLO) + HELLO["max_tokens"]  # a completion's token costs twice a prompt's
    limits.put(platform.registry, Subject.KEY, mine.id, {"spend_ceiling": 7 * cost / 1e6}, "root")
    return key


@pytest.mark.parametrize(("limited", "most"), [(budget_of_ten, 10), (budgets_of_two_levels, 7)])
async def test_of_two_hundred_at_once_no_more_are_admitted_than_the_budget_has_room_for(
    tmp_path: Path, limited: Callable[[Platform], str], most: int
) -> None:
    engine = Engine(hold_after=0, pieces=["x"] * 50)
    async with gateway(tmp_path, engine) as platform:
        async with platform.http(limited(platform)) as session:
            tasks = [asyncio.create_task(asking(session, HELLO)) for _ in range(200)]
            await until(lambda: engine.running + sum(t.done() for t in tasks) == len(tasks))
            assert engine.running == most
            engine.go.set()
            assert sorted(await asyncio.gather(*tasks)) == [200] * most + [429] * (200 - most)
        events = await platform.settled(most)
        assert sum(e.prompt_tokens + e.completion_tokens for e in events) <= 10 * estimate(HELLO)


CANCELLED = 10_000
AT_ONCE = 250


async def cancelled(url: str, request: bytes, arrived: asyncio.Semaphore, whole: bool) -> None:
    """Send a request over a connection of its own, and break it off before it is answered."""
    host, port = url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    await writer.drain()
    if whole:
        await arrived.acquire()  # some request is at the engine now
    writer.transport.abort()


async def test_ten_thousand_cancelled_requests_leave_nothing_held(tmp_path: Path) -> None:
    """Broken off at the engine, in the queue before it, and anywhere on the way there."""
    arrived = asyncio.Semaphore(0)

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Is in good health, takes requests and never answers."""
        while data := await reader.read(1 << 16):
            if data.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            else:
                arrived.release()
        writer.close()

    platform = prepared(site_at(tmp_path, max_in_flight=100))
    silent = await asyncio.start_server(engine, "127.0.0.1", 0)
    platform.ready(Engine(port=silent.sockets[0].getsockname()[1]))
    key = platform.tenant("biology", concurrent_requests=AT_ONCE, token_budget=10**9, spend_ceiling=1000.0)
    body = orjson.dumps(HELLO)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    async with started(platform) as app, silent:
        gw = app[GATEWAY]

        def shown() -> dict[str, tuple[float, float]]:
            return {one.limit: (one.used, one.held) for one in gw.admission.shown(Subject.TENANT, "biology")}

        for _ in range(CANCELLED // AT_ONCE):
            while not arrived.locked():
                await arrived.acquire()
            await asyncio.gather(*(cancelled(platform.url, request, arrived, n < 80) for n in range(AT_ONCE)))
            await until(lambda: shown()["concurrent_requests"] == (0, 0))
        assert shown()["token_budget"][1] == shown()["spend_ceiling"][1] == 0
        assert gw.queues.taken() == {("tiny",): 0}
        await until(lambda: platform.open_holds() == 0)
    platform.registry.close()
