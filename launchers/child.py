"""A heavy program as a supervisor's child: started in a session of its own, killed whole, its log read."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launchers.restart import Cause

TAIL_LINES = 25
TAIL_BYTES = 6000
KILLED_S = 20.0  # for what was killed to be gone: to give memory back takes its time
LOOK_S = 0.05  # between two looks whether it is
LIBC = ctypes.CDLL(None)  # loaded before a fork, not after
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended: the exit code to give the scheduler, and the cause in words."""

    exit_code: int
    cause: str
    kind: Cause = Cause.CRASHED
    failure: str | None = None  # of an engine: launchers.vllm.failures.Kind


def start(command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a child that prints into `log`, or where we do while that cannot be opened. Raises OSError."""
    try:
        to: int | None = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError:
        to = None
    try:
        # A session of its own: one killpg reaches everything the child started.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=to,
            stderr=to,
            env=env,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    finally:
        if to is not None:
            os.close(to)


def kill_group(child: subprocess.Popen[bytes]) -> bool:
    """End whatever is left of the child's session. An engine's workers outlive a killed parent otherwise.

    Whether all of it is gone. What hangs in the kernel, as where a GPU or a mount is lost, cannot be killed: it is left
    behind, for the scheduler to deal with.
    """
    until = time.monotonic() + KILLED_S
    with contextlib.suppress(ProcessLookupError):  # all gone
        os.killpg(child.pid, signal.SIGKILL)
    while child.poll() is None or _lives(child.pid):
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_S)
    return True


def _lives(group: int) -> bool:
    """Whether anything runs in a group of processes. Zombies do not: nobody may be there who waits for them."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):  # it has just ended
            # After the name, which may hold anything: state, parent, group, ..., and as the 18th how many threads.
            told = path.read_bytes().rpartition(b") ")[2].split()
            if int(told[2]) == group and (told[0] not in (b"Z", b"X") or int(told[17]) > 1):
                return True
    return False


def end_with_parent() -> None:
    """A supervisor that is killed must not leave an engine nobody knows of; nor a slurmstepd a supervisor."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def how_it_ended(code: int) -> str:
    """`code` is Popen's: negative for a signal."""
    if code == 0:
        return "ended by itself with exit code 0"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def exit_code(code: int) -> int:
    """What to give the scheduler for a child that failed: never 0."""
    return 128 - code if code < 0 else code or 1


def last_words(log: str) -> str:
    """The line of a log that most likely says what went wrong: the last one that names an error, else the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "error:" in line]
    return (named or lines or [""])[-1][:500]


def size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0


def tail(path: Path, lines: int = TAIL_LINES, most: int = TAIL_BYTES, since: int = 0) -> str:
    """The last lines of a log, bounded in lines and bytes, none from before the byte `since`; "" when unreadable."""
    try:
        with open(path, "rb") as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(since, f.tell() - most))
            text = f.read(most).decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
