"""A gateway in another's place: nobody is refused, nothing is lost, and both bill into one ledger."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import httpx
import pytest
from engine import Engine, running
from gateway_fixtures import ROOT, Platform, free_port, gateway_process, prepared, site_at, until
from wire import CHAT, STREAM, WHOLE, post, wired

from gateway import takeover
from gateway.serve import bind
from registry.ledger import Outcome

SAID = "Gravity is round."


@asynccontextmanager
async def platform_at(state_dir: Path, engine: Engine) -> AsyncIterator[Platform]:
    platform = prepared(site_at(state_dir, port=free_port()))
    try:
        async with running(engine):
            platform.ready(engine)
            yield platform
    finally:
        platform.registry.close()


@asynccontextmanager
async def heir_process(platform: Platform) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m gateway --take-over` of the same site; what it says is the platform's `said`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "--take-over", str(platform.site.state_dir / "site.toml")),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        platform.said = []
        async for line in process.stderr:
            platform.said.append(line.decode().rstrip())
            if b"listens on http://" in line:
                break
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


class Load:
    """Short requests without a pause, by clients that keep their connections."""

    def __init__(self, platform: Platform) -> None:
        self.platform, self.served = platform, 0
        self.failed: list[str] = []
        self.done = False

    async def run(self, clients: int = 6) -> None:
        await asyncio.gather(*(self._client(n) for n in range(clients)))

    async def _client(self, number: int) -> None:
        async with AsyncExitStack() as stack:
            if number % 2:
                http = await stack.enter_async_context(self.platform.http())

                async def ask() -> tuple[int, bytes]:
                    async with http.post(CHAT, data=STREAM) as response:
                        return response.status, await response.read()
            else:
                client = await stack.enter_async_context(
                    httpx.AsyncClient(
                        base_url=self.platform.url, headers={"Authorization": f"Bearer {self.platform.key}"}
                    )
                )

                async def ask() -> tuple[int, bytes]:
                    response = await client.post(CHAT, content=WHOLE)
                    return response.status_code, response.content

            await self._go_on(ask)

    async def _go_on(self, ask: Callable[[], Awaitable[tuple[int, bytes]]]) -> None:
        while not self.done:
            try:
                status, body = await ask()
            except (OSError, aiohttp.ClientError, httpx.HTTPError) as e:
                self.failed.append(repr(e))
                continue
            if status == 200 and b"round." in body:
                self.served += 1
            else:
                self.failed.append(f"{status}: {body[:200]!r}")
            await asyncio.sleep(0.01)


async def test_gateways_take_over_from_each_other_under_load_and_no_request_fails(tmp_path: Path) -> None:
    held, quick = Engine(hold_after=1), Engine()
    async with platform_at(tmp_path, quick) as platform, running(held):
        platform.deploy("slow")
        platform.ready(held, "slow-1", "slow")
        slow = STREAM.replace(b'"tiny"', b'"slow"')
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(gateway_process(platform))
            load = Load(platform)
            loading = asyncio.create_task(load.run())
            wire = await stack.enter_async_context(wired(platform))
            wire.send(post(platform, slow))
            await wire.reader.readuntil(b"Gra")
            second = await stack.enter_async_context(heir_process(platform))
            then = load.served
            await until(lambda: load.served > then + 200)
            # A new connection is the new one's, while the old one still streams.
            late = await stack.enter_async_context(wired(platform))
            late.send(post(platform, slow))
            await late.reader.readuntil(b"Gra")
            third = await stack.enter_async_context(heir_process(platform))
            then = load.served
            await until(lambda: load.served > then + 200)
            assert (first.returncode, second.returncode, third.returncode) == (None, None, None)
            held.go.set()
            for open_stream in (wire, late):
                assert (await open_stream.reader.readuntil(b"\r\n0\r\n\r\n")).count(b"[DONE]") == 1
            # Those whose clients keep their connections are done once these had their time.
            assert await asyncio.wait_for(first.wait(), 30) == 0
            assert await asyncio.wait_for(second.wait(), 30) == 0
            then = load.served
            await until(lambda: load.served > then + 20)
            load.done = True
            await loading
            assert load.failed == []
            third.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(third.wait(), 15) == 0
        events = await platform.settled(load.served + 2)
        assert {e.outcome for e in events} == {Outcome.COMPLETED}
        assert sum(e.completion_tokens for e in events) == 4 * len(events)
        assert len({e.attempt.event_id for e in events}) == len(events)
        assert not platform.site.takeover_socket.exists()


async def test_a_gateway_that_was_taken_over_from_still_ends_on_sigterm(tmp_path: Path) -> None:
    engine = Engine(hold_after=2)
    async with platform_at(tmp_path, engine) as platform, AsyncExitStack() as stack:
        first = await stack.enter_async_context(gateway_process(platform))
        wire = await stack.enter_async_context(wired(platform))
        wire.send(post(platform, STREAM))
        await wire.reader.readuntil(b"vity ")
        second = await stack.enter_async_context(heir_process(platform))
        first.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        engine.go.set()
        await wire.reader.readuntil(b"[DONE]")
        assert await asyncio.wait_for(first.wait(), 15) == 0
        async with wired(platform) as other:
            assert (await other.ask(post(platform))).text == SAID
        assert second.returncode is None
        await platform.settled(2)


async def test_a_gateway_that_cannot_read_the_registry_lets_the_one_that_can_serve_on(tmp_path: Path) -> None:
    """As before the controller of its release has started."""
    async with platform_at(tmp_path, Engine()) as platform, gateway_process(platform):
        platform.registry.conn.execute("ALTER TABLE prices RENAME TO later")
        async with heir_process(platform) as heir:
            assert await heir.wait() == 1
            (line,) = platform.said
            assert (
                "does not take over, as the registry cannot be read: no such table: prices (after an update, " in line
            )
        async with wired(platform) as wire:
            assert (await wire.ask(post(platform))).text == SAID


async def test_where_nobody_runs_there_is_nothing_to_take_over(tmp_path: Path) -> None:
    async with platform_at(tmp_path, Engine()) as platform:
        async with gateway_process(platform) as process:
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 15) == 0
        for left_behind in (False, True):
            if left_behind:  # the socket of one that was killed
                with socket.socket(socket.AF_UNIX) as dead:
                    dead.bind(str(platform.site.takeover_socket))
            async with heir_process(platform) as process:
                assert await process.wait() == 1
                (line,) = platform.said
                assert line.startswith("headgate gateway: no running gateway hands over its socket at ")
                assert str(platform.site.takeover_socket) in line


@asynccontextmanager
async def offered(path: Path) -> AsyncIterator[tuple[socket.socket, asyncio.Event]]:
    taken = asyncio.Event()
    with bind("127.0.0.1", 0) as listening:
        offering = asyncio.create_task(takeover.offer(path, listening, taken.set))
        await until(path.exists)
        yield listening, taken
        offering.cancel()
        await asyncio.wait([offering])


@pytest.fixture(params=["short", "long"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A state directory may lie deeper than a Unix socket's address is long."""
    directory = tmp_path if request.param == "short" else tmp_path / ("d" * 120)
    directory.mkdir(exist_ok=True)
    return directory / "gateway.sock"


def ask(path: Path) -> takeover.Heir:
    heir = takeover.inherit(path)
    heir.serves()
    return heir


async def test_a_socket_is_handed_over_to_the_one_who_says_that_it_serves(path: Path) -> None:
    async with offered(path) as (listening, taken):
        assert path.stat().st_mode & 0o777 == 0o600
        died = await asyncio.to_thread(takeover.inherit, path)
        died.listening.close()
        died._connection.close()  # before it served: nothing changes
        heir = await asyncio.to_thread(ask, path)
        await asyncio.wait_for(taken.wait(), 5)
        with heir.listening:
            assert heir.listening.getsockname() == listening.getsockname()


def stranger(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


async def test_strangers_change_nothing_and_hold_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    async with offered(path) as (_, taken):
        with stranger(path) as nonsense, stranger(path), stranger(path) as silent_heir, stranger(path) as gone:
            nonsense.sendall(b"GET / HTTP/1.1\r\n\r\n")
            silent_heir.sendall(takeover.ASK)
            gone.close()
            nonsense.setblocking(False)
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(nonsense, 10), 5) == b""
            assert not taken.is_set()
            heir = await asyncio.wait_for(asyncio.to_thread(ask, path), 5)
            heir.listening.close()
            await asyncio.wait_for(taken.wait(), 5)
