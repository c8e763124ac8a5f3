"""What the ledger costs: a hold before each request, its settlement after it, the journal, and the projection of both.

    make bench-ledger

Everything on one core. The first figure is how many pairs of hold and settlement a second go the whole way, from
`LedgerWriter.hold` to committed rows of `ledger.db`; its peer is bare sqlite3 writing the very same rows in batches of
100 pairs with synchronous=FULL, which journals nothing. The second is the CPU that a bill adds to a request, at a
steady 5,000 requests a second and 32 in flight: event loop, flushes and projection together. The third is the event
loop's part of it. The last are how long a request waits for its hold: from `hold` until it is journaled and the request
may be dispatched, at the same pace, beside the same turn of the loop without a ledger.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import uvloop

from benchmarks.figures import interleaved, show
from gateway import calls
from gateway.admission import Admission
from gateway.billing import Bill, Billing
from gateway.calls import Kind
from gateway.ledger_writer import LedgerWriter
from gateway.metering import Meter, Usage
from registry import ledger
from registry.db import open_reader
from registry.keys import LiveKey, Scope
from registry.ledger import Attempt, Hold, Outcome, UsageEvent, Used
from registry.projection import CHECKPOINT_PAGES
from registry.site import Price
from registry.tenants import Tenant

PAIRS = 50_000
IN_FLIGHT = 32
RATE = 5000  # requests a second of the gateway
SECONDS = 4.0
BATCH = 100  # pairs in a transaction of the peer
AT = "2026-01-01T12:00:00.000000Z"
CALLER = LiveKey("key-0123456789ab", Tenant("physics", "root", None, ""), frozenset({Scope.INFERENCE}), "ada")
CALL = calls.read(Kind.CHAT, b'{"model":"llama-3-8b","messages":[{"role":"user","content":"x"}],"max_tokens":50}')


def attempt() -> Attempt:
    request = ledger.mint(time.time_ns())
    return Attempt(f"{request}:1", "physics", CALLER.id, CALL.model, "replica-0123456789ab", "chat", AT, "ada")


async def ours(directory: Path) -> None:
    """From hold to committed rows."""
    writer = LedgerWriter(directory / "ledger.db", asyncio.get_running_loop())
    for _ in range(PAIRS // IN_FLIGHT):
        turn = [attempt() for _ in range(IN_FLIGHT)]
        for one in turn:
            writer.hold(Hold(one, 60, 110))
        for one in turn:
            writer.record(UsageEvent(one, 10, 20, 50, Outcome.COMPLETED, AT))
        await asyncio.sleep(0)
    await writer.close()


def sqlite(directory: Path) -> None:
    """The rows that ours leaves, without a journal, a check or a thread."""
    ledger.open_ledger(directory / "ledger.db").close()  # the same tables
    with closing(sqlite3.connect(directory / "ledger.db", isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        for _ in range(PAIRS // BATCH):
            turn = [attempt() for _ in range(BATCH)]
            db.execute("BEGIN")
            entries = [
                (a.event_id, step, "physics", *amounts, AT)
                for a in turn
                for step, *amounts in (("hold", -110, 110, 0), ("settle", 60, -110, 50))
            ]
            db.executemany(
                "INSERT INTO entries (event_id, step, tenant, available, held, consumed, at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                entries,
            )
            db.executemany(
                f"INSERT INTO usage_events VALUES ({','.join('?' * 15)})",
                [(*a, 10, 20, 50, "completed", AT, 0, 0) for a in turn],
            )
            db.execute("COMMIT")


async def requests(directory: Path, billed: bool) -> float:
    """What a gateway does around its requests, at its pace: with a bill each, or without. The loop's CPU, in s."""
    writer = LedgerWriter(directory / "ledger.db", asyncio.get_running_loop())
    billing = Billing(writer, {"default": Price(prompt=1, completion=2)})
    admission = Admission(Used({}, {}), time.monotonic)
    began, used = time.monotonic(), time.thread_time()
    for turn in range(int(RATE * SECONDS) // IN_FLIGHT):
        await asyncio.sleep(max(0.0, began + turn * IN_FLIGHT / RATE - time.monotonic()))
        running: list[tuple[Bill | nullcontext[None], Meter]] = []
        for _ in range(IN_FLIGHT):
            meter = Meter(CALL)
            hold = admission.admit(CALLER, CALL.model, CALL.tokens, 0)
            bill = billing.attempt(CALLER, CALL, "replica-0123456789ab", hold, meter) if billed else nullcontext()
            bill.__enter__()
            running.append((bill, meter))
        for bill, meter in running:
            meter.count(Usage(10, 20))
            if isinstance(bill, Bill):
                bill.outcome = Outcome.COMPLETED
            bill.__exit__(None, None, None)
    used = time.thread_time() - used
    await writer.close()
    return used


async def waits(directory: Path, billed: bool) -> list[float]:
    """How long each request waited, in s: for its hold and, without a ledger, for the end of the turn of the loop."""
    loop = asyncio.get_running_loop()
    writer = LedgerWriter(directory / "ledger.db", loop)
    found: list[float] = []
    began = time.monotonic()

    def request() -> None:
        arrived = time.perf_counter()
        one = attempt()

        def go() -> None:
            found.append(time.perf_counter() - arrived)
            if billed:
                writer.record(UsageEvent(one, 10, 20, 50, Outcome.COMPLETED, AT))

        if billed:
            writer.hold(Hold(one, 60, 110))
            writer.when_journaled(go, lambda failure: None)
        else:
            loop.call_soon(go)

    for turn in range(int(RATE * SECONDS) // IN_FLIGHT):
        await asyncio.sleep(max(0.0, began + turn * IN_FLIGHT / RATE - time.monotonic()))
        for _ in range(IN_FLIGHT):
            request()
    while len(found) < int(RATE * SECONDS) // IN_FLIGHT * IN_FLIGHT:
        await asyncio.sleep(0)
    await writer.close()
    return found


def in_a_directory(work: Callable[[Path], object], pairs: int) -> Callable[[], None]:
    def run() -> None:
        directory = Path(tempfile.mkdtemp(prefix="headgate-ledger-", dir=os.environ.get("TMPDIR", "/tmp")))
        try:
            work(directory)
            with closing(open_reader(directory / "ledger.db")) as db:
                (events,) = db.conn.execute("SELECT count(*) FROM usage_events").fetchone()
                assert (events, ledger.open_holds(db)) == (pairs, 0)
        finally:
            shutil.rmtree(directory)

    return run


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    whole = PAIRS // IN_FLIGHT * IN_FLIGHT
    costs = interleaved(
        {
            "ours": in_a_directory(lambda d: uvloop.run(ours(d)), whole),
            "sqlite": in_a_directory(sqlite, PAIRS // BATCH * BATCH),
        },
        rounds=5,
    )
    peer = f"sqlite3, the same rows in batches of {BATCH}, synchronous=FULL"
    show("hold + settle, end to end", whole / costs["ours"].wall_s, "1/s", peer, PAIRS / costs["sqlite"].wall_s)
    show("the same, a second of CPU", whole / costs["ours"].cpu_s, "1/s", peer, PAIRS / costs["sqlite"].cpu_s)
    number = int(RATE * SECONDS) // IN_FLIGHT * IN_FLIGHT
    loop_s: dict[bool, list[float]] = {True: [], False: []}
    costs = interleaved(
        {
            "billed": in_a_directory(lambda d: loop_s[True].append(uvloop.run(requests(d, True))), number),
            "free": in_a_directory(lambda d: loop_s[False].append(uvloop.run(requests(d, False))), 0),
        },
        rounds=3,
    )
    added = (costs["billed"].cpu_s - costs["free"].cpu_s) / number
    show(f"CPU that a bill adds to a request, {IN_FLIGHT} in flight, {RATE} a second", added * 1e6, "us")
    on_the_loop = (min(loop_s[True][1:]) - min(loop_s[False][1:])) / number
    show("of it on the event loop's thread", on_the_loop * 1e6, "us")
    wait_s: dict[bool, list[float]] = {True: [], False: []}
    interleaved(
        {
            "billed": in_a_directory(lambda d: wait_s[True].extend(uvloop.run(waits(d, True))), number),
            "free": in_a_directory(lambda d: wait_s[False].extend(uvloop.run(waits(d, False))), 0),
        },
        rounds=3,
    )
    cuts = {billed: statistics.quantiles(found, n=100) for billed, found in wait_s.items()}
    for percent in (50, 99):
        waited = {billed: found[percent - 1] * 1e6 for billed, found in cuts.items()}
        figure = f"wait of a request for its hold, p{percent}, {IN_FLIGHT} at once, {RATE} a second"
        show(figure, waited[True], "us", "the same turn of the loop without a ledger", waited[False])


if __name__ == "__main__":
    main()
