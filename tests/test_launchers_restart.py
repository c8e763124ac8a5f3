"""Why attempts end and what follows, on data."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from launchers.restart import (
    RETRY_DELAYS_S,
    Action,
    Cause,
    Ended,
    JobFacts,
    Limits,
    booked,
    cause_of,
    decide,
)

LIMITS = Limits(max_attempts=10, without_progress=3)
RUNNING = JobFacts(ending=False, restarts=0, at_time_limit=False, preempted=False)
ENDING = JobFacts(ending=True, restarts=0, at_time_limit=False, preempted=False)
AT_LIMIT = JobFacts(ending=True, restarts=0, at_time_limit=True, preempted=False)
MOVED = JobFacts(ending=False, restarts=0, at_time_limit=False, preempted=True)
REQUEUED = JobFacts(ending=True, restarts=1, at_time_limit=False, preempted=False)


@pytest.mark.parametrize(
    ("said", "job", "cause"),
    [
        (Cause.COMPLETED, RUNNING, Cause.COMPLETED),
        (Cause.COMPLETED, REQUEUED, Cause.COMPLETED),  # it got there first
        (Cause.TIME_LIMIT, RUNNING, Cause.TIME_LIMIT),
        (Cause.TIME_LIMIT, MOVED, Cause.PREEMPTED),  # the same signal, long before the limit
        (Cause.CANCELLED, MOVED, Cause.PREEMPTED),
        (Cause.CANCELLED, ENDING, Cause.CANCELLED),
        (Cause.CANCELLED, AT_LIMIT, Cause.TIME_LIMIT),
        (Cause.CANCELLED, REQUEUED, Cause.REQUEUED),
        (Cause.CANCELLED, RUNNING, Cause.CANCELLED),  # a switch
        (Cause.CRASHED, RUNNING, Cause.CRASHED),
        (Cause.CRASHED, AT_LIMIT, Cause.CRASHED),
        # Its owner does not want it any more, whatever else was under way.
        (Cause.TIME_LIMIT, ENDING, Cause.CANCELLED),
        (Cause.CRASHED, ENDING, Cause.CANCELLED),
        (Cause.NO_PROGRESS, RUNNING, Cause.NO_PROGRESS),
        (Cause.REFUSED, RUNNING, Cause.REFUSED),
        (None, RUNNING, Cause.LOST),
        (None, ENDING, Cause.CANCELLED),
        (None, AT_LIMIT, Cause.TIME_LIMIT),
        (None, REQUEUED, Cause.REQUEUED),
        (None, None, Cause.LOST),
        (Cause.CANCELLED, None, Cause.CANCELLED),
    ],
)
def test_the_cause_is_the_supervisors_word_and_slurms_together(
    said: Cause | None, job: JobFacts | None, cause: Cause
) -> None:
    assert cause_of(said, job, 0) is cause


def test_a_job_that_was_requeued_before_this_attempt_is_not_being_requeued_now() -> None:
    assert cause_of(Cause.CANCELLED, REQUEUED, 1) is Cause.CANCELLED


def run(*ends: tuple[Cause, int | None]) -> list[Ended]:
    return [Ended(f"7.{i}", cause, saved) for i, (cause, saved) in enumerate(ends)]


@pytest.mark.parametrize(
    ("past", "action"),
    [
        (run((Cause.COMPLETED, 100)), Action.STOP),
        (run((Cause.CANCELLED, 40)), Action.STOP),
        (run((Cause.REFUSED, None)), Action.STOP),
        (run((Cause.TIME_LIMIT, 40)), Action.RESTART),
        (run((Cause.PREEMPTED, None)), Action.RESTART),
        (run((Cause.CRASHED, None)), Action.RESTART),
        (run((Cause.LOST, 10)), Action.RESTART),
        (run((Cause.NO_PROGRESS, 10)), Action.RESTART),
        # Three times nothing new was saved, whatever the reason.
        (run((Cause.CRASHED, None), (Cause.NO_PROGRESS, None), (Cause.TIME_LIMIT, None)), Action.STOP),
        (run((Cause.CRASHED, 10), (Cause.CRASHED, 10), (Cause.CRASHED, 10)), Action.RESTART),
        (run((Cause.CRASHED, 10), (Cause.CRASHED, 10), (Cause.CRASHED, 10), (Cause.LOST, 10)), Action.STOP),
        # Each saved something: it goes on.
        (run((Cause.CRASHED, 10), (Cause.CRASHED, 20), (Cause.CRASHED, 30), (Cause.CRASHED, 40)), Action.RESTART),
        # Being preempted is nobody's fault, and neither forgives what came before.
        (run(*[(Cause.PREEMPTED, None)] * 8), Action.RESTART),
        (run(*[(Cause.CRASHED, None), (Cause.PREEMPTED, None)] * 3), Action.STOP),
        (run(*[(Cause.TIME_LIMIT, i) for i in range(10)]), Action.STOP),  # max_attempts
    ],
)
def test_each_cause_has_its_policy_within_the_limits(past: list[Ended], action: Action) -> None:
    assert decide(past, LIMITS).action is action


def test_what_slurm_requeues_by_itself_is_left_to_it() -> None:
    assert decide(run((Cause.REQUEUED, 10)), LIMITS, requeued=True).action is Action.WAIT
    assert decide(run((Cause.CANCELLED, 10)), LIMITS, requeued=True).action is Action.STOP


def test_failures_in_a_row_are_tried_again_ever_later_and_what_is_no_failure_at_once() -> None:
    ends = [(Cause.CRASHED, i) for i in range(6)]
    delays = [decide(run(*ends[:n]), LIMITS).delay_s for n in range(1, 7)]
    assert delays == [*RETRY_DELAYS_S, RETRY_DELAYS_S[-1], RETRY_DELAYS_S[-1]]
    assert decide(run(*ends, (Cause.TIME_LIMIT, 7)), LIMITS).delay_s == RETRY_DELAYS_S[0]
    assert decide(run(*ends, (Cause.PREEMPTED, 7), (Cause.CRASHED, 8)), LIMITS).delay_s == RETRY_DELAYS_S[0]


def test_a_verdict_names_the_limit_or_where_the_run_goes_on() -> None:
    assert "restart.without_progress = 1" in decide(run((Cause.LOST, None)), Limits(9, 1)).why
    assert "restart.max_attempts = 1" in decide(run((Cause.LOST, 3)), Limits(1, 9)).why
    assert decide(run((Cause.LOST, 30)), LIMITS).why == "it goes on from iteration 30"
    assert decide(run((Cause.LOST, None)), LIMITS).why == "it goes on from the beginning"


def test_slurms_books_tell_of_each_attempt_by_its_number_of_restarts() -> None:
    at = datetime(2026, 11, 24, tzinfo=UTC)
    books = [("NODE_FAIL", at), ("PREEMPTED", at), ("REQUEUED", at), ("COMPLETED", at), ("RUNNING", None)]
    assert booked("7", books) == {
        "7.0": (Cause.NODE_FAILURE, at),
        "7.1": (Cause.PREEMPTED, at),
        "7.2": (Cause.REQUEUED, at),
    }
