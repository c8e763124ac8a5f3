"""How often to save, and where a run's time went, from made-up facts."""

from __future__ import annotations

import math

import pytest

from launchers.interval import Attempt, between_failures, daly, spent, suggest

DAY = 86400.0


def test_a_cheap_checkpoint_is_taken_at_youngs_interval() -> None:
    assert daly(1.0, DAY) == pytest.approx(math.sqrt(2 * DAY), rel=0.01)


def test_dalys_interval_loses_less_than_any_other() -> None:
    cost, failures = 60.0, 3600.0

    def lost_part(interval: float) -> float:  # Daly's model: time to solution over time of work, restarts for nothing
        return failures * math.expm1((interval + cost) / failures) / interval

    best = daly(cost, failures)
    assert all(lost_part(best) < lost_part(best * other) for other in (0.5, 0.9, 1.1, 2.0))


def test_where_failures_are_more_frequent_than_a_save_takes_the_interval_is_the_time_between_them() -> None:
    assert daly(300.0, 100.0) == 100.0


@pytest.mark.parametrize(("cost", "failures"), [(1.0, 0.0), (-1.0, 10.0)])
def test_without_a_time_between_failures_there_is_no_interval(cost: float, failures: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        daly(cost, failures)


def test_a_suggestion_is_in_iterations_and_never_shorter_than_writing_takes() -> None:
    asked = {"between_failures_s": DAY, "iteration_s": 10.0, "iterations": 100_000}
    usual = suggest(blocked_s=2.0, total_s=60.0, **asked)
    assert (usual.iterations, usual.seconds) == (59, pytest.approx(587, abs=2))
    assert suggest(blocked_s=0.0, total_s=60.0, **asked).seconds == 60.0
    assert suggest(blocked_s=2.0, total_s=60.0, **{**asked, "iterations": 20}).iterations == 20


def test_the_time_between_failures_is_running_time_by_failures() -> None:
    attempts = [Attempt(0, 100, failed=True), Attempt(500, 700), Attempt(900, None, failed=False)]
    assert between_failures(attempts, now=1000) == 400
    assert between_failures([Attempt(0, None)], now=50) == 50
    assert between_failures([], now=50) is None


def test_an_iteration_counts_once_and_what_a_restart_goes_back_over_is_lost() -> None:
    line = {"loss": 1.0, "seconds": 2.0}
    metrics = [
        {"stage": "model", "resumed_from": None},
        *({**line, "iteration": i} for i in range(1, 6)),
        {"checkpoint": 3, "blocked_s": 0.5},
        {"iteration": 5, "validation_loss": 1.0},
        {"stage": "model", "resumed_from": 3},  # 4 and 5 of the first attempt were in vain
        *({**line, "iteration": i} for i in range(4, 5)),
    ]
    told = spent([Attempt(100, 112, failed=True), Attempt(130, None)], metrics, now=140)
    assert (told.wall, told.productive, told.lost, told.blocked) == (40, 8, 4, 0.5)
    assert told.ratio == pytest.approx(0.2)
    assert told.other == pytest.approx(27.5)


def test_what_was_computed_is_lost_as_soon_as_the_next_attempt_has_gone_back() -> None:
    line = {"loss": 1.0, "seconds": 2.0}
    metrics = [{**line, "iteration": i} for i in (1, 2, 3)]
    told = spent([Attempt(0, 6), Attempt(10, None)], [*metrics, {"stage": "model", "resumed_from": 1}], now=20)
    assert (told.productive, told.lost) == (2, 4)


def test_a_run_that_has_not_begun_has_no_ratio() -> None:
    assert spent([], [], now=5).ratio == 0.0
