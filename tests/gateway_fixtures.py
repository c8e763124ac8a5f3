"""A whole gateway on 127.0.0.1: real registry.db, real ledger.db, real HTTP, in this process or in one of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from engine import Engine, running
from openai import AsyncOpenAI

from gateway.app import backing_of, make_app, stopping
from gateway.listener import Listener
from gateway.serve import bind
from registry import deployments, keys, ledger, migrations, tenants
from registry.db import Database, open_reader, open_writer
from registry.deployments import ReplicaState
from registry.ledger import UsageEvent
from registry.limits import Limits
from registry.site import External, Gateway, Price, Scheduler, Site

ROOT = Path(__file__).resolve().parent.parent
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "What is gravity?"}], "max_tokens": 50}


async def until(condition: Callable[[], Any], timeout: float = 30.0) -> Any:
    """What `condition` returns once it is true."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)
    return value


@dataclass
class Platform:
    site: Site
    registry: Database
    key: str
    url: str = ""
    app: web.Application | None = None
    listener: Listener | None = None
    said: list[str] = field(default_factory=list)  # by a gateway process, until it listened or ended

    def new_key(self, tenant: str = "physics", user: str = "root", **about: Any) -> str:
        return keys.create(self.registry, keys.secret_for(self.registry, self.site.key_secret), tenant, user, **about)[
            1
        ]

    def tenant(self, name: str, **limits: int) -> str:
        """A new tenant's key."""
        tenants.create(self.registry, name, "root", limited=Limits(**limits))
        return self.new_key(name)

    def deploy(self, name: str = "tiny") -> None:
        request: dict[str, Any] = {}
        deployments.create(
            self.registry,
            name,
            "root",
            model=name,
            version=1,
            model_path="/m",
            min_replicas=1,
            max_replicas=1,
            request=request,
            by="root",
            why="served",
        )

    def ready(self, engine: Engine, replica: str = "replica-1", deployment: str = "tiny") -> None:
        deployments.add_replica(self.registry, replica, deployment, "root", f"/runs/{replica}")
        endpoint = (engine.host, engine.port, engine.key)
        deployments.replica_is_ready(self.registry, replica, *endpoint, certificate=engine.certificate)

    def gone(self, replica: str = "replica-1") -> None:
        deployments.set_replica_state(self.registry, replica, ReplicaState.STOPPED)

    async def stop(self) -> None:
        """As on SIGTERM, with little patience."""
        if self.listener is not None and self.app is not None:
            listener, self.listener = self.listener, None
            stopping(self.app)
            await listener.stop(0.5)

    def openai(self, key: str | None = None) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=20)

    def http(self, key: str | None = None) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(self.url, headers={"Authorization": f"Bearer {key or self.key}"})

    def events(self) -> list[UsageEvent]:
        db = open_reader(self.site.ledger_db)
        try:
            return ledger.usage_events(db)
        finally:
            db.close()

    def open_holds(self) -> int:
        db = open_reader(self.site.ledger_db)
        try:
            return ledger.open_holds(db)
        finally:
            db.close()

    async def settled(self, requests: int = 1) -> list[UsageEvent]:
        """The usage events, once there are so many and nothing is held; the ledger adds up."""
        await until(lambda: len(self.events()) >= requests and self.open_holds() == 0)
        db = open_reader(self.site.ledger_db)
        try:
            assert ledger.check(db) == []
        finally:
            db.close()
        events = self.events()
        assert len(events) == requests
        return events


def site_at(state_dir: Path, port: int = 0, external: dict[str, External] | None = None, **gateway: Any) -> Site:
    return Site(
        name="test",
        state_dir=state_dir,
        shared_dir=state_dir,
        # Nobody waits long for a replica that does not come.
        gateway=Gateway(**{"port": port, "start_wait_s": 0.5} | gateway),
        scheduler=Scheduler(kind="local"),
        prices={"default": Price(prompt=1, completion=2), "claude": Price(prompt=3, completion=15)},
        external=external or {},
    )


def prepared(site: Site) -> Platform:
    """A registry with one tenant, one key and one deployment, nothing of it ready."""
    registry = open_writer(site.registry_db, migrations.MIGRATIONS)
    tenants.create(registry, "physics", "root")
    platform = Platform(site, registry, "")
    platform.key = platform.new_key()
    platform.deploy()
    return platform


@asynccontextmanager
async def gateway(state_dir: Path, *engines: Engine, **settings: Any) -> AsyncIterator[Platform]:
    """A gateway in this process with these engines as the replicas of `tiny`."""
    platform = prepared(site_at(state_dir, **settings))
    async with AsyncExitStack() as stack:
        stack.callback(platform.registry.close)
        for n, engine in enumerate(engines, start=1):
            platform.ready(await stack.enter_async_context(running(engine)), f"replica-{n}")
        await stack.enter_async_context(started(platform))
        yield platform


@asynccontextmanager
async def started(platform: Platform) -> AsyncIterator[web.Application]:
    app = make_app(platform.site)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        assert runner.server is not None
        listening = bind("127.0.0.1", 0)
        platform.listener = Listener(backing_of(app, runner.server), listening)
        await platform.listener.start()
        platform.app = app
        platform.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield app
    finally:
        await platform.stop()
        await runner.cleanup()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@asynccontextmanager
async def gateway_process(platform: Platform, more: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m gateway` on the platform's state, once it listens; killed at the end if it runs. `more`: TOML."""
    file = platform.site.state_dir / "site.toml"
    file.write_text(
        f"""name = "test"
state_dir = "{platform.site.state_dir}"
shared_dir = "{platform.site.shared_dir}"
[gateway]
port = {platform.site.gateway.port or free_port()}
[scheduler]
kind = "local"
[prices.default]
prompt = 1
completion = 2
{more}"""
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE") and k != "PYTHONDONTWRITEBYTECODE"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", str(file)), cwd=ROOT, env=environ, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        platform.said = []
        async for line in process.stderr:
            platform.said.append(line.decode().rstrip())
            if b" listens on http" in line:
                platform.url = platform.said[-1].split()[-1]
                break
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()
