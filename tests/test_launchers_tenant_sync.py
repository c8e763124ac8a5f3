"""Slurm's associations become tenants and members: planned on data, and done against a real Slurm."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PrivateCluster
from control_fixtures import Api, serving
from slurm_fixtures import config
from waiting import eventually

from launchers import tenant_sync
from launchers.scheduler import SchedulerError, SchedulerUnavailable
from launchers.slurm_scheduler import SlurmScheduler
from launchers.tenant_sync import Changes, plan
from registry import keys, limits, tenants
from registry import site as settings
from registry.access import Principal
from registry.db import Conflict, Database
from registry.keys import Key
from registry.limits import Limits, Subject
from registry.site import Site
from registry.tenants import Member, Source, Tenant
from slurm.backend import connect
from slurm.errors import SlurmUnavailable
from slurm.model import Association, ClusterConfig

NOTHING = Changes((), (), (), (), (), prune=False)
SECRET = b"s" * keys.SECRET_BYTES


def association(account: str, user: str | None, partition: str | None = None) -> Association:
    return Association("test", account, user, partition, account if user else "root", True, ())


def tenant(name: str, account: str | None) -> Tenant:
    return Tenant(name, "root", account, "2026")


def member(of: str, user: str, source: Source = Source.SLURM) -> Member:
    return Member(of, user, source, "2026")


def key(key_id: str, of: str, user: str) -> Key:
    return Key(key_id, of, user, "root", "sk-hg-1234", "2026", None)


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_every_account_that_has_users_gets_a_tenant_and_every_user_of_it_is_a_member() -> None:
    seen = [
        association("root", None),
        association("root", "root"),  # every Slurm has this one: nobody's project
        association("physics", None),
        association("physics", "bob"),
        association("physics", "ada"),
        association("physics", "ada", "gpu"),
        association("parent", None),
        association("maths", "ada"),
    ]
    assert plan(seen, [], [], [], prune=False) == dataclasses.replace(
        NOTHING,
        create=(("maths", "maths"), ("physics", "physics")),
        add=(("maths", "ada"), ("physics", "ada"), ("physics", "bob")),
    )


def test_what_stands_already_is_left_as_it_is() -> None:
    seen = [association("physics", "ada"), association("physics", "bob")]
    known = [tenant("science", "physics"), tenant("free", None)]
    members = [member("science", "ada"), member("science", "bob", Source.MANUAL), member("free", "eve", Source.MANUAL)]
    assert plan(seen, known, members, [], prune=False) == NOTHING


def test_a_user_whose_name_is_none_is_skipped_with_the_reason_and_holds_up_nobody() -> None:
    seen = [association("physics", "ada"), association("physics", "-odd"), association("lonely", "a:b")]
    planned = plan(seen, [], [], [], prune=True)
    assert (planned.create, planned.add) == ((("physics", "physics"),), (("physics", "ada"),))
    (lonely, of_lonely), (physics, of_physics) = planned.skipped
    assert (lonely, physics) == ("lonely", "physics")
    assert of_physics.startswith("its user '-odd': user name '-odd' is not allowed") and "'a:b'" in of_lonely


def test_an_account_whose_name_no_tenant_can_have_is_skipped_with_the_reason() -> None:
    seen = [association(name, "ada") for name in ("Big Iron", "taken", "free", "fine")]
    known = [tenant("taken", "other"), tenant("free", None)]
    planned = plan(seen, known, [], [], prune=False)
    assert (planned.create, planned.add) == ((("fine", "fine"),), (("fine", "ada"),))
    why = dict(planned.skipped)
    assert list(why) == ["Big Iron", "free", "taken"]
    assert "tenant name 'Big Iron' is not allowed" in why["Big Iron"]
    assert "tenant taken exists and stands for account other" in why["taken"]
    assert "tenant free exists and stands for no account; `headgate tenant account` changes that" in why["free"]


@pytest.mark.parametrize("prune", [False, True])
def test_whom_slurm_no_longer_has_is_told_with_their_keys_there_and_removed_only_when_asked(prune: bool) -> None:
    seen = [association("physics", "ada")]
    known = [tenant("science", "physics"), tenant("maths", "maths")]
    members = [
        member("science", "ada"),
        member("science", "bob"),
        member("science", "eve", Source.MANUAL),  # an administrator's word stands
        member("maths", "bob"),  # the whole account is gone
    ]
    live = [
        key("key-1", "science", "bob"),
        key("key-2", "science", "ada"),
        key("key-3", "science", "eve"),
        key("key-4", "maths", "bob"),
        key("key-5", "elsewhere", "bob"),
        key("key-6", "science", "app:bob"),
    ]
    planned = plan(seen, known, members, live, prune=prune)
    assert planned.gone == (("maths", "bob"), ("science", "bob"))
    assert [k.id for k in planned.revoke] == ["key-1", "key-4"]
    assert planned.prune is prune and not (planned.create or planned.add or planned.skipped)


# -- doing it ---------------------------------------------------------------------------------------------------------


def test_a_plan_is_done_whole_or_not_at_all(registry: Database) -> None:
    tenants.create(registry, "physics", "root", account="physics")
    tenants.add_member(registry, "physics", "bob", Source.SLURM)
    kept, _ = keys.create(registry, SECRET, "physics", "bob")
    broken = dataclasses.replace(
        NOTHING, create=(("new", "new"), ("physics", "physics")), gone=(("physics", "bob"),), prune=True
    )
    with pytest.raises(Conflict, match="tenant physics exists already"):
        tenant_sync.apply(registry, broken, "root", Limits(requests_per_minute=7))
    assert [t.name for t in tenants.everyone(registry)] == ["physics"]
    tenant_sync.apply(
        registry,
        dataclasses.replace(broken, create=(("new", "acct"),), add=(("new", "ada"),)),
        "root",
        Limits(burst=None),
    )
    assert tenants.get(registry, "new").account == "acct"
    assert [(m.tenant, m.user, m.source) for m in tenants.members(registry)] == [("new", "ada", Source.SLURM)]
    assert keys.get(registry, kept.id).revoked_at


def test_without_prune_nothing_is_taken_away(registry: Database) -> None:
    tenants.create(registry, "physics", "root", account="physics")
    tenants.add_member(registry, "physics", "bob", Source.SLURM)
    kept, _ = keys.create(registry, SECRET, "physics", "bob")
    changes = tenant_sync.look(registry, [association("physics", "ada")], prune=False)
    assert (changes.gone, changes.revoke) == ((("physics", "bob"),), (kept,))
    tenant_sync.apply(registry, changes, "root", Limits())
    assert [m.user for m in tenants.members(registry)] == ["ada", "bob"]
    assert keys.get(registry, kept.id) == kept


@dataclasses.dataclass
class TellsTheseAssociations:
    """A Slurm that falls silent or hides things: what the private one cannot be made to do at will."""

    found: list[Association]
    private: frozenset[str] = frozenset()
    silent: bool = False

    def associations(self) -> list[Association]:
        if self.silent:
            raise SlurmUnavailable("slurmctld did not answer within 30 s")
        return self.found

    def config(self) -> ClusterConfig:
        return config(private_data=self.private)

    def privileged(self) -> bool:
        return False


def asked(client: Any, *, whole: bool) -> list[Association]:
    return tenant_sync.associations(client, whole=whole)


def test_a_slurm_that_does_not_answer_or_shows_nothing_is_an_error() -> None:
    with pytest.raises(SchedulerUnavailable, match="nothing was changed: slurmctld did not answer"):
        asked(TellsTheseAssociations([], silent=True), whole=False)
    for found in ([], [association("physics", None)]):
        with pytest.raises(SchedulerError, match="Slurm shows no association of any user"):
            asked(TellsTheseAssociations(found), whole=False)


def test_what_may_be_half_the_truth_adds_but_does_not_prune() -> None:
    half = TellsTheseAssociations([association("physics", "ada")], private=frozenset({"users"}))
    assert asked(half, whole=False) == half.found
    with pytest.raises(SchedulerError, match=r"PrivateData=users\), and so nothing is pruned"):
        asked(half, whole=True)
    assert asked(dataclasses.replace(half, private=frozenset()), whole=True) == half.found


# -- against a real Slurm ---------------------------------------------------------------------------------------------


@pytest.fixture
def site() -> Iterator[Site]:
    root = Path(tempfile.mkdtemp(prefix="headgate-"))  # short, as a socket's path must be
    for name in ("state", "shared"):
        (root / name).mkdir()
    yield Site(
        name="test",
        state_dir=root / "state",
        shared_dir=root / "shared",
        scheduler=settings.Scheduler(kind="slurm", command_timeout_s=20, min_poll_s=0.5),
        tenants=settings.Tenants(default=settings.TenantDefault(requests_per_minute=7)),
    )
    shutil.rmtree(root)


async def _until(api: Api, condition: Any, **asked: Any) -> Any:
    """The changes that a dry run tells, once they are so: slurmctld hears of sacctmgr's changes a moment later."""

    async def told() -> Any:
        said = await api.post("tenants/sync", {"dry_run": True, **asked}, 200)
        assert said["done"] is False
        return said["changes"] if condition(said["changes"]) else None

    return await eventually(told)


async def test_tenants_follow_a_real_slurm(
    slurm_cluster: PrivateCluster, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sacctmgr(*words: str) -> None:
        slurm_cluster.run("sacctmgr", "-i", "-Q", *words)

    scheduler = SlurmScheduler(connect(slurm_cluster.env, timeout_s=20, backend="commands"))
    sacctmgr("add", "account", "synced")
    try:
        async with serving(site, scheduler, monkeypatch) as api:
            for user in ("games", "news"):
                sacctmgr("add", "user", user, "account=synced")
            would = await _until(api, lambda c: {("synced", "games"), ("synced", "news")} <= set(map(tuple, c["add"])))
            assert ["synced", "synced"] in would["create"] and would["gone"] == []
            assert ["root", "root"] not in would["create"]
            assert await api.get("tenants") == []  # a dry run changes nothing

            done = await api.post("tenants/sync", {}, 200)
            assert done["done"] and done["changes"]["create"] == would["create"]
            shown = await api.get("tenants/synced")
            assert (shown["tenant"]["account"], shown["limits"]["requests_per_minute"]) == ("synced", 7)
            assert [(m["user"], m["source"]) for m in shown["members"]] == [("games", "slurm"), ("news", "slurm")]
            assert limits.of(api.controller.db, Subject.TENANT, "synced") == Limits(requests_per_minute=7)
            again = (await api.post("tenants/sync", {}, 200))["changes"]
            assert not (again["create"] or again["add"] or again["gone"])

            administrator, api.caller = api.caller, Principal("news", 9, admin=False)
            theirs = (await api.key("synced"))["key"]["id"]
            api.caller = administrator
            sacctmgr("delete", "user", "news", "account=synced")
            would = await _until(api, lambda c: c["gone"], prune=True)
            assert would["gone"] == [["synced", "news"]] and [k["id"] for k in would["revoke"]] == [theirs]
            await api.post("tenants/sync", {}, 200)
            assert len((await api.get("tenants/synced"))["members"]) == 2  # without --prune they stay
            await api.post("tenants/sync", {"prune": True}, 200)
            shown = await api.get("tenants/synced")
            assert [m["user"] for m in shown["members"]] == ["games"] and shown["keys"][0]["revoked_at"]
    finally:
        sacctmgr("delete", "user", "games,news", "account=synced")
        sacctmgr("delete", "account", "synced")
