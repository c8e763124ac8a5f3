"""Missing progress, by what training says of itself."""

from __future__ import annotations

import pytest

from launchers.megatron.recipe import Restart
from launchers.watchdog import Watchdog

LIMITS = Restart(hang_timeout_s=60, start_timeout_s=600)


def said(phase: str, iteration: int, at: float = 0.0) -> dict[str, object]:
    return {"attempt": "7.0", "phase": phase, "iteration": iteration, "at": at}


def at(dog: Watchdog, seen: dict[str, object], *moments: float, attempt: str = "7.0") -> list[str | None]:
    """What it says at each of these moments, looking every second in between."""
    said_then = []
    for moment in moments:
        while dog._looked + 1 < moment:
            dog.look(seen, attempt, dog._looked + 1)
        said_then.append(dog.look(seen, attempt, moment))
    return said_then


def test_a_job_that_was_suspended_has_not_hung() -> None:
    dog = Watchdog(LIMITS)
    assert at(dog, said("training", 5), 0, 50) == [None, None]
    assert dog.look(said("training", 5), "7.0", 4000) is None  # nobody looked: the supervisor was stopped as well
    assert at(dog, said("training", 5), 4009) == [None]
    assert at(dog, said("training", 5), 4011) != [None]


def test_a_run_that_moves_is_left_alone_however_slowly() -> None:
    dog = Watchdog(LIMITS)
    assert not any(at(dog, said("training", i), 59.0 * i)[0] for i in range(10))


def test_no_new_iteration_for_the_hang_timeout_is_a_hang_that_says_where() -> None:
    dog = Watchdog(LIMITS)
    first, second, hang = at(dog, said("training", 340), 0, 60, 61)
    assert (first, second) == (None, None)
    assert hang == "no progress for 60 s (restart.hang_timeout_s) while training, after iteration 340"


def test_a_save_or_an_evaluation_counts_as_a_step_and_may_hang_too() -> None:
    dog = Watchdog(LIMITS)
    assert at(dog, said("training", 340), 0, 50) == [None, None]
    assert at(dog, said("saving", 340), 51, 110) == [None, None]
    assert "while saving" in (at(dog, said("saving", 340), 112)[0] or "")


def test_before_the_first_iteration_there_is_the_start_timeout() -> None:
    dog = Watchdog(LIMITS)
    assert at(dog, {}, 0, 590) == [None, None]
    assert at(dog, said("loading", 0), 591, 1190) == [None, None]
    assert "restart.start_timeout_s" in (at(dog, said("loading", 0), 1192)[0] or "")


@pytest.mark.parametrize("phase", ["data", "evaluating"])
def test_preparing_data_and_evaluating_is_life_as_long_as_it_says_so(phase: str) -> None:
    dog = Watchdog(LIMITS)
    assert not any(dog.look(said(phase, 0, at=i), "7.0", 599.0 * i) for i in range(10))


def test_what_an_earlier_attempt_left_behind_is_no_progress_of_this_one() -> None:
    dog = Watchdog(LIMITS)
    assert at(dog, said("training", 340), 0, 300, attempt="7.1") == [None, None]  # the start timeout holds
    assert at(dog, said("training", 340), 601, attempt="7.1") != [None]
