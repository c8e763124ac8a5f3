"""Streams through a gateway that is killed (-9) at random moments and started again; what its ledger says afterwards.

    make bench-crashes [ARGS="--streams 1000 --kills 5 --seed 7"]

Every stream that ended must be billed once and to the token. Every one that a kill cut off must be billed no more than
its client got, and at most 250 ms of tokens less (benchmarks.crash_bounds: how a busy machine is judged). The ledger
must add up and hold nothing. Some clients read slowly, so that much of what the gateway has for them is still in
its own memory when it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.crash_bounds import LOOK_BACK_S, Delivered, Kill, Verdict, judged, silence
from benchmarks.crash_clients import begin
from benchmarks.figures import show
from benchmarks.gateway_parts import ENGINE_KEY, HERE, MODEL, free_ports
from benchmarks.soak import STOP_S, gateway, key_of
from benchmarks.soak_clients import Plan
from benchmarks.soak_replicas import listens
from registry import deployments, ledger, migrations
from registry.db import Database, open_reader, open_writer

TENANT = "physics"
ENGINES = 2
AT_ONCE = 48
SLOW = 0.05  # of the clients
ARRIVALS = 20_000  # remembered: more than a second's
PULSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Series:
    streams: list[Delivered]
    kills: list[Kill]
    restart_s: list[float]  # until the gateway that followed was ready
    verdict: Verdict
    books: list[str]  # what does not add up
    holds: int


def plans(rng: random.Random) -> Iterator[Plan]:
    """Endless; each of a nonce of its own, by which the ledger's events tell them apart."""
    for nonce in itertools.count(1):
        if rng.random() < SLOW:
            tokens = rng.randint(150, 250)  # megabytes: more than the kernel takes
            yield Plan(nonce, TENANT, "/v1/chat/completions", True, tokens, 2, pad=20_000, pause_s=0.02)
        else:
            yield Plan(nonce, TENANT, "/v1/chat/completions", True, rng.randint(5, 60), rng.randint(5, 30))


class Crashes:
    """A row of gateways on one state directory, each killed but the last, and the clients that go on all the while."""

    def __init__(self, folder: Path, key: str, streams: int, kills: int, seed: int) -> None:
        self.streams: list[Delivered] = []
        self.kills: list[Kill] = []
        self.restart_s: list[float] = []
        self._folder = folder
        self._key = key
        self._rng = random.Random(seed)
        self._plans = itertools.islice(plans(random.Random(seed + 1)), streams)
        self._moments = sorted(self._rng.sample(range(streams // 10, streams * 9 // 10), kills))  # in streams begun
        self._port = free_ports(1)
        self._up = asyncio.Event()
        self._begun = 0
        self._arrivals: deque[float] = deque(maxlen=ARRIVALS)
        self._late: deque[float] = deque(maxlen=round(LOOK_BACK_S / PULSE_S))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            pulse = group.create_task(self._pulse())
            clients = [group.create_task(self._one_by_one()) for _ in range(AT_ONCE)]
            for moment in self._moments:
                async with self._gateway() as process:
                    while self._begun < moment:
                        await asyncio.sleep(0.01)
                    await asyncio.sleep(self._rng.uniform(0, 0.3))
                    self._kill(process)
            async with self._gateway() as process:
                await asyncio.gather(*clients)
                process.terminate()
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            pulse.cancel()

    async def _pulse(self) -> None:
        """How late this loop is, again and again. Runs until cancelled."""
        while True:
            due = time.monotonic() + PULSE_S
            await asyncio.sleep(PULSE_S)
            self._late.append(time.monotonic() - due)

    @asynccontextmanager
    async def _gateway(self) -> AsyncIterator[Process]:
        began = time.monotonic()
        async with gateway(self._folder, self._port) as (process, _):
            if self.kills:
                self.restart_s.append(time.monotonic() - began)
            self._up.set()
            yield process

    def _kill(self, process: Process) -> None:
        self._up.clear()
        at = time.monotonic()
        process.kill()
        self.kills.append(Kill(at, silence(self._arrivals, at), max(self._late, default=0.0)))
        self._arrivals.clear()

    async def _one_by_one(self) -> None:
        for plan in self._plans:
            stream = None
            while stream is None:
                await self._up.wait()
                life = len(self.kills)
                with contextlib.suppress(ConnectionRefusedError):  # killed just now: the next one is asked
                    stream = await begin(self._port, self._key, plan, life, self._arrivals)
            self._begun += 1
            self.streams.append(await stream.over())


async def series(folder: Path, streams: int, kills: int, seed: int) -> Series:
    with closing(open_writer(folder / "registry.db", migrations.MIGRATIONS)) as registry:
        async with engines(registry, folder):
            crashes = Crashes(folder, key_of(folder, registry, TENANT), streams, kills, seed)
            await crashes.run()
    with closing(open_reader(folder / "ledger.db")) as db:
        verdict = judged(crashes.streams, crashes.kills, ledger.usage_events(db))
        return Series(
            crashes.streams, crashes.kills, crashes.restart_s, verdict, ledger.check(db), ledger.open_holds(db)
        )


@asynccontextmanager
async def engines(registry: Database, folder: Path) -> AsyncIterator[None]:
    """Scripted ones, ready in the registry, which live through it all."""
    deployments.create(
        registry,
        MODEL,
        "root",
        model=MODEL,
        version=1,
        model_path="/m",
        min_replicas=ENGINES,
        max_replicas=max(ENGINES, 1),
        request={},
        by="root",
        why="served",
    )
    first = free_ports(ENGINES)
    async with AsyncExitStack() as stack:
        for port in range(first, first + ENGINES):
            replica = f"replica-{port}"
            words = [sys.executable, "-m", "benchmarks.soak_engine", str(port), ENGINE_KEY, str(folder / replica)]
            with (folder / f"{replica}.err").open("wb") as errors:
                process = await asyncio.create_subprocess_exec(*words, cwd=HERE.parent, stderr=errors)
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
            deployments.add_replica(registry, replica, MODEL, "root", f"/runs/{replica}")
            async with asyncio.timeout(STOP_S):
                while not await listens(port):
                    await asyncio.sleep(0.05)
            deployments.replica_is_ready(registry, replica, "127.0.0.1", port, ENGINE_KEY)
        yield


def shown(result: Series) -> bool:
    """Print the figures; whether all is as it should be."""
    verdict = result.verdict
    for line in (*verdict.wrong[:20], *result.books[:20]):
        print(line, file=sys.stderr)
    below = sorted(verdict.cut_below) or [0]
    show("streams", len(result.streams), "streams")
    show("gateways killed (-9)", len(result.kills), "gateways")
    show("until the next one was ready, longest", max(result.restart_s, default=0), "s")
    show("streams that ended, billed once and to the token unless wrong", verdict.ended, "streams")
    show("streams cut by a kill", verdict.cut, "streams")
    show("tokens that a cut stream is billed below its delivery, median", below[len(below) // 2], "tokens")
    show("tokens that a cut stream is billed below its delivery, most", below[-1], "tokens")
    show("billed wrongly", len(verdict.wrong), "streams")
    show("cut streams more than 250 ms below, within the slack of a busy machine", verdict.needed_slack, "streams")
    show("slack allowed beside the 250 ms, most", max(kill.slack_s for kill in result.kills) * 1e3, "ms")
    show("ledger does not add up", len(result.books), "findings")
    show("held at the end", result.holds, "holds")
    return not (verdict.wrong or result.books or result.holds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-crashes", description="Streams through gateways that are killed")
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--keep", type=Path, help="a directory that is not there yet, for the logs and databases")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", file=sys.stderr, flush=True)
    with contextlib.ExitStack() as stack:
        folder = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headgate-crashes-")))
        folder.mkdir(parents=True, exist_ok=asked.keep is None)
        result = asyncio.run(series(folder.resolve(), asked.streams, asked.kills, asked.seed))
    return 0 if shown(result) else 1


if __name__ == "__main__":
    sys.exit(main())
