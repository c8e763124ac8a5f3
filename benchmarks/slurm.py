"""What reading a large Slurm costs us, beside Slurm's own commands on the same cluster in the same run.

    make bench-slurm                                    10,000 pending jobs on 1,000 nodes, a cluster started for it
    make bench-slurm ARGS="--jobs 1000 --rounds 3"      less of it, sooner
    make bench-pyslurm                                  the same on Slurm 26.05, where pyslurm is a back end too (root)

Wall and CPU (of this process and of its children) are medians of interleaved rounds after a first one. What a command
prints is thrown away when it is the peer, and read into typed records when it is ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from benchmarks.figures import cost, interleaved, show, show_costs
from slurm import backend, tables
from slurm.commands import CommandClient
from slurm.native import NativeClient
from slurm.process import Completed, run_process

Run = Callable[[], object]
Clients = Mapping[str, CommandClient]
REPOSITORY = Path(__file__).resolve().parent.parent
CLUSTER = REPOSITORY / "tests" / "cluster"
MIB = 1024**2
# squeue -o's letters for the fields that we read with -O. Trackable resources as such it does not have.
LETTERS = {
    "id": "%i", "raw_id": "%A", "name": "%j", "user": "%u", "account": "%a", "partition": "%P", "qos": "%q",
    "state": "%T", "reason": "%r", "comment": "%k", "submitted_at": "%V", "starts_at": "%S", "ends_at": "%e",
    "time_limit_s": "%l", "time_left_s": "%L", "nodes": "%N", "node_count": "%D", "tres": "%C %m %b", "priority": "%Q",
    "dependency": "%E", "reservation": "%v",
}  # fmt: skip
SQUEUE = "|".join(LETTERS.get(field, "") for field, _, _ in tables.SQUEUE)
SINFO = "%N|%T|%E|%P|%C|%m|%e|%G|%f|%O|%v"  # -o has no memory in use, and no GPUs in use
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
def private_cluster(*options: str) -> Iterator[Path]:
    """The directory of a cluster that is started with these options. It is stopped whatever happens."""
    root = Path(tempfile.mkdtemp(prefix="headgate-bench-"))
    try:
        on_cluster(root, "start", *options)
        yield root
    finally:
        on_cluster(root, "stop")
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def large_cluster(nodes: int, jobs: int) -> Iterator[Path]:
    subprocess.run([CLUSTER / "install"], check=True, stdout=sys.stderr)
    with private_cluster("--paper-nodes", str(nodes)) as root:
        on_cluster(root, "fill", str(jobs))
        yield root


def on_cluster(root: Path, *words: str) -> None:
    """What it says goes to the standard error: figures alone are printed."""
    subprocess.run([CLUSTER / "cluster", "--dir", root, *words], check=True, stdout=sys.stderr)


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


def polls(figure: str, ours: Mapping[str, Run], peers: Mapping[str, Run], rounds: int) -> None:
    costs = interleaved({**ours, **peers}, rounds)
    for name in ours:
        show_costs(f"{figure} {name}", costs[name], {peer: costs[peer] for peer in peers})


def polls_of_jobs(slurm: str, clients: Clients, recorder: Recorder, jobs: int, rounds: int) -> None:
    figure = f"{slurm}: poll of {jobs:,} jobs"
    for name, client in clients.items():
        first = cost(client.jobs)
        tracemalloc.start()
        found = client.jobs()
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found) == jobs, f"{len(found)} jobs were found {name}, not {jobs}"
        del found
        show(f"{figure} {name}, the first of a process, CPU", first.cpu_s, "s")
        show(f"{figure} {name}, memory of the records", used / MIB, "MiB")
    peers: dict[str, Run] = {
        "squeue -h -o": partial(recorder.again, "squeue", "-h", "-a", "-t", "all", "-o", SQUEUE),
        "squeue -h -O, the call we make": recorder.again,
    }
    polls(figure, {name: client.jobs for name, client in clients.items()}, peers, rounds)


def polls_of_nodes(slurm: str, clients: Clients, recorder: Recorder, nodes: int, rounds: int) -> None:
    for name, client in clients.items():
        assert (found := len(client.nodes())) >= nodes, f"{found} nodes were found {name}, not {nodes}"
    peers: dict[str, Run] = {
        "sinfo -h -N -o": partial(recorder.again, "sinfo", "-h", "-a", "-N", "-o", SINFO),
        "sinfo -h -N -O, the call we make": recorder.again,
    }
    polls(f"{slurm}: poll of {nodes:,} nodes", {n: client.nodes for n, client in clients.items()}, peers, rounds)


def accounting(slurm: str, client: CommandClient, recorder: Recorder, root: Path, jobs: int, rounds: int) -> None:
    def in_the_books() -> int:
        return int(mariadb(root, "select count(*) from `headgate-test_job_table` where `partition` = 'paper'"))

    while in_the_books() < jobs:
        time.sleep(0.5)  # slurmctld tells slurmdbd in its own time
    mariadb(root, PRETEND_THEY_RAN)
    now = datetime.now(UTC)

    def ask() -> int:
        return len(client.accounting_between(now - timedelta(days=1), now))

    assert (found := ask()) == jobs, f"{found} jobs were in the books, not {jobs}"
    peers = {"sacct -n -P -X -D -o, the call we make": recorder.again}
    polls(f"{slurm}: accounting of {jobs:,} jobs", {"by commands": ask}, peers, rounds)


def calls_per_hour(slurm: str, environment: Mapping[str, str]) -> None:
    """What each command prints is asked for once: an hour of the watch then takes seconds. A hundred jobs will do."""
    if importlib.util.find_spec("submitit") is None:
        sys.stderr.write("calls per hour are left out: this Python has nothing of the control environment\n")
        return
    from benchmarks.calls import SEPARATOR, per_hour
    from launchers.scheduler import JobRef

    printed: dict[tuple[str, ...], Completed] = {}

    def answer(argv: Sequence[str], of: Mapping[str, str], timeout_s: float) -> Completed:
        if (asked := tuple(argv)) not in printed:
            done = run_process(argv, {**environment, **of}, timeout_s)
            lines = done.stdout.splitlines(keepends=True)
            printed[asked] = replace(done, stdout="".join(lines[:100])) if argv[0] == "squeue" else done
        return printed[asked]

    client = CommandClient(answer, separator=SEPARATOR)
    cluster = client.config().name
    refs = [JobRef(cluster, job.id, job.submitted_at) for job in client.jobs()]
    for jobs, readers, submits in ((1, 1, 6), (100, 1, 6), (100, 1000, 6), (100, 1000, 60)):
        asked = per_hour(answer, refs[:jobs], readers, submits)
        figure = f"{slurm}: commands per hour, submits: {submits}, jobs: {jobs}, readers: {readers:,}"
        alone = 60 * (jobs + readers)
        show(figure, sum(asked.values()), "calls", "each job and each reader asking once a minute", alone)


def headgate_queue(slurm: str, environment: Mapping[str, str], root: Path, jobs: int, rounds: int) -> None:
    """As typed where no controller runs. It starts anew each time, and asks for whatever explains why jobs wait."""
    if importlib.util.find_spec("click") is None:
        sys.stderr.write("headgate queue is left out: this Python has nothing of the control environment\n")
        return
    site = site_on(root)

    def typed(*words: str) -> None:
        argv = [sys.executable, "-m", "cli.main", "--site", str(site), "queue", *words]
        subprocess.run(argv, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, check=True)

    def squeue(*words: str) -> None:
        subprocess.run(["squeue", "-h", *words], env=environment, stdout=subprocess.DEVNULL, check=True)

    for figure, ours, theirs in (
        ("of somebody without a job", ("-u", "mail"), ("-u", "mail")),
        (f"of all {jobs:,} jobs", ("--all",), ("-o", SQUEUE)),
    ):
        peers = {shlex.join(["squeue", "-h", *theirs[:1]]): partial(squeue, *theirs)}
        polls(f"{slurm}: headgate queue", {figure: partial(typed, *ours)}, peers, rounds)


def headgate_submit(slurm: str, environment: Mapping[str, str], root: Path, rounds: int) -> None:
    """As typed: interpreter, run folder, what git says of the script's repository (this one), sbatch, the job noted."""
    if importlib.util.find_spec("click") is None:
        sys.stderr.write("headgate submit is left out: this Python has nothing of the control environment\n")
        return
    ours = [sys.executable, "-m", "cli.main", "--site", str(site_on(root)), "submit"]
    held = ["--parsable", "-H", "-J", "bench-submit", str(CLUSTER / "install")]  # any script: it never starts

    def submit(*argv: str) -> None:
        subprocess.run([*argv, *held], cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, check=True)

    try:
        medians = interleaved({"ours": partial(submit, *ours), "theirs": partial(submit, "sbatch")}, rounds)
    finally:
        subprocess.run(["scancel", "-n", "bench-submit"], env=environment, check=True)
    show_costs(f"{slurm}: headgate submit", medians["ours"], {"sbatch": medians["theirs"]})
    show(f"{slurm}: headgate submit, added to sbatch, wall", medians["ours"].wall_s - medians["theirs"].wall_s, "s")


def site_on(root: Path) -> Path:
    """The settings of a site on this cluster, where no controller runs."""
    site = root / "site.toml"
    site.write_text(
        f'name = "bench"\nstate_dir = "{root}/none"\nshared_dir = "{root}/none"\n[scheduler]\nkind = "slurm"\n'
    )
    return site


def mariadb(root: Path, statement: str) -> str:
    argv = ["mariadb", "--no-defaults", "-u", "root", "-S", str(root / "run" / "mysql.sock"), "-N", "-e", statement]
    return subprocess.run([*argv, "slurm_acct_db"], stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cluster", type=Path, metavar="DIR", help="one that runs and holds just these; it runs on")
    options = parser.parse_args()
    for ends in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ends, lambda signum, _: sys.exit(128 + signum))  # the cluster is stopped on the way out
    started = large_cluster(options.nodes, options.jobs) if options.cluster is None else nullcontext(options.cluster)
    with started as root:
        recorder = Recorder()
        environment = {**os.environ, "SLURM_CONF": str(root / "etc" / "slurm.conf")}
        client = CommandClient(recorder, environment)
        slurm = f"Slurm {client.config().version_text}"
        clients: dict[str, CommandClient] = {"by commands": client}
        if backend.installed():
            clients["by pyslurm"] = NativeClient(environment)
        else:
            sys.stderr.write("pyslurm is not installed for this Python: make bench-pyslurm has its figures\n")
        polls_of_jobs(slurm, clients, recorder, options.jobs, options.rounds)
        headgate_queue(slurm, recorder.environment, root, options.jobs, options.rounds)
        polls_of_nodes(slurm, clients, recorder, options.nodes, options.rounds)
        accounting(slurm, client, recorder, root, options.jobs, options.rounds)
        calls_per_hour(slurm, environment)
        headgate_submit(slurm, recorder.environment, root, options.rounds)  # last: it adds jobs
    return 0


if __name__ == "__main__":
    sys.exit(main())
