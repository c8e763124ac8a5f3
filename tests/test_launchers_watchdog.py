"""Missing progress, by what training says of itself."""

from __future__ import annotations

import pytest

from launchers.megatron.recipe import Restart
from launchers.watchdog import Watchdog

LIMITS = Restart(hang_timeout_s=60, start_timeout_s=600)


def said(phase: str, iteration: int, at: float = 0.0) -> dict[str, object]:
    return {"attempt": "7.0", "phase": phase, "iteration": iteration, "at": at}


def test_a_run_that_moves_is_left_alone_however_slowly() -> None:
    dog = Watchdog(LIMITS)
    assert not any(dog.look(said("training", i), "7.0", 59.0 * i) for i in range(100))


def test_no_new_iteration_for_the_hang_timeout_is_a_hang_that_says_where() -> None:
    dog = Watchdog(LIMITS)
    assert dog.look(said("training", 340), "7.0", 0) is None
    assert dog.look(said("training", 340), "7.0", 60) is None
    hang = dog.look(said("training", 340), "7.0", 61)
    assert hang == "no progress for 60 s (restart.hang_timeout_s) while training, after iteration 340"


def test_a_save_or_an_evaluation_counts_as_a_step_and_may_hang_too() -> None:
    dog = Watchdog(LIMITS)
    assert dog.look(said("training", 340), "7.0", 0) is None
    assert dog.look(said("saving", 340), "7.0", 50) is None
    assert dog.look(said("saving", 340), "7.0", 109) is None
    assert "while saving" in (dog.look(said("saving", 340), "7.0", 111) or "")


def test_before_the_first_iteration_there_is_the_start_timeout() -> None:
    dog = Watchdog(LIMITS)
    assert dog.look({}, "7.0", 0) is None
    assert dog.look(said("loading", 0), "7.0", 590) is None
    assert dog.look(said("loading", 0), "7.0", 1180) is None
    assert "restart.start_timeout_s" in (dog.look(said("loading", 0), "7.0", 1191) or "")


@pytest.mark.parametrize("phase", ["data", "evaluating"])
def test_preparing_data_and_evaluating_is_life_as_long_as_it_says_so(phase: str) -> None:
    dog = Watchdog(LIMITS)
    assert not any(dog.look(said(phase, 0, at=i), "7.0", 599.0 * i) for i in range(10))


def test_what_an_earlier_attempt_left_behind_is_no_progress_of_this_one() -> None:
    dog = Watchdog(LIMITS)
    assert dog.look(said("training", 340), "7.1", 0) is None
    assert dog.look(said("training", 340), "7.1", 300) is None  # the start timeout holds
    assert dog.look(said("training", 340), "7.1", 601) is not None
