"""What handlers find on the application."""

from __future__ import annotations

from aiohttp import web

from gateway.dispatch import Gateway

GATEWAY = web.AppKey("GATEWAY", Gateway)
