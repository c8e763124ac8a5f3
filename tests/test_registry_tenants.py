"""Tenants, their limits, and keys of which only the hash is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry import tenants
from registry.db import Conflict, Database, NotFound, RegistryError, open_writer, rows, transaction
from registry.migrations import MIGRATIONS
from registry.tenants import LiveKey, Scope


def test_a_tenant_is_read_back_as_it_was_made(registry: Database) -> None:
    made = tenants.create(registry, "physics", "root", account="phys", requests_per_minute=60, token_budget=0)
    assert tenants.get(registry, "physics") == made
    assert (made.account, made.requests_per_minute, made.token_budget) == ("phys", 60, 0)
    free = tenants.create(registry, "free", "root")
    assert (free.account, free.requests_per_minute, free.token_budget) == (None, None, None)
    assert [t.name for t in tenants.everyone(registry)] == ["free", "physics"]


def test_a_name_that_is_taken_is_a_conflict(registry: Database) -> None:
    tenants.create(registry, "physics", "root", token_budget=1)
    with pytest.raises(Conflict, match="tenant physics exists already"):
        tenants.create(registry, "physics", "other")
    assert tenants.get(registry, "physics").owner == "root"


@pytest.mark.parametrize("name", ["", "A", ".hidden", "-x", "a/b", "a b", "a\n", "é", "a" * 64, "../x"])
def test_a_name_that_is_not_safe_in_a_path_is_refused(registry: Database, name: str) -> None:
    with pytest.raises(RegistryError, match="is not allowed: lower-case letters, digits"):
        tenants.create(registry, name, "root")


@pytest.mark.parametrize("limit", ["requests_per_minute", "token_budget"])
@pytest.mark.parametrize("value", [-1, 2**63])
def test_a_limit_out_of_range_is_refused_at_creation_and_at_change(registry: Database, limit: str, value: int) -> None:
    with pytest.raises(RegistryError, match=f"tenant new: .* {value} is not within 0"):
        tenants.create(registry, "new", "root", **{limit: value})
    tenants.create(registry, "old", "root", requests_per_minute=5, token_budget=6)
    limits = {"requests_per_minute": 1, "token_budget": 1, limit: value}
    with pytest.raises(RegistryError, match=f"tenant old: .* {value} is not within 0"):
        tenants.set_limits(registry, "old", **limits)
    assert tenants.get(registry, "old").token_budget == 6


def test_limits_change_together_and_none_is_no_limit(registry: Database) -> None:
    tenants.create(registry, "physics", "root", requests_per_minute=5, token_budget=6)
    changed = tenants.set_limits(registry, "physics", requests_per_minute=None, token_budget=2**63 - 1)
    assert changed == tenants.get(registry, "physics")
    assert (changed.requests_per_minute, changed.token_budget) == (None, 2**63 - 1)


def test_an_unknown_tenant_is_answered_with_those_there_are(registry: Database) -> None:
    with pytest.raises(NotFound, match="no tenant is called 'x'; there are: none yet"):
        tenants.get(registry, "x")
    tenants.create(registry, "physics", "root")
    for ask in (
        lambda: tenants.get(registry, "x"),
        lambda: tenants.create_key(registry, "x", "root"),
        lambda: tenants.set_limits(registry, "x", requests_per_minute=1, token_budget=1),
    ):
        with pytest.raises(NotFound, match="there are: physics"):
            ask()


def test_a_key_is_shown_once_and_the_file_holds_its_hash_alone(registry: Database) -> None:
    tenants.create(registry, "physics", "root")
    key, secret = tenants.create_key(registry, "physics", "root")
    assert secret.startswith(key.hint) and len(secret) > 40
    stored = [tuple(r) for r in rows(registry, "SELECT * FROM keys")]
    assert secret not in str(stored) and tenants.digest(secret) in str(stored)
    assert tenants.keys(registry) == [key]
    live = LiveKey(key.id, tenants.get(registry, "physics"), frozenset({Scope.INFERENCE}))
    assert tenants.live_keys(registry) == {tenants.digest(secret): live}


def test_a_key_has_the_scopes_it_was_made_with_and_says_so_wherever_it_is_shown(registry: Database) -> None:
    tenants.create(registry, "physics", "root")
    plain, _ = tenants.create_key(registry, "physics", "root")
    both, secret = tenants.create_key(registry, "physics", "root", (Scope.ADMIN, Scope.INFERENCE, Scope.ADMIN))
    assert (plain.scopes, both.scopes) == ((Scope.INFERENCE,), (Scope.INFERENCE, Scope.ADMIN))
    assert tenants.keys(registry) == [plain, both] and tenants.get_key(registry, both.id) == both
    assert tenants.live_keys(registry)[tenants.digest(secret)].scopes == {Scope.INFERENCE, Scope.ADMIN}


@pytest.mark.parametrize("words", [["root"], ["admin", "Admin"], [1], [None], [["admin"]]])
def test_an_unknown_scope_is_answered_with_those_there_are(words: list[object]) -> None:
    with pytest.raises(RegistryError, match=r"scope .* is not known; allowed: inference, admin"):
        tenants.checked_scopes(words)


def test_a_key_without_a_scope_is_not_made(registry: Database) -> None:
    tenants.create(registry, "physics", "root")
    with pytest.raises(RegistryError, match="needs a scope"):
        tenants.create_key(registry, "physics", "root", ())
    assert tenants.keys(registry) == []


def test_a_key_of_before_scopes_calls_models_and_nothing_more(tmp_path: Path) -> None:
    before = [m for m in MIGRATIONS if m.__name__ != "m006_key_scopes"]
    db = open_writer(tmp_path / "registry.db", before)
    tenants.create(db, "physics", "root")
    db.execute("INSERT INTO keys VALUES ('key-1', 'physics', 'root', 'hash', 'sk-hg-1234', '2026', NULL)")
    db.conn.commit()
    db.close()
    db = open_writer(tmp_path / "registry.db", MIGRATIONS)
    try:
        assert tenants.live_keys(db)["hash"].scopes == {Scope.INFERENCE}
    finally:
        db.close()


def test_a_scope_of_a_newer_release_opens_nothing(registry: Database) -> None:
    tenants.create(registry, "physics", "root")
    key, secret = tenants.create_key(registry, "physics", "root")
    with transaction(registry) as c:
        c.execute("UPDATE keys SET scopes = 'inference everything' WHERE id = ?", (key.id,))
    assert tenants.live_keys(registry)[tenants.digest(secret)].scopes == {Scope.INFERENCE}


def test_no_two_keys_are_alike(registry: Database) -> None:
    tenants.create(registry, "physics", "root")
    made = [tenants.create_key(registry, "physics", "root") for _ in range(5)]
    assert len({secret for _, secret in made}) == len({key.id for key, _ in made}) == 5


def test_a_revoked_key_is_no_longer_live_and_keeps_the_time_of_its_first_revocation(registry: Database) -> None:
    tenants.create(registry, "physics", "root")
    (first, _), (second, secret) = (tenants.create_key(registry, "physics", "root") for _ in range(2))
    revoked = tenants.revoke_key(registry, first.id)
    assert revoked.revoked_at
    assert tenants.revoke_key(registry, first.id) == revoked
    assert list(tenants.live_keys(registry)) == [tenants.digest(secret)]
    with pytest.raises(NotFound, match="no key has the id 'key-x'"):
        tenants.revoke_key(registry, "key-x")
    assert tenants.get_key(registry, second.id).revoked_at is None
