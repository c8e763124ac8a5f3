"""Is the process alive; and can it serve."""

from __future__ import annotations

import os

from aiohttp import web

from gateway.app_keys import GATEWAY, SITE
from gateway.surfaces.metrics import FORWARDED


async def health(request: web.Request) -> web.Response:
    """Who asks from this host also learns whose gateway this is, so as not to take another one for their own."""
    about: dict[str, str | int] = {"status": "ok"}
    if from_this_host(request):
        site = request.app[SITE]
        about |= {"site": site.name, "state_dir": str(site.state_dir), "pid": os.getpid()}
    return web.json_response(about)


def from_this_host(request: web.Request) -> bool:
    """A host that calls itself does so from the very address it calls, 127.0.0.1 or another of its own.

    Not what a proxy on this host passes on.
    """
    if any(name in request.headers for name in FORWARDED):
        return False
    own = request.transport.get_extra_info("sockname") if request.transport else None
    return own is not None and request.remote == own[0]


async def ready(request: web.Request) -> web.Response:
    """503 while the registry was never read or the ledger cannot be written, with the reason."""
    gw = request.app[GATEWAY]
    failures = {"registry": gw.catalog.failure, "ledger": gw.ledger.failure}
    reasons = {what: why for what, why in failures.items() if why is not None}
    if reasons:
        return web.json_response({"status": "not ready", "reasons": reasons}, status=503)
    return web.json_response({"status": "ready"})
