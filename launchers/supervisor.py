"""In the job: start the child, forward signals, say when it is ready, and state why it ended.

`python -m launchers.supervisor RUN_FOLDER` runs once in each task, in the control plane's Python and with the frozen
code of the run folder. The heavy program (the engine, the Megatron loop) is its child in the site's environment, so
signals, output and the exit's cause are ours, and the control plane never imports torch.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from launchers import claims, history
from launchers import task as tasks
from launchers.announce import announce, names
from launchers.environment import child_env
from launchers.evaluation import step
from launchers.megatron import command as megatron
from launchers.megatron.recipe import Restart
from launchers.restart import Cause
from launchers.run_folder import RunFolder
from launchers.spec import ConvertSpec, EvaluateSpec, ScriptSpec, ServeSpec, SmokeSpec, SupervisedSpec, TrainSpec, load
from launchers.task import Task
from launchers.vllm import server
from launchers.watchdog import Watchdog

POLL_S = 0.2
LOOK_S = 1.0  # between two looks into the run folder, which is on a shared file system
KILL_AFTER_S = 60.0  # what a training child gets to save after SIGTERM, before SIGKILL
HEAR_S = 5.0  # from the first to the last of a job's nodes that hears a signal
STACKS_S = 3.0  # for a child that hangs to print where
REFUSED = 78  # the exit code (EX_CONFIG) of a program whose input a person must change
TAIL_LINES = 25
TAIL_BYTES = 6000
LIBC = ctypes.CDLL(None)  # loaded before a fork, not after
PR_SET_PDEATHSIG = 1
WORK = {
    TrainSpec: "training",
    ConvertSpec: "the conversion",
    SmokeSpec: "the smoke test",
    EvaluateSpec: "the evaluation",
    ServeSpec: "the engine",
}
ENDED_AS_ASKED = (0, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGUSR2)  # a child that does not listen yet dies of it


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended: the exit code to give the scheduler, and the cause in words."""

    exit_code: int
    cause: str
    kind: Cause = Cause.CRASHED


class Supervisor:
    def __init__(self, folder: RunFolder, spec: SupervisedSpec, task: Task) -> None:
        self.folder, self.spec, self.task = folder, spec, task
        self.log = folder.attempt_log(task.attempt, task.rank)
        self.stopping_since: float | None = None
        self.asked: str | None = None  # what it was first asked to end for: "cancelled" or "timeout"
        self.forward: int | None = None  # a signal that waits to be passed on
        self.readiness: server.Readiness | None = None
        self.endpoint: server.Endpoint | None = None
        self.announced_ready = False
        self.watchdog = Watchdog(Restart(**spec.recipe.get("restart", {}))) if isinstance(spec, TrainSpec) else None

    def run(self) -> int:
        """Supervise one attempt to its end. Returns the exit code for the scheduler."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        began = time.time()
        first = self.task.rank == 0
        if first:
            announce(
                self.folder.announcements,
                "attempt-started",
                attempt=self.task.attempt,
                job_id=self.task.job_id,
                host=self.task.node,
                pid=os.getpid(),
                tasks=self.task.tasks,
                nodes=os.environ.get("SLURM_JOB_NODELIST", self.task.node),
                saved=history.newest_saved(self.folder) if isinstance(self.spec, TrainSpec) else None,
            )
        child: subprocess.Popen[bytes] | None = None
        try:
            child = self._start()
            ending = self._watch(child)
        except (OSError, tasks.RendezvousError, ValueError) as e:
            ending = Ending(1, str(e))
        finally:
            if child is not None:
                _kill_group(child)
            if self.readiness:
                self.readiness.stop()
            if isinstance(self.spec, ServeSpec):
                server.forget(self.folder, self.task.attempt)
        failure, last = None, tail(self.log)
        if ending.exit_code:
            mine = tasks.Failure(self.task.rank, self.task.node, ending.cause, last, ending.kind)
            failure = tasks.mark_failed(self.folder.failure(self.task.attempt), mine)
            if failure.rank != self.task.rank:  # ours is over because of it
                ending = Ending(ending.exit_code, f"{_place(failure)}: {failure.cause}", Cause(failure.kind))
                last = f"{_place(failure)}:\n{failure.tail}\n{_place(mine)}:\n{last}"
        if first:
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            announce(
                self.folder.announcements,
                "attempt-ended",
                attempt=self.task.attempt,
                exit_code=ending.exit_code,
                cause=ending.cause,
                end=ending.kind,
                judged=self.judged,
                iteration=history.progress(self.folder).get("iteration") if isinstance(self.spec, TrainSpec) else None,
                failed_task={"rank": failure.rank, "node": failure.node} if failure else None,
                tail=last,
                elapsed_s=round(time.time() - began, 3),
                cpu_s=round(used.ru_utime + used.ru_stime, 3),
            )
        print(f"supervisor: {ending.cause} (exit code {ending.exit_code})", file=sys.stderr, flush=True)
        return ending.exit_code

    def _start(self) -> subprocess.Popen[bytes]:
        spec, task = self.spec, self.task
        self.folder.rendezvous.mkdir(exist_ok=True)
        if isinstance(spec, ServeSpec):
            env = child_env(os.environ, spec.environment, self.folder.code, spec.resources.cpus_per_task)
            port = tasks.free_port(spec.listen)
            self.endpoint = server.mint_endpoint(self.folder, spec, task.attempt, port)
            env.update(server.closing_env(self.endpoint.key))
            command = server.argv(spec, port, self.folder, task)
        elif isinstance(spec, SmokeSpec | EvaluateSpec):
            env, command = dict(os.environ), step.child_argv(spec, self.folder)
        else:
            address, port = tasks.meet(self.folder.rendezvous, task)
            attempt = sum(name.endswith("-attempt-started.json") for name in names(self.folder.announcements))
            rank = megatron.Rank(task.rank, task.tasks, task.local_rank, address, port, attempt, task.attempt)
            env = megatron.child_env(spec, self.folder.root, rank, os.environ)
            command = megatron.child_argv(spec, self.folder.root, task.node)
        with open(self.log, "ab") as log:
            # A session of its own: one killpg reaches everything the child started.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        if self.endpoint is not None:
            self.readiness = server.Readiness(self.endpoint, spec.name)
        return child

    def _watch(self, child: subprocess.Popen[bytes]) -> Ending:
        began = time.monotonic()
        beat = looked = -math.inf
        while True:
            if self.task.rank == 0 and time.monotonic() - beat >= claims.BEAT_S:
                beat = time.monotonic()
                claims.show_alive(self.folder, self.task.attempt)
                if claims.superseded(self.folder, self.task.attempt):
                    return Ending(1, "a later attempt of this run has taken over", Cause.LOST)
            try:
                code = child.wait(POLL_S)
            except subprocess.TimeoutExpired:
                code = None
            if code is not None:
                stage = training_stage(self.folder, self.task.attempt) if isinstance(self.spec, TrainSpec) else None
                heard = time.monotonic() + HEAR_S
                while stage == "stopped" and self.asked is None and time.monotonic() < heard:
                    time.sleep(POLL_S)  # another rank may have been told first, and all have stopped together
                return ending_of(self.spec, code, asked=self.asked, stage=stage, log=tail(self.log))
            now = time.monotonic()
            if self.forward is not None:
                number, self.forward = self.forward, None
                child.send_signal(number)
            if self.stopping_since is not None and now - self.stopping_since > self._grace_s():
                _kill_group(child)
            if now - looked >= LOOK_S:
                looked = now
                if (ending := self._look(child, now)) is not None:
                    return ending
            if isinstance(self.spec, ServeSpec) and not self.announced_ready:
                self._announce_ready()
                if not self.announced_ready and now - began > self.spec.start_timeout_s:
                    return Ending(1, f"the engine was not ready after {self.spec.start_timeout_s} s")

    def _look(self, child: subprocess.Popen[bytes], now: float) -> Ending | None:
        """What the run folder says that ends this task: another one died, or nothing moves any more."""
        failed = tasks.read_failure(self.folder.failure(self.task.attempt))
        if failed is not None:
            if failed.kind == Cause.NO_PROGRESS:
                _print_stacks(child)
            return Ending(1, "another task of this job died")
        if self.watchdog is not None and self.task.rank == 0 and self.stopping_since is None:
            hang = self.watchdog.look(history.progress(self.folder), self.task.attempt, now)
            if hang is not None:
                _print_stacks(child)
                return Ending(1, hang, Cause.NO_PROGRESS)
        return None

    def _announce_ready(self) -> None:
        if self.readiness is None or self.readiness.ready_after_s is None or self.stopping_since is not None:
            return
        assert self.endpoint and self.readiness.probe
        announce(
            self.folder.announcements,
            "replica-ready",
            host=self.endpoint.host,
            port=self.endpoint.port,
            served_name=self.spec.name,
            start_s=round(self.readiness.ready_after_s, 1),
            context_tokens=self.readiness.context_tokens,
            certificate=self.endpoint.certificate,
            probe=asdict(self.readiness.probe),
        )
        self.announced_ready = True

    @property
    def judged(self) -> bool:
        """Whether the batch script has the last word on what follows."""
        return isinstance(self.spec, TrainSpec) and "SLURM_JOB_ID" in os.environ

    def _grace_s(self) -> float:
        return self.spec.shutdown_timeout_s + 10.0 if isinstance(self.spec, ServeSpec) else KILL_AFTER_S

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Stop requests reach the child as SIGTERM; a training child is also told of its time limit (SIGUSR2)."""
        at_limit = number in (signal.SIGUSR1, signal.SIGUSR2)
        self.asked = self.asked or ("timeout" if at_limit else "cancelled")
        if at_limit and isinstance(self.spec, TrainSpec):
            self.forward = signal.SIGUSR2
            return
        if self.stopping_since is None:
            self.stopping_since = time.monotonic()
            self.forward = signal.SIGTERM


def ending_of(spec: SupervisedSpec, code: int, *, asked: str | None, stage: str | None, log: str) -> Ending:
    """What a child's exit means. `code` is Popen's: negative for a signal. Exit 0 is not success for an engine.

    `asked`: what it was asked to end for. `stage`: its training's last word; it may have come to its end all the same.
    """
    if asked and not (stage == "done" and code == 0) and (code in ENDED_AS_ASKED or isinstance(spec, ServeSpec)):
        return Ending(0, asked, Cause.TIME_LIMIT if asked == "timeout" else Cause.CANCELLED)
    if code == 0 and stage == "stopped":
        return Ending(0, "cancelled", Cause.CANCELLED)  # somebody made the run's switch `stop` or `kill`
    if code == 0 and not isinstance(spec, ServeSpec):
        return Ending(0, "completed", Cause.COMPLETED)
    what = WORK[type(spec)]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    if code == 0:
        how = "ended by itself with exit code 0"
    last = last_words(log)
    kind = Cause.REFUSED if code == REFUSED else Cause.CRASHED
    return Ending(128 - code if code < 0 else code or 1, f"{what} {how}" + (f": {last}" if last else ""), kind)


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


def last_words(log: str) -> str:
    """The line of a log that most likely says what went wrong: the last one that names an error, else the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "error:" in line]
    return (named or lines or [""])[-1][:500]


def tail(path: Path) -> str:
    """The last lines of a log, bounded in lines and bytes."""
    try:
        with open(path, "rb") as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(0, f.tell() - TAIL_BYTES))
            text = f.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-TAIL_LINES:])


def _place(failure: tasks.Failure) -> str:
    return f"task {failure.rank} on {failure.node}"


def _print_stacks(child: subprocess.Popen[bytes]) -> None:
    """A training process prints the stacks of all its threads into its log when it gets SIGQUIT."""
    child.send_signal(signal.SIGQUIT)
    try:
        child.wait(STACKS_S)
    except subprocess.TimeoutExpired:
        pass  # it hangs, as was known


def _end_with_parent() -> None:
    """A supervisor that is killed must not leave an engine nobody knows of; nor a slurmstepd a supervisor."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """End whatever is left of the child's session. An engine's workers outlive a killed parent otherwise."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all gone
    child.wait()


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) != 1:
        print("usage: python -m launchers.supervisor RUN_FOLDER", file=sys.stderr)
        return 2
    if "SLURM_JOB_ID" in os.environ:
        _end_with_parent()
    folder = RunFolder(Path(words[0]))
    spec = load(folder.spec)
    assert not isinstance(spec, ScriptSpec), f"{folder.root} holds a script of its owner's, which Slurm runs by itself"
    return Supervisor(folder, spec, tasks.task_of(os.environ)).run()


if __name__ == "__main__":
    sys.exit(main())
