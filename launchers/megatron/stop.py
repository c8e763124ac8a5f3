"""Being asked to stop or to save: by a signal on any rank, by a file in the run's switches directory on rank 0.

A request is noted when it comes and honoured between two iterations, by all ranks together (`ranks.Ranks.agree`).
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

LOOK_EVERY_S = 1.0  # a look at the switches is a question to the shared file system
_PIN = re.compile(r"keep-iter_(\d{7,})")


class Stopped(Exception):
    """Asked to stop before there was anything to save."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a run. `signal`, `stop`: save and stop. `save`: save and go on. `kill`: stop, saving nothing."""

    signal: bool = False  # by a signal: Slurm announces the time limit and preemption so
    stop: bool = False  # by the switch
    save: bool = False
    kill: bool = False

    @property
    def ends(self) -> bool:
        return self.signal or self.stop or self.kill

    @property
    def words(self) -> str:
        """Who asked it to end."""
        return "the switch kill" if self.kill else "the switch stop" if self.stop else "a signal"


class Stop:
    """Whether a signal has asked. One more changes nothing."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        for number in self.SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


class Switches:
    """The files `save`, `stop` and `kill` that a person makes in a run's switches directory, and the pins."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._clock = directory, clock
        self._looked = float("-inf")
        self._names: frozenset[str] = frozenset()
        self._complained = False

    def on(self, name: str) -> bool:
        """Whether this switch is on; as of now, or of a look less than a second ago.

        Where the directory cannot be read, as of the last look that succeeded: training does not end over it.
        """
        if self._clock() - self._looked >= LOOK_EVERY_S:
            self._looked = self._clock()
            try:
                self._names = self._list()
            except OSError as e:
                self._complain("read", e)
        return name in self._names

    def turn_off(self, *names: str) -> None:
        """These were honoured."""
        for name in names:
            if name in self._names:
                try:
                    (self._directory / name).unlink(missing_ok=True)
                except OSError as e:
                    self._complain("turned off", e)
        self._names -= set(names)

    def pinned(self) -> set[int]:
        """The iterations whose checkpoints somebody asked to keep, as of now. Raises OSError."""
        return {int(found[1]) for name in self._list() if (found := _PIN.fullmatch(name))}

    def _complain(self, what: str, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            print(f"switches could not be {what}; training goes on, and this is said once: {error}", flush=True)

    def _list(self) -> frozenset[str]:
        try:
            with os.scandir(self._directory) as entries:
                return frozenset(e.name for e in entries if e.is_file(follow_symlinks=False))
        except FileNotFoundError:  # a run folder of an earlier release
            return frozenset()
