"""Who speaks to the control API over the network: by a key, and by MUNGE for a key. A real munged, a real TCP port."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from munge_fixtures import Munged, munged
from waiting import eventually

from launchers.control import make_app
from launchers.control_http import CONTROLLER, Unauthenticated
from launchers.control_login import NONCE_LIFETIME_S, Nonces
from launchers.controller import Controller
from launchers.local_scheduler import LocalScheduler
from registry import clock, keys, tenants
from registry import site as settings
from registry.keys import Scope
from registry.site import Site

UID = os.getuid()
ME = pwd.getpwuid(UID).pw_name


@pytest.fixture(scope="module")
def ours() -> Iterator[Munged]:
    with munged() as made:
        yield made


@pytest.fixture(scope="module")
def foreign() -> Iterator[Munged]:
    """Of another cluster: with another key."""
    with munged() as made:
        yield made


@dataclass
class Door:
    """The control API on a TCP port, as another host sees it."""

    controller: Controller
    session: aiohttp.ClientSession
    url: str

    async def call(self, method: str, path: str, key: str | None = None, body: Any = None) -> tuple[int, Any]:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with self.session.request(method, f"{self.url}/v1/{path}", json=body, headers=headers) as response:
            if response.status == 401:
                assert response.headers["WWW-Authenticate"] == "Bearer"
            return response.status, await response.json()

    async def nonce(self) -> str:
        status, said = await self.call("POST", "login/nonce")
        assert (status, said["uid"]) == (200, UID)
        return str(said["nonce"])

    async def log_in(self, credential: str, tenant: str | None = None) -> tuple[int, Any]:
        body = {"credential": credential} | ({} if tenant is None else {"tenant": tenant})
        return await self.call("POST", "login", body=body)

    async def refused(self, credential: str, status: int = 401) -> str:
        """What it says; and no key was made."""
        before = await self.keys()
        found, said = await self.log_in(credential)
        assert found == status, said
        assert await self.keys() == before
        return str(said["error"]["message"])

    async def keys(self) -> list[keys.Key]:
        return await self.controller.write(keys.everything, self.controller.db)

    async def member(self, *names: str) -> None:
        for name in names:
            await self.controller.write(tenants.create, self.controller.db, name, "admin")
            await self.controller.write(tenants.add_member, self.controller.db, name, ME)

    async def key(self, *scopes: Scope, user: str = "ada", expires_at: str | None = None) -> tuple[str, str]:
        """Its id and itself, in a tenant of its own."""

        def make() -> tuple[str, str]:
            db = self.controller.db
            name = f"t{len(tenants.everyone(db))}"
            tenants.create(db, name, "admin")
            made, shown = keys.create(
                db, self.controller.key_secret, name, "admin", scopes, user=user, expires_at=expires_at
            )
            return made.id, shown

        return await self.controller.write(make)


@pytest.fixture
def root() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="headgate-"))  # short, as a Unix socket's path must be
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def door(root: Path, ours: Munged) -> AsyncIterator[Door]:
    for name in ("state", "shared"):
        (root / name).mkdir()
    site = Site(
        name="test",
        state_dir=root / "state",
        shared_dir=root / "shared",
        scheduler=settings.Scheduler(kind="local", slurm_conf=ours.slurm_conf),
    )
    app = make_app(site, LocalScheduler(root / "shared" / "jobs"))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Door(app[CONTROLLER], session, f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


def bound(at: Munged, nonce: str, *options: str) -> str:
    return at.make(nonce, f"--restrict-uid={UID}", *options)


async def test_munge_gets_a_member_a_key_for_models_and_the_control_api(door: Door, ours: Munged) -> None:
    await door.member("acme")
    status, said = await door.log_in(bound(ours, await door.nonce()))
    assert status == 201, said
    key = said["key"]
    assert (key["tenant"], key["user"], key["owner"]) == ("acme", ME, ME)
    assert key["scopes"] == ["inference", "control"]
    lifetime = clock.parse(key["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < lifetime < timedelta(days=30)
    status, said = await door.call("GET", "status", said["secret"])
    assert (status, said["site"]) == (200, "test")


async def test_a_credential_is_good_once(door: Door, ours: Munged) -> None:
    await door.member("acme")
    credential = bound(ours, await door.nonce())
    assert (await door.log_in(credential))[0] == 201
    assert "Replayed credential" in await door.refused(credential)


async def test_a_nonce_is_good_once(door: Door, ours: Munged) -> None:
    await door.member("acme")
    nonce = await door.nonce()
    assert (await door.log_in(bound(ours, nonce)))[0] == 201
    assert "used before" in await door.refused(bound(ours, nonce))


async def test_a_credential_of_another_cluster_is_refused(door: Door, foreign: Munged) -> None:
    await door.member("acme")
    assert "munge refuses the credential: Invalid" in await door.refused(bound(foreign, await door.nonce()))


async def test_a_credential_for_anything_else_than_this_login_is_refused(door: Door, ours: Munged) -> None:
    await door.member("acme")
    nonce = await door.nonce()
    for payload in ("", "hello", "headgate-login:", nonce[:-1], f"{nonce}0", nonce.replace(":", ":9", 1), f"x{nonce}"):
        assert "does not hold a nonce" in await door.refused(bound(ours, payload))
    assert "does not hold a nonce" in await door.refused(bound(ours, Nonces().give()))  # another controller's


async def test_a_credential_that_others_may_decode_is_refused(door: Door, ours: Munged) -> None:
    await door.member("acme")
    assert f"not restricted to the controller's uid, {UID}" in await door.refused(ours.make(await door.nonce()))
    for_another = ours.make(await door.nonce(), f"--restrict-uid={UID + 1}")
    assert "Unauthorized credential" in await door.refused(for_another)


async def test_what_is_no_credential_is_refused(door: Door) -> None:
    assert "munge refuses the credential" in await door.refused("rubbish")
    assert "longer than 4096 characters" in await door.refused("x" * 5000, 400)


async def test_a_member_of_no_tenant_gets_no_key_and_of_several_must_choose(door: Door, ours: Munged) -> None:
    async def credential() -> str:
        return bound(ours, await door.nonce())

    assert f"{ME} is a member of no tenant" in await door.refused(await credential(), 403)
    await door.member("acme", "beta")
    assert "several tenants; choose one (--tenant): acme, beta" in await door.refused(await credential(), 400)
    await door.controller.write(tenants.create, door.controller.db, "other", "admin")
    for tenant in ("other", "none-such"):
        status, said = await door.log_in(await credential(), tenant)
        assert (status, said["error"]["message"]) == (
            403, f"{ME} is no member of tenant {tenant!r}; a member of: acme, beta",
        )  # fmt: skip
    status, said = await door.log_in(await credential(), "beta")
    assert (status, said["key"]["tenant"]) == (201, "beta")


async def test_a_munged_that_is_down_is_no_refusal(door: Door, ours: Munged) -> None:
    credential = bound(ours, await door.nonce())
    real = ours.slurm_conf.read_text()
    ours.slurm_conf.write_text(f"AuthInfo=socket={ours.root}/nobody\n")
    try:
        assert "nobody" in await door.refused(credential, 503)
    finally:
        ours.slurm_conf.write_text(real)


async def test_without_a_good_key_only_the_login_answers(door: Door) -> None:
    for path in ("status", "runs", "keys", "no-such-path", "login/../status"):
        status, said = await door.call("GET", path)
        assert status == 401, said
    status, said = await door.call("GET", "status", "sk-hg-guessed")
    assert (status, said["error"]["message"]) == (
        401, "the key is unknown or was revoked; `headgate login` gets another",
    )  # fmt: skip
    async with door.session.get(f"{door.url}/v1/status", headers={"Authorization": "Basic eDp5"}) as response:
        assert response.status == 401


async def test_a_revoked_and_an_expired_key_open_nothing(door: Door) -> None:
    key_id, shown = await door.key(Scope.CONTROL)
    assert (await door.call("GET", "status", shown))[0] == 200
    await door.controller.write(keys.revoke, door.controller.db, key_id)
    assert (await door.call("GET", "status", shown))[0] == 401
    soon = clock.text(datetime.now(UTC) + timedelta(seconds=2))
    key_id, shown = await door.key(Scope.CONTROL, expires_at=soon)

    async def over() -> str | None:
        status, said = await door.call("GET", "status", shown)
        return str(said["error"]["message"]) if status == 401 else None

    assert f"{key_id} expired at" in await eventually(over)


async def test_a_key_opens_what_its_scope_is_for(door: Door) -> None:
    _, inference = await door.key(Scope.INFERENCE)
    status, said = await door.call("GET", "status", inference)
    assert status == 403
    assert "scope inference; the control API needs control or admin" in said["error"]["message"]
    tenant = {"name": "made"}
    _, control = await door.key(Scope.CONTROL, user=ME)  # whoever the user is on the service host
    status, said = await door.call("POST", "tenants", control, tenant)
    assert status == 403, said
    _, admin = await door.key(Scope.ADMIN)
    assert (await door.call("POST", "tenants", admin, tenant))[0] == 201


def test_a_nonce_is_good_for_a_minute_and_the_used_are_forgotten_after_it() -> None:
    now = time.monotonic()
    nonces = Nonces(lambda: now)
    first, second = nonces.give(), nonces.give()
    now += NONCE_LIFETIME_S - 1
    nonces.take(first)
    now += 2
    with pytest.raises(Unauthenticated, match="older than 60 s"):
        nonces.take(second)
    assert nonces._used == {}
    with pytest.raises(Unauthenticated, match="older than 60 s"):
        nonces.take(first)
