"""Aliases: names that move between a model's versions. Every move is kept: who, when, from where, to where, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from registry import clock, models
from registry.db import Conflict, Database, NotFound, RegistryError, row, rows, transaction
from registry.tenants import checked_name

HEADGATE = "(headgate)"  # who moves an alias back that no person moves


@dataclass(frozen=True, slots=True)
class Alias:
    model: str
    alias: str
    version: int
    owner: str  # who moved it last
    moved_at: str


@dataclass(frozen=True, slots=True)
class AliasMove:
    id: int  # counts up
    model: str
    alias: str
    from_version: int | None  # None: it was made
    to_version: int
    at: str
    by: str
    why: str
    canary: int | None  # percent of the calls that deployments which follow it give the new version on trial


def move(
    db: Database, model: str, alias: str, version: int, by: str, why: str, canary: int | None = None
) -> AliasMove | None:
    """None when it is there already: nothing moves, and nothing is kept.

    Raises RegistryError for a name that is none, NotFound for a version that there is not.
    """
    checked_name("alias", alias)
    if alias.isdigit():
        raise RegistryError(f"alias {alias!r} is not allowed: a number after '@' names a version")
    with transaction(db) as c:
        models.get(db, model, version)
        old = row(db, "SELECT version FROM aliases WHERE model = ? AND alias = ?", model, alias)
        if old is not None and old["version"] == version:
            return None
        now = clock.now()
        c.execute(
            "INSERT INTO aliases VALUES (?, ?, ?, ?, ?) ON CONFLICT (model, alias) DO UPDATE SET "
            "version = excluded.version, owner = excluded.owner, moved_at = excluded.moved_at",
            (model, alias, version, by, now),
        )
        c.execute(
            "INSERT INTO alias_moves (model, alias, from_version, to_version, at, by, why, canary) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (model, alias, old and old["version"], version, now, by, why, canary),
        )
    return newest(db, model, alias)


def roll_back(db: Database, model: str, alias: str, by: str, why: str) -> AliasMove:
    """To the version before the one that it is at, at once and without a canary. Never to one that it was taken back
    from: doing it twice goes back twice.

    Raises NotFound for an alias that there is not, Conflict where nothing is left to go back to.
    """
    last = newest(db, model, alias)
    if last is None:
        raise NotFound(f"model {model} has no alias {alias!r}")
    if last.from_version is None:
        raise Conflict(f"alias {model}@{alias} was never anywhere but at version {last.to_version}")
    way = forward(one.to_version for one in reversed(moves(db, model, alias)))
    if len(way) < 2:
        raise Conflict(
            f"alias {model}@{alias} is at version {last.to_version}, the first of those that it was not taken back "
            f"from; `headgate alias set {model}@{alias} VERSION` moves it to any"
        )
    moved = move(db, model, alias, way[-2], by, why)
    assert moved is not None, "the way ends where the alias is"
    return moved


def forward(versions: Iterable[int]) -> list[int]:
    """The way to where an alias is, without its detours: who moves it to where it was takes the moves since then back.
    `versions`: where it was, oldest first. Pure."""
    way: list[int] = []
    for version in versions:
        way = way[: way.index(version)] if version in way else way
        way.append(version)
    return way


def everything(db: Database) -> list[Alias]:
    return [Alias(**dict(r)) for r in rows(db, "SELECT * FROM aliases ORDER BY model, alias")]


def moves(db: Database, model: str | None = None, alias: str | None = None) -> list[AliasMove]:
    """Newest first; of one model, or of one alias, where they are given."""
    given = {"model": model, "alias": alias}
    where = " AND ".join(f"{column} = ?" for column, value in given.items() if value is not None) or "true"
    values: list[Any] = [value for value in given.values() if value is not None]
    return [
        AliasMove(**dict(r)) for r in rows(db, f"SELECT * FROM alias_moves WHERE {where} ORDER BY id DESC", *values)
    ]


def newest(db: Database, model: str, alias: str) -> AliasMove | None:
    """Its last move; None for an alias that there is not."""
    found = row(db, "SELECT * FROM alias_moves WHERE model = ? AND alias = ? ORDER BY id DESC LIMIT 1", model, alias)
    return AliasMove(**dict(found)) if found else None
