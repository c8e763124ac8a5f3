"""From a dispatched attempt to its one entry in the ledger, however the attempt ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from types import TracebackType

from gateway.admission import Hold
from gateway.calls import Call
from gateway.errors import LedgerUnwritable
from gateway.ledger_writer import LedgerWriter
from gateway.metering import Meter, Usage
from gateway.passed_on import PassedOn
from registry import ledger
from registry.clock import Stamps
from registry.keys import LiveKey
from registry.ledger import Attempt, Note, Outcome, Release, UsageEvent
from registry.prices import PriceBook, TokenPrice, Version
from registry.steps import mint

log = logging.getLogger(__name__)

NOTE_S = 0.2  # between two running counts of a stream: a killed gateway must not fail to bill more than 250 ms of it
SLICES = 25  # in which all streams are looked at meanwhile, or thousands of them would hold up the loop


class Bill:
    """One attempt, from its hold to its end: a context manager around it.

    `outcome` is set by whoever sees the attempt end; an attempt left without one used nothing. `microcredits` is what
    it cost, once it is over.
    """

    __slots__ = (
        "_among",
        "_billing",
        "_call",
        "_failed_before",
        "_hold",
        "_noted",
        "_over",
        "_owed",
        "_price",
        "attempt",
        "meter",
        "microcredits",
        "outcome",
        "passed_on",
    )

    def __init__(
        self, billing: Billing, attempt: Attempt, call: Call, hold: Hold | None, meter: Meter, price: TokenPrice | None
    ) -> None:
        self._billing = billing
        self._call = call
        self._hold = hold
        self._price = price
        self.attempt = attempt
        self.meter = meter
        self.microcredits = 0
        self._noted: Usage | None = None
        self.outcome: Outcome | None = None
        self.passed_on: PassedOn | None = None  # of a stream
        self._over = False
        self._owed: UsageEvent | None = None  # its settlement, until its client has been sent all

    def __enter__(self) -> Bill:
        """Raises LedgerUnwritable or BadRequest. Nothing may be sent before `when_held`."""
        prompt, completion = self._call.prompt_tokens, self._call.completion_tokens
        billing = self._billing
        self._failed_before = billing.writer.failed_writes
        billing.writer.hold(
            ledger.Hold(self.attempt, prompt + completion, ledger.cost(self._price, prompt, completion))
        )
        self._among = next(billing.slices)
        self._among[self.attempt.event_id] = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self._over:
            self._close()
        self.pay_when_sent()

    def settle(self, last: int = 0) -> None:
        """The attempt is completed: that is journaled now, before the client hears of it, so that what ended is billed
        also if the process is killed in this moment. Not so where the `last` bytes of a stream might have to wait for
        the client, which may then never get them."""
        self.outcome = Outcome.COMPLETED
        if not self._over:
            self._close()
            if self.passed_on is None or self.passed_on.client.takes(last):
                self._pay_now()

    @property
    def unwritten(self) -> str | None:
        """Why what was settled is not in the journal yet; None if it is."""
        return self._billing.writer.unwritten

    def pay_when_sent(self) -> None:
        """Journal what is owed once its client was sent all; until then a running count. Now, if it was cut off."""
        if self._owed is None:
            return
        if self.passed_on is None or self.outcome is not Outcome.COMPLETED or self._billing.stopping:
            self.pay()
            return
        self.note()
        self.passed_on.client.when_sent(self._pay_now)

    def note(self) -> None:
        """Journal what is to be billed should the process be killed from now on, if it has changed."""
        usage = self._passed_on()
        if usage is not None and usage != self._noted:
            self._noted = usage
            prompt, completion = usage.prompt_tokens, usage.completion_tokens
            cached, reasoning = usage.cached_tokens, usage.reasoning_tokens
            event_id = self.attempt.event_id
            self._billing.writer.record(Note(event_id, prompt, completion, self.cost(usage), cached, reasoning))

    def _pay_now(self) -> None:
        self.pay()
        self._billing.writer.flush()

    def pay(self) -> None:
        """Journal the settlement that is owed, if one is."""
        owed, self._owed = self._owed, None
        if owed is not None:
            del self._among[self.attempt.event_id]
            self._billing.writer.record(owed)

    def _passed_on(self) -> Usage | None:
        counted = self.meter.usage
        return counted if self.passed_on is None else self.passed_on.of(counted)

    def _close(self) -> None:
        self._over = True
        billing = self._billing
        attempt = self.attempt
        usage = self._usage()
        if usage is None or self.outcome is None:
            del self._among[attempt.event_id]
            billing.writer.record(Release(attempt.event_id))
            return
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        cached, reasoning = usage.cached_tokens, usage.reasoning_tokens
        self.microcredits = cost = self.cost(usage)
        if again := self.meter.repeated_tokens:
            billing.repeated(attempt.replica, again)
        if self._hold is not None:
            self._hold.used += prompt + completion
            self._hold.paid += cost
        self._owed = UsageEvent(attempt, prompt, completion, cost, self.outcome, billing.stamp(), cached, reasoning)

    def when_held(self, then: Callable[[], object], failed: Callable[[LedgerUnwritable], object]) -> None:
        """Dispatch in `then`: the hold is journaled by now."""
        writer = self._billing.writer
        if writer.failed_writes != self._failed_before:  # while a connection was made: the hold may have been lost
            failed(LedgerUnwritable(writer.failure or "the journal could not be written"))
        else:
            writer.when_journaled(then, failed)

    def cost(self, usage: Usage) -> int:
        """Micro-credits."""
        return ledger.cost(self._price, usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

    def _usage(self) -> Usage | None:
        """What is to be billed; None for nothing at all."""
        if self.outcome is None:
            return None
        if self.outcome is Outcome.CLIENT_LEFT:
            self.meter.left()
        usage = self.meter.usage
        if usage is None and self.outcome is Outcome.COMPLETED:
            log.error("event %s: the answer states no usage, so it is billed as held", self.attempt.event_id)
            return Usage(self._call.prompt_tokens, self._call.completion_tokens)
        return usage


class Billing:
    """`prices` are those of models by name, where no version is in force (`priced`); what changes in them counts.

    `now` is the wall clock, in nanoseconds since 1970. `repeated` is told tokens (of a replica, how many) that its
    engine counts and no event has.
    """

    def __init__(
        self,
        writer: LedgerWriter,
        prices: Mapping[str, TokenPrice],
        now: Callable[[], int] = time.time_ns,
        repeated: Callable[[str, int], None] = lambda replica, tokens: None,
    ) -> None:
        self.writer = writer
        self.repeated = repeated
        self.running: list[dict[str, Bill]] = [{} for _ in range(SLICES)]  # by event id
        self.slices = cycle(self.running)  # for those that begin
        self.stopping = False  # the process is ending: what is cut off now is cut off by us
        self._prices = prices
        self._book = PriceBook((), prices)
        self._now = now
        self._stamps = Stamps()

    def request_id(self) -> str:
        """A new request's. Its attempts are events of that name, with a colon and a number from 1 behind it."""
        return mint(self._now())

    def attempt(
        self,
        caller: LiveKey,
        call: Call,
        replica: str,
        hold: Hold | None,
        meter: Meter,
        deployment: str = "",
        event_id: str | None = None,
    ) -> Bill:
        """The bill of an attempt that is about to begin; entering it holds, leaving it settles or releases.

        `hold`: what its caller's limits have set aside; None for Headgate itself, which has none. A LoRA adapter
        without a price of its own costs what its `deployment` does. `event_id`: None for a request's only attempt.
        """
        attempt = Attempt(
            event_id or f"{self.request_id()}:1",
            caller.tenant.name,
            caller.counts_as,
            call.model,
            replica,
            call.kind,
            self.stamp(),
            caller.user,
        )
        price = self._book.of_model(call.model, deployment, attempt.started_at)
        return Bill(self, attempt, call, hold, meter, price)

    def priced(self, versions: Sequence[Version]) -> None:
        """What the registry says now; an attempt costs what was in force when it began."""
        self._book = PriceBook(versions, self._prices)

    def estimate(self, call: Call, model: str, deployment: str) -> int:
        """Micro-credits that a call of a model costs at most, as far as its tokens are known."""
        price = self._book.of_model(model, deployment, self.stamp())
        return ledger.cost(price, call.prompt_tokens, call.completion_tokens)

    def stamp(self) -> str:
        return self._stamps.text(self._now())

    async def note_running(self) -> None:
        """Journals the running counts that changed, until cancelled; then what streams that are over owe."""
        try:
            loop = asyncio.get_running_loop()
            due = loop.time()
            for bills in cycle(self.running):
                due = max(due + NOTE_S / SLICES, loop.time() - NOTE_S)  # what was missed by far is not made up for
                await asyncio.sleep(due - loop.time())
                for bill in list(bills.values()):
                    bill.note()
        finally:
            for bills in self.running:
                for bill in list(bills.values()):
                    bill.pay()
