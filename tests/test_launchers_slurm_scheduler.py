"""The scheduler protocol over a Slurm that answers as it is told: shorter time limits, and what its nodes are for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from slurm_fixtures import NOON, ScriptedSlurm, job, record, watching
from slurm_records import node, partition, reservation
from waiting import eventually

from launchers.scheduler import JobRef, SchedulerError, SchedulerUnavailable, passes
from launchers.slurm_scheduler import SlurmScheduler
from slurm.model import Job, JobState, Node, Partition, Reservation

REF = JobRef("test", "1", NOON)


@dataclass
class Slurm(ScriptedSlurm):
    """With nodes, and jobs that are changed."""

    updates: list[tuple[str, int | None]] = field(default_factory=list)

    def jobs(self, ids: Iterable[str] | None = None, *, user: str | None = None) -> list[Job]:
        found = super().jobs(ids, user=user)
        return found if ids is None else [j for j in found if j.id in set(ids)]

    def update(self, job_id: str, *, time_limit_s: int | None = None) -> None:
        self._answer(f"update {job_id}", self.silent)
        self.updates.append((job_id, time_limit_s))

    def nodes(self) -> list[Node]:
        super().nodes()
        return [node("g1"), node("g2", flags=frozenset({"DRAIN"}), reason="bad fan")]

    def partitions(self) -> list[Partition]:
        super().partitions()
        return [partition("gpu", nodes=("g1", "g2"), default=True)]

    def reservations(self) -> list[Reservation]:
        super().reservations()
        return [reservation("upgrade", ["g1"])]


def scheduler(slurm: Any) -> SlurmScheduler:
    return SlurmScheduler(slurm)


def test_a_job_that_waits_is_given_less_time() -> None:
    slurm = Slurm(queue=[job(1, JobState.PENDING)])
    scheduler(slurm).shorten(REF, 5400)
    assert slurm.updates == [("1", 5400)]


@pytest.mark.parametrize(
    ("queue", "books", "state"),
    [
        ([job(1, JobState.RUNNING)], [], "RUNNING"),
        ([], [record(job(1), JobState.CANCELLED)], "CANCELLED"),
        ([job(2, JobState.PENDING)], [], "UNKNOWN"),
    ],
)
def test_what_does_not_wait_any_more_keeps_its_time_limit(queue: list[Job], books: list[Any], state: str) -> None:
    slurm = Slurm(queue=queue, books=books)
    with pytest.raises(SchedulerError, match=f"job 1 is {state}, and only one that waits is given less time"):
        scheduler(slurm).shorten(REF, 5400)
    assert slurm.updates == []


def test_another_clusters_job_of_the_same_number_is_not_touched() -> None:
    slurm = Slurm(queue=[job(1, JobState.PENDING)])
    with pytest.raises(SchedulerError, match="job 1 is UNKNOWN"):
        scheduler(slurm).shorten(JobRef("elsewhere", "1", NOON), 5400)
    assert slurm.updates == []


def test_the_outlook_is_asked_of_slurm_where_nobody_watches() -> None:
    found = scheduler(Slurm()).outlook()
    assert found.leaving == {"g2": "bad fan"} and [m.name for m in found.maintenance] == ["upgrade"]
    assert found.partition_nodes == {"gpu": {"g1", "g2"}, "": {"g1", "g2"}}


def test_a_slurm_that_does_not_answer_has_no_outlook() -> None:
    with pytest.raises(SchedulerUnavailable, match="timed out"):
        scheduler(Slurm(cluster_silent="sinfo timed out")).outlook()


async def test_where_somebody_watches_the_outlook_costs_slurm_nothing() -> None:
    slurm = Slurm()
    asks = scheduler(slurm)
    async with watching(slurm, least_s=60.0, most_s=60.0) as watch:
        asks.watch = watch

        async def seen() -> bool:
            return watch.latest is not None and watch.latest.cluster_at is not None

        await eventually(seen)
        before = list(slurm.asked)
        assert asks.outlook().leaving == {"g2": "bad fan"}
        assert slurm.asked == before


POLICY = (
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


@pytest.mark.parametrize(
    ("words", "passing"),
    [
        ("Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("sbatch: error: MaxJobCount limit reached", True),
        ("Rate limit exceeded, please retry momentarily", True),
        ("Required partition not available (inactive or drain)", True),
        ("Required node not available (down, drained or reserved)", True),
        ("Requested partition configuration not available now", True),
        (POLICY, True),  # it may be any of them
        (f"AssocMaxSubmitJobLimit; {POLICY}", True),
        (f"QOSMaxSubmitJobPerUserLimit; {POLICY}", True),
        (f"QOSGrpCPUMinutesLimit; {POLICY}", True),
        (f"QOSMaxWallDurationPerJobLimit; {POLICY}", False),
        (f"AssocMaxGRESPerJob; {POLICY}", False),
        (f"QOSMinCpuNotSatisfied; {POLICY}", False),
        ("Requested time limit is invalid (missing or exceeds some limit)", False),
        ("Time limit specification required, but not provided", False),
        ("Invalid time-min specification (exceeds job's time or other limits)", False),
        ("Requested node configuration is not available", False),
        ("invalid partition specified: nolimit", False),
        ("Invalid qos specification", False),
        ("Invalid account or account/partition combination specified", False),
    ],
)
def test_a_refusal_passes_where_its_whole_words_are_of_what_is_full_or_closed_now(words: str, passing: bool) -> None:
    assert passes(SchedulerError(words)) is passing
