"""The share of the calls that a revision on trial may be given, in percent: some, and not all."""

from __future__ import annotations

LEAST, MOST = 1, 99


def checked(percent: int | None) -> int | None:
    """The same one; None: its share of the replicas. Raises ValueError."""
    if percent is not None and not LEAST <= percent <= MOST:
        raise ValueError(f"canary: must be {LEAST} ... {MOST} (percent of the calls), not {percent}")
    return percent
