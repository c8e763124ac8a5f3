"""What a request can fail with, and its shape on the wire.

GatewayError
  BadRequest          400  the body is malformed; says what is wrong
  WrongKey            401
  ModelNotAllowed     403  not on the key's list
  UnknownModel        404  names it
  NotFound            404  no such path
  Refused             any  a key without the scope; what aiohttp will not take; an engine's own refusal in a stream
  RequestTimeout      408  it did not arrive in time
  BodyTooLarge        413
  HeadersTooLarge     431
  TooManyRequests     429  waiting helps, unless it asks for more than any minute has
  QueueFull           429  the deployment has more to do than it can; waiting helps
  BudgetExhausted     429  waiting helps while others' holds are in the way, or the day ends within minutes
  UpstreamFailed      502  the replica's or provider's fault
    Unreachable       502  no connection to it
    UpstreamSilent    504  nothing came in time; not tried again, as it may be busy with just this
  NotContinued        502  a stream broke off, and another replica refuses to go on with it
  NoReplica           503  the deployment exists, nothing of it is ready
  LedgerUnwritable    503  nothing is served that cannot be billed
  LedgerUnreadable    503  what was used cannot be told
  RegistryUnreadable  503  nobody can tell whether the key is a good one
  Bug                 500  ours
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

if TYPE_CHECKING:
    from gateway.surface import Dialect

RETRY_LIMIT_S = 120  # SDKs that are told to wait longer give up instead
JSON = "application/json"


class GatewayError(Exception):
    """`status` and `type` are OpenAI's; `retry_after` is in seconds, None when waiting does not help.

    `should_retry` is what SDKs are told; None leaves them their own rule, which is to try again after 408, 409, 429
    and everything from 500.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None
    should_retry: bool | None = None


class BadRequest(GatewayError):
    status = 400
    type = "invalid_request_error"
    should_retry = False

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class WrongKey(GatewayError):
    status = 401
    type = "invalid_request_error"
    should_retry = False
    code = "invalid_api_key"


class UnknownModel(GatewayError):
    status = 404
    type = "invalid_request_error"
    should_retry = False
    code = "model_not_found"
    param = "model"


class ModelNotAllowed(GatewayError):
    status = 403
    type = "invalid_request_error"
    should_retry = False
    code = "model_not_allowed"
    param = "model"


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"
    should_retry = False


class BodyTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"
    should_retry = False


class RequestTimeout(GatewayError):
    """The client did not send its request in time."""

    status = 408
    type = "invalid_request_error"
    should_retry = True


class HeadersTooLarge(GatewayError):
    status = 431
    type = "invalid_request_error"
    should_retry = False


class Bug(GatewayError):
    """Ours; the log has its traceback."""

    def __init__(self) -> None:
        super().__init__("the gateway has a bug; its log says where")


class Refused(GatewayError):
    """A status of no other error: aiohttp's of a wrong method, say, an engine's once comments have gone out, or 403."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        self.type = "invalid_request_error" if status < 500 else "server_error"
        self.should_retry = False if status < 500 else None


class TooManyRequests(GatewayError):
    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: int | None, kind: str = "requests") -> None:
        super().__init__(message)
        self.type = kind  # what there are too many of, as OpenAI says it: "requests" or "tokens"
        self.retry_after = retry_after
        self.should_retry = retry_after is not None


class QueueFull(GatewayError):
    status = 429
    type = "requests"
    code = "deployment_overloaded"
    should_retry = True

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
    should_retry: bool | None = True


class Unreachable(UpstreamFailed):
    """No connection: the port refuses, or what listens there is not the replica."""


class UpstreamSilent(UpstreamFailed):
    """Nothing came for too long. Another replica would only do the same work again, as long and unbilled."""

    status = 504
    code = "upstream_silent"
    should_retry = None


class NotContinued(GatewayError):
    """An engine's refusal, which says nothing about its replica."""

    status = 502
    code = "upstream_failed"
    should_retry = True


class NoReplica(GatewayError):
    status = 503
    code = "no_ready_replica"
    should_retry = True
    retry_after: int | None = 5


class LedgerUnwritable(GatewayError):
    status = 503
    code = "ledger_unwritable"
    should_retry = True
    retry_after = 5

    def __init__(self, why: str) -> None:
        super().__init__(f"usage cannot be recorded, so nothing is served: {why}")


class LedgerUnreadable(GatewayError):
    status = 503
    code = "ledger_unreadable"
    should_retry = True
    retry_after = 5


class RegistryUnreadable(GatewayError):
    status = 503
    code = "registry_unreadable"
    should_retry = True
    retry_after = 5


def shape(error: GatewayError, request_id: str | None = None) -> dict[str, Any]:
    """OpenAI's. `request_id` where no header can name the request any more."""
    named = {} if request_id is None else {"request_id": request_id}
    return {"error": {"message": str(error), "type": error.type, "param": error.param, "code": error.code, **named}}


def raw(
    error: GatewayError, dialect: Dialect | None = None, request_id: str | None = None
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body; OpenAI's without a `dialect`."""
    headers = [("content-type", JSON)]
    if error.retry_after is not None:
        seconds = min(max(error.retry_after, 0), RETRY_LIMIT_S)
        headers.append(("retry-after", str(math.ceil(seconds))))
        headers.append(("retry-after-ms", str(math.ceil(seconds * 1000))))
    if error.should_retry is not None:
        headers.append(("x-should-retry", "true" if error.should_retry else "false"))
    if error.status == 401:
        headers.append(("www-authenticate", "Bearer"))
    if dialect is None:
        return error.status, headers, orjson.dumps(shape(error))
    return dialect.status(error), headers, orjson.dumps(dialect.body(error, request_id))


def response(error: GatewayError, dialect: Dialect | None = None) -> web.Response:
    """The same for aiohttp."""
    status, headers, body = raw(error, dialect)
    return web.Response(body=body, status=status, headers=dict(headers))


def event(error: GatewayError, dialect: Dialect | None = None, request_id: str | None = None) -> bytes:
    """The error as a server-sent event: the last one of a stream that broke off."""
    if dialect is not None:
        return dialect.event(error, request_id)
    return b"data: " + orjson.dumps(shape(error, request_id)) + b"\n\n"
