"""From zero: how long the first request of a sleeping deployment waits for its first token, against `sbatch` of the
very same engine, asked until it answers."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import aiohttp

from benchmarks.deployments_clients import Clients, Saw
from benchmarks.deployments_engine import START_VARIABLE
from benchmarks.deployments_platform import ENGINE, PARTITION, START_S, Late, Platform
from benchmarks.figures import show
from benchmarks.gateway_parts import free_ports

ASK_S = 0.05  # between two questions to an engine that does not answer yet


async def from_zero(on: Platform, clients: Clients, rounds: int) -> None:
    ours, bare = [], []
    for n in range(rounds):
        name = f"zero-{n}"
        await asyncio.to_thread(on.serve, name, 0, "-t", "30")
        seen = await clients.ask(name, 5)
        if seen.saw is not Saw.WHOLE or seen.first_s is None:
            raise Late(f"the first request of a sleeping deployment was not answered: {seen}")
        ours.append(seen.first_s)
        on.wanted[name] = 1  # it is awake
        await asyncio.to_thread(on.delete, name)
        await asyncio.to_thread(on.settles, 60)
        bare.append(await by_sbatch(on))
    peer = "sbatch with the same engine"
    show("from the first request of a sleeping deployment to its first token, median", statistics.median(ours), "s")
    show("the same, against the peer", statistics.median(ours), "s", peer, statistics.median(bare))
    show("of that, the engine's own start", START_S, "s")


async def by_sbatch(on: Platform) -> float:
    """Seconds from `sbatch` to the first token of an engine started by it."""
    port = free_ports(1)
    words = f"{START_VARIABLE}={START_S} exec {sys.executable} {ENGINE} --served-model-name m --port {port}"
    began = time.monotonic()
    options = ("--parsable", "-o", "/dev/null", "-p", PARTITION, "-t", "5", "--gres=gpu:1", "--mem=512")
    job = (await asyncio.to_thread(on.slurm, "sbatch", *options, "--wrap", words)).strip()
    body = {"model": "m", "prompt": "nonce=1 tokens=1 interval=0", "max_tokens": 1}
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as answer:
                    await answer.read()
                    break
            except aiohttp.ClientError:
                await asyncio.sleep(ASK_S)
    took = time.monotonic() - began
    await asyncio.to_thread(on.slurm, "scancel", job)
    return took
