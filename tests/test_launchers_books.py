"""The scheduler's books of a window: on data, of local jobs, and on a real Slurm to the second as sacct has them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import PrivateCluster
from slurm_fixtures import NOON, job, record
from waiting import wait_for

from launchers.books import books_of
from launchers.local_job import LocalJob
from launchers.local_scheduler import LocalScheduler
from launchers.slurm_scheduler import SlurmScheduler
from registry import accounting, clock, deployments, ledger, replica_work, tenants
from registry.attribution import Allocation, Attributed, Books
from registry.db import Database, open_writer
from registry.ledger_migrations import MIGRATIONS
from registry.settings import Attribution
from registry.steps import Attempt, Hold, Outcome, UsageEvent
from slurm.accounting import count
from slurm.commands import CommandClient
from slurm.model import TRES, Job, JobState, JobUsage, Reservation

HOUR = timedelta(hours=1)


def of(*attempts: JobUsage, reservations: tuple[Reservation, ...] = ()) -> Books:
    """The books of the hour after noon, as they are a day later."""
    return books_of(count(attempts, NOON, NOON + HOUR, NOON + 24 * HOUR), reservations)


def attempt(raw_id: int, start: int, end: int | None, **others: object) -> JobUsage:
    """With two GPUs and four CPUs; seconds after noon."""
    began = NOON + timedelta(seconds=start)
    values: dict[str, object] = dict(
        submitted_at=began - timedelta(seconds=7),
        started_at=began,
        ended_at=None if end is None else NOON + timedelta(seconds=end),
        elapsed_s=(24 * 3600 if end is None else end) - start,
        allocated=TRES(cpus=4, gpus=2, gpus_by_type=(("h100", 1),)),
    )
    return record(job(raw_id), JobState.RUNNING if end is None else JobState.COMPLETED, **(values | others))


def of_jobs(books: Books, *names: str) -> list[tuple[object, ...]]:
    return [tuple(getattr(one, name) for name in names) for one in books.allocations]


def test_an_attempt_is_clipped_to_the_window_and_one_that_never_ran_in_it_is_left_out() -> None:
    noon = int(NOON.timestamp())
    books = of(attempt(1, -100, 50), attempt(2, 3000, None), attempt(3, 3600, 3700), attempt(4, 5, 5))
    assert of_jobs(books, "job", "began_at", "start", "end", "gpu_s", "cpu_s", "waited_s") == [
        ("1", noon - 100, noon, noon + 50, 100, 200, None),  # it did not start in the window
        ("2", noon + 3000, noon + 3000, noon + 3600, 1200, 2400, 7),
    ]
    assert (books.gpu_s, books.cpu_s, books.partial) == (1300, 2600, None)
    assert of_jobs(books, "gpus_by_type") == [((("", 1), ("h100", 1)),)] * 2


def test_the_total_is_what_slurm_itself_counted() -> None:
    """So that parts which are not all of it do not add up to it."""
    books = of(attempt(1, 0, 50, elapsed_s=51), attempt(2, -100, 50))
    assert (books.gpu_s, books.cpu_s) == (2 * 51 + 2 * 50, 4 * 51 + 4 * 50)
    assert sum(one.gpu_s for one in books.allocations) == 2 * 50 + 2 * 50


def test_suspended_time_gives_back_cpus_and_no_gpus() -> None:
    books = of(attempt(1, 0, 100, suspended_s=25, elapsed_s=75))
    assert of_jobs(books, "gpu_s", "cpu_s") == [(200, 300)] == [(books.gpu_s, books.cpu_s)]


def test_a_resized_job_holds_each_size_from_the_resize_on_and_waited_once() -> None:
    before = attempt(1, 0, 100)
    after = attempt(1, 0, 300, submitted_at=NOON + timedelta(seconds=100), allocated=TRES(cpus=2, gpus=1))
    books = of(before, after)
    assert of_jobs(books, "gpu_s", "waited_s") == [(200, 7), (200, None)]


def test_a_reservation_is_its_first_accounts() -> None:
    course = Reservation(
        "course", NOON, NOON + HOUR, ("g1",), frozenset(), (), ("teaching", "research"), None, True, TRES()
    )  # fmt: skip
    books = of(attempt(1, 0, 10, reservation="course"), reservations=(course,))
    assert books.holders == (("course", "teaching"),)
    assert of_jobs(books, "reservation") == [("course",)]


def test_local_jobs_that_ended_are_in_the_books_for_as_long_as_they_ran(tmp_path: Path) -> None:
    logs = tmp_path / "runs" / "r1" / "logs"
    logs.mkdir(parents=True)
    gone = 2**22 + 1  # no process has this id
    began = time.time() - 500
    LocalJob("r1", "chat", gone, began, str(logs), tasks=1, cpus=3, gpus=2).save(tmp_path / "spool")
    (log := logs / f"{gone}_0_log.out").touch()
    os.utime(log, (began + 90, began + 90))  # the last sign of life of a job that said nothing
    scheduler = LocalScheduler(tmp_path / "spool")
    began_at = datetime.fromtimestamp(int(began), UTC)

    books = scheduler.books(began_at + timedelta(seconds=30), began_at + HOUR)
    (one,) = books.allocations
    assert one.end - one.start in (60, 61)
    assert (one.gpu_s, one.cpu_s) == (2 * (one.end - one.start), 3 * (one.end - one.start))
    assert (books.gpu_s, books.cpu_s) == (one.gpu_s, one.cpu_s)
    assert (one.job, one.cluster, one.account, one.gpus_by_type) == (str(gone), scheduler.cluster, "", (("", 2),))
    assert scheduler.books(began_at - HOUR, began_at) == Books((), 0, 0, None)


# -- a real Slurm ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Jobs of every kind on a real Slurm, and a window that cuts off the first one's begin and the last one's end."""

    cluster: PrivateCluster
    client: CommandClient
    start: datetime
    end: datetime
    serving: str
    requeued: str
    preempted: str
    cancelled: str
    array: str


@pytest.fixture(scope="module")
def scene(slurm_cluster: PrivateCluster) -> Iterator[Scene]:
    client = CommandClient(environment=slurm_cluster.env)
    submitted: list[str] = []

    def submit(*options: str, seconds: int = 600) -> str:
        words = ("sbatch", "--parsable", "--output=/dev/null", "--chdir=/", *options, f"--wrap=exec sleep {seconds}")
        submitted.append(slurm_cluster.run(*words).strip())
        return submitted[-1]

    def until(job_id: str, condition: Callable[[Job], bool]) -> None:
        wait_for(lambda: (jobs := client.jobs([job_id])) and all(map(condition, jobs)), 90, every=0.2)

    def runs(job: Job) -> bool:
        return job.state is JobState.RUNNING

    def passed(seconds: int) -> datetime:
        """A whole second, so much later."""
        then = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
        wait_for(lambda: datetime.now(UTC) >= then)
        return then

    preempted = submit("-p", "gpu", "-N2", "--gpus-per-node=8", "-q", "preemptible", "--requeue")
    until(preempted, runs)
    start = passed(2)
    serving = submit("-p", "gpu", "--gpus=2", "-n2", "-A", "research")  # preempts it
    until(preempted, lambda job: job.restarts == 1 and job.state.pending)
    client.cancel(preempted)
    until(serving, runs)
    requeued = submit("-p", "gpu", "--gpus=h100:1", "--requeue", "-A", "teaching")
    cancelled = submit("-p", "gpu", "--gpus=3", "-A", "teaching")
    array = submit("-p", "cpu", "-a", "0-2", "-n2", "-A", "teaching", seconds=2)
    for job_id in (requeued, cancelled):
        until(job_id, runs)
    passed(2)
    client.requeue(requeued)
    client.cancel(cancelled)
    until(requeued, lambda job: job.restarts == 1 and job.state.pending)
    passed(2)  # slurmd refuses to start a job in the second in which it was killed
    client.update(requeued, starts_in_s=0)  # instead of in two minutes
    until(requeued, runs)
    for job_id in (cancelled, array):
        until(job_id, lambda job: job.state.ended)
    end = passed(2)
    passed(2)
    for job_id in (serving, requeued):
        client.cancel(job_id)
        until(job_id, lambda job: job.state.ended)
    queue = {(job.id, job.submitted_at) for job in client.jobs(submitted)}
    wait_for(lambda: queue <= {(a.id, a.submitted_at) for a in client.accounting(submitted) if a.ended_at}, every=0.2)
    yield Scene(slurm_cluster, client, start, end, serving, requeued, preempted, cancelled, array)


def printed(scene: Scene) -> tuple[int, int]:
    """GPU-seconds and CPU-seconds of the window, of everybody, as sacct itself truncates them to it."""
    window = [f"uts{int(moment.timestamp())}" for moment in (scene.start, scene.end)]
    columns = ("-n", "-P", "-o", "ElapsedRaw,CPUTimeRAW,AllocTRES")
    text = scene.cluster.run("sacct", "-a", "-X", "-D", "-T", *columns, "-S", window[0], "-E", window[1])
    gpu_s = cpu_s = 0
    for line in text.splitlines():
        elapsed, cpu_time, tres = line.split("|")
        amounts = dict(word.split("=") for word in tres.split(",") if word)
        gpu_s += int(elapsed) * int(amounts.get("gres/gpu", 0))
        cpu_s += int(cpu_time)
    return gpu_s, cpu_s


def attributed(scene: Scene, registry: Database, ledger_db: Database) -> Attributed:
    """With the serving job as a replica that began to serve in the window, and was called by two tenants."""
    (attempt,) = scene.client.accounting([scene.serving])
    for subject, purpose, job_id in (("r1", "serve", scene.serving), ("run-1", "train", scene.requeued)):
        first = scene.client.accounting([job_id])[0]
        accounting.record(
            registry,
            cluster=first.cluster,
            job_id=job_id,
            submitted_at=clock.text(first.submitted_at),
            key=subject,
            subject=subject,
            purpose=purpose,
            owner="ada",
        )
    tenants.create(registry, "physics", "root", account="research")
    tenants.create(registry, "school", "root", account="teaching")
    deployments.create(
        registry,
        "chat",
        "ada",
        model="m",
        version=1,
        model_path="/m",
        min_replicas=1,
        max_replicas=1,
        request={},
        by="ada",
        why="served",
    )
    deployments.add_replica(registry, "r1", "chat", "ada", "/runs/r1")
    began = attempt.started_at
    assert began is not None
    deployments.replica_is_ready(registry, "r1", "g1", 8000, "secret")
    with registry.conn:
        registry.conn.execute("UPDATE replicas SET ready_at = ?", (clock.text(began + timedelta(seconds=1)),))
    for number, tenant in enumerate(("physics", "school")):
        called = Attempt(f"{number:024x}:1", tenant, "k1", "chat", "r1", "chat", clock.text(began), "eve")
        used = UsageEvent(called, 100, 50, 7, Outcome.COMPLETED, clock.text(began + timedelta(seconds=2)))
        assert ledger.record(ledger_db, [Hold(called, 0, 0), used]) == [None, None]
    books = SlurmScheduler(scene.client).books(scene.start, scene.end)
    return replica_work.attributed(registry, ledger_db, books, scene.start, scene.end, Attribution())


@pytest.mark.slurm
def test_the_parts_are_sacct_to_the_second_with_preempted_requeued_cancelled_and_array_jobs(
    scene: Scene, registry: Database, tmp_path: Path
) -> None:
    ledger_db = open_writer(tmp_path / "ledger.db", MIGRATIONS)
    found = attributed(scene, registry, ledger_db)
    ledger_db.close()

    assert (found.books.gpu_s, found.books.cpu_s) == printed(scene)
    assert found.adds_up
    assert found.books.partial is None

    def of_job(job_id: str) -> list[Allocation]:
        return [one for one in found.books.allocations if one.job.partition("_")[0] == job_id]

    assert [one.state for one in of_job(scene.preempted)] == ["PREEMPTED"]
    assert [(one.purpose, one.subject) for one in of_job(scene.requeued)] == [("train", "run-1")] * 2
    assert len(of_job(scene.array)) == 3 and of_job(scene.cancelled)[0].gpu_s > 0
    assert of_job(scene.preempted)[0].waited_s is None and of_job(scene.serving)[0].waited_s is not None
    assert all(one.start >= scene.start.timestamp() and one.end <= scene.end.timestamp() for one in of_job(scene.array))

    (serving,) = of_job(scene.serving)
    lines = [line for line in found.lines if line.subject == "r1"]
    by_what = {(x.what, x.tenant): x.gpu_s for x in lines}
    assert by_what.pop(("startup", "physics")) == 2 * 1
    # Ready for a second, in which both tenants' requests ran, and in the one after that they ended.
    assert (by_what.pop(("serving", "physics")), by_what.pop(("serving", "school"))) == (2, 2)
    assert by_what == {("idle", "physics"): serving.gpu_s - 6}
    assert {(x.what, x.tenant) for x in found.lines if x.subject == "run-1"} == {("training", "school")}
    assert {(x.what, x.tenant) for x in found.lines if x.subject == scene.cancelled} == {("batch", "school")}
    assert {x.gpu_type for x in lines} == {"h100"}
