"""Wait for a condition instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], timeout: float = 30, every: float = 0.1) -> T:
    """The first true value of the condition. Fails, with the last value, when none came within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still {value!r} after {timeout:g} s"
        time.sleep(every)
    return value


async def eventually(condition: Callable[[], Awaitable[T | None]], timeout: float = 30, every: float = 0.05) -> T:
    """The same for a condition that is awaited."""
    deadline = time.monotonic() + timeout
    while not (value := await condition()):
        assert time.monotonic() < deadline, f"still {value!r} after {timeout:g} s"
        await asyncio.sleep(every)
    return value
