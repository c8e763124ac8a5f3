"""One poll for everyone: what readers are told, and what is never concluded from a silence."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from slurm_fixtures import NOON, ScriptedSlurm, config, job, record, watching
from waiting import eventually

from slurm import watch as watches
from slurm.changes import (
    Answered,
    Change,
    JobAppeared,
    JobChanged,
    JobEnded,
    JobUnaccounted,
    LookAtLatest,
    Silent,
)
from slurm.errors import SlurmUnavailable
from slurm.model import JobState
from slurm.watch import Watch

PENDING, RUNNING, COMPLETED = JobState.PENDING, JobState.RUNNING, JobState.COMPLETED
LATER = NOON + timedelta(hours=1)


class Reader:
    """Collects the changes that a watch tells."""

    def __init__(self, watch: Watch) -> None:
        self.told: list[Change] = []
        self._task = asyncio.create_task(self._read(watch))

    async def _read(self, watch: Watch) -> None:
        async for change in watch.changes():
            self.told.append(change)

    async def of(self, kind: type[Change], count: int = 1) -> list[Any]:
        async def found() -> list[Change] | None:
            return some if len(some := [c for c in self.told if isinstance(c, kind)]) >= count else None

        return await eventually(found, 10, 0.005)

    async def ends(self) -> None:
        await asyncio.wait_for(self._task, 5)


async def polls(watch: Watch, slurm: ScriptedSlurm, count: int = 2) -> None:
    """Until the queue was asked so many times more, and answered."""
    goal = slurm.asked.count("jobs") + count

    async def reached() -> bool:
        return slurm.asked.count("jobs") > goal

    await eventually(reached, 10, 0.005)


# -- what is told -----------------------------------------------------------------------------------------------------


async def test_readers_are_told_what_changes_after_the_first_picture() -> None:
    slurm = ScriptedSlurm([job(1)])
    async with watching(slurm) as watch:
        first, second = Reader(watch), Reader(watch)
        for reader in (first, second):
            await reader.of(LookAtLatest)
        assert watch.latest is not None and watch.latest.jobs == (job(1),)
        slurm.queue = [job(1, COMPLETED), job(2, PENDING)]
        await first.of(JobEnded)
        await second.of(JobEnded)
        done, waits = job(1, COMPLETED), job(2, PENDING)
        expected = [LookAtLatest(), JobChanged(job(1), done), JobEnded(done), JobAppeared(waits)]
        assert first.told == second.told == expected
        late = Reader(watch)
        assert await late.of(LookAtLatest) and late.told == [LookAtLatest()]
    for reader in (first, second, late):
        await reader.ends()


async def test_a_reader_that_does_not_come_is_sent_to_the_latest_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "KEPT", 5)
    slurm = ScriptedSlurm()
    async with watching(slurm) as watch:
        await watch.look()
        slow = watch.changes()
        assert await anext(slow) == LookAtLatest()
        for number in range(1, 8):
            slurm.queue = [*slurm.queue, job(number)]
            await polls(watch, slurm)
        assert await anext(slow) == LookAtLatest()
        assert watch.latest is not None and len(watch.latest.jobs) == 7
        assert await anext(slow) == JobAppeared(job(7))
        await slow.aclose()  # type: ignore[attr-defined]
        assert not watch._readers


async def test_all_who_wait_for_a_newer_picture_share_one_poll() -> None:
    slurm = ScriptedSlurm()
    async with watching(slurm, least_s=0.05, most_s=3600) as watch:
        first = await watch.look()
        before = slurm.asked.count("jobs")
        pictures = await asyncio.wait_for(asyncio.gather(*(watch.look(newer_than=first.at) for _ in range(50))), 5)
        assert slurm.asked.count("jobs") == before + 1
        assert {p.at for p in pictures} == {watch.latest.at} and pictures[0].at > first.at  # type: ignore[union-attr]
        assert await watch.look(newer_than=first.at) is pictures[0]  # it is there


async def test_a_picture_newer_than_now_holds_what_has_happened_until_now() -> None:
    slurm = ScriptedSlurm()
    asked, go = threading.Event(), threading.Event()
    go.set()
    slurm.before_answer = lambda: (asked.set(), go.wait(10))  # type: ignore[assignment, func-returns-value]
    async with watching(slurm, least_s=0.01, most_s=0.01) as watch:
        await watch.look()
        go.clear()
        asked.clear()
        await asyncio.to_thread(asked.wait, 10)  # a poll is under way: its answer may not hold what comes now
        now = datetime.now(UTC)
        newer = asyncio.create_task(watch.look(newer_than=now))
        await asyncio.sleep(0)
        slurm.queue = [job(1)]
        go.set()
        assert (await asyncio.wait_for(newer, 5)).at > now and newer.result().jobs == (job(1),)


async def test_the_event_loop_goes_on_while_slurm_hangs() -> None:
    slurm = ScriptedSlurm()
    go = threading.Event()
    slurm.before_answer = lambda: go.wait(10)  # type: ignore[assignment, func-returns-value]
    async with watching(slurm) as watch:
        for _ in range(10):
            await asyncio.sleep(0)
        assert slurm.asked in ([], ["jobs"]) and watch.latest is None
        go.set()
        await watch.look()


async def test_a_watch_that_ended_keeps_nobody_waiting() -> None:
    slurm = ScriptedSlurm()
    async with watching(slurm, least_s=0.05, most_s=3600) as watch:
        picture = await watch.look()
        waiting = asyncio.create_task(watch.look(newer_than=picture.at + timedelta(days=1)))
        await asyncio.sleep(0)
        assert watch.running
    assert not watch.running
    with pytest.raises(SlurmUnavailable, match="the watch has ended"):
        await asyncio.wait_for(waiting, 5)
    await Reader(watch).ends()
    watch.hurry()  # harmless


# -- silence ----------------------------------------------------------------------------------------------------------


async def test_a_silence_keeps_the_picture_and_says_since_when_and_why() -> None:
    slurm = ScriptedSlurm([job(1)])
    async with watching(slurm) as watch:
        reader = Reader(watch)
        picture = await watch.look()
        slurm.silent = "squeue did not answer within 30 s"
        (silent,) = await reader.of(Silent)
        assert silent.silence.words == slurm.silent and silent.silence.since > picture.at
        await polls(watch, slurm)
        kept, silence = watch.latest, watch.silence
        assert silence is not None and (silence.since, silence.failures > 1) == (silent.silence.since, True)
        assert kept is not None and kept.jobs == picture.jobs and kept.at < silence.since
        with pytest.raises(SlurmUnavailable, match="within 30 s"):
            await watch.look()
        slurm.silent, slurm.queue = None, [job(1, COMPLETED)]
        (answered,) = await reader.of(Answered)
        await reader.of(JobEnded)
        assert watch.silence is None and answered.silence.since == silent.silence.since
        assert [type(c) for c in reader.told] == [LookAtLatest, Silent, Answered, JobChanged, JobEnded]


async def test_a_watch_that_begins_in_a_silence_has_no_picture_and_says_so() -> None:
    read = threading.Event()
    slurm = ScriptedSlurm(silent="Unable to contact slurm controller", before_answer=lambda: read.wait(10) and None)
    async with watching(slurm) as watch:
        reader = Reader(watch)
        await asyncio.sleep(0)  # it reads before Slurm is silent
        read.set()
        await reader.of(Silent)
        with pytest.raises(SlurmUnavailable, match="Unable to contact"):
            await watch.look()
        late = Reader(watch)
        await late.of(LookAtLatest)
        slurm.silent = None
        await reader.of(LookAtLatest)
        assert watch.latest is not None and watch.silence is None


async def test_what_nodes_do_not_say_does_not_hide_the_jobs() -> None:
    slurm = ScriptedSlurm([job(1)], cluster_silent="sinfo did not answer within 30 s")
    async with watching(slurm, cluster_every_s=0) as watch:
        picture = await watch.look()
        assert (picture.jobs, picture.cluster_at, picture.nodes) == ((job(1),), None, ())
        assert watch.silence is None and watch.config is None
        slurm.cluster_silent = None
        await polls(watch, slurm)
        assert watch.latest is not None and watch.latest.cluster_at is not None and watch.config == config()


async def test_nodes_that_slurm_refuses_to_show_hide_nothing_else() -> None:
    slurm = ScriptedSlurm([job(1)], hidden="slurm_load_partitions: Access/permission denied")
    async with watching(slurm) as watch:
        picture = await watch.look()
        assert (picture.jobs, picture.nodes, picture.partitions) == ((job(1),), (), ())
        assert (watch.config, picture.cluster_at, watch.silence) == (config(), picture.at, None)


# -- jobs that the queue does not show --------------------------------------------------------------------------------


async def test_a_short_answer_ends_no_job() -> None:
    slurm = ScriptedSlurm([job(1), job(2)], [record(job(1), RUNNING), record(job(2), RUNNING)])
    async with watching(slurm) as watch:
        reader = Reader(watch)
        await reader.of(LookAtLatest)
        slurm.queue = []
        gone = await reader.of(JobUnaccounted, 2)
        assert {(c.job.raw_id, c.words) for c in gone} == {
            (1, "accounting says RUNNING"), (2, "accounting says RUNNING")
        }  # fmt: skip
        assert slurm.asked.count("accounting 1,2") >= 1  # one question for both
        assert {lost.job.raw_id for lost in watch.unaccounted} == {1, 2}
        slurm.queue = [job(1), job(2)]

        async def back() -> bool:
            return watch.unaccounted == ()

        await eventually(back, 5, 0.005)
        await polls(watch, slurm)
        assert [type(c) for c in reader.told] == [LookAtLatest, JobUnaccounted, JobUnaccounted]


async def test_a_job_that_vanished_ends_when_accounting_says_so() -> None:
    slurm = ScriptedSlurm([job(1)], books_silent="sacct: error: Connection refused")
    async with watching(slurm) as watch:
        reader = Reader(watch)
        await reader.of(LookAtLatest)
        slurm.queue = []
        (gone,) = await reader.of(JobUnaccounted)
        assert gone.words == "accounting gives no answer: sacct: error: Connection refused"
        slurm.books_silent = None  # it answers, and does not know the job yet
        slurm.books = [record(job(1), submitted_at=LATER, name="of the same id")]

        async def unknown() -> bool:
            return [lost.words for lost in watch.unaccounted] == ["accounting does not know it"]

        await eventually(unknown, 10, 0.005)
        slurm.books = [record(job(1), JobState.TIMEOUT), *slurm.books]
        (ended,) = await reader.of(JobEnded)
        assert ended == JobEnded(job(1), slurm.books[0]) and watch.unaccounted == ()
        assert [type(c) for c in reader.told] == [LookAtLatest, JobUnaccounted, JobEnded]


async def test_an_end_that_a_requeue_may_follow_is_believed_at_the_second_look() -> None:
    slurm = ScriptedSlurm([job(1)], [record(job(1), JobState.PREEMPTED)])
    async with watching(slurm) as watch:
        reader = Reader(watch)
        await reader.of(LookAtLatest)
        slurm.queue = []
        await reader.of(JobEnded)
        assert [type(c) for c in reader.told] == [LookAtLatest, JobUnaccounted, JobEnded]


async def test_without_accounting_a_vanished_job_is_unknown_and_accounting_is_not_asked() -> None:
    slurm = ScriptedSlurm([job(1)], cluster=config(accounting=False))
    async with watching(slurm) as watch:
        reader = Reader(watch)
        await reader.of(LookAtLatest)
        slurm.queue = []
        (gone,) = await reader.of(JobUnaccounted)
        assert gone.words == "this cluster keeps no accounting"
        await polls(watch, slurm, 3)
        assert [lost.job for lost in watch.unaccounted] == [job(1)]
        assert not any(question.startswith("accounting") for question in slurm.asked)


async def test_a_recycled_id_is_another_job_and_the_old_one_is_asked_about() -> None:
    old, new = job(1), job(1, PENDING, submitted_at=LATER)
    slurm = ScriptedSlurm([old])
    async with watching(slurm) as watch:
        reader = Reader(watch)
        await reader.of(LookAtLatest)
        slurm.queue = [new]
        await reader.of(JobUnaccounted)
        await polls(watch, slurm)
        assert [lost.job for lost in watch.unaccounted] == [old]
        slurm.books = [record(old), record(new, PENDING)]
        (ended,) = await reader.of(JobEnded)
        assert (ended.job, ended.record) == (old, slurm.books[0])
        assert reader.told[1] == JobAppeared(new)


# -- how often --------------------------------------------------------------------------------------------------------


class Hours:
    """A clock that runs as fast as the watch waits."""

    def __init__(self) -> None:
        self.t = 0.0
        self.at: list[tuple[float, Callable[[], None]]] = []
        self.end = 0.0
        self.over = asyncio.Event()

    def clock(self) -> float:
        return self.t

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.t)

    async def pause(self, wake: asyncio.Event, seconds: float) -> None:
        self.t += seconds
        while self.at and self.at[0][0] <= self.t:
            self.at.pop(0)[1]()
        if self.t >= self.end:
            self.over.set()
            await asyncio.Event().wait()

    async def pass_over(self, slurm: ScriptedSlurm, hours: float, **settings: Any) -> Watch:
        self.end = hours * 3600
        settings = {"least_s": 2, "most_s": 30, "chance": lambda: 1.0} | settings
        async with watching(slurm, clock=self.clock, now=self.now, pause=self.pause, **settings) as watch:
            await asyncio.wait_for(self.over.wait(), 30)
        return watch


async def test_an_idle_hour_is_two_looks_a_minute_at_the_queue_and_one_at_the_cluster() -> None:
    slurm = ScriptedSlurm([job(1)])
    await Hours().pass_over(slurm, 1)
    assert slurm.asked.count("jobs") == pytest.approx(120, abs=2)
    assert slurm.asked.count("nodes") == slurm.asked.count("config") == pytest.approx(60, abs=2)


async def test_an_hour_of_silence_is_asked_about_less_and_less_often() -> None:
    slurm = ScriptedSlurm(silent="Unable to contact slurm controller")
    watch = await Hours().pass_over(slurm, 1)
    assert slurm.asked.count("jobs") == pytest.approx(60 + 4, abs=2) and len(slurm.asked) == slurm.asked.count("jobs")
    assert watch.silence is not None and watch.silence.since == NOON


async def test_accounting_that_does_not_know_a_job_is_asked_less_and_less_often_and_at_last_no_more() -> None:
    hours = Hours()
    slurm = ScriptedSlurm([job(1)])
    hours.at = [(60.0, slurm.queue.clear)]
    watch = await hours.pass_over(slurm, 23)
    assert 100 < slurm.asked.count("accounting 1") < 160  # every ten minutes
    assert len(watch.unaccounted) == 1
    hours = Hours()
    slurm = ScriptedSlurm([job(1)])
    hours.at = [(60.0, slurm.queue.clear)]
    watch = await hours.pass_over(slurm, 25)
    assert watch.unaccounted == ()


async def test_a_hurry_brings_the_next_look_near_and_those_after_it_for_a_while() -> None:
    slurm = ScriptedSlurm()
    async with watching(slurm, least_s=0.02, most_s=3600) as watch:
        await watch.look()
        watch.hurry()
        await polls(watch, slurm, 5)


async def test_ends_are_seen_in_the_queue_where_it_forgets_quickly() -> None:
    slurm = ScriptedSlurm(cluster=config(min_job_age_s=20))
    await Hours().pass_over(slurm, 0.1)
    assert slurm.asked.count("jobs") == pytest.approx(36, abs=2)
