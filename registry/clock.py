"""Times as the registry writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    return text(datetime.now(UTC))


def text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse(value: str) -> datetime:
    return datetime.fromisoformat(value)
