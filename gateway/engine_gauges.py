"""What vLLM says of its own load: its /metrics page (Prometheus text), read for the few lines that routing needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gauges:
    running: int
    waiting: int
    kv_usage: float
    at: float


def read(page: bytes, at: float) -> Gauges | None:
    """Pure. Engines of one server are summed, their cache usage averaged; None when the page does not say the load."""
    raise NotImplementedError
