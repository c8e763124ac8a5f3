"""What Slurm, and the world, do to training runs: each finishes by itself, with the losses of one left in peace.

Real Megatron on two nodes of a real Slurm. Every test lets a run begin, does one thing to it, and waits for its end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PrivateCluster
from platform_fixtures import ROOT, Platform, platform
from waiting import wait_for

from cli.client import Control
from launchers.run_folder import RunFolder

RECIPE = ROOT / "tests" / "recipes" / "survive.toml"
INTERVAL = 100
TRAINING = "launchers.megatron.pretrain"
# Evaluation makes a run long; what it learns is the same.
EVALUATION = "\n[evaluation]\ninterval = {interval}\niterations = {iterations}\n"

pytestmark = pytest.mark.slurm


@dataclass(frozen=True)
class Run:
    platform: Platform
    folder: RunFolder
    job: str

    @property
    def iteration(self) -> int:
        return max(losses(self.folder), default=0)

    def reaches(self, iteration: int) -> None:
        wait_for(lambda: self.iteration >= iteration, timeout=90, every=0.02)

    def processes(self, what: str) -> list[psutil.Process]:
        """Those of this run that are the Python program `what`."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or [""]
            if what in words and "python" in words[0] and str(self.folder.root) in words:
                found.append(process)
        return found

    def described(self) -> dict[str, Any]:
        said: dict[str, Any] = Control(self.platform.root / "state" / "control.sock").get(f"/v1/runs/{self.folder.id}")
        return said

    def ends(self, timeout: float = 150) -> dict[str, Any]:
        """The run as the control API describes it when it has ended."""

        def whole() -> dict[str, Any] | None:
            described = self.described()
            return described if described["run"]["ended_at"] else None

        return wait_for(whole, timeout=timeout, every=0.5)

    def finishes(self, timeout: float = 150) -> list[dict[str, Any]]:
        """The attempts that it took; the run is complete by the registry's word."""
        described = self.ends(timeout)
        assert described["run"]["state"] == "completed", json.dumps(described["run"] | {"of": described["attempts"]})
        attempts: list[dict[str, Any]] = described["attempts"]
        return attempts


@pytest.fixture(scope="module")
def site(slurm_cluster: PrivateCluster, training_python: str) -> Iterator[Platform]:
    settings = (f"scheduler.slurm_conf={slurm_cluster.root}/etc/slurm.conf",)
    with platform("private-cluster.toml", *settings, env=slurm_cluster.env) as made:
        made.ok("up")
        yield made


Start = Callable[..., Run]


@pytest.fixture(scope="module")
def start(site: Platform) -> Start:
    def begin(*options: str, recipe: Path = RECIPE) -> Run:
        made = site.json("train", str(recipe), *options)
        return Run(site, RunFolder(Path(made["folder"])), made["job"])

    return begin


@pytest.fixture(scope="module")
def undisturbed(start: Start) -> dict[int, float]:
    """The losses of a run that nothing happened to."""
    run = start()
    assert [a["cause"] for a in run.finishes()] == ["completed"]
    return losses(run.folder)


def losses(folder: RunFolder) -> dict[int, float]:
    """By iteration; of one that was computed twice, the last."""
    found = {}
    for line in folder.metrics.read_text().splitlines() if folder.metrics.exists() else ():
        try:
            said = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        if "loss" in said:
            found[said["iteration"]] = said["loss"]
    return found


def test_a_rank_that_is_killed_costs_the_work_since_the_last_checkpoint(
    start: Start, undisturbed: dict[int, float]
) -> None:
    run = start()
    run.reaches(INTERVAL + 20)
    wait_for((run.folder.checkpoints / f"iter_{INTERVAL:07d}" / "manifest.json").exists, timeout=60, every=0.005)
    (rank, *_) = run.processes(TRAINING)
    rank.kill()
    first, second = run.finishes()
    assert (first["cause"], second["cause"]) == ("crashed", "completed")
    assert "training was killed by SIGKILL" in first["detail"]
    assert second["first_iteration"] == first["saved_iteration"] >= INTERVAL
    assert losses(run.folder) == undisturbed


def test_a_supervisor_that_is_killed_takes_its_rank_along_and_the_run_goes_on(
    start: Start, undisturbed: dict[int, float]
) -> None:
    run = start()
    run.reaches(INTERVAL + 20)
    (announcement,) = run.folder.announcements.glob("*-attempt-started.json")
    psutil.Process(json.loads(announcement.read_text())["pid"]).kill()
    first, second = run.finishes()
    assert (first["cause"], second["cause"]) == ("lost", "completed")
    assert losses(run.folder) == undisturbed


def test_a_step_whose_slurmstepd_is_killed_in_the_middle_of_a_save_leaves_nobody_behind(
    start: Start, undisturbed: dict[int, float]
) -> None:
    run = start()
    run.reaches(INTERVAL)
    second_save = run.folder.checkpoints / f"iter_{2 * INTERVAL:07d}"
    wait_for(second_save.exists, timeout=60, every=0.001)
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or ()).startswith(f"slurmstepd: [{run.job}.0]"):
            process.kill()
    wait_for(lambda: not run.processes("launchers.supervisor") + run.processes(TRAINING), timeout=30)
    first, second = run.finishes(timeout=300)  # a step that says nothing is waited for, and so is its srun
    assert (first["cause"], second["cause"]) == ("lost", "completed")
    assert losses(run.folder) == undisturbed


def test_a_preempted_run_saves_within_its_grace_and_goes_on_afterwards(
    start: Start, undisturbed: dict[int, float], slurm_cluster: PrivateCluster, tmp_path: Path
) -> None:
    recipe = tmp_path / "long.toml"
    recipe.write_text(RECIPE.read_text() + EVALUATION.format(interval=20, iterations=50))
    run = start("--qos", "preemptible", recipe=recipe)
    run.reaches(20)
    slurm_cluster.run(
        *("sbatch", "--qos=high", "--partition=cpu", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null"),
        "--wrap=sleep 1",
    )
    first, second = run.finishes()
    assert (first["cause"], second["cause"]) == ("preempted", "completed")
    assert second["first_iteration"] == first["saved_iteration"] == first["last_iteration"]  # nothing was lost
    assert losses(run.folder) == undisturbed


def test_a_run_longer_than_its_time_limit_saves_before_it_and_goes_on(
    start: Start, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    recipe = tmp_path / "long.toml"
    # Each evaluation takes what is left of the minute, however fast the machine is.
    recipe.write_text(RECIPE.read_text() + EVALUATION.format(interval=200, iterations=100_000))
    run = start("--time", "1", recipe=recipe)
    *limited, last = run.finishes(timeout=400)
    assert len(limited) >= 2 and {a["cause"] for a in limited} == {"time-limit"} and last["cause"] == "completed"
    assert all(a["saved_iteration"] == a["last_iteration"] for a in limited)
    assert losses(run.folder) == undisturbed


def test_a_requeue_by_an_administrator_restarts_the_run_at_once(
    start: Start, undisturbed: dict[int, float], slurm_cluster: PrivateCluster
) -> None:
    run = start()
    run.reaches(INTERVAL + 20)
    slurm_cluster.run("scontrol", "requeue", run.job)
    first, second = run.finishes(timeout=115)  # Slurm alone would let it wait for two minutes
    assert (first["cause"], second["cause"]) == ("requeued", "completed")
    assert losses(run.folder) == undisturbed


def test_a_run_that_loses_a_node_goes_on_when_there_is_one_again(
    start: Start, undisturbed: dict[int, float], slurm_cluster: PrivateCluster
) -> None:
    run = start()
    run.reaches(INTERVAL + 20)
    slurm_cluster.run("scontrol", "update", "nodename=c2", "state=down", "reason=fan")
    try:
        wait_for(lambda: not run.processes(TRAINING), timeout=60)
    finally:
        back = ("scontrol", "update", "nodename=c2", "state=resume")
        subprocess.run(back, env=slurm_cluster.env, check=False)  # refused when it is back by itself
    *_, last = run.finishes()
    assert last["cause"] == "completed"
    assert losses(run.folder) == undisturbed
    # The supervisor could not know; Slurm's books do, a little later.
    wait_for(lambda: [a["cause"] for a in run.described()["attempts"]] == ["node-failure", "completed"], timeout=60)


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(start: Start, undisturbed: dict[int, float]) -> None:
    run = start()
    newest = run.folder.checkpoints / f"iter_{2 * INTERVAL:07d}"
    wait_for((newest / "manifest.json").exists, timeout=90, every=0.005)
    victim = max(newest.glob("*.distcp"), key=lambda p: p.stat().st_size)
    os.truncate(victim, victim.stat().st_size // 2)
    (rank, *_) = run.processes(TRAINING)
    rank.kill()
    first, second = run.finishes()
    assert (first["cause"], second["cause"]) == ("crashed", "completed")
    assert f"passed over: {victim}" in "".join(p.read_text() for p in run.folder.logs.glob("*-0.log"))
    assert losses(run.folder) == undisturbed


def test_a_cancelled_run_saves_and_stays_stopped_until_it_is_resumed_with_what_it_needs_then(
    start: Start, undisturbed: dict[int, float], slurm_cluster: PrivateCluster
) -> None:
    run = start("-t", "30", "--nice=3")
    run.reaches(20)
    slurm_cluster.run("scancel", run.job)
    described = run.ends()
    assert described["run"]["state"] == "stopped"
    (only,) = described["attempts"]
    assert only["cause"] == "cancelled"
    assert only["saved_iteration"] == only["last_iteration"] >= 20
    files = run.folder.script, run.folder.spec
    as_it_was = [path.read_text() for path in files]
    refused = run.platform.run("resume", run.folder.id, "-p", "nowhere")
    assert refused.returncode == 1 and "invalid partition specified: nowhere" in refused.stderr
    refused = run.platform.run("resume", run.folder.id, "--ntasks-per-node=3")
    assert refused.returncode == 1 and "data-parallel copies = 12" in refused.stderr
    assert [path.read_text() for path in files] == as_it_was
    again = run.platform.json("resume", run.folder.id, "-t", "40", "--mem=3G", "--nice=4")
    shown = slurm_cluster.run("scontrol", "show", "job", again["job"])
    assert "TimeLimit=00:40:00" in shown and "Nice=4" in shown and "mem=6G" in shown  # on two nodes
    wait_for(lambda: run.described()["run"]["ended_at"] is None)
    assert [a["cause"] for a in run.finishes()] == ["cancelled", "completed"]
    assert losses(run.folder) == undisturbed


def test_a_hang_ends_the_attempt_with_the_stacks_of_whoever_waits(
    start: Start, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    recipe = tmp_path / "impatient.toml"
    recipe.write_text(RECIPE.read_text() + "\n[restart]\nhang_timeout_s = 5\n")
    run = start(recipe=recipe)
    run.reaches(INTERVAL + 20)
    rank = next(p for p in run.processes(TRAINING) if p.environ()["RANK"] == "1")
    rank.send_signal(signal.SIGSTOP)
    first, second = run.finishes()
    assert (first["cause"], second["cause"]) == ("no-progress", "completed")
    assert "no progress for 5 s (restart.hang_timeout_s)" in first["detail"]
    log = run.folder.attempt_log(first["attempt"], 0).read_text()
    assert "Current thread" in log and "training.py" in log
    assert losses(run.folder) == undisturbed


def test_a_run_that_crashes_without_progress_is_given_up_with_the_reason(
    start: Start, slurm_cluster: PrivateCluster, tmp_path: Path
) -> None:
    recipe = tmp_path / "hopeless.toml"
    recipe.write_text(RECIPE.read_text() + "\n[restart]\nwithout_progress = 1\n")
    run = start(recipe=recipe)
    run.reaches(20)
    (rank, *_) = run.processes(TRAINING)
    rank.kill()
    described = run.ends()
    assert described["run"]["state"] == "failed"
    assert "restart.without_progress = 1" in described["run"]["cause"]
    assert len(described["attempts"]) == 1
