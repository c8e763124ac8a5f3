"""The listening socket and the connections that came of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from gateway.backing import Backing
from gateway.front import Front

BACKLOG = 4096
LOOK_S = 0.5  # between two looks for connections that are too slow


class Listener:
    """Serves `backing` on a socket that listens already."""

    def __init__(self, backing: Backing, listening: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        self._backing, self._listening, self._tls = backing, listening, tls
        self._fronts: set[Front] = set()
        self._server: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        self._server = await self._loop.create_server(
            lambda: Front(self._backing, self._fronts), sock=self._listening, backlog=BACKLOG, ssl=self._tls
        )
        self._looking = asyncio.create_task(self._look())

    @property
    def open_connections(self) -> int:
        return len(self._fronts)

    async def stop(self, patience: float | None, linger: float = 0.0) -> None:
        """Take no new connections; let requests finish, within `patience` seconds (None: as long as they take).

        A connection may ask once more until it has been idle for `linger` seconds: its client may be about to.
        """
        assert self._server is not None and self._looking is not None
        self._server.close()  # again, to no effect, where the process is told to end while it finishes what runs
        began = self._loop.time()
        # Those that are still shaking hands are not among the fronts yet.
        while any([front.stop(linger) for front in list(self._fronts)]) or self._loop.time() - began < linger:
            if patience is not None and self._loop.time() - began > patience:
                break
            await asyncio.sleep(0.02)
        self._looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._looking
        for front in list(self._fronts):
            front.cut()
        while any(front.busy for front in self._fronts):
            await asyncio.sleep(0)  # their tasks were cancelled, and settle what they used
        await asyncio.sleep(0)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_S, self._backing.request_timeout / 4))
            now = self._loop.time()
            for front in list(self._fronts):
                front.look(now)
