"""Times as the registry writes them."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> str:
    return text(datetime.now(UTC))


def text(at: datetime) -> str:
    # Not strftime: its years before 1000 lack digits, so that neither parse() nor an order of texts would hold.
    return f"{at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def parse(value: str) -> datetime:
    return datetime.fromisoformat(value)


class Stamps:
    """text() for a hot path: what is above the second is formatted once a second. For one thread."""

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def text(self, ns: int) -> str:
        """`ns`: wall clock, since 1970."""
        second, rest = divmod(ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return f"{self._prefix}{rest // 1000:06d}Z"
