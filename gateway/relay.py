"""Requests to upstreams: pooled connections, plain, TLS with a pinned certificate, or a Unix socket.

There is no limit on how long a stream takes, only on each wait for the next bytes, which one sweep looks after for all
exchanges. An exchange that is left before its end aborts the connection, which is how an engine learns to stop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from typing import NamedTuple

from gateway.errors import Unreachable, UpstreamFailed, UpstreamSilent
from gateway.pins import pinned
from gateway.upstream import Upstream
from registry.deployments import Replica

WHOLE_S = 6 * 3600.0  # for an answer that does not stream; a host that vanished is noticed by TCP long before
IDLE_S = 4.0  # uvicorn closes an idle connection after 5 s; taking one later would race with that
TRUSTED = 1000  # certificates whose contexts are kept
SWEEP_S = 0.5  # between two looks for silent upstreams, at most


class Address(NamedTuple):
    """Where an upstream listens. `certificate` (PEM) is the only one it may show; None: plain TCP."""

    host: str
    port: int
    key: str = ""
    certificate: str | None = None
    unix: str | None = None  # a socket's path, instead of host and port

    def __str__(self) -> str:
        return self.unix or f"{self.host}:{self.port}"


def address_of(replica: Replica) -> Address:
    assert replica.host is not None and replica.port is not None, replica  # a ready replica has both
    return Address(replica.host, replica.port, replica.upstream_key or "", replica.certificate)


class Pool:
    """Connections to every upstream. Times are in seconds."""

    def __init__(self, *, connect_timeout: float, sweep: float = SWEEP_S) -> None:
        self._connect_timeout = connect_timeout
        self._sweep = sweep
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Address, list[Upstream]] = defaultdict(list)
        self._busy: set[Upstream] = set()
        self._trusted: dict[str, ssl.SSLContext] = {}

    async def connection(self, address: Address, *, fresh: bool = False) -> Upstream:
        """A connection to send a request on, to be given back; `fresh`: not one that was used before.

        Raises UpstreamFailed when the upstream cannot be reached.
        """
        upstream = None if fresh else self._take(address)
        if upstream is None:
            upstream = await self._connect(address)
        upstream.address = address
        self._busy.add(upstream)
        return upstream

    async def get(self, address: Address, path: str, patience: float) -> tuple[int, bytes]:
        """The status and the body. Raises UpstreamFailed."""
        upstream = await self.connection(address, fresh=True)
        try:
            upstream.begin(patience)
            upstream.send(request("GET", path, address, b""))
            body = await upstream.whole()
            return upstream.status, body
        finally:
            self.give_back(address, upstream)

    def give_back(self, address: Address, upstream: Upstream) -> None:
        self._busy.discard(upstream)
        if upstream.reusable:
            upstream.reused = True
            upstream.idle_since = self._loop.time()
            self._idle[address].append(upstream)
        else:
            upstream.abort()

    async def watch(self) -> None:
        """Ends exchanges whose upstream has been silent for too long, and idle connections. Runs until cancelled."""
        while True:
            await asyncio.sleep(self._sweep)
            now = self._loop.time()
            for upstream in [u for u in self._busy if not u.paused and now - u.heard_at > u.patience]:
                upstream.fail(UpstreamSilent(f"the replica sent nothing for {upstream.patience:g} s"))
            for address in list(self._idle):
                self._drop_stale(address, now)

    def give_up(self, address: Address, why: str) -> None:
        """This upstream hangs: what waits there for a first output may be asked elsewhere."""
        for upstream in [u for u in self._busy if u.address == address and not u.spoke]:
            upstream.fail(UpstreamFailed(why))

    def close(self) -> None:
        for connections in self._idle.values():
            for upstream in connections:
                upstream.abort()
        self._idle.clear()

    def _take(self, address: Address) -> Upstream | None:
        """The connection used last, if it is fresh."""
        idle = self._idle.get(address)
        fresh_since = self._loop.time() - IDLE_S
        while idle:
            upstream = idle.pop()
            if not upstream.lost and upstream.idle_since > fresh_since:
                return upstream
            upstream.abort()
        return None

    def _drop_stale(self, address: Address, now: float) -> None:
        kept: list[Upstream] = []
        for upstream in self._idle[address]:
            if not upstream.lost and now - upstream.idle_since < IDLE_S:
                kept.append(upstream)
            else:
                upstream.abort()
        if kept:
            self._idle[address] = kept
        else:
            del self._idle[address]

    async def _connect(self, address: Address) -> Upstream:
        try:
            async with asyncio.timeout(self._connect_timeout):
                if address.unix is not None:
                    _, upstream = await self._loop.create_unix_connection(Upstream, address.unix)
                else:
                    trusted = self._trust(address.certificate)
                    _, upstream = await self._loop.create_connection(
                        Upstream, address.host, address.port, ssl=trusted, server_hostname="" if trusted else None
                    )
        except TimeoutError:
            raise Unreachable(f"the replica did not accept a connection in {self._connect_timeout:g} s") from None
        except ssl.SSLError as e:
            raise Unreachable(f"what listens at {address} does not have the replica's certificate: {e}") from e
        except (OSError, ValueError) as e:  # ValueError: a host's name that cannot be one, or a certificate
            raise Unreachable(f"the replica cannot be reached: {e}") from e
        return upstream

    def _trust(self, certificate: str | None) -> ssl.SSLContext | None:
        if certificate is None:
            return None
        if certificate not in self._trusted:
            if len(self._trusted) >= TRUSTED:
                self._trusted.clear()  # replicas come and go
            self._trusted[certificate] = pinned(certificate)
        return self._trusted[certificate]


def request(method: str, path: str, address: Address, body: bytes, request_id: str = "") -> bytes:
    """The bytes of a request, head and body."""
    named = f"X-Request-Id: {request_id}\r\n" if request_id else ""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\nAuthorization: Bearer {address.key}\r\n"
        f"Content-Type: application/json\r\n{named}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("latin-1") + body
