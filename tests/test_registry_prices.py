"""Prices in versions: what costs what, when, and since when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from registry import clock, prices
from registry.db import Conflict, Database, RegistryError
from registry.prices import Kind, PriceBook, Version
from registry.settings import GpuPrice, Price

MAY, JUNE, JULY = (f"2026-0{month}-01T00:00:00.000000Z" for month in (5, 6, 7))
NIGHT = "2026-05-31T23:59:59.999999Z"


def tokens(name: str, start: str, prompt: float) -> Version:
    return Version(Kind.MODEL, name, start, prompt, None, prompt * 3, 0.0, start, "root")


def gpu(name: str, start: str, hour: float) -> Version:
    return Version(Kind.GPU, name, start, 0.0, None, 0.0, hour, start, "root")


def test_a_price_is_in_force_from_now_or_from_an_instant_to_come(registry: Database) -> None:
    later = clock.text(datetime.now(UTC) + timedelta(days=1))
    before = clock.now()
    now = prices.put(registry, Kind.MODEL, "m", "root", prompt=1, completion=2)
    then = prices.put(registry, Kind.MODEL, "m", "root", prompt=2, cached=0.5, completion=4, valid_from=later)
    assert before <= now.valid_from <= clock.now() and then.valid_from == later
    assert prices.everything(registry) == [now, then]
    with pytest.raises(Conflict, match=f"price of m: another version is valid from {later} on"):
        prices.put(registry, Kind.MODEL, "m", "root", prompt=3, valid_from=later)
    assert prices.put(registry, Kind.GPU, "m", "root", hour=3, valid_from=later).hour == 3  # a type of GPU is no model


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"valid_from": MAY[:4].replace("2026", "2020") + MAY[4:]}, "which is past; what was billed stays"),
        ({"prompt": -1.0}, "price of m: prompt must be a number from 0 to 1e9, not -1.0"),
        ({"completion": float("nan")}, "completion must be a number"),
        ({"cached": float("inf")}, "cached must be a number"),
        ({"hour": 1e10}, "hour must be a number"),
    ],
)
def test_what_is_no_price_is_refused(registry: Database, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(RegistryError, match=words):
        prices.put(registry, Kind.MODEL, "m", "root", **asked)
    assert prices.everything(registry) == []


def test_the_version_that_holds_at_an_instant_is_the_last_that_began() -> None:
    book = PriceBook([tokens("m", JULY, 7), tokens("m", JUNE, 6)], {"m": Price(prompt=1, completion=3)})
    found = {at: price.prompt for at in (MAY, NIGHT, JUNE, JULY) if (price := book.of_model("m", "m", at))}
    assert found == {MAY: 1, NIGHT: 1, JUNE: 6, JULY: 7}


def test_an_adapter_costs_what_its_deployment_does_and_what_has_no_price_the_default() -> None:
    site = {"default": Price(prompt=9, completion=9), "base": Price(prompt=1, completion=1)}
    book = PriceBook([tokens("adapter", JUNE, 5), tokens("default", JULY, 8)], site)

    def prompt(model: str, deployment: str, at: str) -> float:
        price = book.of_model(model, deployment, at)
        assert price is not None
        return price.prompt

    assert (prompt("adapter", "base", MAY), prompt("adapter", "base", JUNE)) == (1, 5)
    assert (prompt("other", "other", JUNE), prompt("other", "other", JULY)) == (9, 8)
    assert PriceBook().of_model("m", "m", MAY) is None


def test_a_gpu_costs_by_its_type_else_the_default_else_nothing() -> None:
    book = PriceBook([gpu("h100", JUNE, 4)], {}, {"h100": GpuPrice(hour=3), "default": GpuPrice(hour=1)})
    assert [book.of_gpu("h100", at) for at in (MAY, JUNE)] == [3, 4]
    assert (book.of_gpu("", MAY), PriceBook().of_gpu("h100", MAY)) == (1, 0)


def test_each_price_holds_until_the_next_of_its_name_begins() -> None:
    listed = prices.schedule(
        [tokens("m", JUNE, 6), tokens("m", JULY, 7), gpu("h100", JULY, 4)],
        {"m": Price(prompt=1, completion=3, cached=0.1), "other": Price(prompt=2, completion=2)},
        {"h100": GpuPrice(hour=3)},
    )
    assert [(p.name, p.valid_from, p.valid_until, p.prompt, p.cached, p.hour, p.by) for p in listed] == [
        ("h100", None, JULY, None, None, 3, None),
        ("h100", JULY, None, None, None, 4, "root"),
        ("m", None, JUNE, 1, 0.1, None, None),
        ("m", JUNE, JULY, 6, None, None, "root"),
        ("m", JULY, None, 7, None, None, "root"),
        ("other", None, None, 2, None, None, None),
    ]
    for at, expected in ((MAY, 1), (NIGHT, 1), (JUNE, 6), (JULY, 7)):
        assert [p.prompt for p in listed if p.name == "m" and prices.holds(p, at)] == [expected]
