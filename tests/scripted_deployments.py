"""Deployments of the benchmark's scripted engine on a platform of a test's own, and constant streams that call them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from platform_fixtures import Platform
from waiting import wait_for

from benchmarks.deployments_clients import Clients, Saw, Seen
from benchmarks.deployments_engine import START_VARIABLE
from benchmarks.deployments_platform import ENGINE, kill
from registry import replicas
from registry.db import open_reader
from registry.replicas import Replica, ReplicaState

KILLED_S = 3.0  # until all clients of something that was killed have noticed


def engine_settings(start_s: float = 0.3) -> tuple[str, ...]:
    return (
        f"environments.engine.python={json.dumps(sys.executable)}",
        f"environments.engine.command={json.dumps([sys.executable, str(ENGINE)])}",
        "environments.engine.args=[]",
        f'environments.engine.env={{{START_VARIABLE} = "{start_s}"}}',
        "tenants.default.requests_per_minute=1000000",
        "tenants.default.token_budget=1000000000000",
    )


def model(directory: Path, **config: object) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").touch()  # an alias is followed only to weights that are safe to load
    return directory


@dataclass(frozen=True)
class Deployments:
    """What there is of them, by the registry and by the processes of this machine."""

    on: Platform
    key: str

    def replicas(self, name: str) -> list[Replica]:
        """All that ever were."""
        db = open_reader(self.on.root / "state" / "registry.db")
        try:
            return replicas.replicas(db, name)
        finally:
            db.close()

    def live(self, name: str) -> list[Replica]:
        return [r for r in self.replicas(name) if not r.state.ended]

    def ready(self, name: str) -> list[Replica]:
        return [r for r in self.live(name) if r.state is ReplicaState.READY]

    def has(self, name: str, count: int, timeout: float = 60) -> list[Replica]:
        """Exactly so many replicas, once all of them are ready, in the order of their making."""

        def settled() -> list[Replica] | None:
            live = self.live(name)
            return live if [r.state for r in live] == [ReplicaState.READY] * count else None

        def said() -> list[Replica]:
            return settled() or []

        try:
            return wait_for(said, timeout)
        except AssertionError as e:
            there = [(r.id, r.state, r.cause) for r in self.replicas(name)]
            raise AssertionError(f"{count} wanted; {there}\n{self.on.run('explain', name).stdout}") from e

    def described(self, name: str) -> dict[str, Any]:
        (found,) = [d for d in self.on.json("status")["deployments"] if d["deployment"]["name"] == name]
        described: dict[str, Any] = found["deployment"]
        return described

    def delete(self, name: str) -> None:
        self.on.ok("delete", name)
        wait_for(lambda: not self.live(name), 60)

    def kill(self, name: str) -> None:
        kill(self.on.service(name))

    def kill_part(self, replica: Replica, part: str) -> None:
        """-9 to its "engine" or its "supervisor"."""
        (process,) = [p for p in psutil.process_iter(["cmdline"]) if _is(p.info["cmdline"] or [], replica, part)]
        kill(process)


def _is(words: list[str], replica: Replica, part: str) -> bool:
    if part == "engine":
        return str(ENGINE) in words and str(replica.port) in words
    return "launchers.supervisor" in words and replica.folder in words


@contextlib.contextmanager
def streaming(
    on: Deployments, models: Sequence[str], streams: int = 4, long_s: float = 12.0, long_every: int = 8
) -> Iterator[list[Seen]]:
    """Constant streams, each checked token by token; all have their answer once this is left."""
    clients = Clients(f"http://127.0.0.1:{on.on.port}", on.key, random.Random(7), long_s, long_every)
    clients.models = tuple(models)
    begun, end = threading.Event(), threading.Event()

    async def stream() -> None:
        clients.start(streams)
        begun.set()
        await asyncio.to_thread(end.wait)
        await clients.stop()

    worker = threading.Thread(target=asyncio.run, args=(stream(),), daemon=True)
    worker.start()
    begun.wait()
    try:
        yield clients.seen
    finally:
        end.set()
        worker.join()


def bad(seen: Sequence[Seen]) -> list[Seen]:
    return [one for one in seen if one.saw is not Saw.WHOLE]


def lost(seen: Sequence[Seen]) -> list[Seen]:
    """Those that a retry before the first token could have saved, and any answer that is not what was asked for."""
    return [one for one in bad(seen) if one.saw is not Saw.CUT or not one.came]
