"""Which task this is, and how the tasks of one job meet."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from launchers import task as tasks
from launchers.task import Failure, RendezvousError, Task, task_of

HOST = socket.gethostname()


@pytest.mark.parametrize(
    ("environ", "expected", "attempt"),
    [
        (
            {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1",
             "SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": "2", "SLURMD_NODENAME": "g2"},
            Task(3, 4, 1, "42", 2, "g2"), "42.2",
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "42"}, Task(0, 8, 0, "42", 0, HOST), "42.0"),
        (
            {"SUBMITIT_LOCAL_JOB_ID": "99", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1",
             "SUBMITIT_LOCAL_LOCALID": "1"},
            Task(1, 2, 1, "99", 0, HOST), "99.0",
        ),
    ],
)  # fmt: skip
def test_a_task_knows_its_place_by_its_environment(environ: dict[str, str], expected: Task, attempt: str) -> None:
    assert task_of(environ) == expected
    assert task_of(environ).attempt == attempt


def test_a_process_that_nobody_scheduled_is_a_job_of_one() -> None:
    alone = task_of({})
    assert (alone.rank, alone.tasks, alone.restart) == (0, 1, 0) and int(alone.job_id) > 0


def test_the_tasks_of_one_attempt_agree_on_the_first_ones_address(tmp_path: Path) -> None:
    places: dict[int, tuple[str, int]] = {}

    def meet(rank: int) -> None:
        places[rank] = tasks.meet(tmp_path / "meet", Task(rank, 3, rank, "42", 0, HOST), timeout_s=10)

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(places) == 3 and len(set(places.values())) == 1
    address, port = places[0]
    with socket.socket() as s:
        s.bind((socket.gethostbyname(address), port))  # the port is free


@pytest.mark.parametrize(("network", "found"), [(True, "10.0.0.7"), (False, "127.0.0.1")])
def test_a_host_whose_own_name_does_not_resolve_is_reached_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: bool, found: str
) -> None:
    def fails(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    class Socket(socket.socket):
        def connect(self, to: object) -> None:
            if not network:
                raise OSError(errno.ENETUNREACH, "Network is unreachable")

        def getsockname(self) -> tuple[str, int]:
            return ("10.0.0.7", 1) if self.type is socket.SOCK_DGRAM else super().getsockname()

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    monkeypatch.setattr(socket, "socket", Socket)
    assert tasks.meet(tmp_path / "met", Task(0, 2, 0, "42", 0, HOST))[0] == found


def test_a_requeued_attempt_meets_anew(tmp_path: Path) -> None:
    first = tasks.meet(tmp_path, Task(0, 1, 0, "42", 0, HOST))
    second = tasks.meet(tmp_path, Task(0, 1, 0, "42", 1, HOST))
    assert first[0] == second[0] == "127.0.0.1" and first[1] != second[1]
    with pytest.raises(RendezvousError, match=r"42\.2\.json: the first task did not say where it is"):
        tasks.meet(tmp_path, Task(1, 2, 1, "42", 2, HOST), timeout_s=0.0)


def test_the_first_failure_is_the_one_that_counts(tmp_path: Path) -> None:
    marker = tmp_path / "rendezvous" / "42.0.failed"
    assert tasks.read_failure(marker) is None
    first = Failure(1, "c2", "MemoryError", "its\ntail", engine="out-of-memory")
    assert tasks.mark_failed(marker, first) == first == tasks.read_failure(marker)
    assert tasks.mark_failed(marker, Failure(0, "c1", "the other side is gone", "")) == first
    assert os.listdir(marker.parent) == [marker.name]
    assert tasks.read_failure(tmp_path / "rendezvous" / "42.1.failed") is None  # another attempt's


def test_what_is_told_of_a_failure_is_bounded(tmp_path: Path) -> None:
    told = tasks.mark_failed(tmp_path / "42.0.failed", Failure(1, "c2", "x" * 10**6, "é" * 10**6 + "end"))
    assert len(told.cause) == 2000 and len(told.tail) == 6000 and told.tail.endswith("end")
