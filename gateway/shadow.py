"""Copies of requests for deployments that are tried out: their answers reach nobody, and nobody pays for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from gateway import calls, relay
from gateway.calls import Call
from gateway.catalog import Catalog
from gateway.errors import UpstreamFailed
from gateway.relay import Pool
from gateway.router import Routed

log = logging.getLogger(__name__)

LIMIT = 64  # copies on their way at once; beyond it requests are not copied
COPY_S = 600.0  # for one answer


class Shadow:
    """`route` picks a replica of a deployment, as for a request of its own."""

    def __init__(self, catalog: Catalog, pool: Pool, route: Callable[[str, Call], Routed | None]) -> None:
        self._catalog, self._pool, self._route = catalog, pool, route
        self._running: set[asyncio.Task[None]] = set()

    def copy(self, path: str, call: Call, body: bytes, names: Sequence[str]) -> None:
        for name in names:
            if len(self._running) < LIMIT:
                copy = calls.renamed(call, name)
                task = asyncio.create_task(self._ask(name, copy, path, calls.upstream_body(copy, body)))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _ask(self, name: str, call: Call, path: str, body: bytes) -> None:
        routed = self._route(name, call)
        if routed is None:
            return
        address = relay.address_of(routed.replica)
        with routed:
            try:
                upstream = await self._pool.connection(address)
                try:
                    upstream.begin(COPY_S)
                    upstream.send(relay.request("POST", path, address, body))
                    upstream.listen(lambda _: None)
                    await upstream.whole()
                finally:
                    self._pool.give_back(address, upstream)
            except UpstreamFailed as e:
                log.warning("%s: a shadow of a request failed: %s", name, e)
