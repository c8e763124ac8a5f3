"""A local job's record and process: what the local scheduler must still know after every restart of ours.

A record is one file in the scheduler's spool directory, `PID-START.json`, written once; `PID-START.cancelled` beside
it says that somebody asked the job to stop. The process is submitit's local controller, which runs the tasks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

SCHEMA = 1
# A process's start time is derived from the machine's boot time, which a clock adjustment moves a little.
SAME_START_S = 2.0
TASKS_START_S = 10.0  # a controller imports submitit first: a second, and several on a busy machine


@dataclass(frozen=True, slots=True)
class LocalJob:
    key: str
    name: str
    pid: int
    created_at: float  # the process's start, seconds since the epoch
    log_dir: str
    tasks: int
    cpus: int
    gpus: int
    time_limit_s: int | None = None  # absent in records of before

    @property
    def stem(self) -> str:
        return f"{self.pid}-{int(self.created_at)}"

    @property
    def submitted_at(self) -> datetime:
        return datetime.fromtimestamp(int(self.created_at), UTC)

    def save(self, spool: Path) -> Path:
        """Durable when this returns."""
        spool.mkdir(parents=True, exist_ok=True)
        path = spool / f"{self.stem}.json"
        temporary = spool / f".{path.name}"
        with open(temporary, "w", encoding="utf-8") as f:
            json.dump({"schema": SCHEMA, **dataclasses.asdict(self)}, f)
            f.flush()
            os.fsync(f.fileno())
        os.rename(temporary, path)
        return path

    @classmethod
    def load(cls, path: Path) -> LocalJob:
        """Raises FileNotFoundError for a job that was never recorded, ValueError for another schema."""
        data = json.loads(path.read_text(encoding="utf-8"))
        if (schema := data.pop("schema")) != SCHEMA:
            raise ValueError(f"{path}: schema {schema!r} is not known here; this Headgate reads schema {SCHEMA}")
        return cls(**data)

    def process(self) -> psutil.Process | None:
        """The controller, while it runs. A zombie is gone: nobody may be there to reap it."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created_at) > SAME_START_S:
                return None  # the process id was recycled
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        except psutil.NoSuchProcess:
            return None

    def terminate(self, spool: Path) -> None:
        """Note that the job shall stop, and send SIGTERM to its tasks."""
        (spool / f"{self.stem}.cancelled").touch()
        for task in self._started_tasks():
            try:
                task.terminate()
            except psutil.NoSuchProcess:
                pass  # it ended by itself

    def cancelled(self, spool: Path) -> bool:
        return (spool / f"{self.stem}.cancelled").exists()

    def _started_tasks(self) -> list[psutil.Process]:
        """The tasks, or the controller when it has none in time.

        The controller would forward a SIGTERM, but only to the tasks that it has noted as started: one that arrives
        too early is lost, or kills the controller alone. So wait for the tasks, and signal them ourselves.
        """
        deadline = time.monotonic() + TASKS_START_S
        while (controller := self.process()) is not None:
            tasks = _executed_children(controller)
            if len(tasks) == self.tasks:
                return tasks
            if time.monotonic() > deadline:
                return tasks or [controller]
            time.sleep(0.01)
        return []


def _executed_children(process: psutil.Process) -> list[psutil.Process]:
    """Between fork and exec a child still shows its parent's command line, and would lose a signal."""
    try:
        own = process.cmdline()
        return [child for child in process.children() if child.cmdline() not in (own, [])]
    except psutil.NoSuchProcess:
        return []  # one of them ended while we looked; the caller looks again


def records(spool: Path) -> Iterator[LocalJob]:
    """Every job recorded, newest first."""
    for path in sorted(spool.glob("[0-9]*.json"), key=lambda p: int(p.stem.partition("-")[2]), reverse=True):
        yield LocalJob.load(path)
