"""When to save before the time limit, on made-up answers of Slurm."""

from __future__ import annotations

from collections.abc import Iterator

from launchers.deadline import ASK_AGAIN_S, Deadline, Ends, lead_s


def answers(*said: Ends | None) -> Deadline:
    """Slurm says these one after the other; one question more is an error."""
    given: Iterator[Ends | None] = iter(said)
    return Deadline(lambda: next(given))


def test_the_lead_follows_the_last_save_and_of_a_short_limit_a_quarter_is_enough() -> None:
    assert lead_s(0, 3600) == 30
    assert lead_s(120, 3600) == 390
    assert lead_s(1, 60) == 18


def test_however_slow_a_save_is_half_of_the_time_limit_is_left_to_train() -> None:
    assert lead_s(14, 60) == 30
    assert lead_s(3600, 7200) == 3600


def test_it_is_reached_once_and_slurm_is_asked_twice() -> None:
    deadline = answers((3600, 3600), (3600, 3600))
    moments = [0.0, 1000.0, 3569.0, 3570.0, 3571.0, 3600.0]
    assert [deadline.reached(0, now) for now in moments] == [False, False, False, True, False, False]


def test_a_save_that_became_slow_moves_it_forward() -> None:
    deadline = answers((3600, 3600), (3600, 3600))
    assert not deadline.reached(0, 3000)
    assert deadline.reached(200, 3000)


def test_a_limit_that_was_extended_meanwhile_is_seen() -> None:
    deadline = answers((3600, 3600), (7200, 7200), (7200, 7200))
    assert not deadline.reached(0, 3580)
    assert not deadline.reached(0, 7100)
    assert deadline.reached(0, 7180)


def test_while_slurm_says_nothing_it_is_asked_now_and_then() -> None:
    deadline = answers(None, (100 + ASK_AGAIN_S, 100), (100 + ASK_AGAIN_S, 100))
    assert not any(deadline.reached(0, now) for now in (0.0, 1.0, ASK_AGAIN_S - 1))
    assert not deadline.reached(0, ASK_AGAIN_S)
    assert deadline.reached(0, ASK_AGAIN_S + 75)


def test_when_slurm_falls_silent_at_the_moment_itself_what_it_said_before_counts() -> None:
    deadline = answers((3600, 3600), None)
    assert not deadline.reached(0, 0)
    assert deadline.reached(0, 3570)


def test_while_nobody_can_be_told_it_is_reached_again() -> None:
    deadline = answers((3600, 3600), (3600, 3600), None)
    assert deadline.reached(0, 3570)
    deadline.again()
    assert deadline.reached(0, 3575)
    assert not deadline.reached(0, 3580)
