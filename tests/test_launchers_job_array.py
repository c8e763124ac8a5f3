"""A job array as one job, on made-up records."""

from __future__ import annotations

from datetime import timedelta

import pytest
from slurm_fixtures import NOON, ScriptedSlurm, job, record

from launchers import job_array
from launchers.scheduler import JobRef, JobState
from launchers.slurm_scheduler import SlurmScheduler
from slurm import model

ARRAY = JobRef("test", "12", NOON)


def task(number: str, state: model.JobState, **others: object) -> model.Job:
    return job(100, state, id=f"12_{number}", **others)


@pytest.mark.parametrize(
    ("job_id", "numbers"),
    [
        ("12_[3-5]", {"3", "4", "5"}),
        ("12_[3,7-9%2]", {"3", "7", "8", "9"}),
        ("12_[0-8:4]", {"0", "4", "8"}),
        ("12_[1-2,5-...]", {"1", "2"}),  # cut off by Slurm
        ("12_3", set()),
        ("12", set()),
    ],
)
def test_what_waits_of_an_array_is_told_apart(job_id: str, numbers: set[str]) -> None:
    assert job_array.waiting(job_id) == numbers


@pytest.mark.parametrize(
    ("states", "whole"),
    [
        (["PENDING", "PENDING"], JobState.PENDING),
        (["COMPLETED", "RUNNING", "PENDING"], JobState.RUNNING),
        (["COMPLETED", "PENDING"], JobState.PENDING),
        (["COMPLETED", "COMPLETED"], JobState.COMPLETED),
        (["COMPLETED", "TIMEOUT", "CANCELLED"], JobState.TIMEOUT),
        (["FAILED", "TIMEOUT", "COMPLETED"], JobState.FAILED),
    ],
)
def test_an_array_is_as_lively_as_its_liveliest_task_and_ends_as_its_worst(states: list[str], whole: JobState) -> None:
    queue = [task(str(i), model.JobState(s)) for i, s in enumerate(states)]
    scheduler = SlurmScheduler(ScriptedSlurm([*queue, job(7), job(12, id="123_1")]))  # type: ignore[arg-type]
    assert scheduler.states([ARRAY])[ARRAY].state is whole


def test_what_the_queue_forgot_is_in_the_books() -> None:
    ends = [model.JobState.COMPLETED, model.JobState.FAILED]
    books = [record(job(12), s, id=f"12_{i}", elapsed_s=10 * (i + 1)) for i, s in enumerate(ends)]
    scheduler = SlurmScheduler(ScriptedSlurm(books=books))  # type: ignore[arg-type]
    assert scheduler.states([ARRAY])[ARRAY].state is JobState.FAILED
    used = scheduler.usage([ARRAY])[ARRAY]
    assert (used.state, used.elapsed_s, used.cpus) == (JobState.FAILED, 30, 1)
    assert used.ended_at is not None


def test_a_task_that_waits_among_others_is_found_among_them() -> None:
    waits = JobRef("test", "12_4", NOON)
    scheduler = SlurmScheduler(ScriptedSlurm([task("[3-5%1]", model.JobState.PENDING, reason="Resources")]))  # type: ignore[arg-type]
    status = scheduler.states([waits])[waits]
    assert (status.state, status.reason) == (JobState.PENDING, "Resources")


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (["12"], "12"),
        (["12_3"], "12_3"),  # a sweep's run: its task alone has its key
        (["12_3", "12_4"], "12"),
        (["12_[3-5]"], "12"),
        (["7_1", "12_3"], "12_3"),
    ],
)
def test_a_key_names_a_task_or_the_array(found: list[str], named: str) -> None:
    assert job_array.named_by(found[-1], found) == named


def test_another_array_of_a_recycled_id_is_not_this_one() -> None:
    earlier = job(12, model.JobState.RUNNING, id="12_1", submitted_at=NOON - timedelta(days=400))
    assert job_array.queued_tasks(ARRAY, [earlier]) == []
