"""The control API's handlers for prices. Everyone may know what things cost."""

from __future__ import annotations

from aiohttp import web

from launchers.control_cluster import query_of
from launchers.control_http import CONTROLLER, PRINCIPAL, answer, body_of, instant_of, reading
from registry import keys, prices
from registry.access import Object, Verb, require
from registry.prices import Kind


def routes() -> list[web.RouteDef]:
    return [web.get("/v1/prices", list_prices), web.post("/v1/prices", set_price)]


async def list_prices(request: web.Request) -> web.Response:
    """Every price with when it holds, the site file's among them; `?at=INSTANT`: those that hold then."""
    controller = reading(request, "price")
    at = instant_of(query_of(request, "at"), "at")
    versions = await controller.write(prices.everything, controller.db)
    found = prices.schedule(versions, controller.site.prices, controller.site.gpu_prices)
    return answer([price for price in found if at is None or prices.holds(price, at)])


async def set_price(request: web.Request) -> web.Response:
    """{kind: "model", name, prompt, completion, cached?} or {kind: "gpu", name, hour}; `valid_from`: else now."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    amounts: dict[str, type] = dict.fromkeys(("prompt", "cached", "completion", "hour"), float)
    body = await body_of(request, {"kind": str, "name": str}, {"valid_from": str, **amounts})
    require(principal, Verb.ADMINISTER, Object("price", ""))
    if body["kind"] not in list(Kind):
        raise ValueError(f"'kind' must be one of {', '.join(Kind)}, not {body['kind']!r}")
    kind, name = Kind(body["kind"]), keys.checked_model(body["name"], body["kind"])
    needed, allowed = _AMOUNTS[kind]
    given = {word: body[word] for word in amounts if body.get(word) is not None}
    if needed - given.keys() or given.keys() - allowed:
        raise ValueError(f"the price of a {kind} is {', '.join(sorted(allowed))}; needed: {', '.join(sorted(needed))}")
    made = await controller.write(
        lambda: prices.put(
            controller.db, kind, name, principal.name, valid_from=instant_of(body, "valid_from"), **given
        )
    )
    return answer(made, 201)


_AMOUNTS = {
    Kind.MODEL: (frozenset({"prompt", "completion"}), frozenset({"prompt", "cached", "completion"})),
    Kind.GPU: (frozenset({"hour"}), frozenset({"hour"})),
}
