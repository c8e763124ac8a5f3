"""What happened between two looks at the queue, and how often there is one."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from slurm_fixtures import NOON, job, record

from slurm.changes import JobAppeared, JobChanged, JobEnded, compare, end_in_books
from slurm.model import Job, JobState
from slurm.pace import Pace

LATER = NOON + timedelta(hours=1)
PENDING, RUNNING, COMPLETED = JobState.PENDING, JobState.RUNNING, JobState.COMPLETED


def by_id(*jobs: Job) -> dict[int, Job]:
    return {j.raw_id: j for j in jobs}


def test_nothing_changed_while_a_job_only_runs_on_or_is_estimated_anew() -> None:
    runs, waits = job(1), job(2, PENDING, starts_at=None)
    queue = by_id(job(1, time_left_s=1, priority=9), job(2, PENDING, starts_at=LATER, priority=9))
    assert compare(by_id(runs, waits), [], queue) == ([], [])


def test_a_job_appears_changes_and_ends() -> None:
    waits, runs, done = job(1, PENDING), job(1), job(1, COMPLETED)
    assert compare({}, [], by_id(waits)) == ([JobAppeared(waits)], [])
    assert compare(by_id(waits), [], by_id(runs)) == ([JobChanged(waits, runs)], [])
    assert compare(by_id(runs), [], by_id(done)) == ([JobChanged(runs, done), JobEnded(done)], [])
    assert compare(by_id(done), [], by_id(done)) == ([], [])
    assert compare(by_id(done), [], {}) == ([], [])  # it had ended: that the queue forgets it says nothing


def test_a_job_that_ended_between_two_looks_appears_and_ends() -> None:
    done = job(1, COMPLETED)
    assert compare({}, [], by_id(done)) == ([JobAppeared(done), JobEnded(done)], [])


def test_a_job_that_the_queue_does_not_show_is_missing_and_nothing_more() -> None:
    runs = job(1)
    assert compare(by_id(runs), [], {}) == ([], [runs])
    assert compare({}, [runs], {}) == ([], [runs])  # still


def test_a_missing_job_that_the_queue_shows_again_was_never_away() -> None:
    runs, done = job(1), job(1, COMPLETED)
    assert compare({}, [runs], by_id(runs)) == ([], [])
    assert compare({}, [runs], by_id(done)) == ([JobChanged(runs, done), JobEnded(done)], [])


def test_a_requeued_job_is_the_same_job() -> None:
    before, after = job(1), job(1, PENDING, submitted_at=LATER, restarts=1)
    assert compare(by_id(before), [], by_id(after)) == ([JobChanged(before, after)], [])
    ending = job(1, JobState.COMPLETING, restarts=1)  # counted already, under the old submit time
    assert compare(by_id(ending), [], by_id(after)) == ([JobChanged(ending, after)], [])
    done, again = job(1, COMPLETED), job(1, PENDING, submitted_at=LATER, restarts=1)
    assert compare(by_id(done), [], by_id(again)) == ([JobChanged(done, again)], [])


@pytest.mark.parametrize(
    "other", [{"restarts": 0}, {"restarts": 1, "user": "bob"}, {"restarts": 1, "name": "something else"}]
)
def test_a_recycled_id_is_another_job_and_the_old_one_stays_missing(other: dict[str, object]) -> None:
    old, new = job(1), job(1, submitted_at=LATER, **other)
    assert compare(by_id(old), [], by_id(new)) == ([JobAppeared(new)], [old])
    assert compare(by_id(new), [old], by_id(new)) == ([], [old])


def test_the_books_say_that_a_job_ended_only_about_the_job_itself() -> None:
    lost = job(1)
    done = record(lost)
    assert end_in_books(lost, [done]) == (done, "accounting says COMPLETED")
    assert end_in_books(lost, []) == (None, "accounting does not know it")
    assert end_in_books(lost, [record(lost, RUNNING)]) == (None, "accounting says RUNNING")
    recycled = record(lost, submitted_at=LATER, name="another")
    assert end_in_books(lost, [recycled])[0] is None
    assert end_in_books(lost, [record(job(2))])[0] is None
    assert end_in_books(lost, [record(lost, ended_at=None)])[0] is None


def test_the_end_of_an_attempt_that_was_requeued_is_not_the_jobs() -> None:
    lost = job(1)
    first, second = record(lost, JobState.PREEMPTED), record(lost, RUNNING, submitted_at=LATER)
    assert end_in_books(lost, [first, second]) == (None, "accounting says RUNNING")
    last = record(lost, JobState.FAILED, submitted_at=LATER)
    assert end_in_books(lost, [last, first])[0] == last


# -- how often --------------------------------------------------------------------------------------------------------

SITE = Pace(least_s=2, most_s=32)


@pytest.mark.parametrize(
    ("situation", "wait_s"),
    [
        (dict(since_hurry_s=0), 2),  # just submitted
        (dict(since_hurry_s=4), 2),
        (dict(since_hurry_s=20), 10),  # eases off
        (dict(since_hurry_s=100), 32),
        (dict(since_hurry_s=100, changing=True), 8),
        (dict(since_hurry_s=math.inf), 32),  # idle
        (dict(since_hurry_s=math.inf, changing=True), 8),  # the geometric mean of both bounds
        (dict(since_hurry_s=math.inf, awaited=True), 2),
        (dict(since_hurry_s=0, took_s=1), 4),  # a fifth of the time at most
        (dict(since_hurry_s=math.inf, awaited=True, took_s=5), 20),
        (dict(since_hurry_s=math.inf, took_s=20), 80),  # beyond what is most otherwise
        (dict(since_hurry_s=math.inf, remembers_s=20), 10),  # ends are seen before the queue forgets them
        (dict(since_hurry_s=math.inf, remembers_s=1), 2),
        (dict(since_hurry_s=0, failures=1), 4),
        (dict(since_hurry_s=0, awaited=True, failures=3), 16),  # nobody's hurry counts while Slurm struggles
        (dict(since_hurry_s=0, failures=1000), 64),
        (dict(since_hurry_s=0, failures=1, took_s=30), 64),
        (dict(since_hurry_s=0, failures=3, chance=0), 8),
        (dict(since_hurry_s=0, failures=1, chance=0), 2),
    ],
)
def test_the_wait_between_two_looks(situation: dict[str, float], wait_s: float) -> None:
    assert SITE.wait_s(**situation) == pytest.approx(wait_s)  # type: ignore[arg-type]


def test_no_situation_is_asked_about_more_often_than_the_site_allows() -> None:
    for failures in (0, 1, 5):
        for since_hurry_s in (0.0, 1.0, math.inf):
            for awaited in (False, True):
                assert Pace(10, 10).wait_s(
                    since_hurry_s=since_hurry_s, awaited=awaited, failures=failures, chance=0, remembers_s=1
                ) >= 10  # fmt: skip


@pytest.mark.parametrize("bounds", [(0, 1), (2, 1), (-1, 1)])
def test_bounds_that_make_no_sense_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 < least_s <= most_s"):
        Pace(*bounds)
