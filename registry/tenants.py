"""Tenants: who is billed. Each may stand for a Slurm account; users belong to tenants."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Collection
from dataclasses import dataclass

from registry import clock, limits
from registry.db import Conflict, Database, NotFound, RegistryError, row, rows, transaction
from registry.limits import UNLIMITED, Limits, Subject

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
USER = re.compile(r"[A-Za-z0-9_][^\s:/]{0,63}")  # a colon begins an application's name
_COLUMNS = "name, owner, account, created_at"


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str
    owner: str  # who made it
    account: str | None  # Slurm's
    created_at: str


class Source(enum.StrEnum):
    """Who says that a user belongs to a tenant."""

    SLURM = "slurm"  # an association of the tenant's account
    MANUAL = "manual"  # an administrator


@dataclass(frozen=True, slots=True)
class Member:
    tenant: str
    user: str
    source: Source
    added_at: str


def checked_name(kind: str, name: str) -> str:
    """A name that is safe in paths, URLs and job names; anything else raises RegistryError."""
    if not NAME.fullmatch(name):
        raise RegistryError(
            f"{kind} name {name!r} is not allowed: lower-case letters, digits, '.', '_' and '-', at most 63, "
            "starting with a letter or digit"
        )
    return name


def checked_user(name: str) -> str:
    """What may be a user's name on this host; anything else raises RegistryError."""
    if not (USER.fullmatch(name) and name.isprintable()):
        raise RegistryError(
            f"user name {name!r} is not allowed: at most 64 characters, without spaces, ':' and '/', "
            "starting with a letter, a digit or '_'"
        )
    return name


def create(db: Database, name: str, owner: str, *, account: str | None = None, limited: Limits = UNLIMITED) -> Tenant:
    """Raises Conflict for a name that is taken, and for an account that another tenant stands for."""
    checked_name("tenant", name)
    with transaction(db) as c:
        if row(db, "SELECT 1 FROM tenants WHERE name = ?", name):
            raise Conflict(f"tenant {name} exists already")
        _free(db, account)
        created = clock.now()
        c.execute(
            "INSERT INTO tenants (name, owner, account, created_at) VALUES (?, ?, ?, ?)",
            (name, owner, account, created),
        )
        if limited != UNLIMITED:
            limits.put(db, Subject.TENANT, name, dataclasses.asdict(limited), owner)
    return Tenant(name, owner, account, created)


def set_account(db: Database, name: str, account: str | None) -> Tenant:
    """Have a tenant stand for another Slurm account, or none. Raises NotFound, Conflict."""
    with transaction(db) as c:
        if get(db, name).account != account:
            _free(db, account)
            c.execute("UPDATE tenants SET account = ? WHERE name = ?", (account, name))
        return get(db, name)


def _free(db: Database, account: str | None) -> None:
    if account is None:
        return
    if not (account.isprintable() and account.strip() == account != ""):
        raise RegistryError(f"account {account!r} is not a Slurm account's name")
    if taken := row(db, "SELECT name FROM tenants WHERE account = ?", account):
        raise Conflict(f"tenant {taken['name']} stands for account {account} already")


def get(db: Database, name: str) -> Tenant:
    found = row(db, f"SELECT {_COLUMNS} FROM tenants WHERE name = ?", name)
    if found is None:
        known = ", ".join(t.name for t in everyone(db)) or "none yet"
        raise NotFound(f"no tenant is called {name!r}; there are: {known}")
    return Tenant(*found)


def everyone(db: Database) -> list[Tenant]:
    return [Tenant(*r) for r in rows(db, f"SELECT {_COLUMNS} FROM tenants ORDER BY name")]


def add_member(db: Database, tenant: str, user: str, source: Source = Source.MANUAL) -> None:
    """Idempotent; where it stands already, its source stays."""
    checked_user(user)
    with transaction(db) as c:
        get(db, tenant)
        c.execute("INSERT INTO members VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", (tenant, user, source, clock.now()))


def remove_member(db: Database, tenant: str, user: str) -> None:
    """Raises NotFound for one that is none."""
    with transaction(db) as c:
        get(db, tenant)
        if c.execute("DELETE FROM members WHERE tenant = ? AND user = ?", (tenant, user)).rowcount == 0:
            known = ", ".join(m.user for m in members(db) if m.tenant == tenant) or "nobody"
            raise NotFound(f"{user} is no member of tenant {tenant}; its members: {known}")


def members(db: Database) -> list[Member]:
    found = rows(db, "SELECT tenant, user, source, added_at FROM members ORDER BY tenant, user")
    return [Member(r["tenant"], r["user"], Source(r["source"]), r["added_at"]) for r in found]


def accounts_of(db: Database, names: Collection[str]) -> frozenset[str]:
    """The Slurm accounts that these tenants stand for."""
    return frozenset(t.account for t in everyone(db) if t.account is not None and t.name in names)


def of_user(db: Database, user: str) -> frozenset[str]:
    """The tenants a user belongs to."""
    return frozenset(r["tenant"] for r in rows(db, "SELECT tenant FROM members WHERE user = ?", user))
