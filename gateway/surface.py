"""What one route of the API is: how its body is read, how its answers are counted, how its errors look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.calls import Call, Kind
from gateway.errors import GatewayError
from gateway.metering import Meter, StreamMeter
from gateway.rate_headers import Headers, Left


class Dialect(Protocol):
    """What the SDKs of one provider expect around an answer. `request_id` is what the answer's header says."""

    def status(self, error: GatewayError) -> int:
        """The HTTP status."""

    def body(self, error: GatewayError, request_id: str | None = None) -> dict[str, Any]:
        """The error object, as JSON."""

    def event(self, error: GatewayError, request_id: str | None = None) -> bytes:
        """The error as the last server-sent event of a stream that broke off."""

    def refusal(self, status: int, answer: bytes, request_id: str | None = None) -> bytes:
        """An engine's own refusal of a request, in this shape; as it came where it has it."""

    def headers(self, requests: Left | None, tokens: Left | None, now: float) -> Headers:
        """What is left of the caller's limits; `now` is in Unix seconds."""


@dataclass(frozen=True, slots=True)
class Surface:
    kind: Kind  # what the ledger calls it
    path: str  # where clients call it, and engines serve it
    read: Callable[[bytes], Call]  # raises BadRequest
    meter: Callable[[Call], Meter]  # of a whole answer
    stream_meter: Callable[[Call], StreamMeter] | None  # None: this route never streams
    dialect: Dialect
