"""A sweep on a real Slurm, with real training."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import PrivateCluster
from platform_fixtures import ROOT, platform
from waiting import wait_for

from launchers import history
from launchers.run_folder import RunFolder
from launchers.spec import TrainSpec, load
from slurm.commands import CommandClient


@pytest.mark.slurm
def test_each_combination_trains_in_a_task_of_one_array_as_a_run_of_its_own(
    slurm_cluster: PrivateCluster, training_python: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "swept.toml"
    text = (ROOT / "tests" / "recipes" / "survive.toml").read_text()
    recipe.write_text(text.replace("iterations = 600", "iterations = 4"))
    client = CommandClient(environment=slurm_cluster.env)
    settings = f"scheduler.slurm_conf={slurm_cluster.root}/etc/slurm.conf"
    with platform("private-cluster.toml", settings, env=slurm_cluster.env) as site:
        refused = site.run("train", str(recipe), "-N1", "--sweep", "global_batch=4,5")
        assert "with train.global_batch = 5: " in refused.stderr
        assert not (site.root / "shared" / "runs").exists()

        shown = site.ok("train", str(recipe), "-N1", "-C", "h100&big", "--sweep", "seed=1..2", "--dry-run")
        assert {"#SBATCH --constraint=h100&big", "#SBATCH --array=0-1"} <= set(shown.splitlines())
        assert not (site.root / "shared" / "runs").exists()

        rows = site.json("train", str(recipe), "-N1", "--sweep", "seed=1..2", "--nice=3")
        array = rows[0]["job"].partition("_")[0]
        assert [row["job"] for row in rows] == [f"{array}_0", f"{array}_1"]
        assert [row["values"] for row in rows] == [{"train.seed": 1}, {"train.seed": 2}]
        runs = [RunFolder(Path(row["folder"])) for row in rows]
        comments: dict[str, str] = {}

        def over() -> bool:
            comments.update({job.id: job.comment for job in client.jobs([array])})
            return all(history.newest_saved(run) == 4 and judged(run) for run in runs)

        wait_for(over, 120, every=0.5)
        for index, run in enumerate(runs):
            spec = load(run.spec)
            assert isinstance(spec, TrainSpec)
            assert (spec.name, spec.recipe["train"]["seed"]) == ("swept", index + 1)
            assert comments[f"{array}_{index}"] == run.id  # so that the queue shows whose task it is
            assert len(run.metrics.read_text().splitlines()) >= 2


def judged(run: RunFolder) -> bool:
    return any(name.endswith("-attempt-judged.json") for name in map(str, run.announcements.iterdir()))
