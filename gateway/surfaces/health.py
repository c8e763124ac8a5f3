"""Is the process alive; and can it serve."""

from __future__ import annotations

from aiohttp import web

from gateway.app_keys import GATEWAY


async def health(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """503 while the registry was never read or the ledger cannot be written, with the reason."""
    gw = request.app[GATEWAY]
    failures = {"registry": gw.catalog.failure, "ledger": gw.ledger.failure}
    reasons = {what: why for what, why in failures.items() if why is not None}
    if reasons:
        return web.json_response({"status": "not ready", "reasons": reasons}, status=503)
    return web.json_response({"status": "ready"})
