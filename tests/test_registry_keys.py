"""Keys: shown once, kept as a keyed hash, good for what they were made for, until they are over."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry import clock, keys, prices, tenants
from registry.db import Conflict, Database, NotFound, RegistryError, StorageError, open_writer, rows, transaction
from registry.keys import LiveKey, Scope
from registry.migrations import MIGRATIONS

SECRET = b"s" * keys.SECRET_BYTES


@pytest.fixture
def physics(registry: Database) -> Database:
    tenants.create(registry, "physics", "root")
    return registry


def ahead(**span: float) -> str:
    return clock.text(datetime.now(UTC) + timedelta(**span))


def live(db: Database) -> set[str]:
    return {k.id for k in keys.live(db).values()}


def test_a_key_is_shown_once_and_the_file_holds_its_hash_alone(physics: Database) -> None:
    key, secret = keys.create(physics, SECRET, "physics", "root")
    assert secret.startswith(key.hint) and len(secret) > 40
    stored = [tuple(r) for r in rows(physics, "SELECT * FROM keys")]
    assert secret not in str(stored) and keys.digest(SECRET, secret) in str(stored)
    assert keys.everything(physics) == [key] == [keys.get(physics, key.id)]
    expected = LiveKey(key.id, tenants.get(physics, "physics"), frozenset({Scope.INFERENCE}), "root")
    assert keys.live(physics) == {keys.digest(SECRET, secret): expected}


def test_a_hash_says_nothing_without_the_secret_that_keys_it(physics: Database) -> None:
    _, shown = keys.create(physics, SECRET, "physics", "root")
    assert keys.digest(b"x" * keys.SECRET_BYTES, shown) not in keys.live(physics)
    assert hashlib.sha256(shown.encode()).hexdigest() not in keys.live(physics)


def test_a_key_says_whose_it_is_what_it_may_call_and_when_it_ends(physics: Database) -> None:
    expires = ahead(days=1)
    key, shown = keys.create(
        physics, SECRET, "physics", "root", user="app:web", models=["b", "a", "b"], expires_at=expires
    )
    assert (key.user, key.owner, key.models, key.expires_at) == ("app:web", "root", ("b", "a"), expires)
    assert keys.get(physics, key.id) == key
    known = keys.live(physics)[keys.digest(SECRET, shown)]
    assert (known.user, known.models) == ("app:web", {"a", "b"})
    assert known.expires_at == clock.parse(expires).timestamp()


def test_a_key_has_the_scopes_it_was_made_with_and_says_so_wherever_it_is_shown(physics: Database) -> None:
    plain, _ = keys.create(physics, SECRET, "physics", "root")
    both, shown = keys.create(physics, SECRET, "physics", "root", (Scope.ADMIN, Scope.INFERENCE, Scope.ADMIN))
    assert (plain.scopes, both.scopes) == ((Scope.INFERENCE,), (Scope.INFERENCE, Scope.ADMIN))
    assert keys.everything(physics) == [plain, both] and keys.get(physics, both.id) == both
    assert keys.live(physics)[keys.digest(SECRET, shown)].scopes == {Scope.INFERENCE, Scope.ADMIN}


@pytest.mark.parametrize("words", [["root"], ["admin", "Admin"], [1], [None], [["admin"]]])
def test_an_unknown_scope_is_answered_with_those_there_are(words: list[object]) -> None:
    with pytest.raises(RegistryError, match=r"scope .* is not known; allowed: inference, control, admin"):
        keys.checked_scopes(words)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda db: keys.create(db, SECRET, "physics", "root", ()), "needs a scope"),
        (lambda db: keys.create(db, SECRET, "physics", "root", models=[]), "may call no model"),
        (lambda db: keys.create(db, SECRET, "physics", "root", models=["a", ""]), "model name '' is not allowed"),
        (lambda db: keys.create(db, SECRET, "physics", "root", models=["a" * 257]), "is not allowed: 1 to 256"),
        (lambda db: keys.create(db, SECRET, "physics", "root", expires_at=clock.now()), "which is past"),
        (lambda db: keys.create(db, SECRET, "physics", "root", user="a b"), "user name 'a b' is not allowed"),
        (lambda db: keys.create(db, SECRET, "physics", "root", user="app:"), "application name '' is not allowed"),
        (lambda db: keys.create(db, SECRET, "nowhere", "root"), "no tenant is called 'nowhere'"),
    ],
)
def test_a_key_that_cannot_be_is_not_made(physics: Database, make: Callable[[Database], object], words: str) -> None:
    with pytest.raises(RegistryError, match=words):
        make(physics)
    assert keys.everything(physics) == []


def test_a_key_of_before_scopes_calls_models_and_nothing_more(tmp_path: Path) -> None:
    """And its hash, which was plain, is keyed; it goes on opening what it opened."""
    shown = "sk-hg-old"
    before = MIGRATIONS[: [m.__name__ for m in MIGRATIONS].index("m006_key_scopes")]
    db = open_writer(tmp_path / "registry.db", before)
    sha256 = hashlib.sha256(shown.encode()).hexdigest()
    with transaction(db) as c:
        c.execute("INSERT INTO tenants (name, owner, created_at) VALUES ('physics', 'root', '2026')")
        c.execute("INSERT INTO keys VALUES ('key-1', 'physics', 'ada', ?, 'sk-hg-1234', '2026', NULL)", (sha256,))
    db.close()
    db = open_writer(tmp_path / "registry.db", MIGRATIONS)
    try:
        assert keys.live(db) == {}  # until it is keyed
        for _ in range(2):
            secret = keys.secret_for(db, tmp_path / "key.secret")
        (found,) = keys.live(db).items()
        assert found[0] == keys.digest(secret, shown) and sha256 not in str(
            [tuple(r) for r in rows(db, "SELECT * FROM keys")]
        )
        assert (found[1].scopes, found[1].user, found[1].models) == ({Scope.INFERENCE}, "ada", None)
    finally:
        db.close()


def test_a_scope_of_a_newer_release_opens_nothing(physics: Database) -> None:
    key, shown = keys.create(physics, SECRET, "physics", "root")
    with transaction(physics) as c:
        c.execute("UPDATE keys SET scopes = 'inference everything' WHERE id = ?", (key.id,))
    assert keys.live(physics)[keys.digest(SECRET, shown)].scopes == {Scope.INFERENCE}


def test_no_two_keys_are_alike(physics: Database) -> None:
    made = [keys.create(physics, SECRET, "physics", "root") for _ in range(5)]
    assert len({shown for _, shown in made}) == len({key.id for key, _ in made}) == 5


def test_a_revoked_key_is_no_longer_live_and_keeps_the_time_of_its_first_revocation(physics: Database) -> None:
    (first, _), (second, _) = (keys.create(physics, SECRET, "physics", "root") for _ in range(2))
    revoked = keys.revoke(physics, first.id)
    assert revoked.revoked_at
    assert keys.revoke(physics, first.id) == revoked
    assert live(physics) == {second.id}
    with pytest.raises(NotFound, match="no key has the id 'key-x'"):
        keys.revoke(physics, "key-x")


def test_what_a_user_had_of_a_tenant_is_revoked_together(physics: Database) -> None:
    tenants.create(physics, "maths", "root")
    theirs = [keys.create(physics, SECRET, "physics", "root", user="ada")[0] for _ in range(2)]
    others = [
        keys.create(physics, SECRET, tenant, "root", user=user)[0]
        for tenant, user in (("physics", "bob"), ("maths", "ada"), ("physics", "app:ada"))
    ]
    keys.revoke(physics, theirs[0].id)
    assert [k.id for k in keys.revoke_of(physics, "physics", "ada")] == [theirs[1].id]
    assert live(physics) == {k.id for k in others}
    assert keys.revoke_of(physics, "physics", "ada") == []


# -- rotation ---------------------------------------------------------------------------------------------------------


def test_a_rotated_key_is_replaced_by_one_like_it_and_works_for_its_grace(physics: Database) -> None:
    expires, until = ahead(days=30), ahead(hours=1)
    old, _ = keys.create(
        physics, SECRET, "physics", "root", (Scope.CONTROL,), user="ada", models=["m"], expires_at=expires
    )
    new, shown = keys.rotate(physics, SECRET, old.id, "ada", until)
    assert (new.tenant, new.user, new.scopes, new.models, new.expires_at) == (
        "physics", "ada", (Scope.CONTROL,), ("m",), expires,
    )  # fmt: skip
    after = keys.get(physics, old.id)
    assert (after.replaced_by, after.expires_at, after.revoked_at) == (new.id, until, None)
    assert keys.live(physics)[keys.digest(SECRET, shown)].id == new.id and live(physics) == {old.id, new.id}


def test_however_often_it_is_rotated_a_key_counts_as_the_one_it_was(physics: Database) -> None:
    first, _ = keys.create(physics, SECRET, "physics", "root")
    second, _ = keys.rotate(physics, SECRET, first.id, "root", ahead(hours=1))
    third, shown = keys.rotate(physics, SECRET, second.id, "root", ahead(hours=1))
    assert keys.get(physics, third.id) == third
    assert {k.counts_as for k in (first, second, third, keys.live(physics)[keys.digest(SECRET, shown)])} == {first.id}


def test_rotation_never_prolongs_the_old_key_and_the_new_one_only_when_asked(physics: Database) -> None:
    expires, later = ahead(hours=1), ahead(days=9)
    old, _ = keys.create(physics, SECRET, "physics", "root", expires_at=expires)
    new, _ = keys.rotate(physics, SECRET, old.id, "root", ahead(days=1), expires_at=later)
    assert (keys.get(physics, old.id).expires_at, new.expires_at) == (expires, later)


def test_a_key_that_is_over_is_not_rotated(physics: Database) -> None:
    revoked, rotated, expired = (keys.create(physics, SECRET, "physics", "root")[0] for _ in range(3))
    keys.revoke(physics, revoked.id)
    keys.rotate(physics, SECRET, rotated.id, "root", ahead(hours=1))
    with transaction(physics) as c:
        c.execute("UPDATE keys SET expires_at = '2020-01-01T00:00:00.000000Z' WHERE id = ?", (expired.id,))
    before = keys.everything(physics)
    for key, words in ((revoked, "was revoked at"), (rotated, "was rotated to key-"), (expired, "expired at 2020")):
        with pytest.raises(Conflict, match=f"{key.id} {words}"):
            keys.rotate(physics, SECRET, key.id, "root", ahead(hours=1))
    assert keys.everything(physics) == before


def test_a_rotation_that_fails_half_way_leaves_one_key(physics: Database) -> None:
    old, _ = keys.create(physics, SECRET, "physics", "root")
    physics.conn.execute(
        "CREATE TRIGGER t BEFORE UPDATE ON keys WHEN new.replaced_by IS NOT NULL BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    with pytest.raises(Conflict, match="refuses this: no"):
        keys.rotate(physics, SECRET, old.id, "root", ahead(hours=1))
    assert keys.everything(physics) == [old]


def test_a_key_that_cannot_be_read_opens_nothing_and_keeps_no_other_from_being_known(physics: Database) -> None:
    odd, shown = keys.create(physics, SECRET, "physics", "root", expires_at=ahead(days=1))
    good, _ = keys.create(physics, SECRET, "physics", "root")
    physics.conn.execute("UPDATE keys SET expires_at = '300-01-01T00:00:00.000000Z' WHERE id = ?", (odd.id,))
    assert live(physics) == {good.id}
    with pytest.raises(ValueError, match="300-01-01"):
        keys.find(physics, keys.digest(SECRET, shown))


def test_an_early_year_is_past(physics: Database) -> None:
    early = clock.text(datetime(300, 1, 1, tzinfo=UTC))
    assert clock.parse(early) == datetime(300, 1, 1, tzinfo=UTC)
    with pytest.raises(RegistryError, match=r"cannot expire at 0300-01-01T00:00:00.000000Z, which is past"):
        keys.create(physics, SECRET, "physics", "root", expires_at=early)
    with pytest.raises(RegistryError, match=r"valid from 0300-01-01T00:00:00.000000Z, which is past"):
        prices.put(physics, prices.Kind.MODEL, "m", "root", valid_from=early, prompt=1)


def test_a_key_is_found_by_its_hash_until_it_is_revoked(physics: Database) -> None:
    key, shown = keys.create(physics, SECRET, "physics", "root", user="ada")
    hashed = keys.digest(SECRET, shown)
    assert keys.find(physics, hashed) == keys.live(physics)[hashed]
    assert keys.find(physics, "0" * 64) is None
    keys.revoke(physics, key.id)
    assert keys.find(physics, hashed) is None


@pytest.mark.parametrize(("ended", "known"), [(timedelta(hours=23), True), (timedelta(hours=25), False)])
def test_a_key_that_expired_more_than_a_day_ago_is_not_kept_in_mind(
    physics: Database, ended: timedelta, known: bool
) -> None:
    key, _ = keys.create(physics, SECRET, "physics", "root")
    physics.conn.execute("UPDATE keys SET expires_at = ? WHERE id = ?", (clock.text(datetime.now(UTC) - ended), key.id))
    assert live(physics) == ({key.id} if known else set())


# -- the site's secret ------------------------------------------------------------------------------------------------


def test_the_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "key.secret"
    made = keys.secret_of(path)
    assert len(made) == keys.SECRET_BYTES and path.stat().st_mode & 0o777 == 0o600
    assert keys.secret_of(path) == made
    assert [p.name for p in path.parent.iterdir()] == ["key.secret"]


def test_a_secret_that_others_may_read_or_that_is_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.secret"
    keys.secret_of(path)
    os.chmod(path, 0o640)
    with pytest.raises(StorageError, match=r"key.secret: must hold 32 bytes and be readable by its owner alone"):
        keys.secret_of(path)
    os.chmod(path, 0o600)
    path.write_bytes(b"short")
    with pytest.raises(StorageError, match="must hold 32 bytes"):
        keys.secret_of(path)


def test_a_secret_that_was_lost_is_not_replaced_by_another(registry: Database, tmp_path: Path) -> None:
    path = tmp_path / "key.secret"
    made = keys.secret_for(registry, path)
    assert keys.secret_for(registry, path) == made
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"key.secret: the secret .* is gone; without it no key is known: put it ba"):
        keys.secret_for(registry, path)
    keys.secret_of(path)
    with pytest.raises(StorageError, match=r"key.secret: is not the secret that the keys' hashes were made with; wit"):
        keys.secret_for(registry, path)
    (tmp_path / "elsewhere").replace(path)
    assert keys.secret_for(registry, path) == made
