"""In the batch script of a training job: start the supervisors, watch over them, and see to it that the run goes on.

`python -m launchers.batch RUN_FOLDER` is one attempt. It runs once, on the job's first node and outside of any
container, in the control plane's Python and with the frozen code of the run folder. When the attempt is over it judges
why (launchers/restart.py), states that, and requeues its own job, or submits a successor where Slurm does not let it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TypeVar

from launchers import claims, history, launch, restart, task, watchdog
from launchers.announce import announce
from launchers.deadline import Deadline
from launchers.megatron.recipe import Restart
from launchers.restart import Action, Cause, JobFacts, Verdict
from launchers.run_folder import RunFolder
from launchers.spec import SpecError, TrainSpec, load
from slurm.backend import connect
from slurm.client import SlurmClient
from slurm.errors import SlurmError, SlurmUnavailable
from slurm.model import Job, JobState

T = TypeVar("T")

POLL_S = 1.0
LEAVE_S = 20.0  # from the attempt's last word to the end of its step
ASK_AGAIN_S = 2.0
PATIENCE_S = 600.0  # with a slurmctld that does not answer, while nobody ends us
KILL_WAIT_S = 5.0  # the same in the seconds between SIGTERM and SIGKILL
SRUN = ("srun", "--unbuffered", "--open-mode=append", *task.END_TOGETHER)


def srun(folder: RunFolder) -> list[str]:
    """The step: our supervisor once in each task. Its own words go where the local scheduler puts them too."""
    return [*SRUN, "--output", str(folder.logs / "%j_%t_log.out"), *launch.supervisor_command(folder)]


def facts_of(job: Job) -> JobFacts:
    ending = job.state is JobState.COMPLETING
    limit = None if job.time_limit_s is None or job.starts_at is None else job.starts_at.timestamp() + job.time_limit_s
    moved = not ending and limit is not None and job.ends_at is not None and job.ends_at.timestamp() < limit - 1
    return JobFacts(ending, job.restarts, at_time_limit=job.reason == "TimeLimit", preempted=moved)


@dataclass
class Batch:
    """One attempt, seen from the batch script. `restarts`: how often Slurm had requeued this job when it began."""

    folder: RunFolder
    spec: TrainSpec
    job_id: str
    restarts: int
    client: SlurmClient
    clock: Callable[[], float] = time.time
    told_to_end: bool = False

    @property
    def attempt(self) -> str:
        return f"{self.job_id}.{self.restarts}"

    @property
    def limits(self) -> restart.Limits:
        asked = Restart(**self.spec.recipe.get("restart", {}))
        return restart.Limits(asked.max_attempts, asked.without_progress)

    def run(self) -> int:
        """Returns the batch script's exit code: 0 when the run is complete or goes on, else 1."""
        claims.claim(self.folder, self.attempt)
        if (other := self._wait_for_others()) is not None:
            claims.give_up(self.folder, self.attempt)
            print(f"batch: attempt {other} of this run is still running; nothing was started", file=sys.stderr)
            return 1
        past = history.past(self.folder, before=self.attempt)
        if len(past) >= self.limits.max_attempts:
            # Slurm restarts a job that loses its node, or is requeued, without asking us.
            verdict = restart.decide(past, self.limits)
            self._state(past[-1].cause, past[-1].saved, verdict)
            print(f"batch: nothing was started: {verdict.why}", file=sys.stderr)
            return 1
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: None)  # meant for the tasks, which get their own
        with subprocess.Popen(srun(self.folder), stdin=subprocess.DEVNULL) as step:
            self._watch(step)
        for number in (signal.SIGTERM, signal.SIGINT):
            # Slurm signals whatever runs in a job that it ends, also the commands with which we ask it for another.
            signal.signal(number, signal.SIG_IGN)
        return self._judge()

    def _wait_for_others(self) -> str | None:
        """Two jobs must not write one run's checkpoints. One that just ended without a word still looks alive."""
        deadline = self.clock() + claims.SILENT_S + ASK_AGAIN_S
        while (other := claims.rival(self.folder, self.attempt, history.over(self.folder))) is not None:
            if self.clock() > deadline:
                break
            claims.beat(self.folder, self.attempt)
            time.sleep(ASK_AGAIN_S)
        return other

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.told_to_end = True  # Slurm tells the tasks as well, and what they still save is worth the wait

    def _watch(self, step: subprocess.Popen[bytes]) -> None:
        """Until the step is over. One whose supervisor is gone does not end by itself where its slurmstepd is, too."""
        deadline = Deadline(self._ends)
        last_word_at: float | None = None
        alive_at, heard_at, looked_at = None, self.clock(), self.clock()
        while not _over(step):
            now = self.clock()
            if now - looked_at < claims.BEAT_S:
                continue  # what follows asks the shared file system
            if now - looked_at > watchdog.ASLEEP_S:
                heard_at += now - looked_at  # the whole job was suspended
            looked_at = now
            claims.beat(self.folder, self.attempt)
            if last_word_at is None and self._has_spoken():
                last_word_at = now
            if (shown := claims.alive_at(self.folder, self.attempt)) != alive_at:
                alive_at, heard_at = shown, now
            silent = alive_at is not None and now - heard_at > claims.SILENT_S
            if silent or (last_word_at is not None and now - last_word_at > LEAVE_S):
                print("batch: the supervisor is gone and its step is not: ending the step", file=sys.stderr)
                _end(step)
            if deadline.reached(history.save_s(self.folder), now) and not self._ask_to_save():
                deadline.again()

    def _has_spoken(self) -> bool:
        try:
            return history.last_word(self.folder, self.attempt) is not None
        except OSError as e:
            print(f"batch: {e.filename}: {e.strerror}: to be looked at again", file=sys.stderr)
            return False

    def _ends(self) -> tuple[float, float] | None:
        """When Slurm will end this job, in seconds since the epoch, and its time limit in seconds."""
        try:
            job = next(iter(self.client.jobs([self.job_id])), None)
        except SlurmError as e:
            print(f"batch: when this job will end is not known: {e}", file=sys.stderr)
            return None
        if job is None or job.ends_at is None or job.time_limit_s is None:
            return None
        return job.ends_at.timestamp(), job.time_limit_s

    def _ask_to_save(self) -> bool:
        try:
            self.client.signal(self.job_id, "USR2")
        except SlurmError as e:
            print(f"batch: the tasks were not told of the time limit: {e}", file=sys.stderr)
            return False
        return True

    def _judge(self) -> int:
        job = self._job()
        said, saved, past = self._insist(self._history)
        cause = restart.cause_of(said, None if job is None else facts_of(job), self.restarts)
        if cause is Cause.CANCELLED and self._books_say_preempted():
            cause = Cause.PREEMPTED
        requeued = job is not None and job.restarts > self.restarts
        verdict = restart.decide([*past, restart.Ended(self.attempt, cause, saved)], self.limits, requeued=requeued)
        self._state(cause, saved, verdict)
        follows = self.job_id
        if verdict.action is Action.RESTART:
            verdict, follows = self._go_on(cause, saved, verdict)
        if verdict.action is not Action.STOP:
            self._start_soon(follows, verdict.delay_s)
        print(f"batch: attempt {self.attempt} ended: {cause}; {verdict.why}", file=sys.stderr, flush=True)
        return 0 if cause is Cause.COMPLETED or verdict.action is not Action.STOP else 1

    def _history(self) -> tuple[Cause | None, int | None, list[restart.Ended]]:
        """The supervisor's last word, the newest checkpoint's iteration, and the attempts before this one."""
        said, saved = history.last_word(self.folder, self.attempt), history.newest_saved(self.folder)
        return said, saved, history.past(self.folder, before=self.attempt)

    def _books_say_preempted(self) -> bool:
        """Where preemption cancels jobs, slurmctld's word for it is the one for any other cancelled job."""
        try:
            books = [a for a in self.client.accounting([self.job_id]) if a.id == self.job_id]
        except SlurmError:
            return False
        return bool(books) and books[-1].state is JobState.PREEMPTED

    def _state(self, cause: Cause, saved: int | None, verdict: Verdict, successor: str | None = None) -> None:
        try:
            announce(
                self.folder.announcements,
                "attempt-judged",
                attempt=self.attempt,
                cause=cause,
                saved=saved,
                action=verdict.action,
                why=verdict.why,
                successor=successor,
            )
        except OSError as e:  # the run goes on all the same
            print(f"batch: {self.folder.announcements}: {e.strerror}: attempt {self.attempt} {cause}", file=sys.stderr)

    def _go_on(self, cause: Cause, saved: int | None, verdict: Verdict) -> tuple[Verdict, str]:
        """Requeue this job, or submit another: returns the one that goes on, too.

        Once it is requeued Slurm ends us, after KillWait at the latest.
        """
        try:
            self._insist(self._requeue)
            return verdict, self.job_id
        except SlurmError as refusal:
            words = str(refusal)
        try:
            successor = self._insist(self._submit_successor)
            verdict = replace(verdict, why=f"{verdict.why}, as job {successor}: {words}")
            self._state(cause, saved, verdict, successor)
            return verdict, successor
        except SlurmError as e:
            verdict = Verdict(Action.STOP, f"Slurm neither requeues its job ({words}) nor takes another ({e})")
            self._state(cause, saved, verdict)
            return verdict, self.job_id

    def _requeue(self) -> None:
        try:
            self.client.requeue(self.job_id)
        except SlurmError:
            # Slurm may have done it, and its answer been lost: asked again, it says that the job is pending.
            if not any(job.restarts > self.restarts for job in self.client.jobs([self.job_id])):
                raise

    def _submit_successor(self) -> str:
        """Unless there is one already: its submission's answer may have been lost."""
        mine = self.client.jobs(user=str(os.getuid()))
        if waiting := [job.id for job in mine if job.comment == self.spec.id and job.state.pending]:
            return waiting[-1]
        successor = self.client.submit(self.folder.script, self.spec.id, dependency=f"afterany:{self.job_id}")
        if "--hold" in self.spec.resources.options:  # of the first job, which somebody released
            self.client.release(successor)
        return successor

    def _start_soon(self, job_id: str, delay_s: int) -> None:
        """A requeued job waits for two minutes, unless it has a later start by the time that Slurm puts it back."""
        try:
            self.client.update(job_id, starts_in_s=delay_s)
        except SlurmError as e:
            print(f"batch: job {job_id} will start when Slurm lets it: {e}", file=sys.stderr)

    def _job(self) -> Job | None:
        try:
            return next(iter(self._insist(lambda: self.client.jobs([self.job_id]))), None)
        except SlurmError as e:
            print(f"batch: what Slurm does with this job is not known: {e}", file=sys.stderr)
            return None

    def _insist(self, ask: Callable[[], T]) -> T:
        """Ask again while slurmctld, or the run folder's disk, does not answer, as long as there is time.

        Raises SlurmError or OSError.
        """
        began = self.clock()
        while True:
            try:
                return ask()
            except (SlurmUnavailable, OSError):
                if self.clock() - began > (KILL_WAIT_S if self.told_to_end else PATIENCE_S):
                    raise
                time.sleep(ASK_AGAIN_S)


def _over(step: subprocess.Popen[bytes]) -> bool:
    try:
        step.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(step: subprocess.Popen[bytes]) -> None:
    """srun ends its step when it is told to end; it can itself be waiting for one that is gone."""
    step.terminate()
    try:
        step.wait(LEAVE_S)
    except subprocess.TimeoutExpired:
        step.kill()


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m launchers.batch RUN_FOLDER", file=sys.stderr)
        return 2
    folder = RunFolder(Path(argv[0]))
    spec = load(folder.spec)
    if not isinstance(spec, TrainSpec):
        raise SpecError(f"{folder.spec}: kind {spec.kind!r}; only a training run goes on by itself")
    me = task.task_of(os.environ)
    return Batch(folder, spec, me.job_id, me.restart, connect(backend="commands")).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
