"""The tasks that a gateway runs beside its requests."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest

from gateway import app


@pytest.mark.parametrize("turns", range(4))
async def test_looking_at_budgets_ends_when_it_is_told_to_also_just_as_a_limit_appears(turns: int) -> None:
    limited = asyncio.Event()
    looking = asyncio.create_task(app._budgets(mock.Mock(periods=()), mock.Mock(), limited))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    limited.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    looking.cancel()
    await asyncio.wait({looking}, timeout=10)
    assert looking.cancelled()
