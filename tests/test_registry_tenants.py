"""Tenants, what they stand for, and who belongs to them."""

from __future__ import annotations

import pytest

from registry import limits, tenants
from registry.db import Conflict, Database, NotFound, RegistryError
from registry.limits import UNLIMITED, Limits, Subject
from registry.steps import PLATFORM
from registry.tenants import Member, Source


def test_a_tenant_is_read_back_as_it_was_made(registry: Database) -> None:
    limited = Limits(requests_per_minute=60, token_budget=0)
    made = tenants.create(registry, "physics", "root", account="phys", limited=limited)
    assert tenants.get(registry, "physics") == made and made.account == "phys"
    assert limits.of(registry, Subject.TENANT, "physics") == limited
    assert tenants.create(registry, "free", "root").account is None
    assert limits.of(registry, Subject.TENANT, "free") == UNLIMITED
    assert [t.name for t in tenants.everyone(registry)] == ["free", "physics"]


def test_a_name_that_is_taken_is_a_conflict(registry: Database) -> None:
    tenants.create(registry, "physics", "root", limited=Limits(token_budget=1))
    with pytest.raises(Conflict, match="tenant physics exists already"):
        tenants.create(registry, "physics", "other")
    assert tenants.get(registry, "physics").owner == "root"


def test_a_tenant_whose_limits_are_refused_is_not_made(registry: Database) -> None:
    with pytest.raises(RegistryError, match="tenant physics: burst is of requests_per_minute"):
        tenants.create(registry, "physics", "root", limited=Limits(burst=1))
    assert tenants.everyone(registry) == []


def test_one_tenant_stands_for_an_account(registry: Database) -> None:
    tenants.create(registry, "physics", "root", account="phys")
    tenants.create(registry, "other", "root")
    for take in (
        lambda: tenants.create(registry, "new", "root", account="phys"),
        lambda: tenants.set_account(registry, "other", "phys"),
    ):
        with pytest.raises(Conflict, match="tenant physics stands for account phys already"):
            take()
    assert tenants.set_account(registry, "physics", None).account is None
    assert tenants.set_account(registry, "other", "phys") == tenants.get(registry, "other")
    for account in ("", " phys", "a\nb"):
        with pytest.raises(RegistryError, match="is not a Slurm account's name"):
            tenants.set_account(registry, "physics", account)


@pytest.mark.parametrize("name", ["", "A", ".hidden", "-x", "a/b", "a b", "a\n", "é", "a" * 64, "../x"])
def test_a_name_that_is_not_safe_in_a_path_is_refused(registry: Database, name: str) -> None:
    with pytest.raises(RegistryError, match="is not allowed: lower-case letters, digits"):
        tenants.create(registry, name, "root")


def test_no_tenant_takes_the_name_that_headgates_own_requests_are_booked_to(registry: Database) -> None:
    with pytest.raises(RegistryError, match="is not allowed"):
        tenants.create(registry, PLATFORM, "root")
    tenants.create(registry, "platform", "root")  # which a registry of before may have


def test_an_unknown_tenant_is_answered_with_those_there_are(registry: Database) -> None:
    with pytest.raises(NotFound, match="no tenant is called 'x'; there are: none yet"):
        tenants.get(registry, "x")
    tenants.create(registry, "physics", "root")
    for ask in (
        lambda: tenants.get(registry, "x"),
        lambda: tenants.add_member(registry, "x", "ada"),
        lambda: tenants.remove_member(registry, "x", "ada"),
        lambda: tenants.set_account(registry, "x", None),
    ):
        with pytest.raises(NotFound, match="there are: physics"):
            ask()


def test_users_belong_to_tenants_until_they_are_removed(registry: Database) -> None:
    for name in ("maths", "physics"):
        tenants.create(registry, name, "root")
        tenants.add_member(registry, name, "ada")
    tenants.add_member(registry, "physics", "bob", Source.SLURM)
    assert tenants.of_user(registry, "ada") == {"maths", "physics"}
    assert tenants.of_user(registry, "eve") == frozenset()
    tenants.remove_member(registry, "maths", "ada")
    assert [(m.tenant, m.user, m.source) for m in tenants.members(registry)] == [
        ("physics", "ada", Source.MANUAL),
        ("physics", "bob", Source.SLURM),
    ]
    with pytest.raises(NotFound, match="eve is no member of tenant physics; its members: ada, bob"):
        tenants.remove_member(registry, "physics", "eve")


def test_a_member_stays_what_it_was_when_it_is_added_again(registry: Database) -> None:
    tenants.create(registry, "physics", "root")
    tenants.add_member(registry, "physics", "ada")
    (before,) = tenants.members(registry)
    tenants.add_member(registry, "physics", "ada", Source.SLURM)
    assert tenants.members(registry) == [before] == [Member("physics", "ada", Source.MANUAL, before.added_at)]


@pytest.mark.parametrize("name", ["", "-x", "a b", "app:web", "a/b", "a\n", "a" * 65, "a\x07"])
def test_what_no_user_can_be_called_becomes_no_member(registry: Database, name: str) -> None:
    tenants.create(registry, "physics", "root")
    with pytest.raises(RegistryError, match=r"user name .* is not allowed"):
        tenants.add_member(registry, "physics", name)
    assert tenants.members(registry) == []


@pytest.mark.parametrize("name", ["ada", "A.Lovelace", "1001", "svc$", "ada@example.org", "EXAMPLE\\ada", "ada+x"])
def test_users_may_have_whatever_names_directories_give_them(name: str) -> None:
    assert tenants.checked_user(name) == name
