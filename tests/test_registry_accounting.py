"""Jobs in the books: recorded once, observed while they run, settled for good."""

from __future__ import annotations

import dataclasses

from registry import accounting
from registry.accounting import Job
from registry.db import Database

AT = "2026-01-01T00:00:00.000000Z"


def record(db: Database, job_id: str = "7", at: str = AT, subject: str = "run-1", cluster: str = "big") -> None:
    accounting.record(
        db, cluster=cluster, job_id=job_id, submitted_at=at, key=subject, subject=subject, purpose="train", owner="ada"
    )


def only(db: Database) -> Job:
    (job,) = accounting.everything(db)
    return job


def ended(job: Job, *, settled: bool = True) -> Job:
    return dataclasses.replace(
        job,
        state="COMPLETED",
        partition="gpu",
        account="phys",
        started_at=AT,
        ended_at=AT,
        elapsed_s=90,
        cpus=4,
        gpus=2,
        settled=settled,
    )


def test_a_job_is_recorded_once_as_pending(registry: Database) -> None:
    record(registry)
    record(registry)
    assert (only(registry).state, only(registry).settled) == ("PENDING", False)
    assert accounting.unsettled(registry) == [only(registry)]


def test_a_recycled_job_id_is_another_job(registry: Database) -> None:
    record(registry)
    record(registry, at="2027-01-01T00:00:00.000000Z", subject="run-2")
    record(registry, cluster="small", subject="run-3")
    accounting.observe(registry, [("big", "7", AT, "RUNNING", None)])
    assert {j.subject: j.state for j in accounting.everything(registry)} == {
        "run-1": "RUNNING",
        "run-2": "PENDING",
        "run-3": "PENDING",
    }
    assert [j.subject for j in accounting.of_subject(registry, "run-2")] == ["run-2"]
    assert [j.subject for j in accounting.everything(registry, since="2026-06-01")] == ["run-2"]


def test_settling_writes_the_books_and_closes_the_row(registry: Database) -> None:
    record(registry)
    accounting.settle(registry, ended(only(registry)))
    job = only(registry)
    assert (job.state, job.partition, job.account, job.settled) == ("COMPLETED", "gpu", "phys", True)
    assert (job.cpu_seconds, job.gpu_seconds) == (360, 180)
    assert accounting.unsettled(registry) == []


def test_a_job_that_runs_is_brought_up_to_date_and_stays_open(registry: Database) -> None:
    record(registry)
    accounting.settle(registry, dataclasses.replace(only(registry), state="RUNNING", elapsed_s=5, gpus=1))
    assert (only(registry).gpu_seconds, only(registry).settled) == (5, False)
    accounting.settle(registry, ended(only(registry)))
    assert only(registry).gpu_seconds == 180


def test_nothing_changes_closed_books(registry: Database) -> None:
    record(registry)
    accounting.settle(registry, ended(only(registry)))
    closed = only(registry)
    record(registry)
    accounting.settle(registry, dataclasses.replace(closed, elapsed_s=1, settled=False))
    # The scheduler was asked before the books were closed, and its answer came after.
    accounting.observe(registry, [("big", "7", AT, "RUNNING", "None")])
    assert only(registry) == closed


def test_an_announcement_is_taken_in_once_for_each_subject(registry: Database) -> None:
    for subject, name in (("run-1", "a.json"), ("run-1", "a.json"), ("run-2", "b.json")):
        accounting.mark_ingested(registry, subject, name)
    assert accounting.ingested(registry, "run-1") == {"a.json"}
    assert accounting.ingested(registry, "run-3") == set()
