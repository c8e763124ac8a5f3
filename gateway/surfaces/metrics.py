"""GET /metrics, for keys of scope admin and for the networks of gateway.metrics_from."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from aiohttp import hdrs, web

from gateway.app_keys import GATEWAY, SITE
from gateway.auth import authenticate
from gateway.errors import Refused
from gateway.metrics import CONTENT_TYPE
from registry.keys import Scope

# A proxy on this host would lend everyone its own address.
FORWARDED = (hdrs.FORWARDED, hdrs.X_FORWARDED_FOR, "X-Real-IP", hdrs.VIA)


async def metrics(request: web.Request) -> web.Response:
    """Raises Refused (403) for a peer of no such network without a key of the scope, WrongKey for an unknown key."""
    gw = request.app[GATEWAY]
    near = within(request.remote, request.app[SITE].gateway.metrics_from)
    if not near or any(name in request.headers for name in FORWARDED):
        if not any(name in request.headers for name in (hdrs.AUTHORIZATION, "x-api-key")):
            whom = f"a peer within gateway.metrics_from, which {request.remote} is not" if not near else "no proxy"
            raise Refused(f"metrics are for a key of scope {Scope.ADMIN}, or for {whom}", 403)
        authenticate(gw.catalog, request.headers, Scope.ADMIN)
    return web.Response(body=await gw.metrics.page(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})


def within(peer: str | None, networks: Iterable[str]) -> bool:
    """Pure. Whether an address (of a socket; None of none) is of one of these networks."""
    if peer is None:
        return False
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False  # a Unix socket's path
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # an IPv4 peer of a socket that listens on "::"
    return any(address in ipaddress.ip_network(network) for network in networks)
