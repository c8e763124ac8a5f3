"""Every limit, what is used of it, and the day it runs out."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from registry.limits import UNLIMITED, Limits, Subject
from registry.report import Section, Value
from registry.report_quota import AccountLimit, Use, per_day, runs_out, sections

NOON = datetime(2026, 11, 15, 12, tzinfo=UTC)  # half of the seventh day is over: 6.5 days


def made(limits: Limits, slurm: tuple[AccountLimit, ...] = (), **use: tuple[int, int]) -> dict[str, Section]:
    of = {Subject.TENANT: Use(**{window: {"physics": amounts} for window, amounts in use.items()})}
    found = sections({(Subject.TENANT, "physics"): limits}, of, slurm, {"phys": "physics"}, NOON)
    return {section.key: section for section in found}


def rows(section: Section, *columns: str) -> list[tuple[Value, ...]]:
    return [tuple(row[c] for c in columns) for row in section.rows]


def test_each_limit_says_what_is_used_and_left_in_its_own_window() -> None:
    limits = Limits(tokens_per_day=100, tokens_per_month=1000, token_budget=4000, credits_per_month=2.5)
    found = made(limits, day=(10, 0), month=(250, 500_000), ever=(5000, 9_000_000))
    assert rows(found["tokens"], "limit", "allowed", "used", "left", "percent") == [
        ("tokens_per_day", 100, 10, 90, 0.1),
        ("tokens_per_month", 1000, 250, 750, 0.25),
        ("token_budget", 4000, 5000, 0, 1.25),
    ]
    assert rows(found["credits"], "limit", "allowed", "used", "left", "percent") == [
        ("credits_per_month", 2.5, 0.5, 2.0, 0.2)
    ]


def test_it_runs_out_on_the_day_that_the_last_weeks_rate_says() -> None:
    found = made(Limits(tokens_per_month=1000, token_budget=10_000), month=(900, 0), ever=(900, 0), latest=(650, 0))
    assert rows(found["tokens"], "limit", "runs_out") == [
        ("tokens_per_month", "2026-11-16"),  # 100 left at 100 a day
        ("token_budget", "2027-02-14"),
    ]


def test_a_months_limit_that_lasts_until_the_next_month_does_not_run_out() -> None:
    found = made(Limits(tokens_per_month=10_000), month=(900, 0), latest=(650, 0))
    assert rows(found["tokens"], "runs_out") == [(None,)]


@pytest.mark.parametrize(
    ("left", "rate", "day"),
    [(0, 5.0, "used up"), (-3, 0.0, "used up"), (10, 0.0, None), (10, 0.001, None), (10, 10.0, "2026-11-16")],
)
def test_a_forecast_says_a_day_only_where_one_is_in_sight(left: float, rate: float, day: str | None) -> None:
    assert runs_out(left, rate, NOON) == day
    assert per_day(650, NOON) == pytest.approx(100)


def test_a_limit_of_nothing_is_used_up() -> None:
    assert rows(made(Limits(token_budget=0))["tokens"], "left", "percent", "runs_out") == [(0, 1.0, "used up")]


def test_who_has_no_limit_is_shown_with_what_was_used_this_month() -> None:
    found = made(UNLIMITED, month=(70, 1_500_000))
    assert rows(found["tokens"], "name", "limit", "allowed", "used", "left") == [("physics", "none", None, 70, None)]
    assert rows(found["credits"], "used") == [(1.5,)]
    assert found["rates"].rows == ()
    assert not found["tokens"].charts


def test_rates_stand_beside_the_quantities() -> None:
    found = made(Limits(requests_per_minute=600, burst=50, concurrent_requests=8))
    columns = ("name", "requests_per_minute", "burst", "tokens_per_minute", "concurrent_requests")
    assert rows(found["rates"], *columns) == [("physics", 600, 50, None, 8)]


def test_slurms_own_limits_stand_beside_with_their_tenant_and_forecast() -> None:
    limits = (AccountLimit("phys", "H100-hours", 500, 480, 10.0), AccountLimit("phys", "GiB-hours", 100, 1, None))
    found = made(UNLIMITED, limits)
    assert rows(found["slurm"], "name", "tenant", "limit", "allowed", "used", "left", "percent", "runs_out") == [
        ("phys", "physics", "H100-hours", 500, 480, 20, 0.96, "2026-11-17"),
        ("phys", "physics", "GiB-hours", 100, 1, 99, 0.01, None),
    ]
    assert "slurm" not in made(UNLIMITED)
