"""Errors and limits in OpenAI's words and in Anthropic's."""

from __future__ import annotations

from typing import Any

import orjson

from gateway import errors, rate_headers
from gateway.errors import GatewayError
from gateway.rate_headers import Headers, Left

OVERLOADED = 529  # Anthropic's own: what others answer 503 for
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


class OpenAI:
    def status(self, error: GatewayError) -> int:
        return error.status

    def body(self, error: GatewayError, request_id: str | None = None) -> dict[str, Any]:
        return errors.shape(error)

    def event(self, error: GatewayError, request_id: str | None = None) -> bytes:
        return errors.event(error, request_id=request_id)

    def refusal(self, status: int, answer: bytes, request_id: str | None = None) -> bytes:
        return answer

    def headers(self, requests: Left | None, tokens: Left | None, now: float) -> Headers:
        return rate_headers.openai(requests, tokens)


class Responses(OpenAI):
    def event(self, error: GatewayError, request_id: str | None = None) -> bytes:
        """The SDKs raise what has an `error`; who reads the events by hand finds the API's own `type` and `message`."""
        own = {"type": "error", "code": error.code, "message": str(error), "param": error.param}
        return b"event: error\ndata: " + orjson.dumps({**own, **errors.shape(error, request_id)}) + b"\n\n"


class Anthropic:
    def status(self, error: GatewayError) -> int:
        return OVERLOADED if error.status == 503 else error.status

    def body(self, error: GatewayError, request_id: str | None = None) -> dict[str, Any]:
        return _anthropic(self.status(error), str(error), request_id)

    def event(self, error: GatewayError, request_id: str | None = None) -> bytes:
        return b"event: error\ndata: " + orjson.dumps(self.body(error, request_id)) + b"\n\n"

    def refusal(self, status: int, answer: bytes, request_id: str | None = None) -> bytes:
        """vLLM answers /v1/messages in Anthropic's shape with types of its own, and in OpenAI's shape elsewhere."""
        return orjson.dumps(_anthropic(status, _message(answer), request_id))

    def headers(self, requests: Left | None, tokens: Left | None, now: float) -> Headers:
        return rate_headers.anthropic(requests, tokens, now)


OPENAI = OpenAI()
RESPONSES = Responses()
ANTHROPIC = Anthropic()


def _anthropic(status: int, message: str, request_id: str | None) -> dict[str, Any]:
    kind = ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def _message(answer: bytes) -> str:
    """What an engine says in whatever shape."""
    try:
        said = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return answer.decode(errors="replace")
    error = said.get("error", said) if isinstance(said, dict) else said
    found = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return found if isinstance(found, str) else answer.decode(errors="replace")
