"""From a dispatched attempt to its one entry in the ledger, however the attempt ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from gateway.admission import Hold
from gateway.auth import Caller
from gateway.calls import Call
from gateway.ledger_writer import LedgerWriter
from gateway.metering import Meter, Usage
from registry import clock, ledger

log = logging.getLogger(__name__)

NOTE_S = 0.25  # between two running counts: what a killed gateway may fail to bill of a stream


@dataclass(slots=True)
class Bill:
    """`outcome` is set by whoever sees the attempt end; an attempt left without one used nothing."""

    attempt: ledger.Attempt
    meter: Meter
    outcome: ledger.Outcome | None = None
    noted: Usage | None = None


class Billing:
    """`now` is the wall clock."""

    def __init__(self, writer: LedgerWriter, prices: Mapping[str, ledger.Price], now: Callable[[], datetime]) -> None:
        self._writer = writer
        self._prices = prices
        self._now = now
        self._running: dict[str, Bill] = {}
        self.stopping = False  # the process is ending: what is cut off now is cut off by us

    @contextlib.asynccontextmanager
    async def attempt(self, caller: Caller, call: Call, replica: str, hold: Hold, meter: Meter) -> AsyncIterator[Bill]:
        """Hold, run the block, settle or release. Raises LedgerUnwritable before the block: nothing may be sent."""
        at = self._now()
        attempt = ledger.Attempt(
            ledger.mint(at), caller.tenant.name, caller.key_id, call.model, replica, call.kind, clock.text(at)
        )
        bill = Bill(attempt, meter)
        held = ledger.Hold(
            attempt, call.tokens, self._price(call.model, Usage(call.prompt_tokens, call.completion_tokens))
        )
        try:
            await self._writer.hold(held)
        except asyncio.CancelledError:
            # Queued behind the hold, which is written all the same.
            self._writer.record(ledger.Release(attempt.event_id))
            raise
        self._running[attempt.event_id] = bill
        try:
            yield bill
        finally:
            self._running.pop(attempt.event_id, None)
            hold.used += self._close(bill, call)

    async def note_running(self) -> None:
        """Journals the running counts. Runs until cancelled."""
        while True:
            await asyncio.sleep(NOTE_S)
            for event_id, bill in self._running.items():
                usage = bill.meter.usage
                if usage is not None and usage != bill.noted:
                    bill.noted = usage
                    cost = self._price(bill.attempt.model, usage)
                    self._writer.record(ledger.Note(event_id, usage.prompt_tokens, usage.completion_tokens, cost))

    def _close(self, bill: Bill, call: Call) -> int:
        """Settle or release; the tokens billed."""
        if bill.outcome is ledger.Outcome.CLIENT_LEFT:
            bill.meter.left()
        usage = bill.meter.usage if bill.outcome else None
        if usage is None and bill.outcome is ledger.Outcome.COMPLETED:
            log.error("event %s: the answer states no usage, so it is billed as held", bill.attempt.event_id)
            usage = Usage(call.prompt_tokens, call.completion_tokens)
        if usage is None or bill.outcome is None:
            self._writer.record(ledger.Release(bill.attempt.event_id))
            return 0
        cost = self._price(call.model, usage)
        ended = clock.text(self._now())
        event = ledger.UsageEvent(bill.attempt, usage.prompt_tokens, usage.completion_tokens, cost, bill.outcome, ended)
        self._writer.record(event)
        return usage.tokens

    def _price(self, model: str, usage: Usage) -> int:
        return ledger.price(self._prices, model, usage.prompt_tokens, usage.completion_tokens)
