"""Four replicas that are killed, drained and hung at random, and a registry that learns of it as it would from Slurm.

One that was killed or hung for good stays `ready` in the registry for a while, as a dead job does until the controller
looks; then it is lost, and another takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from asyncio.subprocess import Process
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway_parts import ENGINE_KEY, HERE, MODEL, free_ports
from benchmarks.soak_causes import Begun, Incident, Trouble
from benchmarks.soak_engine import STOP_S
from registry import deployments
from registry.db import Database
from registry.deployments import ReplicaState

SLOTS = 4
AT_ONCE = 2  # in trouble at the same time, at most
PAUSE_S = (4.0, 12.0)  # between two troubles
NOTICE_S = (1.0, 5.0)  # until the controller sees that a job is dead
RESTART_S = (2.0, 6.0)  # until another one is ready
HANG_S = (5.0, 40.0)
SEEN_S = 1.0  # until the gateway has read that a replica is draining


@dataclass(slots=True)
class Replica:
    id: str
    process: Process
    log: Path


class Replicas:
    """`incidents` are those that are over, and those going on (which end in the far future)."""

    def __init__(self, registry: Database, folder: Path, rng: random.Random) -> None:
        self.incidents: list[Incident] = []
        self._registry = registry
        self._folder = folder
        self._rng = rng
        self._replicas: dict[int, Replica] = {}
        self._logs: dict[str, Path] = {}
        self._started = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        deployments.create(
            self._registry,
            MODEL,
            "root",
            model=MODEL,
            version=1,
            model_path="/m",
            min_replicas=SLOTS,
            max_replicas=max(SLOTS, 1),
            request={},
            by="root",
            why="served",
        )
        for slot in range(SLOTS):
            await self._start(slot)

    async def stop(self) -> None:
        """Ends every engine; first what is being done to one of them is brought to its end."""
        await asyncio.gather(*self._tasks)
        for replica in self._replicas.values():
            replica.process.kill()
            await replica.process.wait()

    async def trouble(self, seconds: float) -> None:
        """Do something to one of them now and then, for so long; returns once all are well again."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(self._rng.uniform(*PAUSE_S))
            if len(self._tasks) < AT_ONCE and time.monotonic() < until:
                slot = self._rng.choice(sorted(self._replicas))
                what = self._rng.choices((self._kill, self._drain, self._hang), weights=(3, 3, 2))[0]
                task = asyncio.create_task(what(slot, self._replicas.pop(slot)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        await asyncio.gather(*self._tasks)

    def begun(self) -> Mapping[int, list[Begun]]:
        """Each request's attempts by its nonce, in order, as the engines wrote them down."""
        found: dict[int, list[Begun]] = defaultdict(list)
        for replica, log in self._logs.items():
            for said, nonce, _, at in _lines(log):
                if said == "begin":
                    found[int(nonce)].append(Begun(replica, float(at)))
        return {nonce: sorted(some, key=lambda begun: begun.at) for nonce, some in found.items()}

    def made(self) -> Mapping[int, int]:
        """Each request's tokens by its nonce, of those that an engine answered to the end."""
        ends = (line for log in self._logs.values() for line in _lines(log) if line[0] == "end")
        return {int(nonce): int(tokens) for _, nonce, tokens, _ in ends}

    async def _start(self, slot: int) -> None:
        self._started += 1
        replica, port = f"replica-{slot + 1}-{self._started}", free_ports(1)
        log = self._folder / f"{replica}.log"
        log.touch()
        words = [sys.executable, "-m", "benchmarks.soak_engine", str(port), ENGINE_KEY, str(log)]
        with log.with_suffix(".err").open("wb") as errors:
            process = await asyncio.create_subprocess_exec(*words, cwd=HERE.parent, stderr=errors)
        self._replicas[slot] = Replica(replica, process, log)
        self._logs[replica] = log
        deployments.add_replica(self._registry, replica, MODEL, "root", f"/runs/{replica}")
        while not await listens(port):
            await asyncio.sleep(0.05)
        deployments.replica_is_ready(self._registry, replica, "127.0.0.1", port, ENGINE_KEY)

    async def _kill(self, slot: int, replica: Replica) -> None:
        went_on = self._going_on(replica, Trouble.KILLED)
        with contextlib.suppress(ProcessLookupError):  # somebody else was first
            replica.process.kill()
        await replica.process.wait()
        await self._lost(replica)
        self._over(went_on)
        await self._another(slot)

    async def _hang(self, slot: int, replica: Replica) -> None:
        went_on = self._going_on(replica, Trouble.HUNG)
        os.kill(replica.process.pid, signal.SIGSTOP)
        await asyncio.sleep(self._rng.uniform(*HANG_S))
        if self._rng.random() < 0.5:
            os.kill(replica.process.pid, signal.SIGCONT)
            self._over(went_on)
            self._replicas[slot] = replica
            return
        replica.process.kill()
        await replica.process.wait()
        await self._lost(replica)
        self._over(went_on)
        await self._another(slot)

    async def _drain(self, slot: int, replica: Replica) -> None:
        """As the controller does: out of routing first, then SIGTERM, and the engine finishes what it has."""
        went_on = self._going_on(replica, Trouble.DRAINED)
        deployments.set_replica_state(self._registry, replica.id, ReplicaState.DRAINING)
        await asyncio.sleep(SEEN_S)
        replica.process.terminate()
        async with asyncio.timeout(STOP_S + 10):
            await replica.process.wait()
        deployments.set_replica_state(self._registry, replica.id, ReplicaState.STOPPED)
        self._over(went_on)
        await self._another(slot)

    async def _lost(self, replica: Replica) -> None:
        await asyncio.sleep(self._rng.uniform(*NOTICE_S))
        deployments.set_replica_state(self._registry, replica.id, ReplicaState.LOST)

    async def _another(self, slot: int) -> None:
        await asyncio.sleep(self._rng.uniform(*RESTART_S))
        await self._start(slot)

    def _going_on(self, replica: Replica, trouble: Trouble) -> Incident:
        incident = Incident(replica.id, trouble, time.time(), float("inf"))
        self.incidents.append(incident)
        return incident

    def _over(self, incident: Incident) -> None:
        self.incidents[self.incidents.index(incident)] = Incident(
            incident.replica, incident.trouble, incident.began, time.time()
        )


def _lines(log: Path) -> Iterator[list[str]]:
    yield from (line.split() for line in log.read_text().splitlines())


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
