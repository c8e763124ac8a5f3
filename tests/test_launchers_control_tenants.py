"""Tenants, members, keys, limits and prices through the control API's real socket, as administrators and others."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from control_fixtures import ADMINISTRATOR, Api, serving

from gateway.catalog import Catalog
from launchers.local_scheduler import LocalScheduler
from registry import clock, keys
from registry import site as settings
from registry.access import Principal
from registry.limits import Subject
from registry.site import Site

ADA, BOB = Principal("ada", 1001, admin=False), Principal("bob", 1002, admin=False)


@pytest.fixture
def site() -> Iterator[Site]:
    root = Path(tempfile.mkdtemp(prefix="headgate-"))  # short, as a socket's path must be
    (root / "shared").mkdir()
    (root / "state").mkdir()
    yield Site(
        name="test",
        state_dir=root / "state",
        shared_dir=root / "shared",
        scheduler=settings.Scheduler(kind="local"),
        prices={"default": settings.Price(prompt=1.0, completion=3.0)},
        gpu_prices={"h100": settings.GpuPrice(hour=2.0)},
        external={"claude": settings.External(model="anthropic/claude")},
    )
    shutil.rmtree(root)


@pytest.fixture
async def api(site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with serving(site, LocalScheduler(site.shared_dir / "local-jobs"), monkeypatch) as made:
        yield made


@pytest.fixture
async def peopled(api: Api) -> Api:
    """ada belongs to physics, bob to chemistry; each tenant has a key of an application's too."""
    for tenant, user in (("physics", "ada"), ("chemistry", "bob")):
        await api.post("tenants", {"name": tenant})
        await api.post(f"tenants/{tenant}/members", {"user": user}, 200)
        await api.key(tenant, app="web")
    return api


# -- tenants ----------------------------------------------------------------------------------------------------------


async def test_a_new_tenant_has_the_sites_limits_but_for_those_that_are_said(api: Api) -> None:
    default = dataclasses.asdict(api.site.tenants.default)
    made = await api.post("tenants", {"name": "physics", "account": "phys", "limits": {"token_budget": 10}})
    assert (made["name"], made["account"], made["owner"]) == ("physics", "phys", "root")
    assert made["limits"] == default | {"token_budget": 10}
    free = await api.post("tenants", {"name": "free", "limits": {"requests_per_minute": None}})
    assert free["limits"] == default | {"requests_per_minute": None}
    listed = await api.get("tenants")
    assert [(t["name"], t["members"], t["limits"]) for t in listed] == [
        ("free", 0, free["limits"]),
        ("physics", 0, made["limits"]),
    ]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("tenants", {"name": "A B"}, 400, "tenant name 'A B' is not allowed"),
        ("tenants", {"name": "(platform)"}, 400, "tenant name '(platform)' is not allowed"),
        ("tenants", {"name": "physics"}, 409, "tenant physics exists already"),
        ("tenants", {"name": "x", "account": "phys"}, 409, "tenant physics stands for account phys already"),
        ("tenants", {"name": "x", "limits": {"token_budget": -1}}, 400, "token_budget must be a whole number from 0"),
        ("tenants", {"name": "x", "limits": {"tokens": 1}}, 400, "no limit is called 'tokens'; there are: requests_"),
        ("tenants", {"name": "x", "limits": {"requests_per_minute": None, "burst": 2}}, 400, "burst is of requests_"),
        ("tenants", {"name": "x", "token_budget": 1}, 400, "'token_budget' is unknown; allowed: name, account, limits"),
        ("tenants/absent/members", {"user": "ada"}, 404, "no tenant is called 'absent'; there are: physics"),
        ("tenants/physics/members", {"user": "a b"}, 400, "user name 'a b' is not allowed"),
        ("tenants/physics/members/remove", {"user": "zoe"}, 404, "zoe is no member of tenant physics"),
        ("tenants/absent/account", {"account": "x"}, 404, "no tenant is called 'absent'"),
        ("tenants/sync", {}, 400, "this site has no Slurm"),
        ("keys", {"tenant": "absent"}, 404, "no tenant is called 'absent'; there are: physics"),
        ("keys", {"tenant": "physics", "scopes": ["root"]}, 400, "scope 'root' is not known; allowed: inference, con"),
        ("keys", {"tenant": "physics", "scopes": []}, 400, "a key needs a scope"),
        ("keys", {"tenant": "physics", "scopes": "admin"}, 400, "'scopes' must be list"),
        ("keys", {"tenant": "physics", "models": [1]}, 400, "'models' must be a list of names"),
        ("keys", {"tenant": "physics", "models": [""]}, 400, "model name '' is not allowed"),
        ("keys", {"tenant": "physics", "models": []}, 400, "may call no model"),
        ("keys", {"tenant": "physics", "user": "a:b"}, 400, "user name 'a:b' is not allowed"),
        ("keys", {"tenant": "physics", "app": "A B"}, 400, "application name 'A B' is not allowed"),
        ("keys", {"tenant": "physics", "app": "x", "user": "ada"}, 400, "not both"),
        ("keys", {"tenant": "physics", "expires_at": "2020-01-01T00:00:00Z"}, 400, "which is past"),
        ("keys", {"tenant": "physics", "expires_at": "tomorrow"}, 400, "'expires_at' must be an instant"),
        ("keys", {"tenant": "physics", "expires_at": "2099-01-01"}, 400, "must be an instant with its zone"),
        ("keys", {"tenant": "physics", "expires_at": "0300-01-01T00:00:00Z"}, 400, "which is past"),
        ("keys", {"tenant": "physics", "expires_at": "9999-12-31T23:59:59-05:00"}, 400, "'expires_at' must be an inst"),
        ("keys", {"tenant": "physics", "expires_at": "0001-01-01T00:00:00+05:00"}, 400, "'expires_at' must be an inst"),
        ("keys/absent/revoke", {}, 404, "no key has the id 'absent'"),
        ("keys/absent/rotate", {}, 404, "no key has the id 'absent'"),
        ("keys/absent/rotate", {"grace_s": -1}, 400, "'grace_s' must be 0 ... "),
        ("quotas", {"of": "tenant", "name": "absent", "limits": {"token_budget": 1}}, 404, "'absent'; there are: phy"),
        ("quotas", {"of": "key", "name": "key-x", "limits": {"token_budget": 1}}, 404, "no key has the id 'key-x'"),
        ("quotas", {"of": "user", "name": "physics/app:A", "limits": {}}, 400, "application name 'A' is not"),
        ("quotas", {"of": "user", "name": "app:a", "limits": {}}, 400, "an application is one of a tenant's: TENANT/a"),
        ("quotas", {"of": "user", "name": "nil/app:a", "limits": {}}, 404, "no tenant is called 'nil'; there are: phy"),
        ("quotas", {"of": "user", "name": "physics/ada", "limits": {}}, 400, "user name 'physics/ada' is not allowed"),
        ("quotas", {"of": "model", "name": "a b", "limits": {"token_budget": 1}}, 400, "model name 'a b' is not"),
        ("quotas", {"of": "group", "name": "x", "limits": {}}, 400, "a key, a user, a tenant, a model, not of 'group'"),
        ("quotas", {"of": "user", "name": "ada", "limits": {"tokens_per_day": "1"}}, 400, "tokens_per_day must be a "),
        ("quotas", {"of": "user", "name": "ada", "limits": {"tokens_per_day": 1.5}}, 400, "must be a whole number"),
        ("prices", {"kind": "model", "name": "m", "prompt": 1}, 400, "needed: completion, prompt"),
        ("prices", {"kind": "gpu", "name": "h100", "hour": 1, "prompt": 1}, 400, "the price of a gpu is hour"),
        ("prices", {"kind": "cpu", "name": "m"}, 400, "'kind' must be one of model, gpu"),
        ("prices", {"kind": "gpu", "name": "a b", "hour": 1}, 400, "gpu name 'a b' is not allowed"),
        ("prices", {"kind": "gpu", "name": "x", "hour": -1}, 400, "hour must be a number from 0 to 1e9"),
        ("prices", {"kind": "gpu", "name": "x", "hour": True}, 400, "'hour' must be float, not True"),
        ("prices", {"kind": "gpu", "name": "x", "hour": 1, "valid_from": "2020-01-01T00:00:00Z"}, 400, "which is past"),
    ],
)
async def test_what_is_asked_wrongly_is_refused_by_its_field_and_changes_nothing(
    api: Api, path: str, body: Any, status: int, words: str
) -> None:
    await api.post("tenants", {"name": "physics", "account": "phys"})
    before = [await api.get(p) for p in ("tenants", "tenants/physics", "keys", "quotas", "prices")]
    assert words in await api.post(path, body, status)
    assert [await api.get(p) for p in ("tenants", "tenants/physics", "keys", "quotas", "prices")] == before


async def test_a_tenant_may_come_to_stand_for_another_account_or_none(api: Api) -> None:
    await api.post("tenants", {"name": "physics"})
    assert (await api.post("tenants/physics/account", {"account": "phys"}, 200))["account"] == "phys"
    assert (await api.post("tenants/physics/account", {"account": "phys"}, 200))["account"] == "phys"
    assert (await api.post("tenants/physics/account", {}, 200))["account"] is None


async def test_whoever_leaves_a_tenant_leaves_the_keys_they_had_there_and_no_others(peopled: Api) -> None:
    await peopled.post("tenants/chemistry/members", {"user": "ada"}, 200)
    (theirs, elsewhere) = [(await peopled.key(t, user="ada"))["key"] for t in ("physics", "chemistry")]
    colleague = (await peopled.key("physics", user="carl"))["key"]
    revoked = await peopled.post("tenants/physics/members/remove", {"user": "ada"}, 200)
    assert [k["id"] for k in revoked] == [theirs["id"]]
    dead = {k["id"] for k in await peopled.get("keys") if k["revoked_at"]}
    assert dead == {theirs["id"]} and colleague["id"] not in dead and elsewhere["id"] not in dead
    assert (await peopled.get("tenants/physics"))["members"] == []


# -- keys -------------------------------------------------------------------------------------------------------------


async def test_a_key_is_shown_once_with_whose_it_is_what_it_may_and_until_when(api: Api) -> None:
    await api.post("tenants", {"name": "physics"})
    expires = datetime.now(UTC) + timedelta(days=90)
    made = await api.key(
        "physics", user="ada", scopes=["control", "inference"], models=["claude", "later"], expires_at=str(expires)
    )
    key = made["key"]
    assert made["secret"].startswith(key["hint"])
    assert (key["user"], key["owner"], key["scopes"]) == ("ada", "root", ["inference", "control"])
    assert (key["models"], key["expires_at"]) == (["claude", "later"], clock.text(expires))
    assert made["warnings"] == [
        "nothing is called 'later' yet; there are: claude",
        "ada is no member of tenant physics: they can neither rotate this key nor make others",
    ]
    assert made["secret"] not in str(await api.get("keys")) and await api.get("keys") == [key]
    application = (await api.key("physics", app="web"))["key"]
    assert application["user"] == "app:web"
    assert (await api.key("physics"))["key"]["user"] == "root"


async def test_a_rotated_key_works_on_until_its_grace_is_over(api: Api) -> None:
    await api.post("tenants", {"name": "physics"})
    old = await api.key("physics", app="web", models=["claude"])
    before = datetime.now(UTC)
    rotated = await api.post(f"keys/{old['key']['id']}/rotate", {"grace_s": 3600})
    assert rotated["secret"] != old["secret"]
    assert (rotated["key"]["user"], rotated["key"]["models"]) == ("app:web", ["claude"])
    assert (rotated["key"]["expires_at"], rotated["old"]["replaced_by"]) == (None, rotated["key"]["id"])
    ends = clock.parse(rotated["old"]["expires_at"])
    assert before <= ends - timedelta(hours=1) <= datetime.now(UTC)
    assert "was rotated to" in await api.post(f"keys/{old['key']['id']}/rotate", {}, 409)
    by_default = await api.post(f"keys/{rotated['key']['id']}/rotate", {})
    ends = clock.parse(by_default["old"]["expires_at"])
    assert before <= ends - timedelta(seconds=api.site.keys.rotation_grace_s) <= datetime.now(UTC)


async def test_a_running_gateway_hears_of_limits_prices_and_revocations(api: Api) -> None:
    await api.post("tenants", {"name": "physics"})
    made = await api.key("physics")
    catalog = Catalog(api.site.registry_db, api.site.key_secret)
    try:
        catalog.refresh()
        hashed = keys.digest(api.controller.key_secret, made["secret"])
        assert catalog.view.keys[hashed].id == made["key"]["id"]
        await api.post("quotas", {"of": "tenant", "name": "physics", "limits": {"tokens_per_day": 7}}, 200)
        await api.post("prices", {"kind": "model", "name": "m", "prompt": 1, "completion": 2})
        await api.post(f"keys/{made['key']['id']}/revoke", {}, 200)
        catalog.refresh()
        assert hashed not in catalog.view.keys
        assert catalog.view.limits[(Subject.TENANT, "physics")].tokens_per_day == 7
        assert [p.name for p in catalog.view.prices] == ["m"]
    finally:
        catalog.close()


async def test_a_member_sees_to_their_own_keys(peopled: Api) -> None:
    peopled.caller = ADA
    made = await peopled.key("physics", scopes=["inference", "control"])
    assert (made["key"]["user"], made["key"]["owner"]) == ("ada", "ada")
    rotated = await peopled.post(f"keys/{made['key']['id']}/rotate", {"grace_s": 0})
    assert [k["id"] for k in await peopled.get("keys")] == [made["key"]["id"], rotated["key"]["id"]]
    assert len(await peopled.get("keys?tenant=physics")) == len(await peopled.get("keys?mine=1")) == 2
    revoked = await peopled.post(f"keys/{rotated['key']['id']}/revoke", {}, 200)
    assert revoked["revoked_at"]
    peopled.caller = ADMINISTRATOR
    assert len(await peopled.get("keys")) == 4 and await peopled.get("keys?mine=1") == []
    assert [k["user"] for k in await peopled.get("keys?tenant=physics")] == ["app:web", "ada", "ada"]


async def test_a_member_makes_no_key_for_others_for_applications_elsewhere_or_of_scope_admin(peopled: Api) -> None:
    peopled.caller = ADA
    for asked in (
        {"tenant": "physics", "user": "bob"},
        {"tenant": "physics", "app": "web"},
        {"tenant": "physics", "user": "root"},
        {"tenant": "chemistry"},
        {"tenant": "absent"},  # whether it exists is nobody's business
        {"tenant": "physics", "scopes": ["admin"]},
        {"tenant": "physics", "scopes": ["inference", "admin"]},
    ):
        assert "ada may not" in await peopled.post("keys", asked, 403)
    assert await peopled.get("keys") == []


async def test_nobody_but_its_user_and_administrators_sees_revokes_or_rotates_a_key(peopled: Api) -> None:
    peopled.caller = ADA
    hers = (await peopled.key("physics"))["key"]["id"]
    peopled.caller = ADMINISTRATOR
    powerful = (await peopled.key("physics", user="ada", scopes=["admin"]))["key"]["id"]
    (application,) = [k["id"] for k in await peopled.get("keys?tenant=physics") if k["user"] == "app:web"]
    peopled.caller = BOB
    assert await peopled.get("keys") == []
    for verb in ("revoke", "rotate"):
        assert "bob may not" in await peopled.post(f"keys/{hers}/{verb}", {}, 403)
    assert "a member of tenant physics" in await peopled.get("keys?tenant=physics", 403)
    peopled.caller = ADA
    for verb in ("revoke", "rotate"):
        assert "ada may not" in await peopled.post(f"keys/{application}/{verb}", {}, 403)
    assert "an administrator may" in await peopled.post(f"keys/{powerful}/rotate", {}, 403)
    peopled.caller = ADMINISTRATOR
    assert not any(k["revoked_at"] or k["replaced_by"] for k in await peopled.get("keys"))


async def test_whoever_left_a_tenant_gives_up_a_key_but_gets_no_new_one(peopled: Api) -> None:
    with_it = (await peopled.key("chemistry", user="ada"))["key"]["id"]  # an administrator may give one to a guest
    peopled.caller = ADA
    assert "a member of tenant chemistry" in await peopled.post(f"keys/{with_it}/rotate", {}, 403)
    assert (await peopled.post(f"keys/{with_it}/revoke", {}, 200))["revoked_at"]


# -- what one sees ----------------------------------------------------------------------------------------------------


async def test_a_member_sees_its_own_tenants_and_no_other(peopled: Api) -> None:
    await peopled.key("physics", user="carl")
    peopled.caller = ADA
    mine = (await peopled.key("physics"))["key"]
    assert [t["name"] for t in await peopled.get("tenants")] == ["physics"]
    shown = await peopled.get("tenants/physics")
    assert ([m["user"] for m in shown["members"]], shown["keys"]) == (["ada"], [mine])
    for other in ("chemistry", "absent"):
        assert f"a member of tenant {other} or an administrator may" in await peopled.get(f"tenants/{other}", 403)
    peopled.caller = Principal("zoe", 1003, admin=False)
    assert await peopled.get("tenants") == await peopled.get("quotas") == await peopled.get("keys") == []


async def test_limits_are_set_taken_away_and_seen_by_whom_they_concern(peopled: Api) -> None:
    theirs = {}
    for user, tenant in (("ada", "physics"), ("bob", "chemistry")):
        theirs[user] = (await peopled.key(tenant, user=user))["key"]["id"]
        for of, name in (("tenant", tenant), ("user", user), ("key", theirs[user]), ("user", f"{tenant}/app:web")):
            await peopled.post("quotas", {"of": of, "name": name, "limits": {"credits_per_day": 2.5}}, 200)
    said = await peopled.post("quotas", {"of": "model", "name": "m", "limits": {"concurrent_requests": 4}}, 200)
    assert said["warnings"] == ["nothing is called 'm' yet; there are: claude"]
    assert {q["of"] for q in await peopled.get("quotas")} == {"tenant", "user", "key", "model"}
    assert [q["name"] for q in await peopled.get("quotas?of=tenant")] == ["chemistry", "physics"]
    peopled.caller = ADA
    seen = {(q["of"], q["name"]): q["limits"] for q in await peopled.get("quotas")}
    assert seen.keys() == {
        ("tenant", "physics"), ("user", "ada"), ("user", "physics/app:web"), ("key", theirs["ada"]), ("model", "m"),
    }  # fmt: skip
    assert seen["user", "ada"]["credits_per_day"] == 2.5
    for change in (("tenant", "physics"), ("user", "ada"), ("key", theirs["ada"])):
        asked = {"of": change[0], "name": change[1], "limits": {"credits_per_day": None}}
        assert "ada may not administer this quota; an administrator may" in await peopled.post("quotas", asked, 403)
    peopled.caller = ADMINISTRATOR
    taken = await peopled.post("quotas", {"of": "user", "name": "ada", "limits": {"credits_per_day": None}}, 200)
    assert set(taken["limits"].values()) == {None}
    assert ("user", "ada") not in {(q["of"], q["name"]) for q in await peopled.get("quotas")}


async def test_a_limit_of_a_rotated_key_is_one_of_the_key_it_began_with(peopled: Api) -> None:
    first = (await peopled.key("physics", user="ada"))["key"]["id"]
    second = (await peopled.post(f"keys/{first}/rotate"))["key"]["id"]
    third = (await peopled.post(f"keys/{second}/rotate", {}))["key"]["id"]
    said = await peopled.post("quotas", {"of": "key", "name": third, "limits": {"token_budget": 5}}, 200)
    assert said["name"] == first
    assert said["warnings"] == [f"{third} goes on with what {first} had, which was rotated: both count as {first}"]
    assert [q["name"] for q in await peopled.get("quotas?of=key")] == [first]


@pytest.mark.parametrize(
    ("name", "warnings"),
    [
        ("ada", []),
        ("physics/app:web", []),
        ("eve", ["eve has no key, and is a member of no tenant"]),
        ("physics/app:wbe", ["physics/app:wbe has no key, and is a member of no tenant"]),
    ],
)
async def test_a_limit_of_somebody_who_is_nobody_is_warned_of(peopled: Api, name: str, warnings: list[str]) -> None:
    said = await peopled.post("quotas", {"of": "user", "name": name, "limits": {"token_budget": 5}}, 200)
    assert said["warnings"] == warnings


async def test_a_user_administers_nothing(peopled: Api) -> None:
    peopled.caller = ADA
    for path, body in (
        ("tenants", {"name": "mine"}),
        ("tenants/sync", {}),
        ("tenants/physics/members", {"user": "eve"}),
        ("tenants/physics/members/remove", {"user": "ada"}),
        ("tenants/physics/account", {"account": "x"}),
        ("prices", {"kind": "gpu", "name": "h100", "hour": 0}),
    ):
        assert "an administrator may" in await peopled.post(path, body, 403), path


# -- prices -----------------------------------------------------------------------------------------------------------


async def test_prices_are_listed_with_when_they_hold_and_the_site_files_among_them(api: Api) -> None:
    later = datetime.now(UTC) + timedelta(days=30)
    first = await api.post("prices", {"kind": "model", "name": "default", "prompt": 2, "completion": 6, "cached": 0.2})
    second = await api.post(
        "prices", {"kind": "model", "name": "default", "prompt": 3, "completion": 9, "valid_from": str(later)}
    )
    await api.post("prices", {"kind": "gpu", "name": "a100", "hour": 1.5})
    api.caller = ADA  # everyone may know what things cost
    listed = await api.get("prices")
    models = [(p["valid_from"], p["valid_until"], p["prompt"], p["cached"], p["by"]) for p in listed if p["prompt"]]
    assert models == [
        (None, first["valid_from"], 1.0, None, None),
        (first["valid_from"], second["valid_from"], 2.0, 0.2, "root"),
        (second["valid_from"], None, 3.0, None, "root"),
    ]
    assert second["valid_from"] == clock.text(later)
    assert [(p["name"], p["hour"]) for p in listed if p["kind"] == "gpu"] == [("a100", 1.5), ("h100", 2.0)]
    then = (later + timedelta(days=1)).isoformat().replace("+", "%2B")
    assert [p["prompt"] for p in await api.get(f"prices?at={then}") if p["kind"] == "model"] == [3.0]
    assert "'at' must be an instant" in await api.get("prices?at=soon", 400)
