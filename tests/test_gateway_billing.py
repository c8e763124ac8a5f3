"""What an attempt costs: the price in force when it began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from engine import Engine
from gateway_fixtures import HELLO, gateway
from waiting import eventually

from gateway import calls
from gateway.billing import Billing
from gateway.calls import Call, Kind
from gateway.ledger_writer import LedgerWriter
from gateway.metering import Meter, Usage
from registry import clock, prices
from registry.keys import LiveKey
from registry.ledger import Outcome
from registry.prices import Version
from registry.site import Price
from registry.tenants import Tenant

NOON = datetime.fromisoformat("2026-11-28T12:00:00Z")
ANN = LiveKey("key-1", Tenant("physics", "root", None, ""), frozenset(), "ann")
USED = Usage(100, 10, cached_tokens=40)


def version(name: str, valid_from: datetime, prompt: float, completion: float, cached: float | None = None) -> Version:
    since = clock.text(valid_from)
    return Version(prices.Kind.MODEL, name, since, prompt, cached, completion, 0.0, since, "root")


def call_of(model: str) -> Call:
    return calls.read(Kind.COMPLETION, orjson.dumps({"model": model, "prompt": "x" * 300, "max_tokens": 50}))


class Desk:
    """Billing with a clock of its own; the site's file prices `tiny` and everything else."""

    def __init__(self, writer: LedgerWriter) -> None:
        self.now = NOON
        self.site: dict[str, Price] = {"default": Price(prompt=1, completion=2), "tiny": Price(prompt=3, completion=4)}
        self.billing = Billing(writer, self.site, lambda: int(self.now.timestamp()) * 10**9)

    def paid(self, model: str, deployment: str = "", during: timedelta = timedelta()) -> int:
        """Micro-credits of USED by an attempt that takes so long."""
        call = call_of(model)
        meter = Meter(call)
        with self.billing.attempt(ANN, call, "replica-1", None, meter, deployment) as bill:
            self.now += during
            meter.count(USED)
            bill.outcome = Outcome.COMPLETED
        return bill.microcredits


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    writer = LedgerWriter(tmp_path / "ledger.db", asyncio.get_running_loop())
    yield Desk(writer)
    await writer.close()


async def test_a_version_that_begins_between_two_requests_prices_the_second(desk: Desk) -> None:
    desk.billing.priced([version("tiny", NOON + timedelta(hours=1), 10, 20, cached=1)])
    assert desk.paid("tiny") == 100 * 3 + 10 * 4
    assert desk.paid("tiny", during=timedelta(hours=1)) == 340  # it began under the old price
    assert desk.paid("tiny") == 60 * 10 + 40 * 1 + 10 * 20
    desk.billing.priced([])
    assert desk.paid("tiny") == 340


async def test_an_adapter_costs_what_its_deployment_does_unless_it_has_a_price(desk: Desk) -> None:
    assert desk.paid("poet", "tiny") == 340
    assert desk.paid("other", "large") == 100 * 1 + 10 * 2
    desk.billing.priced([version("poet", NOON, 5, 5), version("default", NOON, 7, 7)])
    assert desk.paid("poet", "tiny") == 550
    assert desk.paid("clerk", "tiny") == 340
    assert desk.paid("other", "large") == 770


async def test_a_providers_prices_count_as_soon_as_they_are_known(desk: Desk) -> None:
    desk.site.clear()
    desk.billing.priced([])
    assert desk.paid("claude") == 0
    desk.site["claude"] = Price(prompt=100, completion=500, cached=10)
    assert desk.paid("claude") == 60 * 100 + 40 * 10 + 10 * 500


async def test_an_estimate_is_what_all_the_tokens_cost_that_are_held(desk: Desk) -> None:
    call = call_of("poet")
    assert desk.billing.estimate(call, "poet", "tiny") == call.prompt_tokens * 3 + 50 * 4
    desk.site.clear()
    assert desk.billing.estimate(call, "poet", "tiny") == 0


async def test_a_price_that_is_set_counts_in_a_running_gateway(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.http() as session:
        paid: list[int] = []

        async def costs(expected: int) -> bool:
            async with session.post("/v1/chat/completions", json=HELLO) as answer:
                assert answer.status == 200
            paid.append((await platform.settled(len(paid) + 1))[-1].microcredits)
            return paid[-1] == expected

        assert await costs(7 * 1 + 4 * 2)
        prices.put(platform.registry, prices.Kind.MODEL, "tiny", "root", prompt=10, completion=100)
        await eventually(lambda: costs(7 * 10 + 4 * 100))
        assert set(paid) == {15, 470}


async def test_spend_is_limited_by_what_answers_cost(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        key = platform.tenant("biology", spend_ceiling=0.0003)
        served = 0
        said: dict[str, Any] = {}
        async with platform.http(key) as session:
            while not said:
                async with session.post("/v1/chat/completions", json=HELLO) as answer:
                    if answer.status == 200:
                        served += 1
                    else:
                        said = await answer.json()
        assert "tenant biology may spend 0.0003 credits in all" in said["error"]["message"]
        assert said["error"]["code"] == "insufficient_quota"
        paid = sum(event.microcredits for event in await platform.settled(served))
        assert 0 < paid <= 300
