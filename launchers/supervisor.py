"""In the job: start the child, forward signals, say when it is ready, and state why it ended.

`python -m launchers.supervisor RUN_FOLDER` runs once in each task, in the control plane's Python and with the frozen
code of the run folder. The heavy program (the engine, the Megatron loop) is its child in the site's environment, so
signals, output and the exit's cause are ours, and the control plane never imports torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from launchers import child, claims, history
from launchers import task as tasks
from launchers.announce import names
from launchers.child import Ending, last_words
from launchers.child import tail as tail
from launchers.evaluation import step
from launchers.megatron import command as megatron
from launchers.megatron.recipe import Restart
from launchers.restart import Cause
from launchers.run_folder import RunFolder
from launchers.spec import ConvertSpec, EvaluateSpec, ScriptSpec, ServeSpec, SmokeSpec, SupervisedSpec, TrainSpec, load
from launchers.task import Task
from launchers.told import Told
from launchers.vllm.life import Life
from launchers.voice import Voice
from launchers.watchdog import Watchdog

POLL_S = 0.2
LOOK_S = 1.0  # between two looks into the run folder, which is on a shared file system
KILL_AFTER_S = 60.0  # what a training child gets to save after SIGTERM, before SIGKILL
HEAR_S = 5.0  # from the first to the last of a job's nodes that hears a signal
STACKS_S = 3.0  # for a child that hangs to print where
REFUSED = 78  # the exit code (EX_CONFIG) of a program whose input a person must change
Finite = TrainSpec | ConvertSpec | SmokeSpec | EvaluateSpec  # what comes to an end of its own
WORK = {
    TrainSpec: "training",
    ConvertSpec: "the conversion",
    SmokeSpec: "the smoke test",
    EvaluateSpec: "the evaluation",
}
ENDED_AS_ASKED = (0, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGUSR2)  # a child that does not listen yet dies of it


class Supervisor:
    def __init__(self, folder: RunFolder, spec: SupervisedSpec, task: Task) -> None:
        self.folder, self.spec, self.task = folder, spec, task
        self.log = folder.attempt_log(task.attempt, task.rank)
        self.told = Told()
        self.voice = Voice(folder.announcements)
        self.forward: int | None = None  # a signal that waits to be passed on
        self.watchdog = Watchdog(Restart(**spec.recipe.get("restart", {}))) if isinstance(spec, TrainSpec) else None

    def run(self) -> int:
        """Supervise one attempt to its end. Returns the exit code for the scheduler."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        began = time.time()
        first = self.task.rank == 0
        if first:
            self.voice.say(
                "attempt-started",
                attempt=self.task.attempt,
                job_id=self.task.job_id,
                host=self.task.node,
                pid=os.getpid(),
                tasks=self.task.tasks,
                nodes=os.environ.get("SLURM_JOB_NODELIST", self.task.node),
                saved=history.newest_saved(self.folder) if isinstance(self.spec, TrainSpec) else None,
            )
        try:
            ending = self._supervise()
        except (OSError, tasks.RendezvousError, ValueError) as e:
            ending = Ending(1, str(e))
        failure, last = None, tail(self.log)
        if ending.exit_code:
            mine = tasks.Failure(self.task.rank, self.task.node, ending.cause, last, ending.kind, ending.failure)
            failure = self._mark_failed(mine)
            if failure.rank != self.task.rank:  # ours is over because of it
                cause = f"{_place(failure)}: {failure.cause}"
                ending = Ending(ending.exit_code, cause, Cause(failure.kind), failure.engine)
                last = f"{_place(failure)}:\n{failure.tail}\n{_place(mine)}:\n{last}"
        if first:
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            self.voice.say(
                "attempt-ended",
                attempt=self.task.attempt,
                exit_code=ending.exit_code,
                cause=ending.cause,
                end=ending.kind,
                failure=ending.failure,
                judged=self.judged,
                iteration=history.progress(self.folder).get("iteration") if isinstance(self.spec, TrainSpec) else None,
                failed_task={"rank": failure.rank, "node": failure.node} if failure else None,
                tail=last,
                elapsed_s=round(time.time() - began, 3),
                cpu_s=round(used.ru_utime + used.ru_stime, 3),
            )
        self.voice.finish()
        with contextlib.suppress(OSError):  # standard error may be a file on a full disk
            print(f"supervisor: {ending.cause} (exit code {ending.exit_code})", file=sys.stderr, flush=True)
        return ending.exit_code

    def _supervise(self) -> Ending:
        """Raises OSError, RendezvousError, ValueError for what cannot be started."""
        with contextlib.suppress(OSError):
            self.folder.rendezvous.mkdir(exist_ok=True)
        if isinstance(self.spec, ServeSpec):
            return Life(self.folder, self.spec, self.task, self.voice, self.told).run()
        process = self._start(self.spec)
        try:
            return self._watch(process, self.spec)
        finally:
            child.kill_group(process)

    def _mark_failed(self, mine: tasks.Failure) -> tasks.Failure:
        """The failure of which the others hear: ours, where no other task's was first."""
        try:
            return tasks.mark_failed(self.folder.failure(self.task.attempt), mine)
        except OSError:
            return mine  # the shared file system takes nothing now

    def _start(self, spec: Finite) -> subprocess.Popen[bytes]:
        task = self.task
        if isinstance(spec, SmokeSpec | EvaluateSpec):
            return child.start(step.child_argv(spec, self.folder), os.environ, self.log)
        address, port = tasks.meet(self.folder.rendezvous, task)
        attempt = sum(name.endswith("-attempt-started.json") for name in names(self.folder.announcements))
        rank = megatron.Rank(task.rank, task.tasks, task.local_rank, address, port, attempt, task.attempt)
        env = megatron.child_env(spec, self.folder.root, rank, os.environ)
        return child.start(megatron.child_argv(spec, self.folder.root, task.node), env, self.log)

    def _watch(self, process: subprocess.Popen[bytes], spec: Finite) -> Ending:
        beat = looked = -math.inf
        while True:
            self.voice.retry()
            if self.task.rank == 0 and time.monotonic() - beat >= claims.BEAT_S:
                beat = time.monotonic()
                claims.show_alive(self.folder, self.task.attempt)
                if claims.superseded(self.folder, self.task.attempt):
                    return Ending(1, "a later attempt of this run has taken over", Cause.LOST)
            try:
                code = process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                code = None
            if code is not None:
                stage = training_stage(self.folder, self.task.attempt) if isinstance(spec, TrainSpec) else None
                heard = time.monotonic() + HEAR_S
                while stage == "stopped" and self.told.asked is None and time.monotonic() < heard:
                    time.sleep(POLL_S)  # another rank may have been told first, and all have stopped together
                return ending_of(spec, code, asked=self.told.asked, stage=stage, log=tail(self.log))
            now = time.monotonic()
            if self.forward is not None:
                number, self.forward = self.forward, None
                process.send_signal(number)
            since = self.told.stopping_since
            if since is not None and now - since > KILL_AFTER_S and not child.kill_group(process):
                return ending_of(spec, -signal.SIGKILL, asked=self.told.asked, stage=None, log=tail(self.log))
            if now - looked >= LOOK_S:
                looked = now
                if (ending := self._look(process, now)) is not None:
                    return ending

    def _look(self, process: subprocess.Popen[bytes], now: float) -> Ending | None:
        """What the run folder says that ends this task: another one died, or nothing moves any more."""
        try:
            failed = tasks.read_failure(self.folder.failure(self.task.attempt))
        except OSError:
            failed = None  # the shared file system is away for now
        if failed is not None:
            if failed.kind == Cause.NO_PROGRESS:
                _print_stacks(process)
            return Ending(1, "another task of this job died")
        if self.watchdog is not None and self.task.rank == 0 and self.told.stopping_since is None:
            hang = self.watchdog.look(history.progress(self.folder), self.task.attempt, now)
            if hang is not None:
                _print_stacks(process)
                return Ending(1, hang, Cause.NO_PROGRESS)
        return None

    @property
    def judged(self) -> bool:
        """Whether the batch script has the last word on what follows."""
        return isinstance(self.spec, TrainSpec) and "SLURM_JOB_ID" in os.environ

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Stop requests reach the child as SIGTERM; a training child is also told of its time limit (SIGUSR2)."""
        at_limit = number in (signal.SIGUSR1, signal.SIGUSR2)
        asked, why = ("timeout", "time limit") if at_limit else ("cancelled", "cancelled")
        if at_limit and isinstance(self.spec, TrainSpec):
            self.told.ask(asked, why)
            self.forward = signal.SIGUSR2
            return
        if self.told.stopping_since is None:
            self.forward = signal.SIGTERM
        self.told.stop(asked, why)


def ending_of(spec: Finite, code: int, *, asked: str | None, stage: str | None, log: str) -> Ending:
    """What a child's exit means. `code` is Popen's: negative for a signal.

    `asked`: what it was asked to end for. `stage`: its training's last word; it may have come to its end all the same.
    """
    if asked and not (stage == "done" and code == 0) and code in ENDED_AS_ASKED:
        return Ending(0, asked, Cause.TIME_LIMIT if asked == "timeout" else Cause.CANCELLED)
    if code == 0 and stage == "stopped":
        return Ending(0, "cancelled", Cause.CANCELLED)  # somebody made the run's switch `stop` or `kill`
    if code == 0:
        return Ending(0, "completed", Cause.COMPLETED)
    last = last_words(log)
    kind = Cause.REFUSED if code == REFUSED else Cause.CRASHED
    words = f"{WORK[type(spec)]} {child.how_it_ended(code)}" + (f": {last}" if last else "")
    return Ending(child.exit_code(code), words, kind)


def training_stage(folder: RunFolder, attempt: str) -> str | None:
    """The stage that an attempt's training last named: "done" when there is nothing left to train.

    The first rank names its end in its progress, on the node of the first task. The metrics are another rank's, maybe
    another node's, whose last lines a shared file system may show late.
    """
    told = history.progress(folder)
    if told.get("attempt") == attempt and told.get("phase") in ("done", "stopped"):
        return str(told["phase"])
    try:
        last = json.loads((tail(folder.metrics).splitlines() or [""])[-1])
    except ValueError:
        return None  # none yet, or it was killed in the middle of a line
    return last.get("stage") if isinstance(last, dict) else None


def _place(failure: tasks.Failure) -> str:
    return f"task {failure.rank} on {failure.node}"


def _print_stacks(process: subprocess.Popen[bytes]) -> None:
    """A training process prints the stacks of all its threads into its log when it gets SIGQUIT."""
    process.send_signal(signal.SIGQUIT)
    try:
        process.wait(STACKS_S)
    except subprocess.TimeoutExpired:
        pass  # it hangs, as was known


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) != 1:
        print("usage: python -m launchers.supervisor RUN_FOLDER", file=sys.stderr)
        return 2
    if "SLURM_JOB_ID" in os.environ:
        child.end_with_parent()
    folder = RunFolder(Path(words[0]))
    spec = load(folder.spec)
    assert not isinstance(spec, ScriptSpec), f"{folder.root} holds a script of its owner's, which Slurm runs by itself"
    return Supervisor(folder, spec, tasks.task_of(os.environ)).run()


if __name__ == "__main__":
    sys.exit(main())
