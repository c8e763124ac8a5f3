"""What --sweep asks for, and what it becomes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from slurm_fixtures import NOON, ScriptedSlurm, config
from specs import train

from launchers import spec as specs
from launchers.array_task import NAME, run_of
from launchers.launch import PACKAGES, read_job
from launchers.local_scheduler import LocalScheduler
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobRequest, SchedulerError, SchedulerUnavailable
from launchers.spec import Resources
from launchers.sweep import array_request, combinations, launch_sweep, refuse_too_many
from registry.strict_toml import ConfigError


@pytest.mark.parametrize(
    ("asked", "values"),
    [
        (["lr=1e-3,3e-4"], [{"train.lr": 1e-3}, {"train.lr": 3e-4}]),
        (["train.seed=1..3"], [{"train.seed": 1}, {"train.seed": 2}, {"train.seed": 3}]),
        (["seed=1..2,7"], [{"train.seed": 1}, {"train.seed": 2}, {"train.seed": 7}]),
        (["schedule=cosine, linear"], [{"train.schedule": "cosine"}, {"train.schedule": "linear"}]),
        (['split="9,1,0","8,2,0"'], [{"data.split": "9,1,0"}, {"data.split": "8,2,0"}]),
        (['data.text=["a"],["b","c"]'], [{"data.text": ["a"]}, {"data.text": ["b", "c"]}]),
        (["distributed_optimizer=true"], [{"parallel.distributed_optimizer": True}]),
        (
            ["lr=1,2", "seed=5..6"],
            [
                {"train.lr": 1, "train.seed": 5},
                {"train.lr": 1, "train.seed": 6},
                {"train.lr": 2, "train.seed": 5},
                {"train.lr": 2, "train.seed": 6},
            ],
        ),
    ],
)
def test_values_of_settings_become_every_combination(asked: list[str], values: list[dict[str, object]]) -> None:
    assert [one.shown() for one in combinations(asked)] == values


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["lr"], "--sweep lr: has no values; write --sweep train.lr=1e-3,3e-4 or --sweep seed=1..4"),
        (["lr="], "--sweep lr=: has no values"),
        (["interval=1,2"], "--sweep interval: could be any of checkpoint.interval, evaluation.interval"),
        (["sead=1"], "--sweep sead: a recipe has no such setting; did you mean 'seed'?"),
        (["nothing.like.it=1"], "--sweep nothing.like.it: a recipe has no such setting"),
        (["seed=4..1"], "--sweep seed=4..1: 4..1 is no range: FIRST..LAST, the smaller one first"),
        (["seed=1..2,2"], "--sweep seed=1..2,2: the same value stands there twice"),
        (["seed=1", "train.seed=2"], "--sweep train.seed: said twice; one --sweep takes all values of a setting"),
        (["seed=1..5000", "lr=1,2,3"], "--sweep: 15,000 combinations; at most 10,000"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(asked: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        combinations(asked)
    assert str(refused.value).startswith(says)


def test_more_runs_than_an_array_of_the_cluster_has_tasks_are_refused_with_both_numbers() -> None:
    refuse_too_many(1001, ScriptedSlurm(cluster=config(max_array_size=1001)))  # type: ignore[arg-type]  # asks this only
    with pytest.raises(ValueError, match=r"1,002 combinations, .* at most 1,001 tasks \(MaxArraySize\)"):
        refuse_too_many(1002, ScriptedSlurm(cluster=config(max_array_size=1001)))  # type: ignore[arg-type]  # the same


class Answering(LocalScheduler):
    """Writes scripts as Slurm's scheduler does, and answers a submission as told."""

    def __init__(self, spool: Path, answer: JobRef | Exception) -> None:
        super().__init__(spool)
        self.answer = answer
        self.requests: list[JobRequest] = []

    def submit(self, request: JobRequest) -> JobRef:
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


RUNS = [train("pretrain-a"), train("pretrain-b")]
COMBINED = combinations(["seed=1..2"])


def test_each_combination_is_a_run_of_its_own_and_a_task_of_one_array(tmp_path: Path) -> None:
    scheduler = Answering(tmp_path / "spool", JobRef("test", "12_[0-1]", NOON))
    sweep = launch_sweep(RUNS, COMBINED, tmp_path / "runs", scheduler, parallel=1)
    assert sweep.job == JobRef("test", "12", NOON)
    for index, (spec, run) in enumerate(zip(RUNS, sweep.runs, strict=True)):
        assert run.folder.root == tmp_path / "runs" / spec.id
        assert specs.load(run.folder.spec) == dataclasses.replace(spec, sweep=sweep.folder.id, sweep_index=index)
        assert read_job(run.folder) == run.job == JobRef("test", f"12_{index}", NOON)
        assert sorted(p.name for p in run.folder.code.iterdir()) == sorted(PACKAGES)
        assert f"-m launchers.batch {run.folder.root}\n" in run.folder.script.read_text()
        assert run_of(sweep.folder.root, index) == run.folder
    (request,) = scheduler.requests
    assert (request.key, request.name) == (sweep.folder.id, "pretrain")
    assert request.resources.options == ("--array=0-1%1",)
    told = json.loads((sweep.folder.root / NAME).read_text())
    assert [one["values"] for one in told["runs"]] == [{"train.seed": 1}, {"train.seed": 2}]


def test_the_array_is_limited_only_where_that_was_asked(tmp_path: Path) -> None:
    like = train(resources=Resources(options=("--nice=1",)))
    request = array_request("s", RunFolder(tmp_path), like, 3, None)
    assert request.resources.options == ("--nice=1", "--array=0-2")


def test_nothing_is_left_of_a_sweep_that_was_refused(tmp_path: Path) -> None:
    with pytest.raises(SchedulerError, match="no such partition"):
        launch_sweep(
            RUNS, COMBINED, tmp_path / "runs", Answering(tmp_path / "spool", SchedulerError("no such partition"))
        )
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "pretrain-b" / "mine"
    mine.mkdir(parents=True)
    with pytest.raises(FileExistsError):
        launch_sweep(RUNS, COMBINED, tmp_path, Answering(tmp_path / "spool", JobRef("test", "12", NOON)))
    assert [p.name for p in tmp_path.iterdir()] == ["pretrain-b"] and mine.exists()


def test_all_of_a_sweep_stays_whose_submission_got_no_answer(tmp_path: Path) -> None:
    with pytest.raises(SchedulerUnavailable):
        launch_sweep(RUNS, COMBINED, tmp_path / "runs", Answering(tmp_path / "spool", SchedulerUnavailable("silent")))
    assert len(list((tmp_path / "runs").iterdir())) == 3
