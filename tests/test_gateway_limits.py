"""Requests a minute and token budgets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from engine import PROMPT_TOKENS, Engine
from gateway_fixtures import HELLO, gateway, prepared, site_at, started, until

from gateway import calls
from gateway.admission import Admission
from gateway.calls import Kind
from gateway.errors import BudgetExhausted, TooManyRequests
from registry import ledger
from registry.tenants import Tenant


def tenant(requests_per_minute: int | None = None, token_budget: int | None = None) -> Tenant:
    return Tenant("physics", "root", None, requests_per_minute, token_budget, "")


def test_requests_are_counted_over_any_sixty_seconds() -> None:
    now = 0.0
    admission = Admission({}, lambda: now)
    limited = tenant(requests_per_minute=2)
    admission.admit(limited, 1)
    now = 30.0
    admission.admit(limited, 1)
    now = 50.0
    with pytest.raises(TooManyRequests) as refused:
        admission.admit(limited, 1)
    assert refused.value.retry_after == 10
    now = 60.0
    admission.admit(limited, 1)
    with pytest.raises(TooManyRequests):
        admission.admit(limited, 1)


def test_many_starts_are_remembered_in_little_room() -> None:
    now = 0.0
    admission = Admission({}, lambda: now)
    limited = tenant(requests_per_minute=100_000)
    for n in range(50_000):
        now = n * 1e-4
        admission.admit(limited, 1)
    (standing,) = admission._standings.values()
    assert standing.started == 50_000
    assert len(standing.starts) <= 501  # of 5 s
    now = 59.0
    assert admission.admit(limited, 1).requests.remaining == 49_999  # type: ignore[union-attr] # it is limited
    now = 66.0
    assert admission.admit(limited, 1).requests.remaining == 99_998  # type: ignore[union-attr]


def test_a_request_that_one_limit_refuses_is_debited_nowhere() -> None:
    admission = Admission({"physics": 90}, lambda: 0.0)
    limited = tenant(requests_per_minute=1, token_budget=100)
    with pytest.raises(BudgetExhausted):
        admission.admit(limited, 11)
    with admission.admit(limited, 10):  # neither the minute nor the budget was touched
        pass


def test_waiting_is_advised_only_when_it_helps() -> None:
    admission = Admission({"physics": 50}, lambda: 0.0)
    limited = tenant(token_budget=100)
    with pytest.raises(BudgetExhausted) as spent:
        admission.admit(limited, 51)
    assert spent.value.retry_after is None
    with admission.admit(limited, 40), pytest.raises(BudgetExhausted) as held:
        admission.admit(limited, 20)
    assert held.value.retry_after is not None


def test_a_hold_is_given_back_however_the_request_ends() -> None:
    admission = Admission({}, lambda: 0.0)
    limited = tenant(token_budget=100)
    with pytest.raises(ZeroDivisionError), admission.admit(limited, 100):
        raise ZeroDivisionError
    with admission.admit(limited, 100) as hold:
        hold.used = 60
    with pytest.raises(BudgetExhausted):
        admission.admit(limited, 41)
    admission.admit(limited, 40)


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


async def test_a_budget_outlives_the_gateway(tmp_path: Path) -> None:
    platform = prepared(site_at(tmp_path))
    db = ledger.open_ledger(platform.site.ledger_db)
    old = ledger.Attempt("event-1", "biology", "key-1", "tiny", "replica-1", "chat", "")
    ledger.record(db, [ledger.Hold(old, 1, 1), ledger.UsageEvent(old, 60, 40, 1, ledger.Outcome.COMPLETED, "")])
    db.close()
    key = platform.tenant("biology", token_budget=100)
    async with started(platform), platform.openai(key) as client:
        with pytest.raises(openai.RateLimitError, match="0 of 100"):
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
            with pytest.raises(openai.RateLimitError, match=r"has 469 of 1500 tokens left.* max_tokens"):
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
            with pytest.raises(openai.RateLimitError, match="986 of 9000"):
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
