"""Endpoints through the control API and the command line: a real controller, its socket, its registry."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from click.testing import CliRunner

from cli.main import main
from launchers.control import CONTROLLER, make_app
from launchers.control_http import PRINCIPAL
from launchers.local_scheduler import LocalScheduler
from registry import deployments, endpoints
from registry.access import Principal
from registry.db import Database
from registry.site import Environment, Environments, External, Scheduler, Site

ROOT = Principal("root", 0, admin=True)


@dataclass
class Api:
    site: Site
    registry: Database
    session: aiohttp.ClientSession
    principal: Principal = field(default_factory=lambda: ROOT)

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        async with self.session.request(method, f"http://control/v1/{path}", json=body) as response:
            return response.status, await response.json()

    def deploy(self, *names: str) -> None:
        for name in names:
            deployments.create(
                self.registry,
                name,
                "root",
                model=name,
                version=1,
                model_path="/m",
                min_replicas=0,
                max_replicas=1,
                request={},
                by="root",
                why="served",
            )

    async def cli(self, *words: str) -> Any:
        """`headgate` in a thread, as the loop serves what it calls."""
        site_file = self.site.state_dir / "site.toml"
        site_file.write_text(
            f'name = "test"\nstate_dir = "{self.site.state_dir}"\nshared_dir = "{self.site.shared_dir}"\n'
            '[scheduler]\nkind = "local"\n'
        )
        argv = ["--site", str(site_file), "endpoint", *words]
        return await asyncio.to_thread(CliRunner().invoke, main, argv)


@pytest.fixture
def root() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="headgate-"))  # short, for a Unix socket
    yield made
    shutil.rmtree(made)


@asynccontextmanager
async def serving(root: Path) -> AsyncIterator[Api]:
    site = Site(
        name="test",
        state_dir=root,
        shared_dir=root,
        scheduler=Scheduler(kind="local"),
        environments=Environments(engine=Environment(kind="venv", python="python3", command=("false",))),
        external={"claude": External(model="anthropic/claude")},
    )
    app = make_app(site, LocalScheduler(root / "jobs"))
    made: list[Api] = []

    @web.middleware
    async def as_somebody(request: web.Request, handler: Any) -> Any:
        request[PRINCIPAL] = made[0].principal
        return await handler(request)

    app.middlewares.append(as_somebody)  # after the one that asks the kernel
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(site.control_socket)).start()
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(site.control_socket))) as session:
            made.append(Api(site, app[CONTROLLER].db, session))
            yield made[0]
    finally:
        await runner.cleanup()


@pytest.fixture
async def api(root: Path) -> AsyncIterator[Api]:
    async with serving(root) as made:
        yield made


async def test_an_endpoint_is_set_listed_and_deleted(api: Api) -> None:
    api.deploy("v1", "v2", "v3")
    body = {
        "name": "chat",
        "targets": {"v1": 95, "v2": 5},
        "sticky": "key",
        "shadow": {"v3": 10},
        "fallbacks": ["v3", "claude"],
    }
    status, made = await api.call("POST", "endpoints", body)
    assert (status, made["owner"], made["targets"]) == (201, "root", [["v1", 95], ["v2", 5]])
    assert await api.call("GET", "endpoints") == (200, [made])
    assert await api.call("POST", "endpoints/chat/delete") == (200, made)
    assert await api.call("GET", "endpoints") == (200, [])


async def test_anybody_may_own_an_endpoint_and_only_its_owner_changes_it(api: Api) -> None:
    api.deploy("v1")
    body = {"name": "chat", "targets": {"v1": 1}}
    api.principal = Principal("ada", 1000, admin=False)
    assert (await api.call("POST", "endpoints", body))[1]["owner"] == "ada"
    api.principal = Principal("bob", 1001, admin=False)
    for path, asked in (("endpoints", body), ("endpoints/chat/delete", None)):
        status, told = await api.call("POST", path, asked)
        assert status == 403
        assert "its owner ada or an administrator may" in told["error"]["message"]
    assert len((await api.call("GET", "endpoints"))[1]) == 1  # and everybody may look
    api.principal = ROOT
    assert (await api.call("POST", "endpoints", body))[1]["owner"] == "ada"


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"name": "chat"}, 400, "'targets' is missing"),
        ({"name": "chat", "targets": {"v1": "5"}}, 400, "v1 must have a whole number"),
        ({"name": "chat", "targets": {"v1": True}}, 400, "v1 must have a whole number"),
        ({"name": "chat", "targets": {"v1": 1}, "fallbacks": [1]}, 400, "'fallbacks' must be a list of names"),
        ({"name": "chat", "targets": {"v9": 1}}, 404, "no deployment is called 'v9'; there are: v1"),
        ({"name": "v1", "targets": {"v1": 1}}, 409, "v1 is a deployment"),
        ({"name": "claude", "targets": {"v1": 1}}, 409, "claude is an external model"),
    ],
)
async def test_what_cannot_be_is_refused(api: Api, body: Any, status: int, told: str) -> None:
    api.deploy("v1")
    answered, answer = await api.call("POST", "endpoints", body)
    assert (answered, told in answer["error"]["message"]) == (status, True), answer
    assert endpoints.everything(api.registry) == []


async def test_the_command_line_says_it_all_in_one_line(api: Api) -> None:
    api.deploy("chat-v1", "chat-v2", "chat-v3")
    line = "set chat --to chat-v1=95 --to chat-v2=5 --sticky header:X-User --shadow chat-v3=10 --fallback chat-v3"
    done = await api.cli(*line.split(), "--fallback", "claude")
    assert (done.exit_code, done.output) == (0, "endpoint chat set\n")
    (made,) = endpoints.everything(api.registry)
    assert made.targets == (("chat-v1", 95), ("chat-v2", 5))
    assert (made.sticky, made.shadow) == ("header:x-user", (("chat-v3", 10),))
    assert made.fallbacks == ("chat-v3", "claude")
    listed = (await api.cli("list")).output
    assert "chat-v1=95,chat-v2=5" in listed and "chat-v3,claude" in listed
    assert (await api.cli("delete", "chat")).output == "endpoint chat deleted\n"
    assert (await api.cli("list")).output == "no endpoint yet\n"


async def test_a_lone_target_needs_no_weight(api: Api) -> None:
    api.deploy("v1")
    assert (await api.cli("set", "chat", "--to", "v1")).exit_code == 0
    assert endpoints.get(api.registry, "chat").targets == (("v1", 1),)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--to v1=x", "'v1=x' is not DEPLOYMENT=WEIGHT, a whole number"),
        ("--to v1 --shadow v1", "'v1' is not DEPLOYMENT=PERCENT, a whole number"),
        ("--to v1=1 --to v1=2", "--to names a deployment twice"),
        ("--fallback v1", "Missing option '--to'"),
    ],
)
async def test_a_slip_on_the_command_line_is_named_and_nothing_is_set(api: Api, words: str, told: str) -> None:
    done = await api.cli("set", "chat", *words.split())
    assert done.exit_code == 2
    assert told in done.output
    assert endpoints.everything(api.registry) == []


async def test_an_unknown_way_of_routing_is_refused(api: Api) -> None:
    status, answer = await api.call("POST", "deployments", {"model": "chat", "routing": "random"})
    assert status == 400
    assert "routing: 'random' is not" in answer["error"]["message"] and "'round-robin'" in answer["error"]["message"]
    assert deployments.everything(api.registry) == []
