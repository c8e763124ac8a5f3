"""What the clients' connections need of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.errors import GatewayError
from gateway.request import Request

if TYPE_CHECKING:
    from gateway.front import Front


@dataclass(frozen=True, slots=True)
class Backing:
    """What a Front needs of the gateway. `admit` sees a hot request's head, before a byte of its body is read."""

    hot: frozenset[str]
    admit: Callable[[Request], Any]  # raises GatewayError
    answer: Callable[[Front], Coroutine[Any, Any, None]]
    refuse: Callable[[Front, GatewayError], None]
    cold: Callable[[], asyncio.Protocol]  # aiohttp's
    max_body: int  # bytes
    request_timeout: float  # seconds
    client_timeout: float
