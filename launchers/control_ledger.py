"""The control API's handlers for the ledger: an administrator takes an event back.

The gateway alone writes the ledger, so a reversal goes into a journal of its own; the answer says what became of it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from launchers.control_http import CONTROLLER, PRINCIPAL, answer, body_of
from registry import clock, ledger, own_steps
from registry.access import Object, Verb, require
from registry.db import Conflict
from registry.site import Site

TAKEN_IN_S = 5.0  # a running gateway looks every fraction of a second; without one there is nothing to wait for
LOOK_S = 0.05


def routes() -> list[web.RouteDef]:
    return [web.post("/v1/ledger/reversals", reverse)]


async def reverse(request: web.Request) -> web.Response:
    """201 when the reversal is in the ledger, 202 when no gateway has taken it in yet: it is safe, and will be."""
    site, principal = request.app[CONTROLLER].site, request[PRINCIPAL]
    body = await body_of(request, {"event_id": str, "reason": str}, {})
    require(principal, Verb.ADMINISTER, Object("ledger", principal.name))
    if not body["reason"].strip():
        raise ValueError("'reason' must say why the event is taken back")
    await asyncio.to_thread(own_steps.require_event, site.ledger_db, body["event_id"])
    asked = ledger.Reversal(
        f"{ledger.mint(time.time_ns())}:1", body["event_id"], principal.name, body["reason"], clock.now()
    )
    journal = await asyncio.to_thread(own_steps.add, site.ledger_db, [asked])
    taken = await _taken_in(site, journal, asked.event_id)
    if taken is not None and taken.refused is not None:
        raise Conflict(taken.refused)
    said: dict[str, Any] = {"event_id": asked.event_id, "corrects": asked.corrects, "in_ledger": taken is not None}
    return answer(said, 202 if taken is None else 201)


async def _taken_in(site: Site, journal: str, event_id: str) -> own_steps.Taken | None:
    until = time.monotonic() + TAKEN_IN_S
    while (taken := await asyncio.to_thread(own_steps.reversal, site.ledger_db, journal, event_id)) is None:
        if time.monotonic() > until:
            return None
        await asyncio.sleep(LOOK_S)
    return taken
