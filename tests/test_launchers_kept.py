"""A question that many want answered: asked once for all of them, whether Slurm answers or not."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime

import pytest

from launchers.kept import ASK_AGAIN_S, Kept
from launchers.scheduler import SchedulerUnavailable
from slurm.changes import Silence
from slurm.errors import SlurmUnavailable

MOST_S = 300.0
SILENCE = Silence(datetime(2026, 3, 2, tzinfo=UTC), "squeue did not answer within 2 s", 1)


class Question:
    """What is answered, or why not; how often it was asked."""

    def __init__(self) -> None:
        self.asked, self.fails, self.now = 0, "", 0.0
        self.silence: Silence | None = None
        self.go = threading.Event()
        self.go.set()
        self.kept = Kept(self, MOST_S, lambda: self.silence, lambda: self.now)

    def __call__(self) -> int:
        self.asked += 1
        assert self.go.wait(10)
        if self.fails:
            raise SlurmUnavailable(self.fails)
        return self.asked

    async def all_at_once(self, callers: int = 5) -> list[int | BaseException]:
        """They all wait before the first of them is answered."""
        self.go.clear()
        waiting = [asyncio.create_task(self.kept.answer()) for _ in range(callers)]
        await asyncio.sleep(0)  # each has come as far as it can
        self.go.set()
        return await asyncio.gather(*waiting, return_exceptions=True)


async def test_an_answer_serves_everyone_until_it_is_too_old() -> None:
    question = Question()
    assert await question.all_at_once() == [1] * 5
    question.now = MOST_S - 1
    assert await question.kept.answer() == 1
    question.now = MOST_S
    assert await question.all_at_once() == [2] * 5


async def test_a_failure_is_everyones_and_nobody_asks_again_for_a_while() -> None:
    question = Question()
    question.fails = "Unable to contact slurm controller"
    for question.now, asked in ((0, 1), (ASK_AGAIN_S - 1, 1), (ASK_AGAIN_S, 2)):
        found = await question.all_at_once()
        assert [str(e) for e in found] == [question.fails] * 5 and isinstance(found[0], SchedulerUnavailable)
        assert question.asked == asked
    question.fails, question.now = "", 2 * ASK_AGAIN_S
    assert await question.kept.answer() == 3


async def test_after_a_failure_the_last_answer_is_given() -> None:
    question = Question()
    await question.kept.answer()
    question.fails, question.now = "Unable to contact slurm controller", MOST_S
    assert await question.all_at_once() == [1] * 5
    assert question.asked == 2


async def test_nobody_asks_a_slurm_that_is_silent() -> None:
    question = Question()
    question.silence = SILENCE
    with pytest.raises(SchedulerUnavailable, match=SILENCE.words):
        await question.kept.answer()
    question.silence = None
    assert await question.kept.answer() == 1
    question.silence, question.now = SILENCE, MOST_S
    assert await question.kept.answer() == 1
    assert question.asked == 1
    question.silence = None  # it answers again
    assert await question.kept.answer() == 2


async def test_a_question_that_hangs_keeps_nobody_waiting_once_the_watch_hears_nothing() -> None:
    question = Question()
    await question.kept.answer()
    question.now = MOST_S
    question.go.clear()
    first = asyncio.create_task(question.kept.answer())
    await asyncio.sleep(0)
    question.silence = SILENCE
    assert await asyncio.wait_for(question.kept.answer(), 5) == 1
    question.go.set()
    await first
