"""GET /metrics, for keys of scope admin and for the networks of gateway.metrics_from."""

from __future__ import annotations

from aiohttp import web

from gateway.metrics import Metrics

METRICS = web.AppKey("METRICS", Metrics)  # set in make_app: app[METRICS] = Metrics()


async def metrics(request: web.Request) -> web.Response:
    """Raises WrongKey and Refused (403)."""
    raise NotImplementedError
