"""Tenants (who is billed) and their keys. A key is shown once; the registry keeps its SHA-256."""

from __future__ import annotations

import enum
import hashlib
import re
import secrets
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from registry import clock
from registry.db import Conflict, Database, NotFound, RegistryError, row, rows, transaction

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
LARGEST = 2**63 - 1  # what an INTEGER of SQLite holds
_SHOWN = "id, tenant, owner, hint, created_at, revoked_at, scopes"  # a Key's columns: never the hash


class Scope(enum.StrEnum):
    """What a key is good for. None implies another."""

    INFERENCE = "inference"  # calling models
    ADMIN = "admin"  # reading what concerns every tenant, such as the gateway's metrics


@dataclass(frozen=True, slots=True)
class Tenant:
    """`requests_per_minute` and `token_budget` (prompt + completion tokens, in all) are None when unlimited."""

    name: str
    owner: str
    account: str | None
    requests_per_minute: int | None
    token_budget: int | None
    created_at: str


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    tenant: str
    owner: str
    hint: str  # the first characters, to recognise it by
    created_at: str
    revoked_at: str | None
    scopes: tuple[Scope, ...] = (Scope.INFERENCE,)  # in the order of Scope


@dataclass(frozen=True, slots=True)
class LiveKey:
    """A key that may be used, as the gateway knows it."""

    id: str
    tenant: Tenant
    scopes: frozenset[Scope]


def checked_name(kind: str, name: str) -> str:
    """A name that is safe in paths, URLs and job names; anything else raises RegistryError."""
    if not NAME.fullmatch(name):
        raise RegistryError(
            f"{kind} name {name!r} is not allowed: lower-case letters, digits, '.', '_' and '-', at most 63, "
            "starting with a letter or digit"
        )
    return name


def create(
    db: Database,
    name: str,
    owner: str,
    *,
    account: str | None = None,
    requests_per_minute: int | None = None,
    token_budget: int | None = None,
) -> Tenant:
    checked_name("tenant", name)
    _check_limits(name, requests_per_minute, token_budget)
    with transaction(db) as c:
        if row(db, "SELECT 1 FROM tenants WHERE name = ?", name):
            raise Conflict(f"tenant {name} exists already")
        created = clock.now()
        c.execute(
            "INSERT INTO tenants VALUES (?, ?, ?, ?, ?, ?)",
            (name, owner, account, requests_per_minute, token_budget, created),
        )
    return Tenant(name, owner, account, requests_per_minute, token_budget, created)


def _check_limits(name: str, requests_per_minute: int | None, token_budget: int | None) -> None:
    for what, value in (("requests per minute", requests_per_minute), ("token budget", token_budget)):
        if value is not None and not 0 <= value <= LARGEST:
            raise RegistryError(
                f"tenant {name}: {what} {value} is not within 0 ... {LARGEST}; leave it out for no limit"
            )


def set_limits(db: Database, name: str, *, requests_per_minute: int | None, token_budget: int | None) -> Tenant:
    _check_limits(name, requests_per_minute, token_budget)
    with transaction(db) as c:
        get(db, name)
        c.execute(
            "UPDATE tenants SET requests_per_minute = ?, token_budget = ? WHERE name = ?",
            (requests_per_minute, token_budget, name),
        )
    return get(db, name)


def get(db: Database, name: str) -> Tenant:
    found = row(db, "SELECT * FROM tenants WHERE name = ?", name)
    if found is None:
        known = ", ".join(t.name for t in everyone(db)) or "none yet"
        raise NotFound(f"no tenant is called {name!r}; there are: {known}")
    return Tenant(**dict(found))


def everyone(db: Database) -> list[Tenant]:
    return [Tenant(**dict(r)) for r in rows(db, "SELECT * FROM tenants ORDER BY name")]


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def checked_scopes(words: Iterable[object]) -> tuple[Scope, ...]:
    """Each once, in the order of Scope. Raises RegistryError for an unknown one, and for none."""
    asked = list(words)
    for word in asked:
        if word not in list(Scope):
            raise RegistryError(f"scope {word!r} is not known; allowed: {', '.join(Scope)}")
    if not asked:
        raise RegistryError(f"a key needs a scope; allowed: {', '.join(Scope)}")
    return tuple(scope for scope in Scope if scope in asked)


def create_key(db: Database, tenant: str, owner: str, scopes: Iterable[Scope] = (Scope.INFERENCE,)) -> tuple[Key, str]:
    """Returns the key's row and, this once, the key itself."""
    good_for = checked_scopes(scopes)
    secret = "sk-hg-" + secrets.token_urlsafe(32)
    with transaction(db) as c:
        get(db, tenant)
        key = Key("key-" + secrets.token_hex(4), tenant, owner, secret[:10], clock.now(), None, good_for)
        c.execute(
            "INSERT INTO keys (id, tenant, owner, sha256, hint, created_at, scopes) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key.id, tenant, owner, digest(secret), key.hint, key.created_at, " ".join(good_for)),
        )
    return key, secret


def get_key(db: Database, key_id: str) -> Key:
    found = row(db, f"SELECT {_SHOWN} FROM keys WHERE id = ?", key_id)
    if found is None:
        raise NotFound(f"no key has the id {key_id!r}")
    return _key(found)


def revoke_key(db: Database, key_id: str) -> Key:
    with transaction(db) as c:
        get_key(db, key_id)
        c.execute("UPDATE keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", (clock.now(), key_id))
    return get_key(db, key_id)


def keys(db: Database) -> list[Key]:
    return [_key(r) for r in rows(db, f"SELECT {_SHOWN} FROM keys ORDER BY created_at")]


def live_keys(db: Database) -> dict[str, LiveKey]:
    """By the sha256 of each key that may be used: what the gateway authenticates against."""
    tenants = {t.name: t for t in everyone(db)}
    return {
        r["sha256"]: LiveKey(r["id"], tenants[r["tenant"]], frozenset(_scopes(r["scopes"])))
        for r in rows(db, "SELECT id, tenant, sha256, scopes FROM keys WHERE revoked_at IS NULL")
    }


def _key(found: sqlite3.Row) -> Key:
    values = dict(found)
    return Key(**values | {"scopes": _scopes(values["scopes"])})


def _scopes(stored: str) -> tuple[Scope, ...]:
    """A scope that a newer Headgate gave and this one does not know opens nothing here."""
    return tuple(scope for scope in Scope if scope in stored.split())
