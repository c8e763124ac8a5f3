"""One question to Slurm that is asked rarely, and at most once at a time, for everyone who wants the answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from launchers.scheduler import SchedulerUnavailable
from slurm.changes import Silence
from slurm.errors import SlurmError

T = TypeVar("T")

ASK_AGAIN_S = 30.0  # after a question that was not answered


class Kept(Generic[T]):
    """The last answer to `ask`, which blocks, and which is asked again when that is `most_s` seconds old.

    Nobody asks while Slurm is silent by the watch's word, nor soon after a failure: the last answer is given, however
    old. So a Slurm that struggles is asked no more often for being asked by many.
    """

    def __init__(
        self,
        ask: Callable[[], T],
        most_s: float,
        silence: Callable[[], Silence | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._most_s, self._silence, self._clock = ask, most_s, silence, clock
        self._asking = asyncio.Lock()
        self._not_before = -math.inf
        self._answer: T | None = None
        self._failure = ""  # the last question's, in Slurm's words

    async def answer(self) -> T:
        """Raises SchedulerUnavailable where there is none yet."""
        if self._due():
            async with self._asking:
                if self._due():  # still, after whoever asked before us
                    await self._ask_again()
        if self._answer is None:
            silence = self._silence()
            raise SchedulerUnavailable(silence.words if silence else self._failure)
        return self._answer

    def _due(self) -> bool:
        return self._silence() is None and self._clock() >= self._not_before

    async def _ask_again(self) -> None:
        try:
            self._answer = await asyncio.to_thread(self._ask)
            self._not_before = self._clock() + self._most_s
        except SlurmError as e:
            self._failure = str(e)
            self._not_before = self._clock() + ASK_AGAIN_S
