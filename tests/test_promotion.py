"""From a run's checkpoint to an alias on real parts: Megatron's checkpoint, vLLM, lm_eval; and Slurm's dependencies."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PrivateCluster
from platform_fixtures import ROOT, Platform, platform
from specs import folder_of, train
from waiting import wait_for

from launchers.launch import new_id
from launchers.megatron import manifest
from launchers.run_folder import RunFolder
from registry import aliases, models, promotions
from registry.aliases import AliasMove
from registry.db import open_reader
from registry.promotions import Promotion, PromotionState
from registry.runs import RunState

pytestmark = pytest.mark.chain
RECIPE = str(ROOT / "tests" / "recipes" / "chain.toml")
TASKS = str(ROOT / "tests" / "tasks")
SLOW_S = 1200  # for two engines to start, on a machine with much else to do


@pytest.fixture(scope="module")
def evaluation_python(training_python: str) -> str:
    """An interpreter with lm_eval."""
    known = [training_python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('lm_eval') is None)"]
    if subprocess.run(known, check=False).returncode:
        pytest.skip(f"{training_python} has no lm_eval (make environments)")
    if not (ROOT / ".venvs" / "engine" / "bin" / "python").exists():
        pytest.skip("no engine environment (make environments)")
    return training_python


@pytest.fixture(scope="module")
def laptop(evaluation_python: str) -> Iterator[Platform]:
    """A platform on which a run called tiny has been trained, with checkpoints 10 and 20."""
    evaluation = (f"environments.evaluation.{k}={v}" for k, v in (("kind", "venv"), ("python", evaluation_python)))
    with platform("laptop.toml", *evaluation) as made:
        made.ok("train", RECIPE, "-J", "tiny")
        wait_for(lambda: made.json("runs")[0]["state"] in ("completed", "failed"), timeout=300, every=2)
        yield made


def ended(site: Platform, promotion: str) -> Promotion:
    """What became of it, as the registry has it: a command for each look would be most of what this machine does."""

    def known() -> Promotion | None:
        db = open_reader(site.root / "state" / "registry.db")
        try:
            found = next((p for p in promotions.everything(db) if p.id == promotion), None)
            return found if found and found.state.ended else None
        finally:
            db.close()

    return wait_for(known, timeout=SLOW_S, every=0.5)


def moves(site: Platform) -> list[AliasMove]:
    db = open_reader(site.root / "state" / "registry.db")
    try:
        return aliases.moves(db, "tiny", "prod")
    finally:
        db.close()


def test_a_checkpoint_is_converted_tried_evaluated_and_its_alias_moved_though_nothing_of_ours_ran_when_it_was_asked_for(
    laptop: Platform,
) -> None:
    asked = ("--to", "tiny@prod", "--canary", "10", "--tasks", TASKS, "--require", "next_word.acc>=0")
    submitted = laptop.json("promote", "tiny", *asked)
    laptop.ok("up")
    found = ended(laptop, submitted["promotion"])
    assert (found.state, found.cause, found.version) == (PromotionState.PROMOTED, None, 1)
    assert [step.state for step in found.steps] == [RunState.COMPLETED] * 3
    _, smoked, evaluated = (step.said for step in found.steps)
    assert (smoked["prompts"], smoked["completion_tokens"]) == (3, 48)
    measured = {(r["task"], r["metric"]): r for r in evaluated["results"]}
    assert set(measured) == {("next_word", "acc"), ("echo", "exact_match")}
    assert all(r["examples"] == 4 and 0 <= r["value"] <= 1 for r in measured.values())

    (moved,) = moves(laptop)
    assert (moved.to_version, moved.canary) == (1, 10)
    assert moved.why == f"promoted from {found.source} by {found.id}"
    (model,) = laptop.json("models")
    assert (model["state"], model["aliases"]) == (models.ModelState.SERVABLE, ["prod"])
    weights = [p.stat().st_mode for p in Path(model["path"]).iterdir()]
    assert all(mode & 0o044 for mode in weights)  # whoever serves it is another user
    printed = laptop.ok("promotions", found.id)
    assert "promoted (version 1)" in printed and "generated 48 tokens for 3 prompts" in printed
    assert laptop.json("checkpoints", "tiny")[-1]["used_by"] == ["alias tiny@prod"]
    laptop.ok("down")
    assert laptop.processes() == []


def test_a_promotion_whose_conversion_fails_starts_no_engine_and_the_alias_stays(laptop: Platform) -> None:
    before = moves(laptop)
    (damaged,) = (laptop.root / "shared" / "runs").glob("tiny-*/checkpoints/iter_0000010")
    victim = max(damaged.rglob("*.distcp"), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)
    laptop.ok("up")
    run = damaged.parts[-3]
    done = laptop.run("promote", f"{run}/10", "--to", "tiny@prod", "--tasks", TASKS, "--wait")
    assert done.returncode == 1
    assert "failed: the conversion: " in done.stderr and victim.name in done.stderr
    (failed,) = (p for p in laptop.json("promotions") if p["state"] == "failed")
    later = [step["run"] for step in failed["steps"][1:]]
    wait_for(lambda: [r["state"] for r in laptop.json("runs") if r["id"] in later] == ["failed", "failed"], every=2)
    causes = [r["cause"] for r in laptop.json("runs") if r["id"] in later]
    assert all("the step before" in cause for cause in causes)
    assert moves(laptop) == before
    laptop.ok("down")
    assert laptop.processes() == []


def test_on_slurm_a_step_that_fails_ends_the_jobs_that_depend_on_it_and_the_promotion(
    slurm_cluster: PrivateCluster,
) -> None:
    """The checkpoint has no recipe, which its conversion finds out."""
    conf = f"scheduler.slurm_conf={slurm_cluster.root}/etc/slurm.conf"
    with platform("private-cluster.toml", conf, env=slurm_cluster.env) as site:
        folder = folder_of(train(new_id("tiny"), name="tiny"), site.root / "shared" / "runs")
        checkpoint = folder.checkpoints / "iter_0000010"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_bytes(b"none")
        manifest.write(checkpoint, "checkpoint", iteration=10, run=folder.id)
        asked = ("--to", "tiny@prod", "--tasks", TASKS, "-A", "research")
        submitted = json.loads(site.ok("promote", "tiny", *asked, "--json"))
        jobs = [step["job"] for step in submitted["steps"]]
        waits = slurm_cluster.run("squeue", "-h", "-j", jobs[1], "-o", "%E").strip()
        assert waits.startswith(f"afterok:{jobs[0]}") or waits == ""  # it was quicker than we are
        site.ok("up")
        found = ended(site, submitted["promotion"])
        assert found.state is PromotionState.FAILED
        assert found.cause and found.cause.startswith("the conversion: ") and "recipe.json" in found.cause

        def left() -> str:
            return slurm_cluster.run("squeue", "-h", "-j", ",".join(jobs), "-o", "%i").strip()

        wait_for(lambda: left() == "", timeout=120)
        states = slurm_cluster.run("sacct", "-X", "-n", "-P", "-j", ",".join(jobs), "-o", "State").split("\n")
        assert [state.split()[0] for state in states if state] == ["FAILED", "CANCELLED", "CANCELLED"]
        for step in submitted["steps"][1:]:
            assert os.listdir(RunFolder(site.root / "shared" / "runs" / step["run"]).announcements) == []
        assert moves(site) == []
