"""The process that calls providers comes when it is needed, comes back when it dies, and goes with the gateway."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from waiting import eventually, wait_for

from gateway.errors import UpstreamFailed
from gateway.provider_process import Prices, ProviderProcess

# Notes its pid and arguments, listens, says so, and lives as long as its standard input.
STAND_IN = """
import os, socket, sys
open(os.environ["NOTES"], "a").write(f"{os.getpid()} {' '.join(sys.argv[2:])}\\n")
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print('{"prices": {"openai/gpt": [1e-6, 2e-6, null]}}', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="headgate-"))  # short, for a Unix socket
    yield made
    shutil.rmtree(made)


class Sleeps:
    """A clock that moves when somebody sleeps, which lasts until the test lets it go."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.asked: list[float] = []
        self.go = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self.go.acquire()
        self.now += seconds

    def clock(self) -> float:
        return self.now


async def until(condition: Callable[[], Any]) -> None:
    async def asked() -> Any:
        return condition()

    await eventually(asked, every=0.01)


def process(
    root: Path, program: str = STAND_IN, listens: Callable[[Prices], None] = lambda _: None, **more: Any
) -> ProviderProcess:
    env = {**os.environ, "NOTES": str(root / "notes")}
    return ProviderProcess(root / "p", ["openai/gpt"], env, listens, command=(sys.executable, "-c", program), **more)


def notes(root: Path) -> list[str]:
    return (root / "notes").read_text().splitlines()


def pids(root: Path) -> list[int]:
    return [int(line.split()[0]) for line in notes(root)]


async def test_it_starts_when_it_is_first_needed_and_once(root: Path) -> None:
    told: list[Prices] = []
    asked = process(root, listens=told.append)
    assert not (root / "p").exists()
    addresses = await asyncio.gather(*(asked.address() for _ in range(5)))
    assert len(set(addresses)) == 1
    await asyncio.open_unix_connection(addresses[0])
    assert [line.split()[1:] for line in notes(root)] == [["openai/gpt"]]
    assert told == [{"openai/gpt": (1e-6, 2e-6, None)}]
    assert stat.S_IMODE((root / "p").stat().st_mode) == 0o700
    await asked.close()
    assert not psutil.pid_exists(pids(root)[0])
    assert list((root / "p").iterdir()) == []


async def test_closing_what_never_started_is_nothing(root: Path) -> None:
    await process(root).close()


async def test_one_that_dies_is_started_again_and_callers_wait_for_it(root: Path) -> None:
    asked = process(root, sleep=lambda _: asyncio.sleep(0))
    first = await asked.address()
    os.kill(pids(root)[0], signal.SIGKILL)
    await until(lambda: len(notes(root)) == 2)
    assert await asked.address() != first
    assert await asked.address() == await asked.address()
    await asked.close()


async def test_one_that_keeps_dying_is_started_less_and_less_often_and_callers_are_told(root: Path) -> None:
    sleeps = Sleeps()
    asked = process(root, "import sys; sys.exit(3)", sleep=sleeps, clock=sleeps.clock)
    caller = asyncio.create_task(asked.address())
    for n in range(1, 9):
        await until(lambda n=n: len(sleeps.asked) == n)
        if n == 3:
            with pytest.raises(UpstreamFailed, match="ended with exit code 3"):
                await caller
        sleeps.go.release()
    assert sleeps.asked == [0.5, 1, 2, 4, 8, 16, 30, 30]
    await asked.close()


async def test_one_that_lived_long_is_started_again_at_once(root: Path) -> None:
    sleeps = Sleeps()
    asked = process(root, sleep=sleeps, clock=sleeps.clock)
    await asked.address()
    sleeps.now += 3600
    os.kill(pids(root)[0], signal.SIGKILL)
    await until(lambda: sleeps.asked)
    assert sleeps.asked == [0]
    await asked.close()


async def test_one_that_cannot_be_started_is_an_error_that_says_why(root: Path) -> None:
    sleeps = Sleeps()
    sleeps.go = asyncio.Semaphore(2)
    (root / "p").write_text("in the way")
    asked = process(root, sleep=sleeps)
    with pytest.raises(UpstreamFailed, match=r"could not be started: .*File exists"):
        await asked.address()
    await asked.close()


async def test_a_bug_in_looking_after_it_leaves_no_caller_waiting(root: Path) -> None:
    asked = process(root, "print('no JSON', flush=True)")
    with pytest.raises(UpstreamFailed, match="the gateway has a bug"):
        await asked.address()
    await asked.close()


async def test_closing_ends_one_that_has_not_listened_yet(root: Path) -> None:
    program = 'import os, sys; open(os.environ["NOTES"], "a").write(f"{os.getpid()}\\n"); sys.stdin.read()'
    asked = process(root, program)
    caller = asyncio.create_task(asked.address())
    await until(lambda: (root / "notes").exists() and notes(root))
    await asked.close()
    with pytest.raises(UpstreamFailed, match="the gateway is stopping"):
        await caller
    assert not psutil.pid_exists(pids(root)[0])


def test_the_real_one_leaves_no_orphan_when_the_gateway_is_killed(root: Path) -> None:
    """Even before LiteLLM is imported: nothing but a thread of its own notices then."""
    program = f"""
import asyncio, os
from pathlib import Path
from gateway.provider_process import ProviderProcess
asked = ProviderProcess(Path({str(root / "p")!r}), [], os.environ, lambda prices: print("listens", flush=True))
asyncio.run(asked.address())
"""
    gateway = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        (child,) = wait_for(lambda: psutil.Process(gateway.pid).children())
        wait_for(lambda: "gateway.provider_worker" in " ".join(child.cmdline()))
    finally:
        gateway.kill()
        gateway.wait()
        assert gateway.stdout is not None
        gateway.stdout.close()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
