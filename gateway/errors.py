"""What a request can fail with, and its shape on the wire.

GatewayError
  BadRequest          400  the body is malformed; says what is wrong
  WrongKey            401
  UnknownModel        404  names it
  NotFound            404  no such path
  Refused             4xx  whatever else aiohttp will not take: a wrong method, say
  BodyTooLarge        413
  TooManyRequests     429  waiting helps
  QueueFull           429  the deployment has more to do than it can; waiting helps
  BudgetExhausted     429  waiting helps only while others' holds are in the way
  UpstreamFailed      502  the replica's or provider's fault
    UpstreamSilent    504  nothing came in time; not tried again, as it may be busy with just this
  NoReplica           503  the deployment exists, nothing of it is ready
  LedgerUnwritable    503  nothing is served that cannot be billed
"""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web


class GatewayError(Exception):
    """`status` and `type` are OpenAI's; `retry_after` is in seconds, None when waiting does not help."""

    status = 500
    type = "server_error"
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None
    should_retry: bool | None = None  # what SDKs are told; None leaves them their own rule


class BadRequest(GatewayError):
    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class WrongKey(GatewayError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class UnknownModel(GatewayError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"
    param = "model"


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"


class BodyTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"


class HeadersTooLarge(GatewayError):
    status = 431
    type = "invalid_request_error"


class RequestTimeout(GatewayError):
    """The client did not send its request in time."""

    status = 408
    type = "invalid_request_error"


class Bug(GatewayError):
    """Ours; the log has its traceback."""

    def __init__(self) -> None:
        super().__init__("the gateway has a bug; its log says where")


class Refused(GatewayError):
    """aiohttp's own answer, in OpenAI's shape."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        self.type = "invalid_request_error" if status < 500 else "server_error"


class TooManyRequests(GatewayError):
    status = 429
    type = "requests"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(GatewayError):
    status = 429
    type = "requests"
    code = "deployment_overloaded"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BudgetExhausted(GatewayError):
    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"

    def __init__(self, message: str, retry_after: int | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.should_retry = retry_after is not None  # SDKs would otherwise try a spent budget again and again


class UpstreamFailed(GatewayError):
    """Nothing usable came back. Another replica may do better, as long as nothing has reached the client."""

    status = 502
    code = "upstream_failed"


class UpstreamSilent(UpstreamFailed):
    """Nothing came for too long. Another replica would only do the same work again, as long and unbilled."""

    status = 504
    code = "upstream_silent"


class Unreachable(UpstreamFailed):
    """No connection: the port refuses, or what listens there is not the replica."""


class NoReplica(GatewayError):
    status = 503
    code = "no_ready_replica"
    retry_after: int | None = 5


class LedgerUnwritable(GatewayError):
    status = 503
    code = "ledger_unwritable"
    retry_after = 5

    def __init__(self, why: str) -> None:
        super().__init__(f"usage cannot be recorded, so nothing is served: {why}")


def shape(error: GatewayError) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": error.type, "param": error.param, "code": error.code}}


def response(error: GatewayError) -> web.Response:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.should_retry is not None:
        headers["x-should-retry"] = str(error.should_retry).lower()
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        body=orjson.dumps(shape(error)), status=error.status, headers=headers, content_type="application/json"
    )


def event(error: GatewayError) -> bytes:
    """The error as a server-sent event: the last one of a stream that broke off."""
    return b"data: " + orjson.dumps(shape(error)) + b"\n\n"
