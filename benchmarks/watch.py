"""How often slurmctld is asked in an hour, by one process: with few jobs and readers, and with many.

    make bench-watch                            on a cluster started for it
    make bench-watch ARGS="--cluster DIR"       on one that runs

Every question is a real one to a real Slurm. Only the waiting between two looks is pretended: an hour passes in
seconds. In it the controller's turn comes every two seconds and asks for the state of every job, every reader follows
what changes, and somebody submits something every ten minutes. sacct asks slurmdbd, and is counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.figures import show
from benchmarks.slurm import CLUSTER
from launchers.scheduler import JobRef
from launchers.slurm_scheduler import SlurmScheduler
from slurm.commands import CommandClient
from slurm.process import Completed, run_process
from slurm.watch import Watch

HOUR_S = 3600.0
TURN_S, SUBMIT_S = 2.0, 600.0
SCRIPT = "#!/bin/sh\n#SBATCH --hold --output=/dev/null --time=60\nsleep 3600\n"


@contextmanager
def small_cluster() -> Iterator[Path]:
    subprocess.run([CLUSTER / "install"], check=True)
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as name:
        command = [CLUSTER / "cluster", "--dir", name]
        try:
            subprocess.run([*command, "start"], check=True)
            yield Path(name)
        finally:
            subprocess.run([*command, "stop"], check=True)


class Counting:
    """Runs commands, and counts them by name."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __call__(self, argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        self.calls[argv[0]] += 1
        return run_process(argv, environment, timeout_s)


class Hour:
    """A clock that runs as fast as the watch waits, and what happens at each turn in the meantime."""

    def __init__(self, turn: Callable[[], None]) -> None:
        self.t, self._turn, self._next = 0.0, turn, 0.0
        self._began = datetime.now(UTC)
        self.over = asyncio.Event()

    def clock(self) -> float:
        return self.t

    def now(self) -> datetime:
        return self._began + timedelta(seconds=self.t)

    async def pause(self, wake: asyncio.Event, seconds: float) -> None:
        end = self.t + seconds
        while self._next <= end:
            self.t, self._next = self._next, self._next + TURN_S
            self._turn()
            await asyncio.sleep(0)  # the readers' turn
            if self.t >= HOUR_S:
                self.over.set()
                await asyncio.Event().wait()
            if wake.is_set():
                return
        self.t = end


async def calls_in_an_hour(environment: Mapping[str, str], refs: Sequence[JobRef], readers: int) -> Counter[str]:
    counting = Counting()
    scheduler = SlurmScheduler(CommandClient(counting, environment))

    def turn() -> None:
        if watch.latest is not None:
            states = scheduler.states(refs)
            assert all(states[ref].state.value == "PENDING" for ref in refs)
        if hour.t % SUBMIT_S == 0:
            watch.hurry()

    hour = Hour(turn)
    watch = Watch(
        scheduler.client, least_s=2, most_s=30, clock=hour.clock, now=hour.now, pause=hour.pause, chance=lambda: 1.0
    )
    scheduler.watch = watch

    async def read() -> None:
        async for _ in watch.changes():
            await watch.look()

    tasks = [asyncio.create_task(read()) for _ in range(readers)]
    tasks.append(asyncio.create_task(watch.run()))
    await hour.over.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return counting.calls


def held_jobs(client: CommandClient, count: int) -> list[JobRef]:
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(SCRIPT)
        script.flush()
        ids = [client.submit(Path(script.name), f"bench-watch-{n}") for n in range(count)]
    cluster = client.config().name
    return [JobRef(cluster, job.id, job.submitted_at) for job in client.jobs(ids)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--cluster", type=Path, metavar="DIR", help="one that runs; it runs on")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the cluster is stopped on the way out
    with small_cluster() if options.cluster is None else nullcontext(options.cluster) as root:
        environment = {**os.environ, "SLURM_CONF": str(root / "etc" / "slurm.conf")}
        client = CommandClient(environment=environment)
        refs = held_jobs(client, options.jobs)
        try:
            for jobs, readers in ((1, 1), (options.jobs, options.readers)):
                calls = asyncio.run(calls_in_an_hour(environment, refs[:jobs], readers))
                said = f"with {jobs:,} job{'s' * (jobs > 1)} and {readers:,} reader{'s' * (readers > 1)}"
                to_slurmctld = sum(calls.values()) - calls["sacct"]
                show(f"calls to slurmctld in an hour {said}", to_slurmctld, "calls")
                show(f"calls to slurmdbd in an hour {said}", calls["sacct"], "calls")
        finally:
            for ref in refs:
                client.cancel(ref.job_id)
    return 0


if __name__ == "__main__":
    sys.exit(main())
