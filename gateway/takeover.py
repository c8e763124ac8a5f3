"""A new gateway takes over the listening socket of the one that runs, which finishes its streams: nobody is refused.

The running gateway offers the socket on a Unix socket of its own (0600, in the state directory, for its own user only).
The new one asks for it, gets a descriptor of the very same socket, and says when it serves; connections that arrive in
between wait in the socket's backlog. From then on the old one accepts nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

ASK, SERVING = b"take over\n", b"serving\n"
ANSWER_S = 10.0


class TakeoverRefused(Exception):
    """There is no gateway to take over from, or it did not answer."""


class Heir:
    """What the new gateway holds: the listening socket, and the way to say that it serves."""

    def __init__(self, listening: socket.socket, connection: socket.socket) -> None:
        self.listening = listening
        self._connection = connection

    def serves(self) -> None:
        with contextlib.suppress(OSError):  # the old one is gone already
            self._connection.sendall(SERVING)
        self._connection.close()


def inherit(path: Path) -> Heir:
    """Ask the running gateway for its socket. Raises TakeoverRefused."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_S)
    try:
        with _addressed(path) as address:
            connection.connect(address)
        connection.sendall(ASK)
        _, descriptors, _, _ = socket.recv_fds(connection, 64, 1)
        if not descriptors:
            raise OSError("it sent no socket")
    except OSError as e:
        connection.close()
        raise TakeoverRefused(f"no running gateway hands over its socket at {path}: {e}") from e
    return Heir(socket.socket(fileno=descriptors[0]), connection)


async def offer(path: Path, listening: socket.socket, taken: Callable[[], None]) -> None:
    """Offer `listening` until somebody took it and serves; then call `taken`. Runs until then, or until cancelled."""
    offered = _bind(path)
    loop = asyncio.get_running_loop()
    served = asyncio.Event()
    talks: set[asyncio.Task[None]] = set()

    async def talk(connection: socket.socket) -> None:
        with connection:
            if await _hand_over(connection, listening):
                served.set()

    async def accept() -> None:
        while True:
            connection, _ = await loop.sock_accept(offered)
            talks.add(task := loop.create_task(talk(connection)))  # apart: one that says nothing holds up nobody
            task.add_done_callback(talks.discard)

    accepting = loop.create_task(accept())
    try:
        await served.wait()
        taken()
    finally:
        for task in (accepting, *talks):
            task.cancel()
        await asyncio.wait((accepting, *talks))
        offered.close()


def withdraw(path: Path) -> None:
    path.unlink(missing_ok=True)


def _bind(path: Path) -> socket.socket:
    """In place of whatever is at `path`: an earlier gateway's."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    offered = socket.socket(socket.AF_UNIX)
    offered.setblocking(False)
    mask = os.umask(0o177)
    try:
        with _addressed(fresh) as address:
            offered.bind(address)
    finally:
        os.umask(mask)
    offered.listen(16)
    os.replace(fresh, path)
    return offered


@contextlib.contextmanager
def _addressed(path: Path) -> Iterator[str]:
    """A Unix socket's address for `path`, however deep it lies: an address has room for 107 bytes. Raises OSError."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


async def _hand_over(connection: socket.socket, listening: socket.socket) -> bool:
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    try:
        async with asyncio.timeout(ANSWER_S):
            if await loop.sock_recv(connection, 64) != ASK:
                return False
        socket.send_fds(connection, [b"\n"], [listening.fileno()])
        return await loop.sock_recv(connection, 64) == SERVING  # b"" when it died before it served
    except (OSError, TimeoutError):
        return False
