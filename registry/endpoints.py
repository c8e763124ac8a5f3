"""Endpoints: the stable names that clients call, and the deployments behind each. The only module that changes them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from registry import clock, deployments
from registry.db import Conflict, Database, NotFound, RegistryError, fields, row, rows, transaction
from registry.tenants import checked_name

LARGEST_WEIGHT = 1_000_000
HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")  # RFC 9110's token, in lower case

Shares = tuple[tuple[str, int], ...]  # (deployment, its weight or percent)


@dataclass(frozen=True, slots=True)
class Endpoint:
    name: str
    owner: str
    targets: Shares  # (deployment, weight): its share of the calls is its weight over the sum of all
    sticky: str | None  # "key" or "header:NAME" (in lower case): what keeps a caller at one deployment
    shadow: Shares  # (deployment, percent): gets copies of so many calls; nobody reads its answers
    fallbacks: tuple[str, ...]  # deployments or external models, tried in order once no target answers
    created_at: str
    changed_at: str


def put(
    db: Database,
    name: str,
    owner: str,
    *,
    targets: Sequence[tuple[str, int]],
    sticky: str | None = None,
    shadow: Sequence[tuple[str, int]] = (),
    fallbacks: Sequence[str] = (),
    external: Collection[str] = (),
) -> Endpoint:
    """Make an endpoint, or replace what one does; its owner stays. `external`: the site's external models.

    Raises RegistryError for a value that is not allowed, NotFound for a deployment that does not exist or has ended,
    and Conflict when the name is a deployment's, a LoRA adapter's or an external model's.
    """
    checked_name("endpoint", name)
    sticky = _sticky(sticky)
    _shares("targets", targets, LARGEST_WEIGHT)
    if not targets:
        raise RegistryError(f"endpoint {name} needs a target: a deployment and its weight")
    _shares("shadow", shadow, 100)
    if len(set(fallbacks)) < len(fallbacks):
        raise RegistryError(f"endpoint {name}: a fallback is named twice: {', '.join(fallbacks)}")
    with transaction(db) as c:
        live = {d.name for d in deployments.everything(db) if not d.state.ended}
        if name in live:
            raise Conflict(f"{name} is a deployment; an endpoint needs a name of its own")
        deployments.refuse_adapters_name(db, name, "endpoint")
        if name in external:
            raise Conflict(f"{name} is an external model of the site; an endpoint needs a name of its own")
        for wanted, _ in (*targets, *shadow):
            if wanted not in live:
                raise NotFound(f"no deployment is called {wanted!r}; there are: {_words(live)}")
        for wanted in fallbacks:
            if wanted not in live and wanted not in external:
                known = _words({*live, *external})
                raise NotFound(f"no deployment or external model is called {wanted!r}; there are: {known}")
        now = clock.now()
        c.execute(
            """INSERT INTO endpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?)
               ON CONFLICT (name) DO UPDATE SET targets = excluded.targets, sticky = excluded.sticky,
               shadow = excluded.shadow, fallbacks = excluded.fallbacks, changed_at = excluded.changed_at""",
            (name, owner, json.dumps(targets), sticky, json.dumps(shadow), json.dumps(fallbacks), now, now),
        )
    return get(db, name)


def get(db: Database, name: str) -> Endpoint:
    found = row(db, "SELECT * FROM endpoints WHERE name = ?", name)
    if found is None:
        raise NotFound(f"no endpoint is called {name!r}; there are: {_words({e.name for e in everything(db)})}")
    return _endpoint(found)


def everything(db: Database) -> list[Endpoint]:
    return [_endpoint(r) for r in rows(db, "SELECT * FROM endpoints ORDER BY name")]


def delete(db: Database, name: str) -> Endpoint:
    """What it was. Its deployments go on under their own names."""
    with transaction(db) as c:
        endpoint = get(db, name)
        c.execute("DELETE FROM endpoints WHERE name = ?", (name,))
        return endpoint


def _sticky(sticky: str | None) -> str | None:
    if sticky is None or sticky == "key":
        return sticky
    kind, _, header = sticky.lower().partition(":")
    if kind != "header" or not HEADER.fullmatch(header):
        raise RegistryError(f"sticky is {sticky!r}; allowed: 'key', 'header:NAME', or nothing")
    return f"header:{header}"


def _shares(what: str, shares: Sequence[tuple[str, int]], most: int) -> None:
    for deployment, share in shares:
        if not 1 <= share <= most:
            raise RegistryError(f"{what}: {deployment} has {share}, not a whole number from 1 to {most}")
    names = [deployment for deployment, _ in shares]
    if len(set(names)) < len(names):
        raise RegistryError(f"{what}: a deployment is named twice: {', '.join(names)}")


def _words(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none yet"


def _endpoint(r: Any) -> Endpoint:
    shares = {name: tuple((d, int(share)) for d, share in json.loads(r[name])) for name in ("targets", "shadow")}
    return Endpoint(**{**fields(Endpoint, r), **shares, "fallbacks": tuple(json.loads(r["fallbacks"]))})
