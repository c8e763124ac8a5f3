"""What reading a large Slurm costs us, beside Slurm's own commands on the same cluster in the same run.

    make bench-slurm                                    10,000 pending jobs on 1,000 nodes, a cluster started for it
    make bench-slurm ARGS="--jobs 1000 --rounds 3"      less of it, sooner
    make bench-pyslurm                                  the same on Slurm 26.05, where pyslurm is a back end too (root)

Wall and CPU (of this process and of the commands it ran) are medians of interleaved rounds after a first one. What a
command prints is thrown away when it is the peer, and read into typed records when it is ours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from benchmarks.figures import cost, interleaved, show, show_costs
from slurm import tables
from slurm.backend import installed
from slurm.commands import CommandClient
from slurm.native import NativeClient
from slurm.process import Completed, run_process

CLUSTER = Path(__file__).resolve().parent.parent / "tests" / "cluster"
MIB = 1024**2
# squeue -o's letters for the fields that we read with -O. Trackable resources as such it does not have.
LETTERS = {
    "id": "%i", "raw_id": "%A", "name": "%j", "user": "%u", "account": "%a", "partition": "%P", "qos": "%q",
    "state": "%T", "reason": "%r", "comment": "%k", "submitted_at": "%V", "starts_at": "%S", "ends_at": "%e",
    "time_limit_s": "%l", "time_left_s": "%L", "nodes": "%N", "node_count": "%D", "tres": "%C %m %b", "priority": "%Q",
    "dependency": "%E", "reservation": "%v",
}  # fmt: skip
SAME = "|".join(LETTERS.get(field, "") for field, _, _ in tables.SQUEUE)
# slurmdbd's own table is told that the jobs which wait in vain had run: sacct then has times, nodes and resources to
# print. Amounts stand there as id=count: 1 CPU, 2 memory, 4 nodes, 5 billing, 1001 GPUs, 1002 those of type h100.
PRETEND_THEY_RAN = """
    update `headgate-test_job_table` set state = 3, tres_alloc = tres_req, nodes_alloc = 4,
        nodelist = concat('n[', lpad(1 + id_job % 900, 4, '0'), '-', lpad(4 + id_job % 900, 4, '0'), ']'),
        time_submit = time_submit - 7200, time_eligible = time_submit, time_start = time_submit + 60 + id_job % 600,
        time_end = time_submit + 3600 + id_job % 1800
    where `partition` = 'paper' and time_start = 0
"""


@contextmanager
def large_cluster(nodes: int, jobs: int) -> Iterator[Path]:
    """A private cluster's directory. It is stopped whatever happens."""
    subprocess.run([CLUSTER / "install"], check=True)
    root = Path(tempfile.mkdtemp(prefix="headgate-bench-"))
    command = [CLUSTER / "cluster", "--dir", root]
    try:
        subprocess.run([*command, "start", "--paper-nodes", str(nodes)], check=True)
        subprocess.run([*command, "fill", str(jobs)], check=True)
        yield root
    finally:
        subprocess.run([*command, "stop"], check=True)
        shutil.rmtree(root, ignore_errors=True)


class Recorder:
    """Runs commands, and remembers the last of them."""

    argv: Sequence[str] = ()
    environment: Mapping[str, str]

    def __call__(self, argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        self.argv, self.environment = argv, environment
        return run_process(argv, environment, timeout_s)

    def again(self, *argv: str) -> None:
        """The same command, or another in the same environment, for nothing but its cost."""
        subprocess.run(argv or self.argv, env=self.environment, stdout=subprocess.DEVNULL, check=True)


def poll_of_jobs(client: CommandClient, recorder: Recorder, jobs: int, rounds: int) -> None:
    first = cost(lambda: client.jobs())
    tracemalloc.start()
    found = client.jobs()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == jobs, f"{len(found)} jobs were found, not {jobs}"
    del found
    costs = interleaved(
        {
            "typed": client.jobs,
            "squeue -h -o": lambda: recorder.again("squeue", "-h", "-a", "-t", "all", "-o", SAME),
            "squeue -h -O, the call we make": recorder.again,
        },
        rounds,
    )
    show_costs(f"poll of {jobs:,} jobs", costs)
    show(f"the first poll of {jobs:,} jobs in a process, CPU", first.cpu_s, "s")
    show(f"memory of {jobs:,} typed jobs", used / MIB, "MiB")


def poll_of_nodes(client: CommandClient, recorder: Recorder, nodes: int, rounds: int) -> None:
    found = client.nodes()
    assert len(found) >= nodes, f"{len(found)} nodes were found, not {nodes}"
    costs = interleaved({"typed": client.nodes, "sinfo -h -N -O, the call we make": recorder.again}, rounds)
    show_costs(f"poll of {nodes:,} nodes", costs)


def polls_by_pyslurm(client: NativeClient, recorder: Recorder, jobs: int, nodes: int, rounds: int) -> None:
    """Wall only: its work is done in a process that lives on, whose CPU nobody has waited for."""
    for what, ours, peer, expected in (
        ("jobs", client.jobs, ("squeue", "-h", "-a", "-t", "all", "-o", SAME), jobs),
        ("nodes", client.nodes, ("sinfo", "-h", "-a", "-N", "-o", "%N %T %c %m %G %f %e %O %v %P %E"), nodes),
    ):
        assert len(ours()) >= expected
        costs = interleaved({"ours": ours, "theirs": partial(recorder.again, *peer)}, rounds)
        figure = f"poll of {expected:,} {what}: typed, by pyslurm, wall"
        show(figure, costs["ours"].wall_s, "s", f"{peer[0]} -h -o", costs["theirs"].wall_s)


def accounting(client: CommandClient, recorder: Recorder, root: Path, jobs: int, rounds: int) -> None:
    def in_the_books() -> int:
        return int(mariadb(root, "select count(*) from `headgate-test_job_table` where `partition` = 'paper'"))

    while in_the_books() < jobs:
        time.sleep(0.5)  # slurmctld tells slurmdbd in its own time
    mariadb(root, PRETEND_THEY_RAN)
    now = datetime.now(UTC)

    def ask() -> int:
        return len(client.accounting_between(now - timedelta(days=1), now))

    assert (found := ask()) == jobs, f"{found} jobs were in the books, not {jobs}"
    costs = interleaved({"typed": ask, "sacct -n -P -X -D -o, the call we make": recorder.again}, rounds)
    show_costs(f"accounting of {jobs:,} jobs", costs)


def mariadb(root: Path, statement: str) -> str:
    argv = ["mariadb", "--no-defaults", "-u", "root", "-S", root / "run" / "mysql.sock", "-N", "-e", statement]
    return subprocess.run([*argv, "slurm_acct_db"], stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cluster", type=Path, metavar="DIR", help="one that runs and holds just these; it runs on")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the cluster is stopped on the way out
    started = large_cluster(options.nodes, options.jobs) if options.cluster is None else nullcontext(options.cluster)
    with started as root:
        recorder = Recorder()
        client = CommandClient(recorder, {**os.environ, "SLURM_CONF": str(root / "etc" / "slurm.conf")})
        poll_of_jobs(client, recorder, options.jobs, options.rounds)
        poll_of_nodes(client, recorder, options.nodes, options.rounds)
        if installed():
            native = NativeClient(recorder.environment)
            polls_by_pyslurm(native, recorder, options.jobs, options.nodes, options.rounds)
            native.close()
        accounting(client, recorder, root, options.jobs, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
