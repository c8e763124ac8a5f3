"""The apparatus of `make bench-gateway`: cores, the two C programs, processes that serve, and what they cost.

Whoever routes has one core to itself; the scripted engine and the load generator have another (each its own, where
there are three). Nothing here knows which router it measures.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPLICAS = 4  # ports on which each engine listens: as many replicas, to whoever routes
START_S = 180.0  # LiteLLM's first start takes most of a minute
ENGINE_KEY = "engine-key"
MODEL = "tiny"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Missing(Exception):
    """Something that the benchmark needs is not there: a program (the text says what to install), or one that ended."""


@dataclass(frozen=True, slots=True)
class Cores:
    router: int
    engine: int
    load: int


@dataclass(frozen=True, slots=True)
class Programs:
    load: Path
    engine: Path
    tls: bool  # whether the engine can


@dataclass(frozen=True, slots=True)
class Router:
    """Something between clients and engines: our gateway, or a peer. `slow`: it gets a part of the work only."""

    name: str
    port: int
    key: str  # what clients send
    pid: int
    log: Path
    slow: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """So many requests, so many at a time. `chunks` of each stream, 0 for whole answers; `interval_ms` between them."""

    concurrency: int
    requests: int
    chunks: int = 0
    interval_ms: int = 20
    ask_running_usage: bool = False
    patience_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Done:
    """What came of some work: requests, each counted once, and what it cost the router in seconds of CPU."""

    ok: int
    refused: int
    dropped: int
    short: int
    late: int
    chunks: int
    p50_us: float
    cpu_s: float

    @property
    def failed(self) -> int:
        return self.refused + self.dropped + self.short + self.late

    @property
    def us_per_request(self) -> float:
        return self.cpu_s / self.ok * 1e6 if self.ok else float("nan")

    @property
    def us_per_chunk(self) -> float:
        return self.cpu_s / self.chunks * 1e6 if self.chunks else float("nan")


def cores() -> Cores:
    """Raises Missing where there is one core only."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise Missing("two cores are needed: one for the gateway, one for the engine and the load")
    if len(allowed) == 2:
        print("two cores: the engine and the load generator share one", file=sys.stderr)
    return Cores(allowed[0], allowed[1], allowed[-1])


def compiled(folder: Path) -> Programs:
    """Raises Missing without a C compiler. Without OpenSSL's headers the engine has no TLS."""
    cc = shutil.which("cc") or shutil.which("gcc")
    if cc is None:
        raise Missing("the load generator and the engine are in C, and there is no cc (on Debian: apt-get install gcc)")

    def compile_as(name: str, *options: str) -> bool:
        words: list[str | Path] = [cc, "-O2", "-Wall", "-o", folder / name, HERE / f"{name}.c", *options]
        done = subprocess.run(words, check=False, stderr=subprocess.PIPE if options else None)
        return done.returncode == 0

    if not compile_as("load"):
        raise Missing("cc cannot compile load.c, see above (on Debian: apt-get install libc6-dev)")
    tls = compile_as("engine", "-DWITH_TLS", "-lssl", "-lcrypto")
    if not tls and not compile_as("engine"):
        raise Missing("cc cannot compile engine.c, see above")
    return Programs(folder / "load", folder / "engine", tls)


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(20000 + os.getpid() % 8000, 60000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise Missing(f"there are no {count} free ports in a row")


@contextlib.contextmanager
def started(words: Sequence[str | Path], core: int, log: Path, env: Mapping[str, str] | None = None) -> Iterator[int]:
    """A process on a core of its own, its output in a file; killed at the end with all its children. Yields its pid."""

    def pin() -> None:
        os.sched_setaffinity(0, {core})

    with log.open("ab") as out:
        process = subprocess.Popen(
            words, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env, start_new_session=True, preexec_fn=pin
        )
    try:
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int, path: str, body: bytes | None = None, key: str = "") -> bool:
    """Whether a GET, or a POST of this body, is answered with 200."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def until(condition: Callable[[], bool], what: str, pid: int, log: Path, every_s: float = 0.05) -> None:
    """Raises Missing, with the end of the log, when the process ends or START_S pass before it comes true."""
    deadline = time.monotonic() + START_S
    while not condition():
        if ended(pid) or time.monotonic() > deadline:
            how = "ended" if ended(pid) else f"did not start in {START_S:g} s"
            raise Missing(f"{what} {how}; it said:\n{log.read_text()[-2000:]}")
        time.sleep(every_s)


def ended(pid: int) -> bool:
    """Whether a child of ours has, be it waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@contextlib.contextmanager
def engine(programs: Programs, at: Cores, folder: Path, *options: str | Path) -> Iterator[int]:
    """The scripted engine; its first port."""
    port = free_ports(REPLICAS)
    log = folder / f"engine-{port}.log"
    words = [programs.engine, "--port", str(port), "--ports", str(REPLICAS), "--key", ENGINE_KEY, *options]
    with started(words, at.engine, log) as pid:
        until(lambda: "ready" in log.read_text(), "the scripted engine", pid, log)
        yield port


def chat(model: str = MODEL) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).encode()


def do(programs: Programs, core: int, router: Router, work: Work, model: str = MODEL) -> Done:
    """Let the load generator do the work through a router."""
    words: list[str | Path] = [programs.load, "--port", str(router.port), "--key", router.key, "--model", model]
    words += ["--concurrency", str(work.concurrency), "--requests", str(work.requests)]
    words += ["--patience", str(work.patience_s)]
    if work.chunks:
        words += ["--stream", str(work.chunks), "--interval", str(work.interval_ms)]
    if work.ask_running_usage:
        words += ["--running-usage"]
    before = cpu_s(router.pid)
    said = subprocess.run(
        words, check=True, stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, {core})
    ).stdout
    spent = cpu_s(router.pid) - before
    result = json.loads(said)
    counts = {name: int(result[name]) for name in ("ok", "refused", "dropped", "short", "late", "chunks")}
    return Done(**counts, p50_us=float(result["latency_us"]["p50"]), cpu_s=spent)


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        below = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _words(task / "children")]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(each for child in below for each in tree(child))]


def cpu_s(pid: int) -> float:
    """User and system time of a process and its children, of which the kernel tells hundredths of a second."""
    ticks = 0
    for each in tree(pid):
        stat = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(int(field) for field in stat[11:15])  # its own, and of children it waited for
    return ticks * TICK_S


def pss_mib(pid: int) -> float:
    """Proportional set size of a process and its children."""
    kib = 0
    for each in tree(pid):
        rollup = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        kib += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return kib / 1024


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has just ended
