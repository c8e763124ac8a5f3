"""Deployments that outlive the wall clock: rollovers, preemptions and kills under constant streams, on a real Slurm.

    make bench-deployments [ARGS="--quick"] [ARGS="--trace azure_llm_conv_2023.csv"]

The platform's own controller and gateway, real jobs in a private cluster, supervisors in them, and scripted engines
below those, whose every token is checked by the clients. Some streams are longer than a drain. After each fault, what
is had must be what is wanted, in replicas, in jobs and in GPUs, and the ledger and the GPU report must add up. Then:
the time from the first request of a sleeping deployment to its first token, against sbatch with the same engine; and
what the planner's own benchmarks print.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.deployments_clients import Clients, Saw, Seen, table
from benchmarks.deployments_faults import Fault, Meets, kills, preemptions, rollovers
from benchmarks.deployments_platform import DRAIN_S, SHUTDOWN_S, Late, Platform, names, platform, until
from benchmarks.deployments_zero import from_zero
from benchmarks.figures import show

LONG_S = DRAIN_S + SHUTDOWN_S + 25.0  # of a stream that no drain waits for
SECOND_S = 1.0
STREAMING_S = 60.0  # until streams run, so that a fault meets some
UNTIL_RIGHT = "until replicas, jobs and GPUs were as wanted"
KILLED_S = 2.0  # until all clients of a killed gateway have noticed


@dataclass(frozen=True, slots=True)
class Size:
    rollovers: int = 20
    rolling: int = 5  # deployments
    minutes: int = 3  # of each of their jobs
    preemptions: int = 10
    kills: int = 10
    streams: int = 12
    zero: int = 5


QUICK = Size(rollovers=2, rolling=2, preemptions=1, kills=4, streams=6, zero=1)


@dataclass(slots=True)
class Part:
    """One kind of fault, and what clients saw meanwhile."""

    what: str
    asked: int  # faults
    timed: str  # of each of them
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    error: str = ""  # that ended it


@asynccontextmanager
async def streaming(on: Platform, key: str, size: Size, seed: int, part: Part) -> AsyncIterator[Clients]:
    clients = Clients(on.url, key, random.Random(seed), LONG_S)
    clients.start(size.streams)
    try:
        yield clients
    except Late as e:
        part.error = str(e)
    finally:
        await clients.stop()
        part.seen = clients.seen


async def rolled(on: Platform, key: str, size: Size, seed: int) -> Part:
    """Clients go on asking a deployment that was ready once, whatever it has by then: a gap would show."""
    timed = "from when a successor was seen until it served and the old one had stopped"
    part, rolling = Part("rollovers", size.rollovers, timed), names("roll", size.rolling)
    async with streaming(on, key, size, seed, part) as clients:
        work = asyncio.create_task(asyncio.to_thread(rollovers, on, list(rolling), size.rollovers, size.minutes))
        while not work.done():
            new = [name for name in rolling if name not in clients.models]
            clients.models = [*clients.models, *await asyncio.to_thread(served, on, new)]
            await asyncio.sleep(SECOND_S)
        part.faults = await work
    part.error = part.error or await asyncio.to_thread(cleared, on, part)
    return part


def served(on: Platform, some: Sequence[str]) -> list[str]:
    """Those of these deployments that have a replica that is ready."""
    return [name for name in some if on.ready(name)]


async def faulted(
    on: Platform, key: str, size: Size, seed: int, part: Part, name: str, faults: Callable[[Meets], Iterator[Fault]]
) -> Part:
    """`faults` come one by one, each as it is done, and each meets streams that run."""
    async with streaming(on, key, size, seed, part) as clients:
        wait = faults(lambda: until(lambda: clients.running(name) > 1, "that streams run", STREAMING_S))
        work = asyncio.create_task(asyncio.to_thread(next, wait, None))
        while True:
            if not clients.models and name in on.wanted and not await asyncio.to_thread(on.astray):
                clients.models = [name]
            if work.done():
                if (fault := await work) is None:
                    break
                part.faults.append(fault)
                work = asyncio.create_task(asyncio.to_thread(next, wait, None))
            await asyncio.sleep(SECOND_S / 4)
    part.error = part.error or await asyncio.to_thread(cleared, on, part)
    return part


def cleared(on: Platform, part: Part) -> str:
    """What is not right once nobody wants anything any more: after the last stream, deployments end, and with them all
    jobs, GPUs and holds."""
    try:
        on.delete(*on.wanted)
        on.settles(60)
    except Late as e:
        return str(e)
    return "; ".join(on.books())


def excused(seen: Seen, faults: Sequence[Fault]) -> bool:
    """Whether it is a killed gateway's doing: the connection was cut at that moment. Nobody else can retry."""
    killed = [f for f in faults if "gateway" in f.what]
    return seen.saw is Saw.CUT and any(f.began <= seen.ended <= f.began + KILLED_S for f in killed)


def shown(part: Part) -> bool:
    """Print the figures, and on stderr the table of what each client saw; whether all is as it should be."""
    saw = Counter(one.saw for one in part.seen)
    if not part.error and len(part.faults) < part.asked:
        part.error = f"{len(part.faults)} of {part.asked} faults happened"
    if not part.error and not part.seen:
        part.error = "no stream met a fault"
    print(f"\n{part.what}\n{table(part.seen)}", file=sys.stderr)
    bad = [one for one in part.seen if one.saw is not Saw.WHOLE and not excused(one, part.faults)]
    for one in bad[:20]:
        print(one, file=sys.stderr)
    wrong = [line for fault in part.faults for line in (f"{fault.what}: {w}" for w in fault.wrong)]
    for line in (*wrong[:20], *([part.error] if part.error else ())):
        print(line, file=sys.stderr)
    settled = sorted(f.settled_s for f in part.faults if f.settled_s is not None)
    of = part.what
    show(of, len(part.faults), "faults")
    show(f"{of}: streams", len(part.seen), "streams")
    show(f"{of}: streams longer than the drain", sum(s.ended - s.began > DRAIN_S for s in part.seen), "streams")
    show(f"{of}: continued on another replica", sum(s.continued > 0 for s in part.seen), "streams")
    show(f"{of}: waited for a replica", sum(s.waited for s in part.seen), "streams")
    show(f"{of}: failed before the first token", sum(not s.came for s in bad), "streams")
    show(f"{of}: truncated", sum(s.came > 0 and s.saw is Saw.CUT for s in bad), "streams")
    show(f"{of}: a token missing, doubled or another's", saw[Saw.WRONG], "streams")
    show(f"{of}: cut by a killed gateway", sum(excused(s, part.faults) for s in part.seen), "streams")
    show(f"{of}: slowest first token", max((s.first_s or 0.0 for s in part.seen), default=0.0), "s")
    if settled:
        show(f"{of}: {part.timed}, median", settled[len(settled) // 2], "s")
        show(f"{of}: {part.timed}, longest", settled[-1], "s")
    show(f"{of}: found wrong afterwards (replicas, jobs, GPUs, ledger, GPU report)", len(wrong), "findings")
    return not (bad or wrong or part.error)


async def run(size: Size, seed: int, parts: Sequence[str], keep: Path | None) -> bool:
    good = True
    with platform(keep) as on:
        on.headgate("tenant", "create", "bench")
        key = on.headgate("key", "create", "bench").strip()
        if "rollovers" in parts:
            good &= shown(await rolled(on, key, size, seed))
        for part, faults in (
            (Part("preemptions", size.preemptions, f"from the preempting job's submission {UNTIL_RIGHT}"), preemptions),
            (Part("kills", size.kills, f"from kill -9 {UNTIL_RIGHT}"), kills),
        ):
            if part.what in parts:
                begin = partial(faults, on, part.what, part.asked)
                good &= shown(await faulted(on, key, size, seed, part, part.what, begin))
        if "zero" in parts:
            await from_zero(on, Clients(on.url, key, random.Random(seed), LONG_S), size.zero)
    return good


def planned(trace: Path | None) -> None:
    """What the planner's own benchmarks print."""
    from benchmarks import deployments_planner, week

    figures: Sequence[Callable[[], object]] = (deployments_planner.figures, lambda: week.figures(trace))
    for print_them in figures:
        print_them()


PARTS = ("rollovers", "preemptions", "kills", "zero", "planner")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-deployments", description="Deployments under faults")
    parser.add_argument("--quick", action="store_true", help="a few of each, in some four minutes")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone; repeatable")
    parser.add_argument("--trace", type=Path, help="azure_llm_conv_2023.csv, for the simulated week")
    parser.add_argument("--keep", type=Path, help="a directory that is not there yet, for the state and the logs")
    asked = parser.parse_args()
    parts = asked.only or PARTS
    good = True
    if set(parts) - {"planner"}:
        good = asyncio.run(run(QUICK if asked.quick else Size(), asked.seed, parts, asked.keep))
    if "planner" in parts:
        planned(asked.trace)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
