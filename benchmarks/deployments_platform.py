"""The whole platform on a private Slurm cluster, for the benchmark of deployments: what it has, and what may be done to
it. Controller and gateway are processes of their own, started and asked as an administrator would, by `headgate`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.gateway_parts import HERE, free_ports
from registry import deployments
from registry.db import open_reader
from registry.deployments import Replica, ReplicaState

CLUSTER = HERE.parent / "tests" / "cluster" / "cluster"
ENGINE = HERE / "deployments_engine.py"
START_S = 2.0  # of an engine: what loading its weights takes
DRAIN_S, SHUTDOWN_S = 15, 5
MARGIN_S = 5  # far less than the 45 s before their end at which Slurm may signal jobs of 3 minutes
PARTITION = "gpu"
QUIET_S = 0.5  # between two looks


class Late(Exception):
    """Something did not happen in time; the text says what is there instead."""


@dataclass(slots=True)
class Platform:
    root: Path
    cluster: Path
    port: int
    env: dict[str, str]
    wanted: dict[str, int] = field(default_factory=dict)  # replicas, by deployment
    gpus: dict[str, int] = field(default_factory=dict)  # of each replica, by deployment

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def argv(self) -> list[str]:
        settings = {
            "scheduler.slurm_conf": f"{self.cluster}/etc/slurm.conf",
            "state_dir": f"{self.root}/state",
            "shared_dir": f"{self.root}/shared",
            "gateway.port": str(self.port),
            "gateway.continue_streams": "true",
            "environments.engine.python": json.dumps(sys.executable),
            "environments.engine.command": json.dumps([sys.executable, str(ENGINE)]),
            "environments.engine.args": "[]",
            "environments.engine.env": f'{{HEADGATE_BENCH_START_S = "{START_S}"}}',
            "replicas.drain_timeout": f'"{DRAIN_S}s"',
            "replicas.shutdown_timeout": f'"{SHUTDOWN_S}s"',
            "deployments.margin": f'"{MARGIN_S}s"',
            "defaults.serve.mem_gb": "0.5",
            "tenants.default.requests_per_minute": "1000000",
            "tenants.default.token_budget": "1000000000000",
        }
        flags = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        site = HERE.parent / "site-configs" / "private-cluster.toml"
        return [sys.executable, "-m", "cli.main", "--site", str(site), *flags]

    def headgate(self, *words: str, fails: bool = False) -> str:
        """What a command printed. Raises Late when it fails, unless it may."""
        done = subprocess.run(
            [*self.argv, *words], cwd=HERE.parent, env=self.env, text=True, capture_output=True, check=False
        )
        if done.returncode and not fails:
            raise Late(f"headgate {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def slurm(self, *words: str) -> str:
        done = subprocess.run(words, env=self.env, text=True, capture_output=True, check=True)
        return done.stdout

    def serve(self, name: str, replicas: int, *options: str, gpus: int = 1) -> None:
        model = self.root / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")
        how = ("--replicas", str(replicas), "-p", PARTITION, f"--gpus-per-node={gpus}", "--no-wait")
        self.headgate("serve", str(model), "--name", name, *how, *options)
        self.wanted[name], self.gpus[name] = replicas, gpus

    def delete(self, *names: str) -> None:
        for name in names:
            self.headgate("delete", name)
            del self.wanted[name], self.gpus[name]

    def replicas(self) -> list[Replica]:
        """All that ever were, as the registry has them."""
        db = open_reader(self.root / "state" / "registry.db")
        try:
            return deployments.replicas(db)
        finally:
            db.close()

    def ready(self, name: str) -> list[Replica]:
        return [r for r in self.replicas() if r.deployment == name and r.state is ReplicaState.READY]

    def astray(self) -> str:
        """What is not as it is wanted, in words; "" when all is: replicas, jobs and GPUs."""
        live = [r for r in self.replicas() if not r.state.ended]
        for name, count in self.wanted.items():
            theirs = [r for r in live if r.deployment == name]
            if [r.state for r in theirs] != [ReplicaState.READY] * count:
                return f"{name} wants {count} and has {', '.join(r.state for r in theirs) or 'none'}"
        if others := [r.id for r in live if r.deployment not in self.wanted]:
            return f"replicas of no deployment: {', '.join(others)}"
        queued = set(self.slurm("squeue", "-h", "-o", "%A").split())
        if orphans := queued - {r.job_id for r in live if r.job_id}:
            return f"jobs of no replica: {', '.join(sorted(orphans))}"
        expected = sum(count * self.gpus[name] for name, count in self.wanted.items())
        if (allocated := self.allocated_gpus()) != expected:
            return f"{allocated} GPUs are allocated, not {expected}"
        return ""

    def allocated_gpus(self) -> int:
        """By Slurm's own count."""
        total = 0
        for line in self.slurm("scontrol", "-o", "show", "nodes").splitlines():
            allocated = next((word for word in line.split() if word.startswith("AllocTRES=")), "")
            total += sum(int(t.split("=")[-1]) for t in allocated.split(",") if "gres/gpu=" in t)
        return total

    def settles(self, within_s: float) -> float:
        """Seconds until nothing is astray. Raises Late."""
        began = time.monotonic()
        while words := self.astray():
            if time.monotonic() - began > within_s:
                raise Late(f"after {within_s:.0f} s: {words}")
            time.sleep(QUIET_S)
        return time.monotonic() - began

    def service(self, name: str) -> psutil.Process:
        noted = json.loads((self.root / "state" / "services" / f"{name}.json").read_text())
        return psutil.Process(int(noted["pid"]))

    def of_replica(self, replica: Replica, what: str) -> psutil.Process:
        """Its engine ("engine") or its supervisor ("supervisor"). Raises Late."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            line = " ".join(words)
            if what == "engine" and str(ENGINE) in words and f" {replica.port} " in f"{line} " and self._ours(line):
                return process
            # Not srun, which has the same words.
            python = bool(words) and Path(words[0]).name.startswith("python")
            if what == "supervisor" and python and "launchers.supervisor" in words and replica.folder in words:
                return process
        raise Late(f"replica {replica.id} has no {what}")

    def _ours(self, line: str) -> bool:
        return f"{self.root}/" in line

    def books(self) -> list[str]:
        """What does not add up, of the ledger and of the GPU report."""
        wrong = []
        for words in (("ledger", "verify"), ("report", "gpu")):
            done = subprocess.run(
                [*self.argv, *words], cwd=HERE.parent, env=self.env, text=True, capture_output=True, check=False
            )
            if done.returncode:
                wrong.append(f"headgate {' '.join(words)}: {(done.stdout + done.stderr)[-600:]}")
        return wrong


def until(condition: Callable[[], bool], what: str, within_s: float) -> float:
    """Seconds that it took. Raises Late."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within_s:
            raise Late(f"{what} did not happen in {within_s:.0f} s")
        time.sleep(QUIET_S)
    return time.monotonic() - began


@contextlib.contextmanager
def platform(keep: Path | None = None) -> Iterator[Platform]:
    """On a cluster of its own, with both services up; all of it is ended again."""
    root = Path(tempfile.mkdtemp(prefix="hg-"))  # short, as Unix sockets' paths must be
    cluster = Path(tempfile.mkdtemp(prefix="hgs-"))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env["SLURM_CONF"] = str(cluster / "etc" / "slurm.conf")
    made = Platform(root, cluster, free_ports(1), env)
    try:
        command(cluster, "start")
        made.headgate("up")
        yield made
    finally:
        made.headgate("down", "--keep-deployments", fails=True)
        command(cluster, "stop")
        if keep is not None:
            shutil.copytree(root, keep, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(cluster, ignore_errors=True)


def command(cluster: Path, *words: str) -> None:
    done = subprocess.run([str(CLUSTER), "--dir", str(cluster), *words], text=True, capture_output=True, check=False)
    if done.returncode:
        raise Late(f"cluster {' '.join(words)}: {done.stderr}")


def kill(process: psutil.Process) -> None:
    """-9; gone by the time that this returns."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)
        psutil.wait_procs([process], timeout=10)


def names(prefix: str, count: int) -> Sequence[str]:
    return [f"{prefix}-{n}" for n in range(1, count + 1)]
