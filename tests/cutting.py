"""A way to an engine that breaks in the middle of its answers, as when its node is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from engine import Engine

EVENT_ENDS = b"\n\n"  # in no head of an answer, whose lines end with \r\n


@asynccontextmanager
async def cutting(engine: Engine, after: int) -> AsyncIterator[Engine]:
    """The same engine at another port, where each connection is reset once so many events of a stream have passed."""
    tasks: set[asyncio.Task[None]] = set()

    async def between(client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        answers, forth = await asyncio.open_connection(engine.host, engine.port)
        asking = asyncio.create_task(_pass_on(client, forth))
        try:
            left = after
            while left and (data := await answers.read(65536)):
                *events, rest = data.split(EVENT_ENDS)
                passed = events[:left]
                left -= len(passed)
                back.write(b"".join(event + EVENT_ENDS for event in passed) + (rest if left else b""))
                await back.drain()
            if left:
                back.close()
            else:
                back.transport.abort()
        except ConnectionError:
            back.transport.abort()
        finally:
            asking.cancel()
            forth.transport.abort()

    def accept(client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(between(client, back))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield replace(engine, port=server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65536):
            to.write(data)
            await to.drain()
