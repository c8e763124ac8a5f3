"""A launch: a folder that is complete before anything is submitted, and gone when the scheduler refuses."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import ROOT
from specs import serve, train

from launchers import spec as specs
from launchers.launch import PACKAGES, launch, new_id, read_job, request_for, write_job
from launchers.local_scheduler import LocalScheduler
from launchers.resources import resources_from
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobRequest, SchedulerError, SchedulerUnavailable
from registry.site import DefaultResources

REF = JobRef("big", "42", datetime(2026, 1, 1, tzinfo=UTC))


class Answering(LocalScheduler):
    """Answers a submission as a cluster might, without starting anything."""

    def __init__(self, spool: Path, answer: JobRef | Exception) -> None:
        super().__init__(spool)
        self.answer = answer
        self.requests: list[JobRequest] = []
        self.complete: set[str] = set()  # what the folder held when we were asked

    def submit(self, request: JobRequest) -> JobRef:
        self.requests.append(request)
        self.complete = set(os.listdir(request.log_dir.parent))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_the_folder_is_complete_before_anything_is_submitted(tmp_path: Path) -> None:
    scheduler = Answering(tmp_path / "spool", REF)
    launched = launch(train(), tmp_path / "runs", scheduler)
    folder = launched.folder
    assert folder.root == tmp_path / "runs" / "pretrain-1"
    made = {"code", "environment.json", "spec.json", "job.sh", "logs", "announcements", "switches"}
    assert scheduler.complete == made
    assert specs.load(folder.spec) == train()
    assert launched.job == REF == read_job(folder)
    (request,) = scheduler.requests
    assert request.key == "pretrain-1"
    assert folder.script.read_text() == scheduler.script(request)
    assert f"-m launchers.batch {folder.root}" in folder.script.read_text()


def test_the_job_runs_the_code_as_it_was_frozen(tmp_path: Path) -> None:
    folder = launch(train(), tmp_path, Answering(tmp_path / "spool", REF)).folder
    assert sorted(os.listdir(folder.code)) == sorted(PACKAGES)
    assert list(folder.code.rglob("__pycache__")) == []
    (folder.code / "launchers" / "supervisor.py").write_text("print('frozen')\n")
    command = request_for(train(), folder).command
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=tmp_path, text=True, capture_output=True, check=True)
    assert done.stdout == "frozen\n"
    assert command[:3] == ("env", "-u", "PYTHONDONTWRITEBYTECODE") and sys.executable in command


@pytest.mark.parametrize("refusal", [SchedulerError("Invalid account"), OSError("disk full")])
def test_nothing_is_left_of_a_launch_that_was_refused(tmp_path: Path, refusal: BaseException) -> None:
    scheduler = Answering(tmp_path / "spool", REF)

    def submit(request: JobRequest) -> JobRef:
        raise refusal

    scheduler.submit = submit
    with pytest.raises(type(refusal)):
        launch(train(), tmp_path / "runs", scheduler)
    assert os.listdir(tmp_path / "runs") == []


@pytest.mark.parametrize("end", [SchedulerUnavailable("timed out"), KeyboardInterrupt()])
def test_a_submission_without_an_answer_keeps_its_folder_because_the_job_may_run(
    tmp_path: Path, end: BaseException
) -> None:
    scheduler = Answering(tmp_path / "spool", REF)

    def submit(request: JobRequest) -> JobRef:
        raise end

    scheduler.submit = submit
    with pytest.raises(type(end)):
        launch(train(), tmp_path, scheduler)
    folder = RunFolder(tmp_path / "pretrain-1")
    assert specs.load(folder.spec) == train() and folder.code.is_dir()
    assert read_job(folder) is None


def test_an_id_that_is_taken_is_refused_and_the_folder_that_has_it_stays(tmp_path: Path) -> None:
    first = launch(train(), tmp_path, Answering(tmp_path / "spool", REF)).folder
    with pytest.raises(FileExistsError):
        launch(train(), tmp_path, Answering(tmp_path / "spool", REF))
    assert first.spec.exists() and read_job(first) == REF


def test_ids_are_readable_and_unique() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert new_id("chat", at).startswith("chat-20260102-030405-")
    assert len({new_id("chat", at) for _ in range(20)}) > 1


def test_a_note_of_a_job_is_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_job(folder) is None
    write_job(folder, REF)
    assert read_job(folder) == REF
    assert os.listdir(tmp_path) == ["job.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"cluster": "big", "job_id": "42"}',
        '{"cluster": "big", "job_id": "../../etc/x", "submitted_at": "2026-01-01T00:00:00+00:00"}',
        '{"cluster": "big", "job_id": 42, "submitted_at": "2026-01-01T00:00:00+00:00"}',
        '{"cluster": "big", "job_id": "42", "submitted_at": "0001-01-01T00:00:00+14:00"}',
        '{"cluster": "big", "job_id": "42", "submitted_at": 7}',
        '{"cluster": {}, "job_id": "42", "submitted_at": "2026-01-01T00:00:00+00:00"}',
        '{"cluster": "big", "job_id": "9999999999", "submitted_at": "2026-01-01T00:00:00+00:00"}',
        "[" * 3000,
    ],
)
def test_a_note_that_cannot_be_believed_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    assert read_job(RunFolder(tmp_path)) is None


def test_a_pipe_in_the_notes_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "job.json")
    assert read_job(RunFolder(tmp_path)) is None


# -- what a person asks for -------------------------------------------------------------------------------------------


def test_what_is_asked_for_goes_over_the_sites_defaults() -> None:
    defaults = DefaultResources(partition="cpu", cpus_per_task=4)
    asked = resources_from(defaults, {"partition": "gpu,long", "gpus_per_node": 2, "mem_gb": 1.5})
    assert asked == specs.Resources(partition="gpu,long", cpus_per_task=4, gpus_per_node=2, mem_gb=1.5)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"gpus": 1}, "resources.gpus: unknown; allowed: partition, account, "),
        ({"nodes": 0}, "resources.nodes: 0 is not a whole number of at least 1"),
        ({"nodes": 1.5}, "resources.nodes: 1.5 is not a whole number"),
        ({"nodes": True}, "resources.nodes: True is not a whole number"),
        ({"nodes": 2**40}, "resources.nodes: 1099511627776 is not a whole number"),
        ({"gpus_per_node": -1}, "resources.gpus_per_node: -1 is not a whole number of at least 0"),
        ({"time_limit_s": "1:00:00"}, "resources.time_limit_s: '1:00:00' is not a whole number"),
        ({"mem_gb": 0}, "resources.mem_gb: 0 is not a number above 0"),
        ({"mem_gb": float("nan")}, "resources.mem_gb: nan is not a number above 0"),
        ({"mem_gb": float("inf")}, "resources.mem_gb: inf is not a number above 0"),
        ({"partition": 3}, "resources.partition: 3 is not a name"),
        ({"partition": ""}, "resources.partition: '' is not a name"),
        ({"account": "phys\ntouch /tmp/owned"}, "is not a name: letters, digits and any of"),
        ({"qos": "high --uid=0"}, "is not a name: letters, digits and any of"),
    ],
)
def test_what_no_job_can_have_is_refused_by_its_name(asked: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError) as e:
        resources_from(DefaultResources(), asked)
    assert problem in str(e.value)


def test_a_replicas_script_holds_no_secret(tmp_path: Path) -> None:
    spec = dataclasses.replace(serve(), engine_args=("--x", "it's"))
    folder = launch(spec, tmp_path, Answering(tmp_path / "spool", REF)).folder
    assert not folder.secret.exists()
    assert "--x" not in folder.script.read_text()
