"""make_app: everything the gateway is made of, wired on one screen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from gateway import errors
from gateway.admission import Admission
from gateway.app_keys import GATEWAY, SITE
from gateway.billing import Billing
from gateway.catalog import Catalog
from gateway.dispatch import Gateway
from gateway.errors import BadRequest, BodyTooLarge, GatewayError, NotFound, Refused
from gateway.ledger_writer import LedgerWriter
from gateway.providers import Providers
from gateway.relay import Pool
from gateway.routing import Load
from gateway.surfaces import health, models, openai
from registry.site import Site

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0


def make_app(site: Site) -> web.Application:
    """The gateway of a site. Starting it raises StorageError when the ledger cannot be opened for writing."""
    app = web.Application(middlewares=[in_openai_shape], client_max_size=site.gateway.max_body_mb << 20)
    app[SITE] = site
    app.router.add_post("/v1/chat/completions", openai.chat_completions)
    app.router.add_post("/v1/completions", openai.completions)
    app.router.add_get("/v1/models", models.models)
    app.router.add_get("/health", health.health)
    app.router.add_get("/ready", health.ready)

    async def parts(app: web.Application) -> AsyncIterator[None]:
        read_timeout = site.gateway.read_timeout_s
        catalog = Catalog(site.registry_db)
        pool = Pool(connect_timeout=CONNECT_TIMEOUT_S, read_timeout=read_timeout, clock=time.monotonic)
        writer = LedgerWriter(site.ledger_db, asyncio.get_running_loop())
        admission = Admission(writer.tokens_by_tenant(), time.monotonic)
        billing = Billing(writer, site.prices)
        providers = Providers(os.environ, read_timeout)
        app[GATEWAY] = Gateway(catalog, admission, Load(), pool, writer, billing, providers, site.external)
        background = [asyncio.create_task(catalog.watch()), asyncio.create_task(billing.note_running())]
        yield
        for task in background:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await writer.close()
        pool.close()
        catalog.close()

    async def stopping(app: web.Application) -> None:
        app[GATEWAY].billing.stopping = True

    app.cleanup_ctx.append(parts)
    app.on_shutdown.append(stopping)
    return app


@web.middleware
async def in_openai_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong before an answer begins leaves as OpenAI's error object."""
    try:
        return await handler(request)
    except GatewayError as e:
        return errors.response(e)
    except web.HTTPRequestEntityTooLarge as e:
        return errors.response(BodyTooLarge(f"{e.text} (bytes; the site's gateway.max_body_mb)"))
    except web.HTTPNotFound:
        return errors.response(NotFound(f"there is nothing at {request.method} {request.path}"))
    except web.HTTPException as e:
        response = errors.response(Refused(f"{request.method} {request.path}: {e.reason}", e.status))
        if hdrs.ALLOW in e.headers:
            response.headers[hdrs.ALLOW] = e.headers[hdrs.ALLOW]
        return response
    except web.RequestPayloadError as e:
        return errors.response(BadRequest(f"the body cannot be read: {e}"))
    except Exception:
        if request.writer.output_size:
            raise  # an answer has begun: aiohttp logs it too, and cuts the connection
        log.exception("%s %s failed", request.method, request.path)
        return errors.response(GatewayError("the gateway has a bug; its log says where"))
