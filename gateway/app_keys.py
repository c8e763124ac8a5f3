"""What handlers find on the application."""

from __future__ import annotations

from aiohttp import web

from gateway.dispatch import Gateway
from registry.site import Site

GATEWAY = web.AppKey("GATEWAY", Gateway)
SITE = web.AppKey("SITE", Site)
