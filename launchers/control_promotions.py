"""The control API's handlers for promotions: how far they are, and what they found out."""

from __future__ import annotations

from aiohttp import web

from launchers.control_http import answer, reading
from registry import promotions


def routes() -> list[web.RouteDef]:
    return [web.get("/v1/promotions", list_promotions), web.get("/v1/promotions/{id}", get_promotion)]


async def list_promotions(request: web.Request) -> web.Response:
    controller = reading(request, "promotion")
    return answer(await controller.write(promotions.everything, controller.db))


async def get_promotion(request: web.Request) -> web.Response:
    controller = reading(request, "promotion")
    return answer(await controller.write(promotions.get, controller.db, request.match_info["id"]))
