"""Which deployments are called: from the gateway through the ledger's file to the controller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from waiting import eventually

from gateway import demand as gateway_demand
from gateway.demand import Called
from registry import ledger
from registry.db import Database
from registry.demand import Demand, DemandReader, demand, note_demand

AT = datetime(2026, 1, 2, 14, 5, tzinfo=UTC)
EARLIER, LATER = "2026-01-02T14:05:00.000000Z", "2026-01-02T14:06:00.000000Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    opened = ledger.open_ledger(path)
    yield opened
    opened.close()


def test_the_latest_call_of_each_deployment_is_kept(db: Database) -> None:
    note_demand(db, [Demand("chat", EARLIER, 3), Demand("embed", LATER, 0)])
    note_demand(db, [Demand("chat", LATER, 0), Demand("embed", EARLIER, 1)])
    assert demand(db) == {"chat": Demand("chat", LATER, 0), "embed": Demand("embed", LATER, 1)}


def test_the_controller_reads_what_the_gateway_wrote_and_needs_no_gateway(path: Path) -> None:
    reader = DemandReader(path)
    assert reader.latest() == {}
    db = ledger.open_ledger(path)
    note_demand(db, [Demand("chat", EARLIER, 1)])
    assert reader.latest() == {"chat": Demand("chat", EARLIER, 1)}
    note_demand(db, [Demand("chat", LATER, 0)])
    assert reader.latest()["chat"].at == LATER
    db.close()
    assert reader.latest()["chat"].at == LATER
    reader.close()


def test_a_file_that_cannot_be_read_tells_nothing_new_and_is_complained_of_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(b"no database " * 100)
    reader = DemandReader(path)
    assert reader.latest() == {} and reader.latest() == {}
    assert [r.message for r in caplog.records if "cannot be read" in r.message] == [caplog.records[0].message]
    reader.close()


def test_what_was_called_is_in_flight_or_waited_for_is_told_and_then_forgotten() -> None:
    called = Called()
    for name in ("chat", "embed", "chat"):
        called.note(name)
    told = called.take(["long"], {"asleep": 2}, AT)
    assert told == [Demand(n, EARLIER, w) for n, w in (("asleep", 2), ("chat", 0), ("embed", 0), ("long", 0))]
    assert called.take([], {}, AT) == []


async def test_a_call_that_nobody_serves_is_told_at_once_and_the_others_when_it_is_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called, written = Called(), list[Sequence[Demand]]()
    monkeypatch.setattr(gateway_demand, "EVERY_S", 3600.0)
    monkeypatch.setattr(gateway_demand, "BREATH_S", 0.0)
    telling = asyncio.create_task(called.tell(written.append, lambda: [], lambda: {"asleep": 1}))
    called.note("chat")
    for _ in range(5):
        await asyncio.sleep(0)
    assert not written
    called.urge("asleep")

    async def told() -> bool:
        return bool(written)

    await eventually(told)
    assert [(d.deployment, d.waiting) for d in written[0]] == [("asleep", 1), ("chat", 0)]
    telling.cancel()
    with suppress(asyncio.CancelledError):
        await telling


async def test_a_target_that_others_stand_in_for_is_told_at_once_the_first_time_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called, written = Called(), list[str]()
    monkeypatch.setattr(gateway_demand, "EVERY_S", 3600.0)
    monkeypatch.setattr(gateway_demand, "BREATH_S", 0.0)
    telling = asyncio.create_task(
        called.tell(lambda told: written.extend(d.deployment for d in told), lambda: [], lambda: {})
    )

    async def told_after(*steps: Callable[[str], None]) -> list[str]:
        written.clear()
        for step in steps:
            step("canary")
        for _ in range(20):
            await asyncio.sleep(0)
        return list(written)

    assert await told_after(called.miss, called.miss) == ["canary"]
    assert await told_after(called.miss) == []  # but with the next write
    assert [d.deployment for d in called.take([], {}, AT)] == ["canary"]
    assert await told_after(called.note, called.miss) == ["canary"]  # it was up in the meantime
    telling.cancel()
    with suppress(asyncio.CancelledError):
        await telling


async def test_what_is_called_all_the_time_is_told_every_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    called, written = Called(), list[Sequence[Demand]]()
    monkeypatch.setattr(gateway_demand, "EVERY_S", 0.01)
    monkeypatch.setattr(gateway_demand, "BREATH_S", 0.0)
    telling = asyncio.create_task(called.tell(written.append, lambda: ["long"], dict))

    async def twice() -> bool:
        return len(written) >= 2

    await eventually(twice)
    assert all([d.deployment for d in one] == ["long"] for one in written)
    telling.cancel()
    with suppress(asyncio.CancelledError):
        await telling
