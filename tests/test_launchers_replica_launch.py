"""Replicas become one job: their folders are whole before it is submitted, and gone when it is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from controller_world import Memory
from specs import serve

from launchers import launch as launching
from launchers import replica_launch
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobRequest, SchedulerError, SchedulerUnavailable
from launchers.spec import load


class Answers(Memory):
    """Looks at the folders as it is asked, and may refuse."""

    def __init__(self, runs: Path, refusal: Exception | None = None) -> None:
        super().__init__()
        self.runs, self.refusal = runs, refusal
        self.found: list[str] = []  # folders with a spec, as the job is submitted

    def submit(self, request: JobRequest) -> JobRef:
        self.found = sorted(path.parent.name for path in self.runs.glob("*/spec.json"))
        if self.refusal is not None:
            raise self.refusal
        return super().submit(request)


@pytest.fixture(autouse=True)
def no_frozen_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_launch, "freeze", lambda destination: None)


def test_one_replica_alone_has_a_job_of_its_own(tmp_path: Path) -> None:
    (one,) = replica_launch.together([serve()])
    assert one.pack == ()
    scheduler = Answers(tmp_path)
    launched = replica_launch.launch([one], tmp_path, scheduler)
    (job,) = scheduler.jobs
    assert (job.request.key, job.request.apart, launched.folder.id) == ("chat-1", False, "chat-1")
    assert load(launched.folder.spec) == one and launching.read_job(launched.folder) == launched.job
    assert stat.S_IMODE(launched.folder.switches.stat().st_mode) == 0o700  # nobody else may stop it


def test_several_share_a_job_that_the_first_ones_id_names(tmp_path: Path) -> None:
    members = replica_launch.together([serve("chat-1"), serve("chat-2"), serve("chat-3")])
    assert {m.pack for m in members} == {("chat-1", "chat-2", "chat-3")}
    scheduler = Answers(tmp_path)
    launched = replica_launch.launch(members, tmp_path, scheduler)
    (job,) = scheduler.jobs
    assert scheduler.found == ["chat-1", "chat-2", "chat-3"]
    assert job.request.key == "chat-1" == launched.folder.id
    folders = [RunFolder(tmp_path / m.id) for m in members]
    assert job.request.command[-3:] == tuple(str(folder.root) for folder in folders)
    assert [load(folder.spec) for folder in folders] == members
    assert [launching.read_job(folder) for folder in folders] == [launched.job, None, None]


def test_a_refusal_leaves_no_folder(tmp_path: Path) -> None:
    members = replica_launch.together([serve("chat-1"), serve("chat-2")])
    with pytest.raises(SchedulerError, match="no such partition"):
        replica_launch.launch(members, tmp_path, Answers(tmp_path, SchedulerError("no such partition")))
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_that_falls_silent_leaves_all_folders_as_the_job_may_run(tmp_path: Path) -> None:
    members = replica_launch.together([serve("chat-1"), serve("chat-2")])
    with pytest.raises(SchedulerUnavailable):
        replica_launch.launch(members, tmp_path, Answers(tmp_path, SchedulerUnavailable("no answer")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat-1", "chat-2"]


def test_a_folder_that_is_there_already_leaves_none_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "chat-2").mkdir()
    (tmp_path / "chat-2" / "theirs").touch()
    scheduler = Answers(tmp_path)
    with pytest.raises(FileExistsError):
        replica_launch.launch(replica_launch.together([serve("chat-1"), serve("chat-2")]), tmp_path, scheduler)
    assert [path.name for path in tmp_path.iterdir()] == ["chat-2"] and scheduler.jobs == []
    assert (tmp_path / "chat-2" / "theirs").exists()
