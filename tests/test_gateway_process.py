"""The gateway as a process: killed, stopped, without room for its ledger, with its port taken."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import openai
import pytest
from engine import Engine, running
from gateway_fixtures import HELLO, Platform, gateway_process, prepared, site_at, until
from waiting import eventually

from registry.db import open_reader
from registry.ledger import Outcome


@asynccontextmanager
async def platform_at(state_dir: Path, engine: Engine) -> AsyncIterator[Platform]:
    platform = prepared(site_at(state_dir))
    try:
        async with running(engine):
            platform.ready(engine)
            yield platform
    finally:
        platform.registry.close()


async def test_a_stream_cut_by_kill_9_is_settled_at_its_last_count_by_the_next_gateway(tmp_path: Path) -> None:
    engine = Engine(hold_after=3)
    async with platform_at(tmp_path, engine) as platform:
        async with gateway_process(platform) as process, platform.openai() as client:
            await client.chat.completions.create(**HELLO, stream=True)

            def noted() -> int:
                db = open_reader(platform.site.ledger_db)
                try:
                    return db.conn.execute("SELECT sum(completion_tokens) FROM holds").fetchone()[0] or 0
                finally:
                    db.close()

            await until(lambda: noted() == 3)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        assert platform.open_holds() == 1
        async with gateway_process(platform):
            (event,) = await platform.settled()
            assert event.outcome is Outcome.ORPHANED
            assert (event.prompt_tokens, event.completion_tokens) == (7, 3)


async def test_a_gateway_killed_before_its_journal_is_projected_bills_everything_once(tmp_path: Path) -> None:
    engine = Engine(hold_after=3)
    async with platform_at(tmp_path, engine) as platform:
        async with gateway_process(platform) as process, platform.openai() as client:
            ended = Engine()
            async with running(ended):
                stream = await client.chat.completions.create(**HELLO, stream=True)  # the first replica's
                platform.ready(ended, "replica-2")
                await client.models.list()  # the gateway reads the registry for it: what follows is the second's
                (journal,) = (tmp_path / "journal").iterdir()
                await until(lambda: b'["n"' in journal.read_bytes())
                await until(lambda: platform.open_holds() == 1)
                # Nothing is projected from here on, as if it had not come to it yet.
                with closing(sqlite3.connect(platform.site.ledger_db, isolation_level=None)) as other:
                    other.execute("BEGIN IMMEDIATE")
                    for _ in range(5):
                        await client.chat.completions.create(**HELLO)
                    await until(lambda: journal.read_bytes().count(b'["s"') == 5)
                    process.send_signal(signal.SIGKILL)
                    await process.wait()
                    assert platform.events() == []
                await stream.close()
        # The last write was cut off in its middle, as by a power loss.
        with journal.open("ab") as file:
            file.write(b'0badc0de ["s","')
        for _ in range(2):  # and once more, with nothing left to do
            async with gateway_process(platform) as process:
                events = await platform.settled(6)
                assert sorted(e.outcome for e in events) == [Outcome.COMPLETED] * 5 + [Outcome.ORPHANED]
                assert sorted(e.completion_tokens for e in events) == [3, 4, 4, 4, 4, 4]
                assert not journal.exists()
                process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(process.wait(), 10) == 0
                assert list((tmp_path / "journal").iterdir()) == []


async def test_sigterm_finishes_running_streams_and_takes_no_new_ones(tmp_path: Path) -> None:
    engine = Engine(hold_after=1)
    async with platform_at(tmp_path, engine) as platform:
        async with gateway_process(platform) as process, platform.openai() as client:
            stream = await client.chat.completions.create(**HELLO, stream=True)
            process.send_signal(signal.SIGTERM)
            host, port = platform.url.removeprefix("http://").split(":")

            def refused() -> bool:
                with socket.socket() as probe:
                    return probe.connect_ex((host, int(port))) != 0

            await until(refused)
            engine.go.set()
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            assert text == "Gravity is round."
            assert await asyncio.wait_for(process.wait(), 10) == 0
        (event,) = await platform.settled()
        assert (event.outcome, event.completion_tokens) == (Outcome.COMPLETED, 4)


async def test_a_ledger_without_room_is_503_never_401_and_never_a_free_ride(tmp_path: Path) -> None:
    engine = Engine()
    async with platform_at(tmp_path, engine) as platform, gateway_process(platform) as process:
        async with platform.openai() as client:
            await client.chat.completions.create(**HELLO)
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, hard))  # every write to a file fails
            asked = len(engine.requests)
            with pytest.raises(openai.InternalServerError, match="usage cannot be recorded") as failure:
                await client.chat.completions.create(**HELLO)
            assert failure.value.status_code == 503
            assert failure.value.response.headers["Retry-After"]
            async with platform.http() as http:
                assert (await http.get("/ready")).status == 503
                assert (await http.get("/health")).status == 200
            assert len(engine.requests) == asked
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))

            async def is_ready() -> bool:
                async with platform.http() as http:
                    return (await http.get("/ready")).status == 200

            await eventually(is_ready)
            await client.chat.completions.create(**HELLO)
        await platform.settled(2)


async def test_a_taken_port_is_one_line_that_names_it_and_exit_code_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        platform = prepared(site_at(tmp_path, port=port))
        platform.registry.close()
        async with gateway_process(platform) as process:
            assert await process.wait() == 1
            assert not platform.site.ledger_db.exists()
            (line,) = platform.said
            assert line.startswith(f"headgate gateway: cannot listen on 127.0.0.1:{port} (gateway.port): ")
            assert "Address already in use" in line
