"""One attempt at one upstream: send the request, pass its answer on, know what it used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import orjson

from gateway import relay
from gateway.admission import Hold
from gateway.billing import Bill
from gateway.calls import Call
from gateway.delivery import EVENTS, JSON, Stream
from gateway.errors import RETRY_LIMIT_S, GatewayError, LedgerUnwritable, NotContinued, Refused, UpstreamFailed
from gateway.front import Front, Headers
from gateway.metering import Meter, StreamMeter, Usage
from gateway.passed_on import PassedOn
from gateway.relay import Address, Pool
from gateway.surface import Surface
from gateway.upstream import ConnectionLost, Upstream
from registry.keys import LiveKey
from registry.ledger import Outcome

SHOWN = 500  # bytes of an upstream's error


@dataclass(slots=True)
class Asked:
    """A request on its way: who asked, and what has become of it. Times are the loop's, in seconds."""

    front: Front
    surface: Surface
    caller: LiveKey
    began: float
    request_id: str  # the answer's x-request-id, unless the client named one
    hold: Hold = field(init=False)  # once it is admitted
    served_by: str = ""  # a deployment, or a provider's model
    attempts: int = 0  # so far: the number of the last one's event
    queued_s: float = 0.0
    first_output: float | None = None
    used: Usage | None = None
    outcome: Outcome | None = None
    refused: int | None = None  # the status of an upstream's own refusal, which the client was given
    error: GatewayError | None = None

    @property
    def delivered(self) -> bool:
        """Output has reached the client: nobody else may be asked any more, except for what follows it."""
        return self.first_output is not None


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that each wait for an upstream's next bytes may take."""

    first: float  # of a stream: its place in the engine's queue, and its prefill
    between: float
    whole: float  # an answer that does not stream is silent until it is done


@dataclass(slots=True)  # not frozen, which would double the cost of making one; nothing changes one nevertheless
class Attempt:
    """`headers` go with the answer. `begun` is called as the first output leaves, `spoke` when the engine refuses."""

    asked: Asked
    call: Call
    body: bytes  # as this upstream is to get it
    address: Address
    bill: Bill
    headers: Headers
    patience: Patience
    begun: Callable[[], None]
    spoke: Callable[[], None]


async def ask(pool: Pool, attempt: Attempt) -> None:
    """Answer the client from this upstream. Raises UpstreamFailed; unless `asked.delivered`, another may be tried."""
    asked, call, address, meter = attempt.asked, attempt.call, attempt.address, attempt.bill.meter
    request = relay.request("POST", asked.surface.path, address, attempt.body, attempt.bill.attempt.event_id)
    wait = attempt.patience.first if call.stream else attempt.patience.whole
    fresh = False
    while True:
        upstream = await pool.connection(address, fresh=fresh)
        try:
            upstream.begin(wait)
            attempt.bill.when_held(partial(_send, upstream, request, meter), upstream.fail)
            return await _pass_on(upstream, attempt)
        except ConnectionLost:
            if fresh or upstream.started or not upstream.reused:
                raise
            fresh = True  # it was closed at the other end just as it was taken: that says nothing about the replica
        finally:
            asked.front.source = None
            pool.give_back(address, upstream)


def _send(upstream: Upstream, request: bytes, meter: Meter) -> None:
    if upstream.send(request):
        meter.sent()


async def _pass_on(upstream: Upstream, attempt: Attempt) -> None:
    asked, bill, headers = attempt.asked, attempt.bill, attempt.headers
    meter = bill.meter
    if not isinstance(meter, StreamMeter):
        answer = await upstream.whole()
        if upstream.status >= 400:
            return _refusal(upstream, answer, attempt)
        answer = meter.whole(answer)
        bill.settle()
        if bill.unwritten is not None:  # nobody gets for nothing what may never be billed
            raise LedgerUnwritable(bill.unwritten)
        attempt.begun()
        asked.front.whole(200, [JSON, *headers], answer)
        return
    await upstream.head()
    if upstream.status >= 400:
        return _refusal(upstream, await upstream.whole(), attempt)

    bill.passed_on = PassedOn(asked.front)

    def begun() -> None:
        upstream.patience = attempt.patience.between
        bill.outcome = bill.outcome or Outcome.UPSTREAM_FAILED  # until it ended well
        upstream.spoke = True
        attempt.begun()

    named = [EVENTS, ("cache-control", "no-cache"), *headers]
    stream = Stream(asked.front, meter, upstream, named, begun, telling=bill.settle, told=bill.pay_when_sent)
    upstream.listen(stream.feed)
    await upstream.whole()
    stream.end()
    bill.outcome = Outcome.COMPLETED


def _refusal(upstream: Upstream, answer: bytes, attempt: Attempt) -> None:
    """The engine's own words about a request it will not serve; the hold is released, as nothing was used."""
    # An engine that does not know our key is our fault, and must not read as the client's.
    if upstream.status >= 500 or upstream.status in (401, 403):
        said = answer[:SHOWN].decode(errors="replace")
        raise UpstreamFailed(f"the replica answered {upstream.status}: {said}")
    front, dialect = attempt.asked.front, attempt.asked.surface.dialect
    attempt.spoke()
    if attempt.asked.delivered:
        said = answer[:SHOWN].decode(errors="replace")
        raise NotContinued(f"the stream broke off, and another replica will not go on with it: {said}")
    if front.started:  # with comments, while it waited: too late for a status
        raise Refused(_message(answer), upstream.status)
    attempt.asked.refused = upstream.status
    named = dict(attempt.headers).get("x-request-id")
    made = [JSON, *retry_after(upstream.header(b"retry-after")), *attempt.headers]
    front.whole(upstream.status, made, dialect.refusal(upstream.status, answer, named))


def retry_after(said: bytes | None) -> Headers:
    """What an upstream says, in seconds, but not more than SDKs will wait. Nothing where it names a date."""
    try:
        seconds = float(said or b"nan")
    except ValueError:
        return []
    return [("retry-after", str(math.ceil(min(seconds, RETRY_LIMIT_S))))] if seconds >= 0 else []


def _message(answer: bytes) -> str:
    try:
        said = orjson.loads(answer)
        return str((said.get("error") or said)["message"])
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return answer[:SHOWN].decode(errors="replace")
