"""Which alerts are due: each threshold once, anew for a new window or limit; forecasts; what is stored of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from registry import alerts
from registry.alerts import Alert, Key, Mark, Standing, begun_anew, due, forecast, standings, windows
from registry.db import Database
from registry.limits import Limits, Subject

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)  # a Saturday
THRESHOLDS = (50, 80, 90, 100)
DAY = timedelta(days=1)
ACCOUNT = Key("account", "research", "GrpTRESMins=gres/gpu", "all", 500)


def of(used: int, allowed: int = 1000, window: str = "2026-11") -> Standing:
    return Standing(Key("tenant", "physics", "tokens_per_month", window, allowed), used, f"{used} of {allowed} tokens")


class Looks:
    """Looks after one another, each of which remembers what was told before."""

    def __init__(self) -> None:
        self.marks: dict[Key, Mark] = {}

    def __call__(self, *standing: Standing, now: datetime = NOW) -> list[Alert]:
        for key in begun_anew(standing, self.marks):
            del self.marks[key]
        found = due(standing, self.marks, THRESHOLDS, now)
        for alert in found:
            self.marks[alert.standing.key] = Mark(alert.threshold, alert.standing.used, alert.runs_out_at, now)
        return found


# -- thresholds -----------------------------------------------------------------------------------------------------


def test_each_threshold_is_told_once_when_it_is_reached() -> None:
    look = Looks()
    told = [[a.threshold for a in look(of(used))] for used in (499, 500, 500, 799, 800, 950, 999, 1000, 1500)]
    assert told == [[], [50], [], [], [80], [90], [], [100], []]


def test_of_several_thresholds_passed_at_once_the_highest_is_told() -> None:
    look = Looks()
    assert [a.threshold for a in look(of(950))] == [90]
    assert look(of(960)) == []


def test_a_raised_limit_and_a_new_window_begin_anew() -> None:
    look = Looks()
    assert [a.threshold for a in look(of(1000))] == [100]
    assert [a.threshold for a in look(of(1000, allowed=2000))] == [50]  # a top-up
    assert look(of(1100, allowed=2000)) == []
    assert [a.threshold for a in look(of(850, window="2026-12"))] == [80]


def test_a_count_that_somebody_reset_begins_anew_and_one_that_decays_a_little_does_not() -> None:
    look = Looks()
    assert look(of(500)) and not look(of(480)) and not look(of(510))
    assert not look(of(20))  # reset
    assert [a.threshold for a in look(of(500))] == [50]


def test_a_message_says_who_used_how_much_of_what() -> None:
    (alert,) = Looks()(of(950))
    assert alert.message == "tenant physics has used 950 of 1000 tokens in 2026-11, 95 % of its tokens_per_month"


# -- forecasts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "rate", "expected"),
    [
        (400, 1, NOW + timedelta(seconds=100)),
        (400, 0.5, NOW + timedelta(seconds=200)),
        (400, 0, None),
        (500, 0, NOW),
        (600, 9, NOW),
        (0, 1e-12, None),  # beyond the calendar
    ],
)
def test_a_limit_is_used_up_when_its_rest_is(used: int, rate: float, expected: datetime | None) -> None:
    assert forecast(used, 500, rate, NOW) == expected


def stopping(at: datetime | None, used: int = 240, stops: tuple[str, ...] = ("deployment chat-v1",)) -> Standing:
    return Standing(ACCOUNT, used, f"{used} of 500 GPU-hours", at, stops)


def test_what_will_be_stopped_is_told_with_the_day_and_again_when_that_is_more_than_a_day_earlier() -> None:
    look = Looks()
    thursday = datetime(2026, 12, 3, 14, tzinfo=UTC)
    (alert,) = look(stopping(thursday, stops=("endpoint chat (deployment chat-v1)",)))
    assert (alert.kind, alert.message) == (
        "forecast",
        "endpoint chat (deployment chat-v1) will be stopped by GrpTRESMins of account research on "
        "Thursday, 3 December, 14:00 UTC: 240 of 500 GPU-hours used",
    )
    for hours in (-24, 0, 24, 25):
        assert look(stopping(thursday + timedelta(hours=hours))) == []
    assert [a.runs_out_at for a in look(stopping(thursday - timedelta(hours=25)))] == [thursday - timedelta(hours=25)]
    assert look(stopping(thursday)) == []


def test_a_later_end_is_told_a_day_after_the_last() -> None:
    look = Looks()
    ends = NOW + 3 * DAY
    assert look(stopping(ends))
    assert look(stopping(ends + 2 * DAY), now=NOW + DAY - timedelta(seconds=1)) == []
    (alert,) = look(stopping(ends + 2 * DAY), now=NOW + DAY)
    assert alert.runs_out_at == ends + 2 * DAY


def test_a_replica_that_comes_and_goes_does_not_tell_each_time() -> None:
    look = Looks()
    told = [len(look(stopping(NOW + (3 + 3 * (n % 2)) * DAY), now=NOW + n * DAY / 24)) for n in range(24)]
    assert told == [1] + 23 * [0]


def test_no_end_is_told_that_lies_far_ahead_or_ends_nothing_that_would_run_on() -> None:
    look = Looks()
    assert look(stopping(None)) == look(stopping(NOW + 15 * DAY)) == look(stopping(NOW + DAY, stops=())) == []
    (alert,) = look(stopping(NOW + DAY, used=300, stops=()))
    assert alert.message == "account research has used 300 of 500 GPU-hours, 60 % of its GrpTRESMins=gres/gpu"
    assert [a.kind for a in look(stopping(NOW + 13 * DAY, used=300))] == ["forecast"]


def test_a_threshold_says_the_forecast_too_which_is_then_told() -> None:
    look = Looks()
    (alert,) = look(stopping(NOW + DAY, used=480))
    assert (alert.kind, alert.threshold) == ("threshold", 90)
    assert alert.message == (
        "account research has used 480 of 500 GPU-hours, 96 % of its GrpTRESMins=gres/gpu; deployment chat-v1 will be "
        "stopped by GrpTRESMins of account research on Sunday, 29 November, 12:00 UTC"
    )
    assert look(stopping(NOW + DAY, used=485)) == []
    (last,) = look(stopping(NOW, used=500))
    assert (last.threshold, last.runs_out_at) == (100, None)


# -- limits ---------------------------------------------------------------------------------------------------------


def test_every_limit_with_a_quantity_stands_in_its_window_and_others_do_not() -> None:
    limited = {
        (Subject.TENANT, "physics"): Limits(
            requests_per_minute=5, tokens_per_day=100, tokens_per_month=1000, credits_per_day=1.5, token_budget=0
        ),
        (Subject.USER, "ada"): Limits(credits_per_month=2, token_budget=50, spend_ceiling=2.5),
        (Subject.KEY, "k1"): Limits(concurrent_requests=3, tokens_per_day=7, credits_per_day=1e-7),
    }
    totals = {
        ("2026-11-28", "tenant", "physics"): (60, 900_000),
        ("2026-11", "tenant", "physics"): (700, 5_000_000),
        ("2026-11", "user", "ada"): (30, 1_000_000),
        ("all", "user", "ada"): (49, 2_500_000),
    }
    found = {(s.key.subject, s.key.limit): (s.key.window, s.used, s.key.allowed, s.words) for s in standings(
        limited, totals, NOW
    )}  # fmt: skip
    assert found == {
        ("tenant", "tokens_per_day"): ("2026-11-28", 60, 100, "60 of 100 tokens"),
        ("tenant", "tokens_per_month"): ("2026-11", 700, 1000, "700 of 1,000 tokens"),
        ("tenant", "credits_per_day"): ("2026-11-28", 900_000, 1_500_000, "0.90 of 1.50 credits"),
        ("user", "credits_per_month"): ("2026-11", 1_000_000, 2_000_000, "1 of 2 credits"),
        ("user", "token_budget"): ("all", 49, 50, "49 of 50 tokens"),
        ("user", "spend_ceiling"): ("all", 2_500_000, 2_500_000, "2.50 of 2.50 credits"),
        ("key", "tokens_per_day"): ("2026-11-28", 0, 7, "0 of 7 tokens"),
    }
    assert windows(NOW) == ("2026-11-28", "2026-11", "all")


def test_a_limit_too_small_to_be_a_micro_credit_allows_nothing_and_is_never_used_up() -> None:
    assert standings({(Subject.TENANT, "physics"): Limits(spend_ceiling=1e-7)}, {}, NOW) == []


# -- stored ---------------------------------------------------------------------------------------------------------


def test_what_was_told_is_remembered_until_its_window_is_over(registry: Database) -> None:
    first = due([of(800), stopping(NOW + DAY)], {}, THRESHOLDS, NOW)
    alerts.note(registry, first, [], ["mail"], NOW)
    assert alerts.marks(registry) == {
        of(0).key: Mark(80, 800, None, NOW),
        ACCOUNT: Mark(0, 240, NOW + DAY, NOW),
    }
    assert due([of(801), stopping(NOW + DAY)], alerts.marks(registry), THRESHOLDS, NOW) == []
    alerts.note(registry, [], [ACCOUNT], [], NOW)
    assert set(alerts.marks(registry)) == {of(0).key}
    alerts.note(registry, [], [], [], NOW + 7 * DAY)  # December
    assert alerts.marks(registry) == {}


def test_an_alert_waits_for_each_channel_until_that_took_it(registry: Database) -> None:
    alerts.note(registry, due([of(800)], {}, THRESHOLDS, NOW), [], ["webhook", "mail"], NOW)
    (stored,) = alerts.waiting(registry)
    assert stored.waiting == ("webhook", "mail")
    assert {name: stored.document[name] for name in ("kind", "subject", "name", "limit", "window", "threshold")} == {
        "kind": "threshold",
        "subject": "tenant",
        "name": "physics",
        "limit": "tokens_per_month",
        "window": "2026-11",
        "threshold": 80,
    }
    alerts.told(registry, stored, ["mail"])
    assert [s.waiting for s in alerts.waiting(registry)] == [("mail",)]
    alerts.note(registry, [], [], [], NOW + 500 * DAY)  # old ones are deleted, but none that waits
    (stored,) = alerts.waiting(registry)
    alerts.told(registry, stored, [])
    assert alerts.waiting(registry) == []


def test_an_alert_that_nobody_is_to_be_told_of_does_not_wait(registry: Database) -> None:
    alerts.note(registry, due([of(800)], {}, THRESHOLDS, NOW), [], [], NOW)
    assert alerts.waiting(registry) == []
