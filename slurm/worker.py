"""A child process that answers questions in a bounded time: for a library that cannot be trusted with our own process.

Questions go to its stdin, answers come from its stdout, as plain values (marshal): `(True, answer)`, or `(False, why)`
when it was asked in vain.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from slurm.errors import SlurmUnavailable
from slurm.process import clean_environment


class WorkerEnded(SlurmUnavailable):
    """The worker ended of itself; the message is the last that it said."""


class Worker:
    """A child process that is started when it is asked, and kept. `timeout_s` bounds each answer, its start included.

    It is `python -m module`, in a clean environment, which defaults to the process's own at that moment. Questions of
    several threads are asked one after the other.
    """

    def __init__(self, module: str, library: str, environment: Mapping[str, str] | None, timeout_s: float) -> None:
        self._module = module
        self._library = library
        self._environment = environment
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = -1  # what it writes to stderr
        self._ends: weakref.finalize[..., Worker] | None = None  # ends the process, and gives its last words

    def ask(self, question: str, timeout_s: float | None = None) -> Any:
        """Raises SlurmUnavailable when slurmctld, or the worker, does not answer in time, WorkerEnded when it ends."""
        timeout_s = timeout_s or self._timeout_s
        with self._lock:
            asked_before = self._process is not None
            try:
                process = self._process = self._process or self._start()
            except OSError as e:
                raise SlurmUnavailable(f"{self._library}'s process cannot be started: {e.strerror}") from e
            assert process.stdin and process.stdout
            late = threading.Event()

            def too_late() -> None:
                late.set()
                process.kill()

            # Not a time-out of the pipe's: this also ends a worker that stops in the middle of its answer.
            timer = threading.Timer(timeout_s, too_late)
            timer.daemon = True
            timer.start()
            try:
                if asked_before:  # one that has just begun may have said why it ends already
                    os.ftruncate(self._log, 0)  # what libslurm has logged until now
                marshal.dump(question, process.stdin)
                process.stdin.flush()
                answered, answer = marshal.load(process.stdout)
            except (EOFError, OSError, ValueError):
                words = self._end()
                if late.is_set():
                    raise SlurmUnavailable(f"{self._library} did not answer within {timeout_s:g} s") from None
                raise WorkerEnded(f"{self._library}'s process ended: {words}") from None
            except BaseException:
                self._end()  # interrupted: or the next question would be given this one's answer
                raise
            finally:
                timer.cancel()
            if not answered:
                self._end()  # the next one reads slurm.conf anew, which may name another slurmctld by then
                raise SlurmUnavailable(f"{self._library}: {answer}")
            return answer

    def end(self) -> None:
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = clean_environment(os.environ if self._environment is None else self._environment)
        ours = str(Path(__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(p for p in (ours, environment.get("PYTHONPATH")) if p)
        argv = [sys.executable, "-P", "-m", self._module]  # -P: no module of the current directory's
        self._log = os.memfd_create(self._module)  # a pipe would be full one day
        fcntl.fcntl(self._log, fcntl.F_SETFL, os.O_APPEND)
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment,
                start_new_session=True,  # a Ctrl-C is for us, not for it
            )  # fmt: skip
        except OSError:
            os.close(self._log)
            raise
        self._ends = weakref.finalize(self, _end, process, self._log)  # at our own end, if not before
        return process

    def _end(self) -> str:
        ends, self._ends, self._process = self._ends, None, None
        return (ends and ends()) or ""


def _end(process: subprocess.Popen[bytes], log: int) -> str:
    """End a worker; its last words. Its stdin is closed, by which it ends of itself unless it hangs."""
    try:
        process.communicate(timeout=0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    words = os.pread(log, 1 << 16, 0).decode(errors="replace").strip()
    os.close(log)
    return words.splitlines()[-1] if words else f"status {process.returncode}"


def claim_stdout() -> BinaryIO:
    """For a worker's first line: what it prints from here on, or its library does, goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def serve(answers: BinaryIO, questions: Mapping[str, Callable[[], Any]], refusal: type[Exception]) -> None:
    """The worker's main loop, until nobody asks any more. `refusal` is what a question raises that is asked in vain."""
    while True:
        try:
            question = questions[marshal.load(sys.stdin.buffer)]
        except EOFError:
            return
        try:
            answer = (True, question())
        except refusal as e:
            answer = (False, str(e))
        marshal.dump(answer, answers)
        answers.flush()
