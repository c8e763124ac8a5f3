"""The control API's handlers for runs and checkpoints: what there is, and what became of it."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from launchers.control_http import answer, reading
from registry import accounting, checkpoints, lineage, runs


def routes() -> list[web.RouteDef]:
    return [
        web.get("/v1/runs", list_runs),
        web.get("/v1/runs/{id:.+}", get_run),
        web.get("/v1/checkpoints", list_checkpoints),
        web.get("/v1/checkpoints/{ref:.+}", get_checkpoint),
    ]


async def list_runs(request: web.Request) -> web.Response:
    controller = reading(request, "run")
    return answer(await controller.write(runs.everything, controller.db))


async def get_run(request: web.Request) -> web.Response:
    """A run with its jobs, its attempts, and its checkpoints, each with the models and the users that stem from it."""
    controller = reading(request, "run")

    def whole() -> dict[str, Any]:
        run = runs.get(controller.db, request.match_info["id"])
        told = lineage.of_run(controller.db, run.id)
        jobs = accounting.of_subject(controller.db, run.id)
        return {"run": run, "jobs": jobs, "attempts": told.attempts, "checkpoints": told.checkpoints}

    return answer(await controller.write(whole))


async def list_checkpoints(request: web.Request) -> web.Response:
    controller = reading(request, "checkpoint")
    return answer(await controller.write(checkpoints.everything, controller.db))


async def get_checkpoint(request: web.Request) -> web.Response:
    controller = reading(request, "checkpoint")
    return answer(await controller.write(checkpoints.get, controller.db, request.match_info["ref"]))
