"""Models: named, versioned Hugging Face directories. What moves between versions is registry.aliases'.

A version is `converted` when its files are whole, `servable` once an engine has loaded it and generated a token.
The only module that changes a version's state.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from registry import clock
from registry.db import Conflict, Database, NotFound, row, rows, transaction
from registry.tenants import checked_name


class ModelState(enum.StrEnum):
    CONVERTED = "converted"
    SERVABLE = "servable"


MOST = (1 << 63) - 1  # the number of a version

# Whether the first step of a promotion made models `m`, and the promotion failed or has not ended.
_ON_TRIAL = """EXISTS (SELECT 1 FROM promotions p JOIN runs r ON r.id = json_extract(p.steps, '$[0]')
    WHERE p.model = m.name AND m.path = r.folder || '/model' AND p.state != 'promoted')"""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    name: str
    version: int
    owner: str
    state: ModelState
    path: str
    checkpoint: str | None
    parameters: int | None
    bytes: int | None
    max_logit_difference: float | None  # against the trainer's own logits, at conversion
    created_at: str
    aliases: tuple[str, ...] = ()


def register(
    db: Database,
    name: str,
    owner: str,
    path: str,
    *,
    checkpoint: str | None = None,
    parameters: int | None = None,
    size: int | None = None,
    max_logit_difference: float | None = None,
) -> ModelVersion:
    """The next version of `name`. The same path again is the same version. Another owner's name raises Conflict."""
    checked_name("model", name)
    with transaction(db) as c:
        old = row(db, "SELECT version FROM models WHERE name = ? AND path = ?", name, path)
        if old is None:
            foreign = row(db, "SELECT owner FROM models WHERE name = ? AND owner != ?", name, owner)
            if foreign:
                raise Conflict(f"model {name} belongs to {foreign['owner']}; publish under another name")
            newest = row(db, "SELECT max(version) AS v FROM models WHERE name = ?", name)
            version = (newest["v"] or 0) + 1 if newest else 1
            c.execute(
                "INSERT INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    name,
                    version,
                    owner,
                    ModelState.CONVERTED,
                    path,
                    checkpoint,
                    parameters,
                    size,
                    max_logit_difference,
                    clock.now(),
                ),
            )
        else:
            version = old["version"]
    return get(db, name, version)


def mark_servable(db: Database, name: str, version: int) -> None:
    with transaction(db) as c:
        c.execute("UPDATE models SET state = ? WHERE name = ? AND version = ?", (ModelState.SERVABLE, name, version))


def resolve(db: Database, ref: str) -> ModelVersion:
    """`name`, `name@alias` or `name@version`. A bare name means its alias `latest`, else its newest version, but for
    those that a promotion made and has not promoted."""
    name, _, which = ref.partition("@")
    if which.isascii() and which.isdecimal():
        return get(db, name, int(which))
    found = row(db, "SELECT version FROM aliases WHERE model = ? AND alias = ?", name, which or "latest")
    if found:
        return get(db, name, found["version"])
    if row(db, "SELECT 1 FROM models WHERE name = ?", name) is None:
        known = ", ".join(sorted({m.name for m in everything(db)})) or "none yet"
        raise NotFound(f"no model is called {name!r}; there are: {known}")
    if which:
        aliases = [r["alias"] for r in rows(db, "SELECT alias FROM aliases WHERE model = ?", name)]
        raise NotFound(f"model {name} has no alias {which!r}; it has: {', '.join(aliases) or 'none'}")
    newest = row(db, f"SELECT max(version) AS v FROM models m WHERE name = ? AND NOT {_ON_TRIAL}", name)
    if newest is None or newest["v"] is None:
        raise NotFound(f"no version of model {name} has been promoted; name one: {name}@VERSION")
    return get(db, name, newest["v"])


def get(db: Database, name: str, version: int) -> ModelVersion:
    possible = 0 < version <= MOST  # SQLite takes no number beyond
    found = row(db, "SELECT * FROM models WHERE name = ? AND version = ?", name, version) if possible else None
    if found is None:
        raise NotFound(f"model {name} has no version {version}")
    return _version(db, found)


def owner_of(db: Database, name: str) -> str:
    """Whose all of a model's versions are. Raises NotFound."""
    found = row(db, "SELECT owner FROM models WHERE name = ?", name)
    return resolve(db, name).owner if found is None else str(found["owner"])


def everything(db: Database) -> list[ModelVersion]:
    return [_version(db, r) for r in rows(db, "SELECT * FROM models ORDER BY name, version")]


def of_run(db: Database, run: str) -> list[ModelVersion]:
    """Those that were made of its checkpoints."""
    made = "SELECT m.* FROM models m JOIN checkpoints c ON c.id = m.checkpoint WHERE c.run = ? ORDER BY name, version"
    return [_version(db, r) for r in rows(db, made, run)]


def _version(db: Database, r: Any) -> ModelVersion:
    aliases = rows(
        db, "SELECT alias FROM aliases WHERE model = ? AND version = ? ORDER BY alias", r["name"], r["version"]
    )
    return ModelVersion(**{**dict(r), "state": ModelState(r["state"])}, aliases=tuple(a["alias"] for a in aliases))
