"""Who may read /metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import make_mocked_request
from gateway_fixtures import prepared, site_at
from multidict import CIMultiDict

from gateway import auth
from gateway.app_keys import GATEWAY, SITE
from gateway.catalog import Catalog
from gateway.errors import GatewayError, Refused, WrongKey
from gateway.metrics import Metrics
from gateway.surfaces.metrics import metrics, within
from registry.keys import Scope

LOCAL = ("127.0.0.0/8", "::1/128")


@dataclass
class Door:
    app: web.Application
    catalog: Catalog
    inference: str
    admin: str

    async def ask(self, remote: str, key: str | None = None, **headers: str) -> web.Response:
        """Raises what the handler raises."""
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        return await metrics(make_mocked_request("GET", "/metrics", headers, app=self.app).clone(remote=remote))


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    platform = prepared(site_at(tmp_path, metrics_from=("127.0.0.0/8", "10.2.0.0/16")))
    admin = platform.new_key(scopes=(Scope.ADMIN,))
    catalog = Catalog(platform.site.registry_db, platform.site.key_secret)
    app = web.Application()
    app[SITE] = platform.site
    parts: Any = SimpleNamespace(catalog=catalog, metrics=Metrics())
    app[GATEWAY] = parts
    try:
        yield Door(app, catalog, platform.key, admin)
    finally:
        catalog.close()
        platform.registry.close()


@pytest.mark.parametrize("remote", ["127.0.0.1", "127.9.9.9", "10.2.255.1", "::ffff:10.2.0.1"])
async def test_peers_of_the_named_networks_need_no_key(door: Door, remote: str) -> None:
    answer = await door.ask(remote)
    assert answer.status == 200 and isinstance(answer.body, bytes) and b"process_cpu_seconds_total" in answer.body


@pytest.mark.parametrize("remote", ["10.3.0.1", "192.0.2.1", "2001:db8::1", "::1"])
async def test_others_are_403_unless_their_key_has_the_scope(door: Door, remote: str) -> None:
    with pytest.raises(Refused, match=f"scope admin, or for a peer within .* {remote} is not") as refused:
        await door.ask(remote)
    assert refused.value.status == 403
    with pytest.raises(Refused, match="needs a key of scope admin; this one's: inference") as refused:
        await door.ask(remote, door.inference)
    assert refused.value.status == 403
    with pytest.raises(WrongKey):
        await door.ask(remote, "sk-hg-nobody's")
    assert (await door.ask(remote, door.admin)).status == 200
    assert (await door.ask(remote, **{"x-api-key": door.admin})).status == 200


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
async def test_a_proxy_does_not_lend_its_address(door: Door, name: str) -> None:
    with pytest.raises(Refused, match="or for no proxy"):
        await door.ask("127.0.0.1", **{name: "127.0.0.1"})
    assert (await door.ask("127.0.0.1", door.admin, **{name: "127.0.0.1"})).status == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic x"}])
async def test_a_page_is_read_over_http_with_the_type_that_prometheus_expects(
    door: Door, headers: dict[str, str]
) -> None:
    door.app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(door.app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
        async with ClientSession() as session, session.get(url, headers=headers) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert "# TYPE headgate_requests_total counter" in await answer.text()
    finally:
        await runner.cleanup()


def test_a_key_for_metrics_alone_calls_no_model(door: Door) -> None:
    caller = auth.authenticate(door.catalog, CIMultiDict(Authorization=f"Bearer {door.inference}"))
    assert (caller.tenant.name, caller.scopes) == ("physics", {Scope.INFERENCE})
    with pytest.raises(GatewayError, match="needs a key of scope inference; this one's: admin") as refused:
        auth.authenticate(door.catalog, CIMultiDict(Authorization=f"Bearer {door.admin}"))
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("peer", "networks", "is_within"),
    [
        ("127.0.0.1", LOCAL, True),
        ("::1", LOCAL, True),
        ("::ffff:127.0.0.1", LOCAL, True),
        ("::2", LOCAL, False),
        ("128.0.0.1", LOCAL, False),
        ("10.1.2.3", ("10.1.2.3",), True),
        ("fe80::1%eth0", ("fe80::/10",), True),
        ("127.0.0.1", (), False),
        (None, LOCAL, False),
        ("", LOCAL, False),
        ("/run/gateway.sock", LOCAL, False),
    ],
)
def test_an_address_is_within_a_network_or_not(peer: str | None, networks: tuple[str, ...], is_within: bool) -> None:
    assert within(peer, networks) is is_within
