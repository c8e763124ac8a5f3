"""GET /v1/usage: what a tenant used in a month, and what is left of its limits.

    ?month=2026-11      this month (UTC) where it is left out
    ?tenant=NAME or *   of another tenant, or of all, for keys of scope admin; else the key's own

    {"object": "usage", "month": "2026-11", "tenant": "physics",
     "data": [{"tenant": "physics", "user": "ann", "model": "llama", "requests": 12, "cut": 1, "prompt_tokens": 900,
               "cached_tokens": 256, "completion_tokens": 400, "reasoning_tokens": 0, "credits": 0.0017}, ...],
     "total": {"requests": 12, ..., "credits": 0.0017},
     "limits": [{"subject": "tenant", "name": "physics", "limit": "tokens_per_day", "allowed": 1000000, "used": 1300,
                 "held": 0, "left": 998700, "ends": "2026-11-30T00:00:00.000000Z"}, ...]}

`data` has a row for each user and model, of what ended in the month. `limits` are those in force now, whatever month is
asked for: of the key, its user and its tenant, or of the tenants that were asked for. `held` is set aside by requests
that are running; `ends` is null where a window never ends, and for a minute's limits, which count the last 60 s.

Errors are OpenAI's: 400 for a month or a parameter that is none, 401 without a key, 403 for another tenant without the
scope, 404 for a tenant that does not exist, 503 while the ledger cannot be read.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from gateway.admission import Who
from gateway.app_keys import GATEWAY, SITE
from gateway.auth import identify
from gateway.catalog import View
from gateway.errors import BadRequest, LedgerUnreadable, NotFound, Refused
from gateway.gates import CREDIT, Shown
from registry import usage_rows
from registry.db import RegistryError, StorageError, open_reader
from registry.keys import LiveKey, Scope
from registry.limits import Subject, user_name
from registry.steps import PLATFORM
from registry.usage_rows import Counts, Used
from registry.window import Window, window_of

PARAMETERS = ("month", "tenant")
EVERYBODY = "*"
BY = ("tenant", "user", "model")


async def usage(request: web.Request) -> web.Response:
    """Raises GatewayError."""
    gw = request.app[GATEWAY]
    caller = identify(gw.catalog, request.headers)
    gw.catalog.refresh()
    month, tenant = asked(request.query, caller, gw.catalog.view, gw.catalog.now())
    rows = await asyncio.to_thread(_read, request.app[SITE].ledger_db, month, tenant)
    limits = [(who, gw.admission.shown(*who)) for who in subjects(caller, tenant, gw.catalog.view)]
    return web.Response(body=orjson.dumps(shape(month, tenant, rows, limits)), content_type="application/json")


def asked(query: Mapping[str, str], caller: LiveKey, view: View, now: float) -> tuple[Window, str]:
    """Pure. The month and the tenant, which may be EVERYBODY. Raises BadRequest, NotFound, and Refused (403)."""
    for name in query:
        if name not in PARAMETERS:
            raise BadRequest(f"there is no parameter {name!r}; allowed: {', '.join(PARAMETERS)}", name)
    try:
        month = window_of(query.get("month"), None, None, datetime.fromtimestamp(now, UTC))
    except RegistryError as e:
        raise BadRequest(str(e), "month") from None
    own = caller.tenant.name
    tenant = query.get("tenant") or own
    if tenant != own:
        if Scope.ADMIN not in caller.scopes:
            raise Refused(f"this key sees tenant {own} only; others are for keys of scope {Scope.ADMIN}", 403)
        if tenant not in (EVERYBODY, PLATFORM) and tenant not in view.tenants:
            known = ", ".join(sorted(view.tenants))
            raise NotFound(f"no tenant is called {tenant!r}; there are: {known}, and {EVERYBODY} for all")
    return month, tenant


def subjects(caller: LiveKey, tenant: str, view: View) -> list[Who]:
    """Pure. Whose limits are shown."""
    if tenant == EVERYBODY:
        return [(Subject.TENANT, name) for name in sorted(view.tenants)]
    if tenant == caller.tenant.name:
        user = user_name(tenant, caller.user)
        return [(Subject.KEY, caller.counts_as), (Subject.USER, user), (Subject.TENANT, tenant)]
    return [(Subject.TENANT, tenant)]


def shape(month: Window, tenant: str, rows: Used, limits: Iterable[tuple[Who, Sequence[Shown]]]) -> dict[str, Any]:
    """Pure. The answer."""
    return {
        "object": "usage",
        "month": month.month,
        "tenant": tenant,
        "data": [dict(zip(BY, names, strict=True)) | _counts(counts) for names, counts in rows.items()],
        "total": _counts(usage_rows.together(rows.values())),
        "limits": [
            {"subject": subject, "name": name, **dataclasses.asdict(one)}
            for (subject, name), found in limits
            for one in found
        ],
    }


def _counts(counts: Counts) -> dict[str, float]:
    found = dataclasses.asdict(counts)
    microcredits = found.pop("microcredits")
    return found | {"credits": microcredits / CREDIT}


def _read(ledger_db: Path, month: Window, tenant: str) -> Used:
    """Raises LedgerUnreadable."""
    try:
        db = open_reader(ledger_db)
        try:
            return usage_rows.used(db, month, *BY, tenants=None if tenant == EVERYBODY else [tenant])
        finally:
            db.close()
    except (StorageError, sqlite3.Error) as e:
        raise LedgerUnreadable(f"the ledger cannot be read: {e}") from e
