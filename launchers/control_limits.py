"""The control API's handlers for Headgate's own limits. (/v1/limits tells Slurm's.)"""

from __future__ import annotations

import dataclasses
from typing import Any

from aiohttp import web

from launchers.control_cluster import query_of
from launchers.control_http import CONTROLLER, PRINCIPAL, answer, body_of
from launchers.controller import Controller
from registry import deployments, endpoints, keys, limits, tenants
from registry.access import Object, Verb, may, require
from registry.db import Database
from registry.limits import Subject


def routes() -> list[web.RouteDef]:
    return [web.get("/v1/quotas", list_limits), web.post("/v1/quotas", set_limits)]


async def list_limits(request: web.Request) -> web.Response:
    """[{of, name, limits}] of whatever is limited, as far as the caller may see; `?of=tenant` of one sort."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    asked = query_of(request, "of").get("of")
    wanted = list(Subject) if asked is None else [subject_of(asked)]

    def visible() -> list[dict[str, Any]]:
        users = {k.id: k.user for k in keys.everything(controller.db)}
        return [
            {"of": subject, "name": name, "limits": dataclasses.asdict(limited)}
            for (subject, name), limited in limits.everything(controller.db).items()
            if subject in wanted and may(principal, Verb.READ, _object(subject, name, users))
        ]

    return answer(await controller.write(visible))


async def set_limits(request: web.Request) -> web.Response:
    """Change the limits that are named, null takes one away: {of, name, limits, warnings}."""
    controller, principal = request.app[CONTROLLER], request[PRINCIPAL]
    body = await body_of(request, {"of": str, "name": str, "limits": dict}, {})
    require(principal, Verb.ADMINISTER, Object("quota", ""))
    subject, asked = subject_of(body["of"]), body["name"]

    def change() -> dict[str, Any]:
        _must_be(controller.db, subject, asked)
        name = keys.get(controller.db, asked).counts_as if subject is Subject.KEY else asked
        new = limits.put(controller.db, subject, name, body["limits"], principal.name)
        warning = _unknown(controller, subject, asked)
        if name != asked:
            warning = f"{asked} goes on with what {name} had, which was rotated: both count as {name}"
        return {"of": subject, "name": name, "limits": new, "warnings": [warning] if warning else []}

    return answer(await controller.write(change))


def subject_of(word: str) -> Subject:
    """Raises ValueError."""
    if word not in list(Subject):
        raise ValueError(f"limits are of a {', a '.join(Subject)}, not of {word!r}")
    return Subject(word)


def _unknown(controller: Controller, subject: Subject, name: str) -> str | None:
    """A warning where nobody is called so."""
    if subject is Subject.MODEL:
        return unknown_model(controller, name)
    if subject is not Subject.USER or tenants.of_user(controller.db, name):
        return None
    known = {limits.user_name(k.tenant, k.user) for k in keys.everything(controller.db)}
    return None if name in known else f"{name} has no key, and is a member of no tenant"


def unknown_model(controller: Controller, name: str) -> str | None:
    """A warning where nothing is called so: it may come later, and it may be a slip of the pen."""
    live = [d for d in deployments.everything(controller.db) if not d.state.ended]
    known = {d.name for d in live} | {a for d in live for a in deployments.adapters(d.request)}
    known |= {e.name for e in endpoints.everything(controller.db)} | set(controller.site.external)
    return None if name in known else f"nothing is called {name!r} yet; there are: {', '.join(sorted(known)) or 'none'}"


def _must_be(db: Database, subject: Subject, name: str) -> None:
    """Raises RegistryError for what is not there, or cannot be."""
    match subject:
        case Subject.TENANT:
            tenants.get(db, name)
        case Subject.KEY:
            keys.get(db, name)
        case Subject.USER:
            _must_be_user(db, name)
        case Subject.MODEL:
            keys.checked_model(name)


def _must_be_user(db: Database, name: str) -> None:
    """A user's name, or TENANT/app:NAME. Raises RegistryError, ValueError."""
    tenant, _, application = name.partition(f"/{keys.APPLICATION}")
    if application:
        tenants.get(db, tenant)
        tenants.checked_name("application", application)
    elif name.startswith(keys.APPLICATION):
        raise ValueError(f"an application is one of a tenant's: TENANT/{name}")
    else:
        tenants.checked_user(name)


def _object(subject: Subject, name: str, users: dict[str, str]) -> Object:
    """Whose limits these are. A model's are everyone's to know."""
    match subject:
        case Subject.TENANT:
            return Object("quota", "", name)
        case Subject.KEY:
            return Object("quota", users.get(name, ""))
        case Subject.USER:
            tenant, _, application = name.partition(f"/{keys.APPLICATION}")
            return Object("quota", "", tenant) if application else Object("quota", name)
        case Subject.MODEL:
            return Object("model", "")
