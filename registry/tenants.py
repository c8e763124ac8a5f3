"""Tenants: who is billed. Each may stand for a Slurm account; users belong to tenants."""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry import clock, limits
from registry.db import Conflict, Database, NotFound, RegistryError, row, rows, transaction
from registry.limits import UNLIMITED, Limits, Subject
from registry.steps import PLATFORM

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str
    owner: str
    account: str | None  # Slurm's
    created_at: str


@dataclass(frozen=True, slots=True)
class Member:
    tenant: str
    user: str
    source: str  # "slurm": an association says so; "manual": an administrator did
    added_at: str


def checked_name(kind: str, name: str) -> str:
    """A name that is safe in paths, URLs and job names; anything else raises RegistryError."""
    if not NAME.fullmatch(name):
        raise RegistryError(
            f"{kind} name {name!r} is not allowed: lower-case letters, digits, '.', '_' and '-', at most 63, "
            "starting with a letter or digit"
        )
    return name


def create(db: Database, name: str, owner: str, *, account: str | None = None, limited: Limits = UNLIMITED) -> Tenant:
    checked_name("tenant", name)
    if name == PLATFORM:
        raise Conflict(f"{name} is what Headgate's own requests are booked to; choose another name")
    with transaction(db) as c:
        if row(db, "SELECT 1 FROM tenants WHERE name = ?", name):
            raise Conflict(f"tenant {name} exists already")
        created = clock.now()
        c.execute(
            "INSERT INTO tenants (name, owner, account, created_at) VALUES (?, ?, ?, ?)",
            (name, owner, account, created),
        )
    if limited != UNLIMITED:
        limits.put(db, Subject.TENANT, name, {n: getattr(limited, n) for n in limits.NAMES}, owner)
    return Tenant(name, owner, account, created)


def get(db: Database, name: str) -> Tenant:
    found = row(db, "SELECT name, owner, account, created_at FROM tenants WHERE name = ?", name)
    if found is None:
        known = ", ".join(t.name for t in everyone(db)) or "none yet"
        raise NotFound(f"no tenant is called {name!r}; there are: {known}")
    return Tenant(*found)


def everyone(db: Database) -> list[Tenant]:
    return [Tenant(*r) for r in rows(db, "SELECT name, owner, account, created_at FROM tenants ORDER BY name")]


def add_member(db: Database, tenant: str, user: str, source: str = "manual") -> None:
    """Idempotent; where it stands already, its source stays."""
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
    return [Member(*r) for r in rows(db, "SELECT tenant, user, source, added_at FROM members ORDER BY tenant, user")]


def of_user(db: Database, user: str) -> frozenset[str]:
    """The tenants a user belongs to."""
    return frozenset(r["tenant"] for r in rows(db, "SELECT tenant FROM members WHERE user = ?", user))
