"""Records of Slurm's as tests make them up, a client that answers as it is told, and a watch over it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from slurm.errors import SlurmError, SlurmUnavailable
from slurm.model import TRES, ClusterConfig, Job, JobState, JobUsage
from slurm.watch import Watch

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def job(raw_id: int = 1, state: JobState = JobState.RUNNING, **others: Any) -> Job:
    values: dict[str, Any] = dict(
        id=str(raw_id), raw_id=raw_id, name="work", user="ada", account="research", partition="gpu", qos="normal",
        state=state, reason=None, comment="", submitted_at=NOON, starts_at=NOON, ends_at=None, time_limit_s=600,
        time_left_s=300, nodes=("g1",), node_count=1, tres=TRES(cpus=1), priority=1, restarts=0,
    )  # fmt: skip
    return Job(**(values | others))


def record(of: Job, state: JobState = JobState.COMPLETED, **others: Any) -> JobUsage:
    values: dict[str, Any] = dict(
        id=of.id, raw_id=of.raw_id, cluster="test", name=of.name, user=of.user, account=of.account,
        partition=of.partition, qos=of.qos, state=state, state_text=state.value, exit_code="0:0", comment=of.comment,
        submit_line="", submitted_at=of.submitted_at, started_at=of.starts_at,
        ended_at=of.submitted_at + timedelta(minutes=1) if state.ended else None, elapsed_s=60, suspended_s=0,
        nodes=of.nodes, allocated=of.tres,
    )  # fmt: skip
    return JobUsage(**(values | others))


def config(**others: Any) -> ClusterConfig:
    values: dict[str, Any] = dict(
        name="test", version=(22, 5), version_text="22.05.8", answered_at=NOON, accounting=True, enforce=frozenset(),
        store_flags=frozenset(), auth="munge", job_requeue=True, kill_wait_s=30, max_array_size=1001,
        max_job_count=10000, min_job_age_s=300, preempt_type="none", preempt_mode=frozenset(),
        preempt_sends_signal=False, private_data=frozenset(),
    )  # fmt: skip
    return ClusterConfig(**(values | others))


@dataclasses.dataclass
class ScriptedSlurm:
    """The questions that a watch asks, answered as a test says; each is counted. Only for what no real Slurm can be
    made to do at will: an answer that is short, a day of silence, a mind that changes between two looks."""

    queue: list[Job] = dataclasses.field(default_factory=list)
    books: list[JobUsage] = dataclasses.field(default_factory=list)
    cluster: ClusterConfig = dataclasses.field(default_factory=config)
    silent: str | None = None  # slurmctld's error
    books_silent: str | None = None
    cluster_silent: str | None = None
    hidden: str | None = None  # the words that nodes and partitions are refused with
    asked: list[str] = dataclasses.field(default_factory=list)
    before_answer: Callable[[], None] = lambda: None

    def _answer(self, question: str, *silences: str | None) -> None:
        self.asked.append(question)
        self.before_answer()
        for words in silences:
            if words is not None:
                raise SlurmUnavailable(words)

    def jobs(self, ids: Iterable[str] | None = None, *, user: str | None = None) -> list[Job]:
        self._answer("jobs", self.silent)
        return list(self.queue)

    def config(self) -> ClusterConfig:
        self._answer("config", self.silent, self.cluster_silent)
        return self.cluster

    def privileged(self) -> bool:
        self._answer("privileged", self.silent)
        return True

    def nodes(self) -> list[Any]:
        self._answer("nodes", self.silent, self.cluster_silent)
        return self._hidden()

    def partitions(self) -> list[Any]:
        self._answer("partitions", self.silent, self.cluster_silent)
        return self._hidden()

    def _hidden(self) -> list[Any]:
        if self.hidden is not None:
            raise SlurmError(self.hidden)
        return []

    def reservations(self) -> list[Any]:
        self._answer("reservations", self.silent, self.cluster_silent)
        return []

    def accounting(self, ids: Iterable[str]) -> list[JobUsage]:
        wanted = set(ids)
        if not wanted:
            return []  # as every back end has it: no ids, no question
        self._answer(f"accounting {','.join(sorted(wanted))}", self.books_silent)
        return [r for r in self.books if str(r.raw_id) in wanted]

    def cancel(self, job_id: str) -> None:
        self._answer(f"cancel {job_id}", self.silent)

    def signal(self, job_id: str, name: str) -> None:
        self._answer(f"signal {job_id} {name}", self.silent)


@asynccontextmanager
async def watching(slurm: Any, **settings: Any) -> AsyncIterator[Watch]:
    """A running watch, as quick as a test wants it."""
    watch = Watch(slurm, **({"least_s": 0.01, "most_s": 0.02} | settings))
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
