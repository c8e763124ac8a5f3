"""Who may call what: keys that end, lists of models, scopes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from engine import Engine
from gateway_fixtures import Platform, gateway, prepared, site_at
from test_gateway_routes import ASKED
from waiting import eventually

from gateway import auth
from gateway.catalog import Catalog
from gateway.errors import Refused, RegistryUnreadable, WrongKey
from gateway.surfaces.table import SURFACES
from registry import clock, deployments, endpoints, keys
from registry.deployments import DeploymentState
from registry.keys import Key, Scope
from registry.site import External


class Door:
    """A catalog with a clock of its own."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.now = datetime.now(UTC)
        self.catalog = Catalog(platform.site.registry_db, platform.site.key_secret, lambda: self.now.timestamp())

    def ask(self, key: str, needs: Scope = Scope.INFERENCE) -> str:
        """The key's id. Raises what `authenticate` does."""
        return auth.authenticate(self.catalog, {"authorization": f"Bearer {key}"}, needs).id


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    platform = prepared(site_at(tmp_path))
    door = Door(platform)
    yield door
    door.catalog.close()
    platform.registry.close()


def test_a_newer_controllers_columns_leave_a_gateway_that_runs_with_what_it_knows(door: Door) -> None:
    for table in ("replicas", "deployments", "endpoints", "prices", "keys", "tenants", "limits"):
        door.platform.registry.conn.execute(f"ALTER TABLE {table} ADD COLUMN zone TEXT")
    platform = door.platform
    deployments.set_state(platform.registry, "tiny", DeploymentState.STARTING)
    assert door.catalog.refresh() and door.catalog.failure is None
    assert door.catalog.view.deployments["tiny"].state is DeploymentState.STARTING
    platform.registry.conn.execute("ALTER TABLE deployments RENAME COLUMN paused TO halted")
    assert not door.catalog.refresh() and door.catalog.failure
    assert door.ask(platform.key) and "tiny" in door.catalog.view.deployments


def newest(platform: Platform) -> Key:
    return keys.everything(platform.registry)[-1]


def test_a_key_ends_when_it_expires(door: Door) -> None:
    ends = door.now + timedelta(hours=1)
    key = door.platform.new_key(expires_at=clock.text(ends))
    assert door.ask(key) == newest(door.platform).id
    door.now = ends - timedelta(milliseconds=1)
    door.ask(key)
    door.now = ends
    with pytest.raises(WrongKey, match="has expired"):
        door.ask(key)
    door.ask(door.platform.key)


def test_a_rotated_key_works_until_its_grace_is_over_and_the_new_one_after_it(door: Door) -> None:
    old = newest(door.platform)
    until = door.now + timedelta(hours=24)
    secret = keys.read_secret(door.platform.site.key_secret)
    new, shown = keys.rotate(door.platform.registry, secret, old.id, "root", clock.text(until))
    assert (door.ask(door.platform.key), door.ask(shown)) == (old.id, new.id)
    door.now = until
    with pytest.raises(WrongKey, match=f"{old.id} has expired"):
        door.ask(door.platform.key)
    assert door.ask(shown) == new.id


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("DROP TABLE key_secret", "no such table"),  # as it is before a new controller starts
        ("DELETE FROM key_secret", "no controller of this release has started yet"),
        ("UPDATE key_secret SET digest = ''", "is not the secret that the keys' hashes were made with"),
    ],
)
def test_a_gateway_that_cannot_read_the_registry_calls_no_key_wrong(door: Door, broken: str, words: str) -> None:
    door.platform.registry.conn.execute(broken)
    with pytest.raises(RegistryUnreadable, match=words) as refused:
        door.ask(door.platform.key)
    assert (refused.value.status, refused.value.should_retry) == (503, True)


def test_keys_are_known_again_once_the_registry_can_be_read(door: Door) -> None:
    secret = door.platform.site.key_secret
    secret.rename(secret.with_name("elsewhere"))
    with pytest.raises(RegistryUnreadable, match=r"key\.secret: the secret .* is gone"):
        door.ask(door.platform.key)
    secret.with_name("elsewhere").rename(secret)
    door.ask(door.platform.key)
    with pytest.raises(WrongKey, match="not known"):
        door.ask("sk-hg-nobodys")


@pytest.mark.parametrize("has", Scope)
@pytest.mark.parametrize("needs", Scope)
def test_a_key_is_good_for_its_own_scope_and_no_other(door: Door, has: Scope, needs: Scope) -> None:
    key = door.platform.new_key(scopes=(has,))
    if has is needs:
        door.ask(key, needs)
        return
    with pytest.raises(Refused, match=f"needs a key of scope {needs}; this one's: {has}") as refused:
        door.ask(key, needs)
    assert refused.value.status == 403


async def call(
    platform: Platform, key: str, model: str = "tiny", path: str = "/v1/chat/completions"
) -> tuple[int, Any]:
    async with platform.http(key) as session:
        body = {"model": model, **ASKED[path]}
        async with session.post(path, json=body) as answer:
            return answer.status, await answer.json()


@pytest.mark.parametrize("how", ["revoked", "rotated"])
async def test_a_key_that_is_over_is_refused_by_a_running_gateway(tmp_path: Path, how: str) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        assert (await call(platform, platform.key))[0] == 200
        if how == "revoked":
            keys.revoke(platform.registry, newest(platform).id)
        else:
            secret = keys.read_secret(platform.site.key_secret)
            keys.rotate(platform.registry, secret, newest(platform).id, "root", clock.now())

        async def refused() -> dict[str, Any] | None:
            status, said = await call(platform, platform.key)
            return said if status == 401 else None

        said = await eventually(refused, timeout=10)
        assert said["error"]["code"] == "invalid_api_key"


async def test_a_control_key_calls_no_model(tmp_path: Path) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform:
        key = platform.new_key(scopes=(Scope.CONTROL,))
        status, said = await call(platform, key)
        assert (status, said["error"]["type"]) == (403, "invalid_request_error")
        async with platform.http(key) as session, session.get("/v1/models") as answer:
            assert answer.status == 403
        assert engine.requests == []


@pytest.mark.parametrize("path", SURFACES)
async def test_a_key_calls_the_models_on_its_list_only(tmp_path: Path, path: str) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform:
        allowed, other = platform.new_key(models=["tiny", "large"]), platform.new_key(models=["large"])
        assert (await call(platform, allowed, path=path))[0] == 200
        for model in ("tiny", "nowhere"):  # whether there is such a model is not told
            status, said = await call(platform, other, model, path)
            assert (status, len(engine.requests)) == (403, 1)
            assert f"may not call '{model}'; its models: large" in said["error"]["message"]
            if "code" in said["error"]:
                assert said["error"] | {"message": ""} == {
                    "message": "",
                    "type": "invalid_request_error",
                    "param": "model",
                    "code": "model_not_allowed",
                }
            else:
                assert (said["type"], said["error"]["type"]) == ("error", "permission_error")  # Anthropic's
        await platform.settled(1)


async def test_a_list_names_endpoints_without_their_targets_and_adapters_without_their_deployments(
    tmp_path: Path,
) -> None:
    external = {"claude": External(model="anthropic/claude-haiku-4-5")}
    async with gateway(tmp_path, Engine()) as platform:
        deployments.create(
            platform.registry,
            "base",
            "root",
            model="base",
            version=1,
            model_path="/m",
            min_replicas=1,
            max_replicas=1,
            request={"engine_args": ["--lora-modules", "poet=/poet"]},
            by="root",
            why="served",
        )
        endpoints.put(platform.registry, "chat", "root", targets=[("tiny", 1)], external=external)
        key = platform.new_key(models=["chat", "poet", "gone"])
        assert (await call(platform, key, "chat"))[0] == 200
        assert (await call(platform, key, "tiny"))[0] == 403
        assert (await call(platform, key, "base"))[0] == 403
        async with platform.http(key) as session:
            async with session.get("/v1/models") as answer:
                listed = [model["id"] for model in (await answer.json())["data"]]
            async with session.get("/v1/models/tiny") as answer:
                missing = (answer.status, (await answer.json())["error"]["message"])
            async with session.get("/v1/models/chat") as answer:
                assert answer.status == 200
        assert sorted(listed) == ["chat", "poet"]
        assert missing == (404, "no model is called 'tiny'; there are: chat, poet")


async def test_an_unknown_model_is_told_with_the_names_that_the_key_may_call(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        platform.deploy("large")
        status, said = await call(platform, platform.new_key(models=["tiny", "gone"]), "gone")
        assert (status, said["error"]["code"]) == (404, "model_not_found")
        assert said["error"]["message"] == "no model is called 'gone'; there are: tiny"
        _, said = await call(platform, platform.key, "gone")
        assert said["error"]["message"] == "no model is called 'gone'; there are: large, tiny"
