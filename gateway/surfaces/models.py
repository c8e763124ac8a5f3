"""What a key may call: every live deployment and every external model."""

from __future__ import annotations

import orjson
from aiohttp import web

from gateway.app_keys import GATEWAY
from gateway.auth import authenticate
from gateway.catalog import created


async def models(request: web.Request) -> web.Response:
    gw = request.app[GATEWAY]
    authenticate(gw.catalog, request.headers)
    gw.catalog.refresh()
    listed = [
        {"id": d.name, "object": "model", "created": created(d), "owned_by": d.owner}
        for d in gw.catalog.view.deployments.values()
        if d.name not in gw.site.external
    ]
    listed += [
        {"id": name, "object": "model", "created": 0, "owned_by": external.model.partition("/")[0]}
        for name, external in gw.site.external.items()
    ]
    return web.Response(body=orjson.dumps({"object": "list", "data": listed}), content_type="application/json")
