"""pyslurm's back end: its records, its worker's faults, and the same facts as the commands tell (tests/chroot/run)."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import PrivateCluster
from waiting import wait_for

from slurm import native
from slurm.backend import choose, connect, installed
from slurm.client import SlurmClient
from slurm.errors import SlurmUnavailable
from slurm.model import TRES, Job, JobState, NodeState
from slurm.native import JOB, NODE, NativeClient
from slurm.worker import WorkerEnded

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
needs_pyslurm = pytest.mark.skipif(not installed(), reason="no pyslurm here: make test-pyslurm has one")


# -- rows become records --------------------------------------------------------------------------------------------


def job_row(**said: Any) -> tuple[Any, ...]:
    """What the worker says of a plain pending job, and what is said otherwise."""
    usual = dict.fromkeys(JOB[:-2]) | {
        "id": 12,
        "user_id": 0,
        "name": "train",
        "partition": "gpu",
        "state": "PENDING",
        "state_reason": "Priority",
        "submit_time": 1000,
        "time_limit": 90,
        "requeue_count": 0,
        "tres": "cpu=4,mem=2048,node=1,billing=4,gres/gpu=2,gres/gpu:h100=2",
    }
    return tuple((usual | said).values())


def records(*rows: tuple[Any, ...], ids: set[str] | None = None, user: str | None = None) -> list[Job]:
    return native.jobs(rows, NOW, None if ids is None else frozenset(ids), user)


def test_a_row_is_a_job_in_our_units() -> None:
    (job,) = records(job_row(num_nodes=1, priority=7, run_time_remaining=5400))
    assert (job.id, job.raw_id, job.user, job.time_limit_s, job.time_left_s) == ("12", 12, "root", 5400, 5400)
    assert job.tres == TRES(4, 2 * 2**30, 1, 4, gpus=2, gpus_by_type=(("h100", 2),))
    assert (job.comment, job.account, job.reason, job.starts_at, job.nodes) == ("", "", "Priority", None, ())
    assert job.submitted_at == datetime(1970, 1, 1, 0, 16, 40, tzinfo=UTC)


@pytest.mark.parametrize(
    ("said", "job_id"),
    [
        ({"array_id": 3, "array_task_id": 4}, "3_4"),
        ({"array_id": 3}, "3_0"),  # pyslurm takes task 0 for no task
        ({"array_id": 12, "array_tasks_waiting": "2-9", "array_tasks_parallel": 2}, "12_[2-9%2]"),
        ({"array_id": 12, "array_tasks_waiting": "2,7"}, "12_[2,7]"),
        ({"heterogeneous_id": 12}, "12+0"),
        ({"heterogeneous_id": 11, "heterogeneous_offset": 1}, "11+1"),
    ],
)
def test_arrays_and_heterogeneous_jobs_have_the_ids_that_commands_take(said: dict[str, Any], job_id: str) -> None:
    assert [j.id for j in records(job_row(**said))] == [job_id]


@pytest.mark.parametrize("wanted", ["12", "10", "12_4", "12_8", "12_[3-5,8-10:2]"])
def test_an_array_is_found_by_its_id_and_by_any_task_that_waits(wanted: str) -> None:
    rest = job_row(id=12, array_id=12, array_tasks_waiting="3-5,8-10:2")
    running = job_row(id=15, array_id=12, array_task_id=2)
    found = {j.id for j in records(rest, running, job_row(id=10), ids={wanted})}
    expected = {"12": {"12_[3-5,8-10:2]", "12_2"}, "10": {"10"}}
    assert found == expected.get(wanted, {"12_[3-5,8-10:2]"})


@pytest.mark.parametrize("wanted", ["12_2", "12_9", "13_4", "4", "1", "12+0"])
def test_an_array_is_not_found_by_another_id(wanted: str) -> None:
    assert records(job_row(id=12, array_id=12, array_tasks_waiting="3-5,8-10:2"), ids={wanted}) == []


def test_jobs_are_chosen_by_user_name_or_uid() -> None:
    rows = [job_row(id=1), job_row(id=2, user_id=4_000_000)]
    assert [j.raw_id for j in records(*rows, user="root")] == [j.raw_id for j in records(*rows, user="0")] == [1]
    (unknown,) = records(*rows, user="4000000")
    assert unknown.user == "4000000"


def test_a_job_without_a_limit_has_no_end_while_it_runs() -> None:
    running = {"state": "RUNNING", "time_limit": None, "start_time": 1000}
    in_a_year, past = int(NOW.timestamp()) + 365 * 86400, int(NOW.timestamp()) - 60
    assert records(job_row(**running, end_time=in_a_year))[0].ends_at is None
    (ended,) = records(job_row(**running | {"state": "COMPLETED"}, end_time=past))
    assert (ended.ended_at, ended.time_limit_s) == (datetime.fromtimestamp(past, UTC), None)


def test_a_dependency_is_slurms_own_words_again() -> None:
    kinds: dict[str, Any] = {"after": [], "afterok": [], "afterany": [], "singleton": False, "satisfy": "all"}
    said = [kinds | {"afterok": ["6(unfulfilled)"], "afterany": [7]}, kinds | {"afterany": [7, 8], "satisfy": "any"}]
    found = [records(job_row(dependencies=d))[0].dependency for d in [*said, kinds, None]]
    assert found == ["afterok:6(unfulfilled),afterany:7", "afterany:7?afterany:8", "singleton", None]


def node_row(**said: Any) -> tuple[Any, ...]:
    usual = dict.fromkeys(NODE) | {
        "name": "g1",
        "state": "MIXED+DRAIN",
        "partitions": ["gpu"],
        "total_cpus": 16,
        "allocated_cpus": 2,
        "real_memory": 1000,
        "allocated_memory": 100,
        "configured_gres": {"gpu:h100": 8},
        "allocated_tres": {"cpu": 2, "mem": "100M", "gres/gpu": 3},
        "available_features": ["h100"],
    }
    return tuple((usual | said).values())


def test_a_row_is_a_node_in_our_units() -> None:
    found = native.nodes([node_row()], ["gres/gpu"])
    assert found is not None
    (node,) = found
    assert (node.state, node.flags, node.available) == (NodeState.MIXED, frozenset({"DRAIN"}), False)
    assert node.tres == TRES(16, 1000 * 2**20, nodes=1, gpus=8, gpus_by_type=(("h100", 8),))
    # One type on the node, so what is allocated is of that type, though the cluster counts no types.
    assert node.allocated == TRES(2, 100 * 2**20, gpus=3, gpus_by_type=(("h100", 3),))


def test_where_slurm_does_not_count_gpus_pyslurm_cannot_tell_which_are_free() -> None:
    two_types = node_row(configured_gres={"gpu:h100": 4, "gpu:l4": 4})
    assert native.nodes([node_row()], []) is None
    assert native.nodes([node_row(configured_gres={})], []) is not None  # no GPUs, nothing to tell
    assert native.nodes([two_types], ["gres/gpu"]) is None
    counted = node_row(
        configured_gres={"gpu:h100": 4, "gpu:l4": 4},
        allocated_tres={"gres/gpu": 3, "gres/gpu:h100": 2, "gres/gpu:l4": 1},
    )
    found = native.nodes([counted], ["gres/gpu", "gres/gpu:h100", "gres/gpu:l4"])
    assert found is not None and found[0].allocated.gpus_of_each_type == {"h100": 2, "l4": 1}


# -- the worker's faults, on a pyslurm that has them ------------------------------------------------------------------

STAND_IN = f"""
import os, sys, time
class RPCError(Exception): pass
class Record:
    def __init__(self, **said): self.__dict__.update(said)
class Job: pass
class Node: pass
for record, attributes in ((Job, {JOB!r}), (Node, {NODE!r})):
    for attribute in attributes: setattr(record, attribute, None)
class Jobs:
    @staticmethod
    def load(): return {{}}
class Nodes:
    @staticmethod
    def load(): return {{}}
class slurmctld:
    class Config:
        version = "26.05.5"
        accounting_storage_tres = []
        @staticmethod
        def load(): return slurmctld.Config
__version__ = "25.11.2"
"""


class StandIn:
    """A directory with a pyslurm of the test's own, and an environment in which the worker imports it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"PATH": str(folder), "PYTHONPATH": str(folder)}

    def __call__(self, code: str = "") -> dict[str, str]:
        (self.folder / "pyslurm.py").write_text(STAND_IN + code)
        return self.env


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return StandIn(tmp_path)


def test_a_pyslurm_that_ends_before_it_is_asked_says_why_all_the_same(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            self.wait()

    monkeypatch.setattr(subprocess, "Popen", Ended)
    assert choose(stand_in('sys.exit("fatal: no configuration")')).why.endswith(
        "process ended: fatal: no configuration"
    )


def test_without_pyslurm_the_commands_are_chosen_and_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    choice = choose({})
    assert (choice.backend, choice.why) == ("commands", f"pyslurm is not installed for {sys.executable}")
    assert not isinstance(connect({}), NativeClient)
    with pytest.raises(SlurmUnavailable, match="not installed"):
        connect({}, backend="pyslurm")


def test_a_pyslurm_that_answers_is_chosen(stand_in: StandIn) -> None:
    choice = choose(stand_in('print("what pyslurm prints now and then disturbs no answer")\n'))
    assert (choice.backend, choice.why) == ("pyslurm", "pyslurm 25.11.2 reads this cluster's Slurm 26.05.5")
    client = connect(stand_in.env)
    assert isinstance(client, NativeClient)
    assert client.jobs() == []
    client.close()


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ('sys.exit("fatal: Could not establish a configuration source")', "Could not establish a configuration"),
        ("os.kill(os.getpid(), 11)", "ended: status -11"),
        ("del Job.end_time", "pyslurm 25.11.2 has no Job.end_time"),
        ("def load(): raise RPCError('Unable to contact slurm controller')\nNodes.load = load", "Unable to contact"),
        ("Nodes.load = lambda: {1: Record(name='g1')}", "AttributeError"),
    ],
)
def test_a_pyslurm_that_does_not_work_here_is_not_chosen_and_says_why(stand_in: StandIn, code: str, why: str) -> None:
    choice = choose(stand_in(code))
    assert choice.backend == "commands"
    assert choice.why.startswith("pyslurm is installed but does not work here: ") and why in choice.why
    assert not isinstance(connect(stand_in.env), NativeClient)
    with pytest.raises(SlurmUnavailable, match="does not work here"):
        connect(stand_in.env, backend="pyslurm")


def test_a_pyslurm_that_hangs_is_no_answer_in_time_and_its_process_is_ended(stand_in: StandIn, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"open({str(pid)!r}, 'w').write(str(os.getpid()))\nNodes.load = lambda: time.sleep(600)"
    client = NativeClient(stand_in(code), timeout_s=30)
    assert client.jobs() == []  # it has started
    began = time.monotonic()
    with pytest.raises(SlurmUnavailable, match="did not answer within 1 s") as e:
        client.probe(timeout_s=1)
    assert not isinstance(e.value, WorkerEnded)
    assert time.monotonic() - began < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    stand_in()
    assert client.jobs() == []  # the next question starts another worker
    client.close()


def test_a_worker_that_ends_leaves_the_question_to_the_commands(
    stand_in: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = NativeClient(stand_in("def load(): raise ValueError('gpu:4G')\nJobs.load = load"), timeout_s=10)
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\nexit 0\n")
    squeue.chmod(0o755)
    with caplog.at_level(logging.WARNING):
        assert client.jobs() == []
    assert "asking squeue instead of pyslurm: pyslurm's process ended: ValueError: gpu:4G" in caplog.text
    client.close()


def test_a_worker_that_cannot_be_started_is_no_answer(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*argv: object, **options: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    client = NativeClient(stand_in())
    monkeypatch.setattr(subprocess, "Popen", none_left)
    open_before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(SlurmUnavailable, match="pyslurm's process cannot be started: Resource temporarily"):
        client.nodes()
    assert set(os.listdir("/proc/self/fd")) == open_before


def test_what_libslurm_logs_over_days_stops_no_answer(stand_in: StandIn) -> None:
    client = NativeClient(
        stand_in("def load(): os.write(2, b'x' * 200_000); return {}\nJobs.load = load"), timeout_s=10
    )
    assert [client.jobs() for _ in range(10)] == [[]] * 10
    client.close()


def test_an_interrupted_question_leaves_no_answer_for_the_next(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = NativeClient(stand_in(), timeout_s=10)
    client.jobs()

    def interrupted(_: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("slurm.worker.marshal.load", interrupted)
        client.nodes()
    assert client.jobs() == []
    client.close()


def test_a_client_that_is_gone_leaves_no_worker(stand_in: StandIn, tmp_path: Path) -> None:
    client = NativeClient(stand_in(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"))
    client.jobs()
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, 0)
    del client
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# -- the real one ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pyslurm_client(slurm_cluster: PrivateCluster, caplog: pytest.LogCaptureFixture) -> Iterator[SlurmClient]:
    client = connect(slurm_cluster.env, timeout_s=10)
    assert isinstance(client, NativeClient), choose(slurm_cluster.env).why
    yield client
    client.close()
    assert "instead of pyslurm" not in caplog.text  # it is pyslurm that answered


@needs_pyslurm
def test_both_back_ends_tell_the_same_of_the_same_jobs_and_nodes(
    pyslurm_client: SlurmClient, slurm_cluster: PrivateCluster, tmp_path: Path
) -> None:
    commands = connect(slurm_cluster.env, backend="commands")
    header = "#!/bin/bash\n#SBATCH --output=/dev/null --time=10 -n1 --mem=10\n"
    sleeps, ids = "\nsleep 300\n", []

    def submit(options: str, body: str = sleeps) -> str:
        script = tmp_path / "job.sh"
        script.write_bytes((header + f"#SBATCH {options}\n{body}").encode(errors="surrogateescape"))
        ids.append(commands.submit(script, "same"))
        return ids[-1]

    try:
        first = submit("-p cpu -t 1-00:00:00")
        submit("-p cpu -t UNLIMITED")
        submit("-p gpu -N2 -n2 --gpus-per-node=h100:3 -q high")
        submit("-p gpu --gpus=1", "exit 3\n")
        submit("-p cpu", "\n")
        submit(f"-p cpu --dependency=afterok:{first},afterany:{first}:{first} -J 'a b'")
        submit(f"-p cpu --dependency=afternotok:{first}?after:{first}+5")
        submit("-p cpu,gpu --begin=now+1hour -N2 -n2 -J None --mem=60G")
        submit("-p cpu -H --comment=x -J 'caf\udce9|\x1f'")
        submit("-p cpu -a 0-9:3%1")
        submit("-p cpu -a 5,7 -H")
        submit("-p cpu\n#SBATCH hetjob\n#SBATCH -p gpu --gpus=h100:2 -t 5")
        cancelled = submit("-p cpu")
        commands.cancel(cancelled)
        wait_for(lambda: all(j.state.ended for j in commands.jobs([*ids[3:5], cancelled])))
        wait_for(lambda: len([j for j in commands.jobs(ids) if j.state is JobState.RUNNING]) >= 6)

        def comparable(job: Job) -> Job:
            """What goes on while we look, rounded; pyslurm forgets in which order a job's dependencies were given."""
            kinds = sorted(re.split("[,?]", job.dependency or ""))
            return replace(job, time_left_s=round((job.time_left_s or 0) / 60), dependency=str(kinds))

        def differences() -> list[str]:
            told = [
                {
                    **{n.name: replace(n, free_memory_bytes=0, cpu_load=0.0) for n in client.nodes()},
                    **{j.id: comparable(j) for j in client.jobs(ids)},
                }
                for client in (commands, pyslurm_client)
            ]
            assert len(told[0]) >= 19
            return [
                f"{key} {field.name}: {getattr(told[0].get(key), field.name, None)!r} / {value!r}"
                for key, record in told[1].items()
                for field in fields(record)
                if (value := getattr(record, field.name)) != getattr(told[0].get(key), field.name, None)
            ] + [f"{key}: commands only" for key in told[0].keys() - told[1].keys()]

        # A scheduling cycle between the two may change a reason or an expected start, so look again if they differ.
        for _ in range(3):
            if not differences():
                break
        assert "\n".join(differences()) == ""
        assert sum(n.allocated.gpus for n in pyslurm_client.nodes()) >= 8
    finally:
        for job_id in ids:
            commands.cancel(job_id)
        wait_for(lambda: all(j.state.ended for j in commands.jobs(ids)))


@needs_pyslurm
def test_a_slurmctld_that_hangs_is_no_answer_in_time_and_other_threads_run_on(
    pyslurm_client: SlurmClient, slurm_cluster: PrivateCluster
) -> None:
    client = connect(slurm_cluster.env, timeout_s=2, backend="pyslurm")
    slurmctld = int((slurm_cluster.root / "run" / "slurmctld.pid").read_text())
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.02):
            ticks += 1

    other = threading.Thread(target=tick)
    other.start()
    os.kill(slurmctld, signal.SIGSTOP)
    try:
        with pytest.raises(SlurmUnavailable, match="did not answer within 2 s"):
            client.jobs()
    finally:
        os.kill(slurmctld, signal.SIGCONT)
        done.set()
        other.join()
    assert ticks > 50
    assert client.jobs() == pyslurm_client.jobs()
    client.close()  # type: ignore[attr-defined]


@needs_pyslurm
def test_without_a_configuration_pyslurm_is_not_chosen_and_we_live_on() -> None:
    choice = choose({"PATH": os.environ["PATH"]})
    assert choice.backend == "commands"
    assert "Could not establish a configuration source" in choice.why
