"""From a preemption to training again, on a private Slurm that is started for it.

    make bench-restarts      (the last part of make bench-training)

A training run of two nodes is preempted by a job of a higher QOS that needs both for a moment. The peer is what Slurm
does for any `sbatch --requeue` job in the same run: it ends it when its grace is over, and lets it wait two minutes.
Seconds are counted from the submission of the job that preempts; ours to the first new iteration, the peer's to the
script's first line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.figures import show
from benchmarks.slurm import CLUSTER, REPOSITORY, private_cluster

RECIPE = REPOSITORY / "tests" / "recipes" / "survive.toml"
EVALUATION = "\n[evaluation]\ninterval = 20\niterations = 400\n"  # makes it long enough to be preempted
PATIENCE_S = 400.0


def until(condition: Callable[[], bool]) -> float:
    """When it came true, by the clock of `time.time`."""
    deadline = time.time() + PATIENCE_S
    while not condition():
        if time.time() > deadline:
            raise TimeoutError(f"not within {PATIENCE_S:g} s")
        time.sleep(0.05)
    return time.time()


def preempt(env: Mapping[str, str]) -> float:
    now = time.time()
    words = [
        "sbatch",
        "--qos=high",
        "-p",
        "cpu",
        "-N",
        "2",
        "--exclusive",
        "-t",
        "1",
        "-o",
        "/dev/null",
        "--wrap=sleep 1",
    ]
    subprocess.run(words, env=env, check=True, stdout=subprocess.DEVNULL)
    return now


def ours(root: Path, env: Mapping[str, str]) -> float:
    """Seconds until the run has finished another iteration."""
    recipe = root / "long.toml"
    recipe.write_text(RECIPE.read_text() + EVALUATION)
    site = ["--site", str(REPOSITORY / "site-configs" / "private-cluster.toml")]
    settings = (f"scheduler.slurm_conf={root}/etc/slurm.conf", f"state_dir={root}/hg", f"shared_dir={root}/hg-shared")
    flags = [word for setting in settings for word in ("--set", setting)]
    headgate = [sys.executable, "-m", "cli.main", *site, *flags]
    asked = [*headgate, "train", str(recipe), "--qos", "preemptible", "--json"]
    made = json.loads(subprocess.run(asked, env=env, check=True, capture_output=True, cwd=REPOSITORY).stdout)
    metrics = Path(made["folder"]) / "metrics.jsonl"

    def said(what: str) -> int:
        return metrics.read_text().count(what) if metrics.exists() else 0

    until(lambda: said('"grad_norm"') >= 20)
    began = preempt(env)
    until(lambda: said('"stage": "stopped"') == 1)
    done = said('"grad_norm"')
    again = until(lambda: said('"grad_norm"') > done)
    subprocess.run(["scancel", made["job"]], env=env, check=True)
    return again - began


def slurms(root: Path, env: Mapping[str, str]) -> float:
    """Seconds until a plain job's script runs again."""
    script, said = root / "plain.sh", root / "plain.out"
    script.write_text("#!/bin/bash\necho begins\nexec sleep 3600\n")
    words = [
        "sbatch",
        "--parsable",
        "--qos=preemptible",
        "-p",
        "cpu",
        "-N",
        "2",
        "--exclusive",
        "--requeue",
        "-o",
        str(said),
    ]
    asked = [*words, "--open-mode=append", str(script)]
    job = subprocess.run(asked, env=env, check=True, capture_output=True, text=True).stdout.strip()
    until(lambda: said.exists() and said.read_text().count("begins") == 1)
    began = preempt(env)
    again = until(lambda: said.read_text().count("begins") == 2)
    subprocess.run(["scancel", job], env=env, check=True)
    return again - began


def main() -> int:
    installed = subprocess.run([CLUSTER / "install"], check=False, stdout=sys.stderr)
    if installed.returncode:
        return 0 if installed.returncode == 3 else 1  # it said what is missing
    with private_cluster() as root:
        env = {**os.environ, "SLURM_CONF": f"{root}/etc/slurm.conf"}
        mine = ours(root, env)
        theirs = slurms(root, env)
    show("preempted: from the preemption to training again", mine, "s", "sbatch --requeue, to its first line", theirs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
