"""The control API over its real socket, asked by whomever a test says."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from launchers import control
from launchers.control import CONTROLLER, make_app
from launchers.controller import Controller
from launchers.scheduler import Scheduler
from registry.access import Principal
from registry.site import Site

ADMINISTRATOR = Principal("root", 0, admin=True)


@dataclass
class Api:
    """The control API through its socket. `caller` is who the next call is made by, in the kernel's place."""

    site: Site
    controller: Controller
    session: aiohttp.ClientSession
    caller: Principal = ADMINISTRATOR

    async def get(self, path: str, status: int = 200) -> Any:
        async with self.session.get(f"http://control/v1/{path}") as response:
            return await self._body(response, status)

    async def post(self, path: str, body: Any = None, status: int = 201) -> Any:
        async with self.session.post(f"http://control/v1/{path}", json=body) as response:
            return await self._body(response, status)

    async def _body(self, response: aiohttp.ClientResponse, status: int) -> Any:
        assert response.status == status, await response.text()
        body = await response.json()
        return body["error"]["message"] if status >= 400 else body

    async def key(self, tenant: str, **of: Any) -> Any:
        return await self.post("keys", {"tenant": tenant, **of})


@asynccontextmanager
async def serving(site: Site, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    app = make_app(site, scheduler)
    made: list[Api] = []

    def caller(connection: socket.socket, service_uid: int) -> Principal:
        return made[0].caller

    monkeypatch.setattr(control, "principal_of", caller)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(site.control_socket)).start()
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(site.control_socket))) as session:
            made.append(Api(site, app[CONTROLLER], session))
            yield made[0]
    finally:
        await runner.cleanup()
