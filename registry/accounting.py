"""Jobs as the scheduler's books have them: what each was allocated, for how long, and for whom.

A job is (cluster, job id, submit time), because job ids are recycled. The only module that writes job rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from registry import clock
from registry.db import Database, rows, transaction

PENDING = "PENDING"  # how a job is recorded before the scheduler was first asked about it


@dataclass(frozen=True, slots=True)
class Job:
    cluster: str
    job_id: str
    submitted_at: str
    key: str
    subject: str  # the run or replica it is an attempt of
    purpose: str  # train | convert | smoke | evaluate | serve | script
    owner: str
    state: str  # the scheduler's word
    reason: str | None
    partition: str | None
    account: str | None
    started_at: str | None
    ended_at: str | None
    elapsed_s: int
    cpus: int
    gpus: int
    settled: bool  # the books are closed: nothing of this row changes any more

    @property
    def cpu_seconds(self) -> int:
        return self.elapsed_s * self.cpus

    @property
    def gpu_seconds(self) -> int:
        return self.elapsed_s * self.gpus


def record(
    db: Database,
    *,
    cluster: str,
    job_id: str,
    submitted_at: str,
    key: str,
    subject: str,
    purpose: str,
    owner: str,
) -> None:
    """A job that was submitted. Idempotent."""
    with transaction(db) as c:
        c.execute(
            "INSERT INTO jobs (cluster, job_id, submitted_at, key, subject, purpose, owner, state) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (cluster, job_id, submitted_at, key, subject, purpose, owner, PENDING),
        )


def observe(db: Database, seen: Iterable[tuple[str, str, str, str, str | None]]) -> None:
    """(cluster, job id, submitted at, state, reason) of jobs the scheduler answered about; closed books stay closed."""
    with transaction(db) as c:
        c.executemany(
            "UPDATE jobs SET state = ?, reason = ? "
            "WHERE cluster = ? AND job_id = ? AND submitted_at = ? AND settled = 0 AND (state, reason) IS NOT (?, ?)",
            [(state, reason, cluster, job_id, at, state, reason) for cluster, job_id, at, state, reason in seen],
        )


def settle(db: Database, job: Job) -> None:
    """Write what the scheduler's accounting says; `job.settled` closes the row."""
    with transaction(db) as c:
        c.execute(
            "UPDATE jobs SET state = ?, partition = ?, account = ?, started_at = ?, ended_at = ?, elapsed_s = ?, "
            "cpus = ?, gpus = ?, settled = ? WHERE cluster = ? AND job_id = ? AND submitted_at = ? AND settled = 0",
            (
                job.state,
                job.partition,
                job.account,
                job.started_at,
                job.ended_at,
                job.elapsed_s,
                job.cpus,
                job.gpus,
                job.settled,
                job.cluster,
                job.job_id,
                job.submitted_at,
            ),
        )


def unsettled(db: Database) -> list[Job]:
    return [_job(r) for r in rows(db, "SELECT * FROM jobs WHERE settled = 0 ORDER BY submitted_at")]


def everything(db: Database, since: str | None = None) -> list[Job]:
    return [_job(r) for r in rows(db, "SELECT * FROM jobs WHERE submitted_at >= ? ORDER BY submitted_at", since or "")]


def of_subject(db: Database, subject: str) -> list[Job]:
    return [_job(r) for r in rows(db, "SELECT * FROM jobs WHERE subject = ? ORDER BY submitted_at", subject)]


def ingested(db: Database, subject: str) -> set[str]:
    """Names of the announcements of a run or replica that have been taken in."""
    return {r["name"] for r in rows(db, "SELECT name FROM announcements WHERE subject = ?", subject)}


def mark_ingested(db: Database, subject: str, name: str) -> None:
    with transaction(db) as c:
        c.execute("INSERT INTO announcements VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (subject, name, clock.now()))


def _job(r: object) -> Job:
    values = dict(r)  # type: ignore[call-overload]  # sqlite3.Row is a mapping without saying so
    return Job(**{**values, "settled": bool(values["settled"])})
