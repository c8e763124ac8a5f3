"""The thread that writes the ledger: what it refuses, and what happens when it dies."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from gateway_fixtures import ROOT, prepared, site_at

from gateway.errors import BadRequest
from gateway.ledger_writer import DIED, LedgerWriter
from registry import ledger


def hold(event_id: str, tokens: int) -> ledger.Hold:
    return ledger.Hold(ledger.Attempt(event_id, "physics", "key-1", "tiny", "replica-1", "chat", ""), tokens, tokens)


async def test_an_amount_that_cannot_be_one_fails_its_own_request_only(tmp_path: Path) -> None:
    writer = LedgerWriter(ledger.open_ledger(tmp_path / "ledger.db"), asyncio.get_running_loop(), died=pytest.fail)
    for absurd in (2**53 + 1, 2**63, 10**30, -1):
        holds = [writer.hold(hold(f"bad-{absurd}", absurd)), writer.hold(hold(f"good-{absurd}", 5))]
        bad, good = await asyncio.gather(*holds, return_exceptions=True)
        assert isinstance(bad, BadRequest) and str(absurd) in str(bad)
        assert good is None
    writer.record(ledger.Note("good--1", 2**64, 1, 1))  # an engine may count nonsense
    await writer.hold(hold("last", 5))
    assert writer.failure is None
    await writer.close()


async def test_a_gateway_whose_writer_dies_ends_so_that_it_can_be_started_again(tmp_path: Path) -> None:
    prepared(site_at(tmp_path)).registry.close()
    program = f"""
from pathlib import Path
from gateway import ledger_writer, serve
from registry.site import Gateway, Scheduler, Site

here = Path({str(tmp_path)!r})
ledger_writer.LedgerWriter._take = lambda self, waiting: 1 / 0
local = Scheduler(kind="local")
serve.run(Site(name="test", state_dir=here, shared_dir=here, gateway=Gateway(port=0), scheduler=local))
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        _, said = await process.communicate()
    assert process.returncode == DIED, said.decode()
    assert b"ZeroDivisionError" in said and b"the process ends" in said
