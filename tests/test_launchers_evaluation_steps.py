"""A promotion's steps under a real supervisor, with an engine in miniature: what they announce, and how they end."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from specs import convert, evaluate, folder_of, smoke
from waiting import wait_for

from launchers.announce import Announcement, announce, names, read
from launchers.evaluation.tasks import digest
from launchers.run_folder import RunFolder
from launchers.spec import Environment, EvaluateSpec, SmokeSpec

ENGINE = str(Path(__file__).with_name("evaluated_engine.py"))
HARNESS = Path(__file__).with_name("evaluated_harness.py")
MEASURED = {"task": "piqa", "metric": "acc", "filter": "none", "value": 0.5, "stderr": 0.1, "examples": 4}


class Job:
    def __init__(self, spec: SmokeSpec | EvaluateSpec, runs: Path) -> None:
        self.folder = folder_of(spec, runs)
        self.folder.code.symlink_to(ROOT)
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SUBMITIT_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launchers.supervisor", str(self.folder.root)],
            cwd=ROOT,
            env={**outside, "SUBMITIT_LOCAL_JOB_ID": "77"},
            stderr=subprocess.DEVNULL,
        )

    def said(self, kind: str) -> list[Announcement]:
        directory = self.folder.announcements
        return [a for a in (read(directory / n, os.getuid()) for n in names(directory)) if a.kind == kind]

    def end(self) -> dict[str, Any]:
        self.process.wait(60)
        (last,) = self.said("attempt-ended")
        return last.facts

    def log(self) -> str:
        path = self.folder.attempt_log("77.0", 0)
        return path.read_text() if path.exists() else ""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Start a step on a model that is there; `engine` are more arguments for its engine."""
    jobs: list[Job] = []
    runs = tmp_path / "runs"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    environment = Environment(kind="venv", python=sys.executable, command=("{python}", ENGINE))

    def start(made: Callable[..., Any], *engine: str, **changed: Any) -> Job:
        words = {"environment": environment, "engine_args": engine, "model_path": str(tmp_path / "model"), **changed}
        jobs.append(Job(made(**words), runs))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.process.poll() is None:
            job.process.kill()
        job.process.wait(30)
    wait_for(lambda: not [line for line in map(_line, psutil.process_iter()) if str(tmp_path) in line], 10)


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, Any]:
    """What an evaluation is given, whose harness measures MEASURED."""
    (tmp_path / "tasks").mkdir()
    measured = [{**MEASURED, "higher_is_better": True}]
    (tmp_path / "tasks" / "measured.json").write_text(json.dumps(measured))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {HARNESS} "$@"\n')
    python.chmod(0o755)
    sha256 = digest(tmp_path / "tasks")
    return {
        "tasks_dir": str(tmp_path / "tasks"),
        "tasks_sha256": sha256,
        "harness": Environment(kind="venv", python=str(python)),
    }


def test_a_model_that_generates_what_is_sane_passes_and_nothing_secret_is_left(start: Callable[..., Job]) -> None:
    job = start(smoke)
    assert (job.end()["cause"], job.process.returncode) == ("completed", 0)
    (said,) = job.said("model-generated")
    assert (said.facts["prompts"], said.facts["completion_tokens"]) == (3, 48)
    assert not job.folder.secret.exists() and job.folder.former_tls == []


@pytest.mark.parametrize(
    ("engine", "exit_code", "why"),
    [
        (("--logprob", "nan"), 78, "is not sane: its tokens' logprobs are"),
        (("--die",), 1, "the engine ended with exit code 1 before it had generated a token"),
    ],
)
def test_a_model_that_cannot_be_served_fails_with_the_reason(
    start: Callable[..., Job], engine: tuple[str, ...], exit_code: int, why: str
) -> None:
    job = start(smoke, *engine)
    ended = job.end()
    assert ended["exit_code"] == exit_code
    assert ended["cause"].startswith("the smoke test ended with exit code") and why in ended["cause"]
    assert job.said("model-generated") == []


def test_a_step_after_one_that_failed_starts_no_engine(start: Callable[..., Job], tmp_path: Path) -> None:
    former = folder_of(convert(), tmp_path)
    announce(former.announcements, "attempt-started", attempt="1.0")
    announce(former.announcements, "attempt-ended", attempt="1.0", exit_code=1, cause="no disk", end="crashed")
    job = start(smoke, after=str(former.root))
    assert "the step before, publish-1, did not come to its end: no disk" in job.end()["cause"]
    assert "serving" not in job.log()


def test_a_step_waits_for_the_one_before_and_a_model_that_it_did_not_leave_is_missed(
    start: Callable[..., Job], tmp_path: Path
) -> None:
    former = folder_of(convert(), tmp_path)
    job = start(smoke, after=str(former.root), model_path=str(former.model))
    wait_for(lambda: job.said("attempt-started"))
    announce(former.announcements, "attempt-ended", attempt="1.0", exit_code=0, cause="completed", end="completed")
    assert "there is no model (config.json)" in job.end()["cause"]


def test_a_smoke_test_that_is_told_to_end_is_cancelled_and_its_engine_ends_with_it(
    start: Callable[..., Job],
) -> None:
    job = start(smoke, "--mute")
    wait_for(lambda: "serving" in job.log())
    engine = psutil.Process(job.process.pid).children(recursive=True)[-1]
    assert ENGINE in engine.cmdline()
    job.process.send_signal(signal.SIGTERM)
    ended = job.end()
    assert not engine.is_running()
    assert not job.folder.secret.exists() and job.folder.former_tls == []
    assert (ended["cause"], ended["exit_code"]) == ("cancelled", 0)


def test_an_evaluation_announces_what_was_measured_with_the_engines_own_certificate(
    start: Callable[..., Job], tasks: dict[str, Any]
) -> None:
    job = start(evaluate, require=("piqa.acc>=0.5",), **tasks)
    assert job.end()["cause"] == "completed", job.log()
    (said,) = job.said("model-evaluated")
    assert said.facts["results"] == [{**MEASURED, "higher_is_better": True}]
    assert said.facts["unmet"] == [] and len(said.facts["tasks_sha256"]) == 64
    assert "piqa.acc: 0.5 ± 0.1000" in job.log()
    assert stat.S_IMODE(job.folder.evaluation.stat().st_mode) & 0o044


def test_an_evaluation_that_does_not_meet_what_is_required_fails_and_says_which(
    start: Callable[..., Job], tasks: dict[str, Any]
) -> None:
    job = start(evaluate, require=("piqa.acc>=0.4", "piqa.acc>0.6"), **tasks)
    ended = job.end()
    assert (ended["exit_code"], ended["end"]) == (78, "refused")
    assert "piqa.acc is 0.5, and >0.6 is required" in ended["cause"]
    (said,) = job.said("model-evaluated")
    assert said.facts["unmet"] == ["piqa.acc is 0.5, and >0.6 is required"]


def test_a_harness_that_fails_fails_the_evaluation(start: Callable[..., Job], tasks: dict[str, Any]) -> None:
    directory = Path(tasks["tasks_dir"])
    (directory / "measured.json").unlink()
    job = start(evaluate, **{**tasks, "tasks_sha256": digest(directory)})
    assert "lm_eval ended with exit code 1" in job.end()["cause"]
    assert job.said("model-evaluated") == []
    assert RunFolder(job.folder.root).former_tls == []


def test_tasks_that_were_changed_since_they_were_asked_for_are_not_run(
    start: Callable[..., Job], tasks: dict[str, Any]
) -> None:
    (Path(tasks["tasks_dir"]) / "more.yaml").write_text("task: easier")
    job = start(evaluate, **tasks)
    ended = job.end()
    assert (ended["exit_code"], ended["end"]) == (78, "refused")
    assert f"{tasks['tasks_dir']} is not what it was when the evaluation was asked for" in ended["cause"]
    assert job.said("model-evaluated") == [] and not job.folder.evaluation.exists()


def test_tasks_that_are_changed_while_they_run_measure_nothing(
    start: Callable[..., Job], tasks: dict[str, Any]
) -> None:
    changed = {"edit": "easier.yaml"}
    (Path(tasks["tasks_dir"]) / "while.json").write_text(json.dumps(changed))
    job = start(evaluate, **{**tasks, "tasks_sha256": digest(Path(tasks["tasks_dir"]))})
    assert "is not what it was when the evaluation was asked for" in job.end()["cause"]
    assert job.said("model-evaluated") == []


@pytest.mark.parametrize("wrote", ["not json", json.dumps([{**MEASURED, "metric": "a\x1b", "higher_is_better": None}])])
def test_results_that_are_none_are_refused_in_words(
    start: Callable[..., Job], tasks: dict[str, Any], wrote: str
) -> None:
    (Path(tasks["tasks_dir"]) / "measured.json").write_text(wrote)
    job = start(evaluate, **{**tasks, "tasks_sha256": digest(Path(tasks["tasks_dir"]))})
    ended = job.end()
    assert ended["exit_code"] == 78 and "evaluation.json: " in ended["cause"]
    assert "Traceback" not in job.log()
