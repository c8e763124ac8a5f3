"""Which deployments a call to an endpoint goes to."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest

from gateway.endpoints import Choice, choose
from registry.endpoints import Endpoint

KEYS = [f"key-{n}" for n in range(20_000)]
EVERYTHING = lambda name: True  # noqa: E731 - a word for the tests below


def endpoint(targets: dict[str, int], **rest: Any) -> Endpoint:
    given: dict[str, Any] = {"name": "chat", "sticky": None, "shadow": (), "fallbacks": (), **rest}
    return Endpoint(owner="ada", targets=tuple(targets.items()), created_at="", changed_at="", **given)


def chosen(asked: Endpoint, key: str, seed: int = 1) -> str:
    return choose(asked, key, {}, random.Random(seed).random, EVERYTHING).chain[0]


def about(count: int, share: float, of: int) -> bool:
    """Within four standard deviations of what independent draws give."""
    return abs(count - share * of) <= 4 * math.sqrt(of * share * (1 - share))


@pytest.mark.parametrize("weights", [{"v1": 95, "v2": 5}, {"v1": 1, "v2": 1, "v3": 2}, {"v1": 999, "v2": 1}])
@pytest.mark.parametrize("sticky", [None, "key"])
def test_each_target_gets_its_share(weights: dict[str, int], sticky: str | None) -> None:
    asked = endpoint(weights, sticky=sticky)
    draw = random.Random(7).random
    counts = Counter(choose(asked, key, {}, draw, EVERYTHING).chain[0] for key in KEYS)
    for name, weight in weights.items():
        assert about(counts[name], weight / sum(weights.values()), len(KEYS)), counts


def test_a_caller_stays_where_it_is() -> None:
    asked = endpoint({"v1": 50, "v2": 50}, sticky="key")
    for key in KEYS[:100]:
        assert len({chosen(asked, key, seed) for seed in range(10)}) == 1


def test_callers_stick_by_a_header_and_those_without_it_are_drawn_for_each_call() -> None:
    asked = endpoint({"v1": 50, "v2": 50}, sticky="header:x-session")
    draw = random.Random(7).random

    def goes_to(headers: dict[str, str], key: str) -> set[str]:
        return {choose(asked, key, headers, draw, EVERYTHING).chain[0] for _ in range(50)}

    for n in range(20):
        here = goes_to({"x-session": f"session-{n}"}, "key-1")
        assert len(here) == 1
        assert goes_to({"x-session": f"session-{n}"}, "key-2") == here
    assert goes_to({}, "key-1") == {"v1", "v2"}
    assert goes_to({"x-session": ""}, "key-1") == {"v1", "v2"}


def test_a_header_that_is_no_text_sticks_too() -> None:
    asked = endpoint({"v1": 50, "v2": 50}, sticky="header:x-session")
    headers = {"x-session": b"\xff".decode(errors="surrogateescape")}
    assert choose(asked, "key", headers, random.random, EVERYTHING).chain[0] in ("v1", "v2")


def test_moving_a_weight_moves_only_callers_that_come_to_it() -> None:
    before = endpoint({"v1": 60, "v2": 35, "v3": 5}, sticky="key")
    after = endpoint({"v1": 60, "v2": 35, "v3": 20}, sticky="key")
    moved = [(chosen(before, key), chosen(after, key)) for key in KEYS if chosen(before, key) != chosen(after, key)]
    assert {to for _, to in moved} == {"v3"}
    assert about(len(moved), 20 / 115 - 5 / 100, len(KEYS))


def test_taking_a_target_away_moves_only_its_own_callers() -> None:
    before, after = endpoint({"v1": 60, "v2": 40, "v3": 10}, sticky="key"), endpoint({"v1": 60, "v2": 40}, sticky="key")
    assert {chosen(before, key) for key in KEYS if chosen(before, key) != chosen(after, key)} == {"v3"}


def test_the_canaries_of_two_endpoints_are_not_the_same_callers() -> None:
    weights = {"v1": 90, "v2": 10}
    one, other = endpoint(weights, sticky="key"), endpoint(weights, sticky="key", name="summary")
    both = sum(chosen(one, key) == chosen(other, key) == "v2" for key in KEYS)
    assert about(both, 0.01, len(KEYS))


def test_the_chain_has_the_other_targets_before_the_fallbacks() -> None:
    asked = endpoint({"v1": 1, "v2": 1}, fallbacks=("small", "v1", "claude"))
    chains = {choose(asked, "key", {}, random.Random(seed).random, EVERYTHING).chain for seed in range(50)}
    assert chains == {("v1", "v2", "small", "claude"), ("v2", "v1", "small", "claude")}


def test_what_is_not_usable_is_passed_over() -> None:
    asked = endpoint({"v1": 99, "v2": 1}, sticky="key", fallbacks=("small", "claude"), shadow=(("v3", 100),))
    choice = choose(asked, "key", {}, lambda: 0.0, lambda name: name in ("v2", "claude"))
    assert choice == Choice(("v2", "claude"), (), missed=("v1",))


def test_targets_that_others_stand_in_for_are_told_and_fallbacks_and_shadows_are_not() -> None:
    asked = endpoint({"v1": 90, "v2": 5, "v3": 5}, fallbacks=("small", "claude"), shadow=(("v4", 100),))
    for up, missed in (("v1", {"v2", "v3"}), ("small", {"v1", "v2", "v3"}), ("", {"v1", "v2", "v3"})):
        choice = choose(asked, "key", {}, random.random, {up}.__contains__)
        # One that is waited for is told of by its waiting.
        assert {*choice.missed, *(choice.chain if not up else ())} == missed
        assert missed.isdisjoint(choice.chain) or not up


def test_callers_of_a_target_that_is_out_come_back_to_it() -> None:
    asked = endpoint({"v1": 50, "v2": 50}, sticky="key")
    theirs = [key for key in KEYS[:100] if chosen(asked, key) == "v1"]
    assert theirs
    for key in theirs:
        assert choose(asked, key, {}, random.random, lambda name: name == "v2").chain == ("v2",)
        assert chosen(asked, key) == "v1"


def test_where_nothing_is_usable_there_is_one_target_to_wait_for() -> None:
    asked = endpoint({"v1": 95, "v2": 5}, sticky="key", fallbacks=("small",))
    counts = Counter(choose(asked, key, {}, random.random, lambda name: False).chain for key in KEYS)
    assert set(counts) == {("v1",), ("v2",)}
    assert about(counts["v2",], 0.05, len(KEYS))


def test_a_shadow_gets_its_percentage_and_never_what_it_serves_itself() -> None:
    asked = endpoint({"v1": 1}, shadow=(("v1", 100), ("v3", 10)))
    draw = random.Random(7).random
    shadows = Counter(choose(asked, "key", {}, draw, EVERYTHING).shadow for _ in KEYS)
    assert set(shadows) == {(), ("v3",)}
    assert about(shadows["v3",], 0.1, len(KEYS))


def test_a_shadow_of_a_hundred_percent_gets_everything() -> None:
    asked = endpoint({"v1": 1}, shadow=(("v3", 100),))
    draw = random.Random(7).random
    assert all(choose(asked, "key", {}, draw, EVERYTHING).shadow == ("v3",) for _ in range(1000))
