"""Half an hour of everything at once, on a gateway whose replicas are killed, drained and hung at random.

    make bench-soak [ARGS="--minutes 5 --seed 7"]

Streams, whole answers, slow readers and clients that leave, of several tenants, go through `python -m gateway` to four
scripted engines. Every answer is checked word by word; every failure that a client saw is held against what was done to
the replicas at that time, and the table on stderr says how many had which cause. At the end the gateway is stopped, and
its ledger must be sound, hold nothing, and have every answered request once, with the tokens that its engine made.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import show
from benchmarks.gateway_parts import HERE, answers, free_ports
from benchmarks.gateway_routers import environ
from benchmarks.soak_causes import Begun, Incident, Saw, Seen, cause, slope, table
from benchmarks.soak_clients import Clients, plans
from benchmarks.soak_engine import PROMPT_BASE
from benchmarks.soak_replicas import Replicas
from registry import keys, ledger, migrations, tenants
from registry.db import Database, open_reader, open_writer
from registry.ledger import Outcome, UsageEvent
from registry.limits import Limits

TENANTS = ("physics", "chemistry", "biology")
LIMITED, ITS_LIMIT = "astronomy", 20  # requests a minute
LEFT = "the client left, as it meant to"
CONCURRENCY = 32
SAMPLE_S = 2.0
WARM_UP = 1 / 3  # of the time, before memory counts
STOP_S = 60.0
SETTINGS = """connect_timeout = "2s"
first_byte_timeout = "10s"
read_timeout = "10s"
"""  # shorter than a site's, so that half an hour sees many of them


@dataclass(frozen=True, slots=True)
class Books:
    """What the ledger says once the gateway is gone."""

    wrong: list[str]
    holds: int
    events: list[UsageEvent]


@dataclass(frozen=True, slots=True)
class Soak:
    seen: list[Seen]
    begun: Mapping[int, list[Begun]]
    made: Mapping[int, int]  # tokens, by request, of those that an engine answered to the end
    incidents: list[Incident]
    memory: list[tuple[float, float]]  # hours since the start, MiB
    books: Books


async def soak(seconds: float, seed: int, folder: Path) -> Soak:
    registry = open_writer(folder / "registry.db", migrations.MIGRATIONS)
    key_by = {name: key_of(folder, registry, name) for name in TENANTS} | {
        LIMITED: key_of(folder, registry, LIMITED, ITS_LIMIT)
    }
    replicas = Replicas(registry, folder, random.Random(seed))
    memory: list[tuple[float, float]] = []
    try:
        await replicas.start()
        async with gateway(folder) as (process, url):
            clients = Clients(url, key_by, plans(random.Random(seed + 1), list(TENANTS), LIMITED))
            watching = asyncio.create_task(watch(process.pid, memory))
            await asyncio.gather(replicas.trouble(seconds), clients.run(CONCURRENCY, seconds))
            watching.cancel()
            process.terminate()
            async with asyncio.timeout(STOP_S):
                await process.wait()
    finally:
        await replicas.stop()
        registry.close()
    reader = open_reader(folder / "ledger.db")
    with contextlib.closing(reader):
        books = Books(ledger.check(reader), ledger.open_holds(reader), ledger.usage_events(reader))
    return Soak(clients.seen, replicas.begun(), replicas.made(), replicas.incidents, memory, books)


def key_of(folder: Path, registry: Database, tenant: str, requests_per_minute: int = 10**9) -> str:
    tenants.create(
        registry, tenant, "root", limited=Limits(requests_per_minute=requests_per_minute, token_budget=10**15)
    )
    return keys.create(registry, keys.secret_for(registry, folder / "key.secret"), tenant, "root")[1]


@contextlib.asynccontextmanager
async def gateway(folder: Path, port: int | None = None) -> AsyncIterator[tuple[Process, str]]:
    """A gateway process with its URL, once it is ready; killed at the end if it runs."""
    port = port or free_ports(1)
    site = folder / "site.toml"
    site.write_text(
        f'name = "soak"\nstate_dir = "{folder}"\nshared_dir = "{folder}"\n[scheduler]\nkind = "local"\n'
        f"[prices.default]\nprompt = 1\ncompletion = 2\n[gateway]\nport = {port}\n{SETTINGS}"
    )
    with (folder / "gateway.log").open("ab") as log:
        words = [sys.executable, "-m", "gateway", str(site)]
        process = await asyncio.create_subprocess_exec(*words, cwd=HERE.parent, env=environ(), stderr=log)
    try:
        async with asyncio.timeout(STOP_S):
            while not await asyncio.to_thread(answers, port, "/ready"):
                await asyncio.sleep(0.05)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def watch(pid: int, memory: list[tuple[float, float]]) -> None:
    """Resident memory, every SAMPLE_S."""
    page_mib = os.sysconf("SC_PAGE_SIZE") / 2**20
    began = time.monotonic()
    while True:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        memory.append(((time.monotonic() - began) / 3600, pages * page_mib))
        await asyncio.sleep(SAMPLE_S)


def judged(result: Soak) -> tuple[Counter[str], list[Seen]]:
    """How requests ended, and those that nothing explains."""
    counts: Counter[str] = Counter()
    unexplained = []
    for seen in result.seen:
        attempts = result.begun.get(seen.nonce, [])
        if seen.saw is Saw.WHOLE:
            counts["whole, from another replica than the first" if len(attempts) > 1 else "whole"] += 1
        elif seen.saw is Saw.LEFT:
            counts[LEFT] += 1
        elif why := cause(seen, attempts, result.incidents, LIMITED):
            counts[why] += 1
        else:
            counts["UNEXPLAINED"] += 1
            unexplained.append(seen)
    return counts, unexplained


def billed_wrongly(seen: Sequence[Seen], events: Sequence[UsageEvent]) -> list[str]:
    """A request that was answered whole is billed once, with its tokens, whatever else it was tried on; one that was
    refused is not billed; one that was cut off may be, but not as completed. None is billed twice.

    A client that hangs up on [DONE], as SDKs do, may be written down as one that left, with the same tokens.
    """
    billed: dict[int, list[UsageEvent]] = {}
    for event in events:
        billed.setdefault(event.prompt_tokens - PROMPT_BASE, []).append(event)
    wrong = []
    for one in seen:
        its = billed.get(one.nonce, [])
        ended_well = all(event.outcome in (Outcome.COMPLETED, Outcome.CLIENT_LEFT) for event in its)
        if one.saw is Saw.WHOLE and not (ended_well and [event.completion_tokens for event in its] == [one.tokens]):
            wrong.append(f"request {one.nonce}: {one.tokens} tokens came, billed were {its}")
        elif one.saw is Saw.REFUSED and its:
            wrong.append(f"request {one.nonce}: refused, and yet billed: {its}")
        elif one.saw is Saw.CUT and any(event.outcome is Outcome.COMPLETED for event in its):
            wrong.append(f"request {one.nonce}: {one.saw}, and yet billed as completed: {its}")
        elif len(its) > 1:
            wrong.append(f"request {one.nonce}: billed {len(its)} times: {its}")
    return wrong


def shown(result: Soak) -> bool:
    """Print the figures, and on stderr the table; whether all is as it should be."""
    counts, unexplained = judged(result)
    whole = {seen.nonce: seen for seen in result.seen if seen.saw is Saw.WHOLE}
    done = [event for event in result.books.events if event.prompt_tokens - PROMPT_BASE in whole]
    hung_up = sum(event.outcome is Outcome.CLIENT_LEFT for event in done)
    made = sum(result.made.get(nonce, 0) for nonce in whole)
    billed = billed_wrongly(result.seen, result.books.events)
    wrong = [seen for seen in result.seen if seen.saw is Saw.WRONG]
    failed = len(result.seen) - len(whole) - counts[LEFT]
    settled = result.memory[int(len(result.memory) * WARM_UP) :]
    print(table(counts), file=sys.stderr)
    print(table(Counter(f"replicas {i.trouble}" for i in result.incidents)), file=sys.stderr)
    quarters = [result.memory[(len(result.memory) - 1) * n // 4][1] for n in range(5)]
    print(f"memory at each quarter, MiB: {', '.join(f'{mib:.1f}' for mib in quarters)}", file=sys.stderr)
    for line in (*unexplained[:20], *billed[:20], *result.books.wrong[:20]):
        print(line, file=sys.stderr)
    ended_well = sum(event.completion_tokens for event in done)
    show("requests", len(result.seen), "requests")
    show("answered whole", len(whole), "requests")
    show("of these in the ledger as left by the client, who hung up on [DONE]", hung_up, "requests")
    show("troubles: replicas killed, drained or hung", len(result.incidents), "replicas")
    show("failures that clients saw", failed, "requests")
    show("failures that nothing explains", len(unexplained), "requests")
    show("answers with a part missing, doubled or another's", len(wrong), "requests")
    show("billed wrongly", len(billed), "requests")
    show("tokens generated for whole answers, by the ledger", ended_well, "tokens", "by the engines", made)
    show("ledger does not add up", len(result.books.wrong), "findings")
    show("held at the end", result.books.holds, "holds")
    show("memory at the end", result.memory[-1][1], "MiB")
    show("memory's slope after the warm-up", slope(settled), "MiB/h")
    return not (unexplained or wrong or billed or result.books.wrong or result.books.holds or ended_well != made)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-soak", description="Half an hour of everything at once")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="a directory that is not there yet, for the logs and databases")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headgate-soak-")))
        folder.mkdir(parents=True, exist_ok=asked.keep is None)
        result = asyncio.run(soak(asked.minutes * 60, asked.seed, folder.resolve()))
    return 0 if shown(result) else 1


if __name__ == "__main__":
    sys.exit(main())
