"""The control API's handlers for aliases of models: where they are, how they came there, and who may move them."""

from __future__ import annotations

from aiohttp import web

from launchers.control_cluster import query_of
from launchers.control_http import CONTROLLER, PRINCIPAL, answer, body_of, reading
from registry import aliases, models
from registry import canary as percent
from registry.access import Object, Principal, Verb, require
from registry.db import Database


def routes() -> list[web.RouteDef]:
    return [
        web.get("/v1/aliases", list_aliases),
        web.post("/v1/aliases", move_alias),
        web.get("/v1/aliases/moves", list_moves),
        web.post("/v1/aliases/rollback", roll_back_alias),
    ]


async def list_aliases(request: web.Request) -> web.Response:
    controller = reading(request, "alias")
    return answer(await controller.write(aliases.everything, controller.db))


async def list_moves(request: web.Request) -> web.Response:
    controller = reading(request, "alias")
    asked = query_of(request, "model", "alias")
    return answer(await controller.write(aliases.moves, controller.db, asked.get("model"), asked.get("alias")))


async def move_alias(request: web.Request) -> web.Response:
    """Its newest move: one that it is where it should be already makes no other."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(request, {"model": str, "alias": str, "version": int}, {"why": str, "canary": int})
    model, alias, canary = body["model"], body["alias"], percent.checked(body.get("canary"))

    def move() -> aliases.AliasMove | None:
        _require_own(controller.db, principal, model)
        aliases.move(controller.db, model, alias, body["version"], principal.name, body.get("why") or "", canary)
        return aliases.newest(controller.db, model, alias)

    moved = await controller.write(move)
    controller.poke()  # deployments may follow it
    return answer(moved, 201)


async def roll_back_alias(request: web.Request) -> web.Response:
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(request, {"model": str, "alias": str}, {"why": str})

    def roll_back() -> aliases.AliasMove:
        _require_own(controller.db, principal, body["model"])
        why = body.get("why") or "rolled back"
        return aliases.roll_back(controller.db, body["model"], body["alias"], principal.name, why)

    moved = await controller.write(roll_back)
    controller.poke()
    return answer(moved)


def _require_own(db: Database, principal: Principal, model: str) -> None:
    """A model's aliases are its owner's. Raises NotFound for a model that there is not; Forbidden."""
    require(principal, Verb.CHANGE, Object("alias", models.owner_of(db, model)))
