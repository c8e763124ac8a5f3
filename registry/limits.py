"""Limits: what a key, a user, a tenant or a model may use in a window of time. The only module that changes them."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass

from registry import clock
from registry.db import Database, RegistryError, row, rows, transaction
from registry.steps import APPLICATION

LARGEST = 2**53  # of any limit: what a float, and so JSON, holds exactly
SMALLEST = 1e-6  # credits: what is counted in has no smaller unit


class Subject(enum.StrEnum):
    """Whom a limit is for."""

    KEY = "key"  # by its id
    USER = "user"  # by name, whatever tenant pays; an application, which is its tenant's own, is "TENANT/app:NAME"
    TENANT = "tenant"
    MODEL = "model"  # a deployment, an adapter of one or an external model: everybody's calls of it together


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit. Tokens are prompt and completion together; days and months are UTC's."""

    requests_per_minute: int | None = None  # within any 60 s
    burst: int | None = None  # of a minute's requests, so many may start at once; the others evenly after them
    tokens_per_minute: int | None = None  # within any 60 s
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    credits_per_day: float | None = None
    credits_per_month: float | None = None
    token_budget: int | None = None  # in all, ever
    spend_ceiling: float | None = None  # credits, in all, ever


NAMES = tuple(f.name for f in dataclasses.fields(Limits))
WHOLE = frozenset(f.name for f in dataclasses.fields(Limits) if f.type == "int | None")
UNLIMITED = Limits()


def user_name(tenant: str, user: str) -> str:
    """Under which name of Subject.USER a key of this tenant and user counts."""
    return f"{tenant}/{user}" if user.startswith(APPLICATION) else user


def checked(changes: Mapping[str, object], of: str) -> dict[str, float | int | None]:
    """Raises RegistryError, naming the limit, for one that is unknown or not a number that may be one."""
    found: dict[str, float | int | None] = {}
    for name, value in changes.items():
        if name not in NAMES:
            raise RegistryError(f"{of}: no limit is called {name!r}; there are: {', '.join(NAMES)}")
        whole = name in WHOLE
        if value is not None and (
            isinstance(value, bool)
            or not isinstance(value, int if whole else int | float)
            or not math.isfinite(value)
            or not (1 if name == "burst" else 0) <= value <= LARGEST
        ):
            lowest = 1 if name == "burst" else 0
            kind = "a whole number" if whole else "a number"
            raise RegistryError(f"{of}: {name} must be {kind} from {lowest} to {LARGEST}, or nothing, not {value!r}")
        if not whole and value is not None and 0 < value < SMALLEST:
            raise RegistryError(f"{of}: {name} must be 0 or at least {SMALLEST:f} (a micro-credit), not {value!r}")
        found[name] = value
    return found


def put(db: Database, subject: Subject, name: str, changes: Mapping[str, object], by: str) -> Limits:
    """Change the limits that are named; None takes one away. Raises RegistryError."""
    changed = checked(changes, f"{subject} {name}")
    with transaction(db) as c:
        new = Limits(**(dataclasses.asdict(of(db, subject, name)) | changed))
        if new.burst is not None and new.requests_per_minute is None:
            raise RegistryError(f"{subject} {name}: burst is of requests_per_minute, which has no limit")
        values = dataclasses.astuple(new)
        c.execute(
            f"INSERT OR REPLACE INTO limits VALUES (?, ?, {', '.join('?' * len(values))}, ?, ?)",
            (subject, name, *values, clock.now(), by),
        )
    return new


def of(db: Database, subject: Subject, name: str) -> Limits:
    found = row(db, f"SELECT {', '.join(NAMES)} FROM limits WHERE subject = ? AND name = ?", subject, name)
    return UNLIMITED if found is None else Limits(*found)


def everything(db: Database) -> dict[tuple[Subject, str], Limits]:
    """Those that limit anything."""
    found = {
        (Subject(r["subject"]), str(r["name"])): Limits(*(r[name] for name in NAMES))
        for r in rows(db, "SELECT * FROM limits ORDER BY subject, name")
    }
    return {who: limits for who, limits in found.items() if limits != UNLIMITED}
