"""Limits of keys, users, tenants and models, as the registry keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry import limits
from registry.db import Database, RegistryError, open_writer, transaction
from registry.limits import LARGEST, UNLIMITED, Limits, Subject
from registry.migrations import MIGRATIONS


def test_limits_are_changed_one_by_one_and_none_takes_one_away(registry: Database) -> None:
    limits.put(registry, Subject.USER, "ada", {"tokens_per_day": 5, "credits_per_month": 2.5}, "root")
    changed = limits.put(registry, Subject.USER, "ada", {"tokens_per_day": None, "spend_ceiling": 0}, "root")
    assert changed == limits.of(registry, Subject.USER, "ada") == Limits(credits_per_month=2.5, spend_ceiling=0)
    assert limits.of(registry, Subject.TENANT, "ada") == UNLIMITED


def test_who_is_limited_is_listed_by_sort_and_name_and_who_no_longer_is_is_not(registry: Database) -> None:
    for subject, name in ((Subject.TENANT, "b"), (Subject.MODEL, "m"), (Subject.TENANT, "a"), (Subject.USER, "app:x")):
        limits.put(registry, subject, name, {"requests_per_minute": 1, "burst": 1}, "root")
    limits.put(registry, Subject.TENANT, "b", {"requests_per_minute": None, "burst": None}, "root")
    found = Limits(requests_per_minute=1, burst=1)
    assert limits.everything(registry) == dict.fromkeys(
        [(Subject.MODEL, "m"), (Subject.TENANT, "a"), (Subject.USER, "app:x")], found
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": 1}, "no limit is called 'tokens'; there are: requests_per_minute, burst"),
        ({"token_budget": -1}, "token_budget must be a whole number from 0 to"),
        ({"token_budget": LARGEST + 1}, "token_budget must be a whole number from 0 to"),
        ({"token_budget": 1.0}, "must be a whole number"),
        ({"token_budget": True}, "must be a whole number"),
        ({"token_budget": "1"}, "must be a whole number"),
        ({"credits_per_day": float("nan")}, "credits_per_day must be a number"),
        ({"credits_per_day": float("inf")}, "credits_per_day must be a number"),
        ({"credits_per_day": 1e-7}, r"credits_per_day must be 0 or at least 0.000001 \(a micro-credit\), not 1e-07"),
        ({"requests_per_minute": 9, "burst": 0}, "burst must be a whole number from 1 to"),
        ({"requests_per_minute": None}, "tenant physics: burst is of requests_per_minute, which has no limit"),
    ],
)
def test_what_is_no_limit_is_refused_by_name_and_changes_nothing(
    registry: Database, changes: dict[str, Any], words: str
) -> None:
    before = limits.put(registry, Subject.TENANT, "physics", {"requests_per_minute": 9, "burst": 2}, "root")
    with pytest.raises(RegistryError, match=words):
        limits.put(registry, Subject.TENANT, "physics", {"tokens_per_day": 1} | changes, "root")
    assert limits.of(registry, Subject.TENANT, "physics") == before


def test_limits_that_a_tenant_had_before_there_were_others_stay_in_force(tmp_path: Path) -> None:
    names = [m.__name__ for m in MIGRATIONS]
    db = open_writer(tmp_path / "registry.db", MIGRATIONS[: names.index("m008_limits_prices_members")])
    with transaction(db) as c:
        c.execute(
            "INSERT INTO tenants VALUES ('physics', 'root', NULL, 60, 1000, '2026'), ('f', 'r', NULL, NULL, NULL, '')"
        )
    db.close()
    db = open_writer(tmp_path / "registry.db", MIGRATIONS)
    try:
        limited = Limits(requests_per_minute=60, token_budget=1000)
        assert limits.everything(db) == {(Subject.TENANT, "physics"): limited}
    finally:
        db.close()
