"""The process in which providers are called: started when it is first needed, started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import orjson

from gateway.errors import UpstreamFailed
from registry.site import PROVIDER_SOCKET_BYTES

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "gateway.provider_worker")
START_S = 120.0  # until it listens; where LiteLLM has no bytecode yet, its import alone takes 40 s
END_S = 5.0
STEADY_S = 60.0  # one that lived so long is started again at once
LONGEST_WAIT_S = 30.0
PATIENCE_S = 1.0  # before a start for which callers wait, too
LINE_BYTES = 1 << 20

# LiteLLM's name of a model -> dollars per prompt token, per completion token, per token of a prompt that was cached
Prices = Mapping[str, tuple[float, float, float | None]]


class ProviderProcess:
    """`listens` is told the prices whenever it has started. `clock` is monotonic; times are in seconds."""

    def __init__(
        self,
        directory: Path,
        models: Sequence[str],
        environ: Mapping[str, str],
        listens: Callable[[Prices], None],
        *,
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._directory = directory
        self._models = models
        self._environ = environ
        self._listens = listens
        self._command = command
        self._clock = clock
        self._sleep = sleep
        self._keeper: asyncio.Task[None] | None = None
        self._decided = asyncio.Event()  # it listens, or it failed
        self._path: str | None = None
        self._failure: str | None = None

    async def address(self) -> str:
        """The path of its socket, once it listens. Raises UpstreamFailed while it cannot be started."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
            self._keeper.add_done_callback(self._kept)
        while self._path is None:
            if self._failure is not None:
                raise UpstreamFailed(f"providers cannot be called: {self._failure}")
            await self._decided.wait()
        return self._path

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        """Nobody starts it any more: callers must not wait."""
        if not keeper.cancelled():
            log.critical("the process that calls providers is not looked after", exc_info=keeper.exception())
        self._failure = "the gateway is stopping" if keeper.cancelled() else "the gateway has a bug; its log says where"
        self._decided.set()

    async def _keep(self) -> None:
        """Runs until cancelled."""
        failures = 0
        while True:
            began = self._clock()
            cause = await self._run()
            failures = 0 if self._clock() - began >= STEADY_S else failures + 1
            wait = min(LONGEST_WAIT_S, 2.0 ** (failures - 2)) if failures else 0.0
            log.error("the process that calls providers %s; it is started again in %g s", cause, wait)
            if wait > PATIENCE_S:
                self._failure = f"the process that does {cause}"
                self._decided.set()
            await self._sleep(wait)
            self._decided.clear()
            self._failure = None

    async def _run(self) -> str:
        """Start it, and wait until it has ended; how it did."""
        process: Process | None = None
        path = self._directory / secrets.token_hex(PROVIDER_SOCKET_BYTES // 2)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            process = await asyncio.create_subprocess_exec(
                *(*self._command, str(path), *self._models),
                stdin=PIPE,  # nothing is ever written: it ends when this does, and so with us
                stdout=PIPE,
                cwd=ROOT,
                env={name: value for name, value in self._environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
                start_new_session=True,  # Ctrl-C is the gateway's
                limit=LINE_BYTES,
            )
            assert process.stdout is not None
            try:
                async with asyncio.timeout(START_S):
                    line = await process.stdout.readline()
            except TimeoutError:
                return f"did not listen within {START_S:g} s"
            if line:
                self._listens({model: tuple(cost) for model, cost in orjson.loads(line)["prices"].items()})
                self._path = str(path)
                self._decided.set()
            return f"ended with exit code {await process.wait()}"
        except OSError as e:
            return f"could not be started: {e}"
        finally:
            self._path = None
            self._decided.clear()
            if process is not None:
                await _end(process)
                path.unlink(missing_ok=True)


async def _end(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
