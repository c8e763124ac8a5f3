"""What one route of the API is: how its body is read, how its answers are counted, how its errors look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.calls import Call, Kind
from gateway.errors import GatewayError
from gateway.metering import Meter, StreamMeter


class Dialect(Protocol):
    """What the SDKs of one provider expect around an answer."""

    def body(self, error: GatewayError) -> dict[str, Any]:
        """The error object, as JSON."""

    def event(self, error: GatewayError) -> bytes:
        """The error as the last server-sent event of a stream that broke off."""

    def headers(self, limits: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What is left of the caller's limits."""


@dataclass(frozen=True, slots=True)
class Surface:
    kind: Kind  # what the ledger calls it
    path: str  # where clients call it, and engines serve it
    read: Callable[[bytes], Call]  # raises BadRequest
    meter: Callable[[Call], Meter]  # of a whole answer
    stream_meter: Callable[[Call], StreamMeter] | None  # None: this route never streams
    dialect: Dialect
