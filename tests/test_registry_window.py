"""The days that a report is about."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from registry.db import RegistryError
from registry.window import Window, of_month, text, window_of

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def test_without_a_word_it_is_this_month_in_utc() -> None:
    assert window_of(None, None, None, NOW) == Window(date(2026, 11, 1), date(2026, 12, 1))
    late = datetime(2026, 11, 30, 22, tzinfo=timezone(timedelta(hours=-5)))
    assert window_of(None, None, None, late).month == "2026-12"


def test_a_month_and_the_one_before_it() -> None:
    january = window_of("2026-01", None, None, NOW)
    assert (str(january), january.month, str(january.before)) == ("January 2026", "2026-01", "December 2025")
    assert len(of_month(date(2024, 2, 11)).days) == 29
    assert text(january) == ("2026-01-01T00:00:00.000000Z", "2026-02-01T00:00:00.000000Z")


def test_days_and_as_many_days_before_them() -> None:
    week = window_of(None, "2026-11-08", "2026-11-15", NOW)
    assert (str(week), week.month) == ("2026-11-08 to 2026-11-14", None)
    assert week.before == Window(date(2026, 11, 1), date(2026, 11, 8))
    assert week.days[0] == "2026-11-08" and week.days[-1] == "2026-11-14"


def test_since_alone_is_until_now_and_whole_months_are_months() -> None:
    assert window_of(None, "2026-11-28", None, NOW).days == ("2026-11-28", "2026-11-29")
    assert str(window_of(None, "2026-11-29", None, NOW)) == "2026-11-29"
    assert window_of(None, "2026-10-01", "2026-11-01", NOW).month == "2026-10"


@pytest.mark.parametrize(
    ("month", "since", "until", "why"),
    [
        ("2026-13", None, None, "written as 2026-11"),
        ("november", None, None, "written as 2026-11"),
        ("2026-11", "2026-11-01", None, "not both"),
        (None, None, "2026-11-01", "needs a since"),
        (None, "2026-11-02", "2026-11-02", "must be before"),
        (None, "2026-11-31", None, "written as 2026-11-24"),
        (None, "yesterday", None, "written as 2026-11-24"),
        ("2026-12", None, None, "yet to come"),
        ("0001-01", None, None, "written as 2026-11"),
    ],
)
def test_what_is_no_window_is_refused_with_what_is_allowed(
    month: str | None, since: str | None, until: str | None, why: str
) -> None:
    with pytest.raises(RegistryError, match=why):
        window_of(month, since, until, NOW)
