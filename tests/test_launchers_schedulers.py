"""One contract, two schedulers: processes of this machine and a real private Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from conftest import PrivateCluster
from waiting import wait_for

from launchers import announce, submit
from launchers.announce import Announcement
from launchers.local_scheduler import LocalScheduler, attempts_of, how_it_ended
from launchers.run_folder import RunFolder
from launchers.scheduler import (
    JobRef,
    JobRequest,
    JobState,
    JobStatus,
    JobUsage,
    Scheduler,
    SchedulerError,
    SchedulerUnavailable,
)
from launchers.slurm_scheduler import SlurmScheduler
from launchers.spec import Resources
from slurm.commands import CommandClient
from slurm.process import Completed, run_process

SUPERVISOR = Path(__file__).with_name("stand_in_supervisor.py")


@dataclass
class Site:
    """A scheduler under test. `again` makes another object over the same scheduler, as a restarted controller does."""

    again: Callable[[], Scheduler]
    runs: Path
    scheduler: Scheduler = field(init=False)
    submitted: list[JobRef] = field(default_factory=list)
    salt: str = field(default_factory=lambda: uuid.uuid4().hex[:8])  # keys are unique; the cluster serves many tests

    def __post_init__(self) -> None:
        self.scheduler = self.again()

    def submit(self, run_id: str, *words: str, **resources: int | str) -> JobRef:
        folder = RunFolder(self.runs / run_id)
        folder.create()
        command = (sys.executable, str(SUPERVISOR), str(folder.root), *words)
        asked = Resources(**{"time_limit_s": 600, **resources})
        ref = self.scheduler.submit(JobRequest(self.key(run_id), f"test {run_id}", command, folder.logs, asked))
        self.submitted.append(ref)
        return ref

    def key(self, run_id: str) -> str:
        return f"{run_id}-{self.salt}"

    def status(self, ref: JobRef) -> JobStatus:
        return self.scheduler.states([ref])[ref]

    def ended(self, ref: JobRef) -> JobStatus:
        return wait_for(lambda: status if (status := self.status(ref)).state.ended else None, 40)

    def booked(self, ref: JobRef) -> JobUsage:
        """Slurm's books run behind its queue."""
        return wait_for(lambda: u if (u := self.scheduler.usage([ref]).get(ref)) and u.state.ended else None, 40)

    def said(self, run_id: str, kind: str) -> list[Announcement]:
        directory = RunFolder(self.runs / run_id).announcements
        read = (announce.read(directory / name, os.getuid()) for name in announce.names(directory))
        return [a for a in read if a.kind == kind]


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Site]:
    site = Site(lambda: LocalScheduler(tmp_path / "spool"), tmp_path)
    yield site
    _clean(site)


@pytest.fixture
def slurm(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    env = request.getfixturevalue("slurm_cluster").env
    site = Site(lambda: SlurmScheduler(CommandClient(environment=env)), tmp_path)
    yield site
    _clean(site)


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def site(request: pytest.FixtureRequest) -> Site:
    chosen: Site = request.getfixturevalue(request.param)
    return chosen


def _clean(site: Site) -> None:
    for ref in site.submitted:
        site.scheduler.cancel(ref)
    for ref in site.submitted:
        site.ended(ref)


# -- the contract ---------------------------------------------------------------------------------------------------


def test_a_job_runs_and_completes_and_its_usage_is_what_it_was_allocated(site: Site) -> None:
    ref = site.submit("r1", "exit", "0", cpus_per_task=2)
    assert ref.cluster == site.scheduler.cluster
    assert ref.submitted_at.utcoffset() is not None and ref.submitted_at.microsecond == 0

    status = site.ended(ref)
    assert (status.state, status.ref) == (JobState.COMPLETED, ref)
    assert status.started_at and status.ended_at and status.ended_at >= status.started_at
    assert len(status.nodes) == 1

    usage = site.booked(ref)
    assert (usage.state, usage.cpus, usage.gpus) == (JobState.COMPLETED, 2, 0)
    assert usage.started_at and usage.ended_at
    assert usage.elapsed_s == (usage.ended_at - usage.started_at).total_seconds()
    assert usage.cpu_seconds == 2 * usage.elapsed_s


def test_cancel_reaches_the_task_as_sigterm_and_leaves_it_time_to_finish(site: Site) -> None:
    ref = site.submit("r1", "wait")
    wait_for(lambda: site.said("r1", "attempt-started"))
    assert site.status(ref).state is JobState.RUNNING

    site.scheduler.cancel(ref)
    assert site.ended(ref).state is JobState.CANCELLED
    (last,) = wait_for(lambda: site.said("r1", "attempt-ended"))
    assert (last.facts["cause"], last.facts["exit_code"]) == ("cancelled", 0)
    assert site.booked(ref).state is JobState.CANCELLED
    site.scheduler.cancel(ref)  # a job that has ended: not an error


def test_drain_reaches_the_task_as_sigterm_and_leaves_it_all_the_time_it_wants(site: Site) -> None:
    ref = site.submit("r1", "wait", "15")  # the private cluster's KillWait is 10 s
    wait_for(lambda: site.said("r1", "attempt-started"))
    site.scheduler.drain(ref)
    assert site.ended(ref).state in (JobState.CANCELLED, JobState.COMPLETED)
    (last,) = site.said("r1", "attempt-ended")
    assert (last.facts["cause"], last.facts["exit_code"], last.facts["signals"]) == ("cancelled", 0, 1)
    assert site.booked(ref).elapsed_s >= 14
    site.scheduler.drain(ref)  # a job that has ended: not an error


def test_a_job_cancelled_before_it_could_start_is_cancelled(site: Site) -> None:
    ref = site.submit("r1", "wait")
    site.scheduler.cancel(ref)
    assert site.ended(ref).state is JobState.CANCELLED


def test_a_job_whose_task_fails_is_failed(site: Site) -> None:
    status = site.ended(site.submit("r1", "exit", "3"))
    assert status.state is JobState.FAILED
    assert status.reason


def test_a_job_is_found_by_its_key_by_another_object_running_and_ended(site: Site) -> None:
    ref = site.submit("r1", "wait")
    other = site.again()
    assert other.find(site.key("r1")) == ref
    assert other.find(site.key("r2")) is None
    wait_for(lambda: other.states([ref])[ref].state is JobState.RUNNING)
    other.cancel(ref)
    assert site.ended(ref).state is JobState.CANCELLED
    assert site.again().find(site.key("r1")) == ref


def test_one_question_answers_for_many_jobs_and_a_stranger_is_unknown(site: Site) -> None:
    refs = [site.submit(f"r{i}", "exit", str(i)) for i in range(3)]
    for ref in refs:
        site.ended(ref)
    stranger = JobRef(site.scheduler.cluster, "4000000", refs[0].submitted_at)
    recycled = JobRef(site.scheduler.cluster, refs[0].job_id, refs[0].submitted_at.replace(year=2001))
    states = site.again().states([*refs, stranger, recycled])
    assert [states[ref].state for ref in refs] == [JobState.COMPLETED, JobState.FAILED, JobState.FAILED]
    assert states[stranger].state is states[recycled].state is JobState.UNKNOWN
    assert site.scheduler.usage([stranger, recycled]) == {}
    site.scheduler.cancel(recycled)  # must not cancel whoever has the id now


def test_states_of_no_jobs_is_nothing(site: Site) -> None:
    assert site.scheduler.states([]) == {}
    assert site.scheduler.usage([]) == {}


# -- Slurm alone ----------------------------------------------------------------------------------------------------


@pytest.mark.slurm
def test_slurm_usage_is_what_sacct_prints(slurm: Site, slurm_cluster: PrivateCluster) -> None:
    ref = slurm.submit("r1", "wait", partition="gpu", gpus_per_node=2, nodes=2, account="teaching")
    wait_for(lambda: len(slurm.said("r1", "attempt-started")) == 2)
    started = slurm.said("r1", "attempt-started")
    assert sorted(a.facts["node"] for a in started) == ["g1", "g2"]
    assert {a.facts["cuda"] for a in started} == {"0,1"}
    slurm.scheduler.cancel(ref)
    usage = slurm.booked(ref)
    columns = "ElapsedRaw,CPUTimeRAW,Partition,Account,AllocTRES"
    printed = slurm_cluster.run("sacct", "-n", "-P", "-X", "-D", "-j", ref.job_id, "-o", columns).strip()
    elapsed, cpu_seconds, partition, account, tres = printed.split("|")
    assert (usage.elapsed_s, usage.cpu_seconds) == (int(elapsed), int(cpu_seconds))
    assert (usage.partition, usage.account) == (partition, account) == ("gpu", "teaching")
    assert usage.gpus == 4 and "gres/gpu=4" in tres
    assert usage.gpu_seconds == 4 * int(elapsed)


@pytest.mark.slurm
def test_slurm_a_job_drained_while_it_waits_is_cancelled(slurm: Site) -> None:
    fills = slurm.submit("r1", "wait", partition="gpu", gpus_per_node=8, nodes=2, account="teaching")
    waits = slurm.submit("r2", "wait", partition="gpu", gpus_per_node=8, nodes=2, account="teaching")
    wait_for(lambda: slurm.status(fills).state is JobState.RUNNING)
    assert slurm.status(waits).state is JobState.PENDING
    slurm.scheduler.drain(waits)
    assert slurm.ended(waits).state is JobState.CANCELLED


@pytest.mark.slurm
def test_slurm_says_why_a_job_waits_when_it_is_expected_to_start_and_when_its_time_is_up(slurm: Site) -> None:
    fills = slurm.submit("r1", "wait", partition="gpu", gpus_per_node=8, nodes=2, account="teaching")
    runs = wait_for(lambda: s if (s := slurm.status(fills)).state is JobState.RUNNING else None)
    assert runs.started_at is not None and runs.ends_at == runs.started_at + timedelta(seconds=600)
    assert runs.expected_start_at is None
    waits = slurm.submit("r2", "wait", partition="gpu", gpus_per_node=8, nodes=2, account="teaching")
    expected = wait_for(lambda: s if (s := slurm.status(waits)).reason and s.expected_start_at else None, 90)
    assert (expected.state, expected.reason, expected.ends_at) == (JobState.PENDING, "Resources", None)
    assert expected.expected_start_at is not None and expected.expected_start_at >= runs.ends_at


@pytest.mark.slurm
def test_slurm_tasks_get_the_cpus_that_were_asked_for(slurm: Site) -> None:
    ref = slurm.submit("r1", "exit", "0", cpus_per_task=3)
    slurm.ended(ref)
    (started,) = slurm.said("r1", "attempt-started")
    assert started.facts["cpus"] == "3"


@pytest.mark.slurm
def test_slurm_one_failed_task_ends_the_job_on_every_node(slurm: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "END_TOGETHER", (*submit.END_TOGETHER, "--wait=1"))  # the last --wait counts
    ref = slurm.submit("r1", "exit-on", "SLURM_PROCID=1", nodes=2)
    assert slurm.ended(ref).state is JobState.FAILED


@pytest.mark.slurm
def test_slurm_refuses_in_sbatchs_own_words(slurm: Site) -> None:
    with pytest.raises(SchedulerError, match="invalid partition specified: nowhere"):
        slurm.submit("r1", "exit", "0", partition="nowhere")
    with pytest.raises(SchedulerError, match="Invalid account") as refused:
        slurm.submit("r2", "exit", "0", account="nobody")
    assert not isinstance(refused.value, SchedulerUnavailable)
    assert slurm.scheduler.find(slurm.key("r1")) is None


@pytest.mark.slurm
def test_slurm_that_does_not_answer_is_not_a_job_that_is_gone(
    slurm: Site, slurm_cluster: PrivateCluster, tmp_path: Path
) -> None:
    ref = slurm.submit("r1", "exit", "0")
    dead = tmp_path / "slurm.conf"
    conf = (slurm_cluster.root / "etc" / "slurm.conf").read_text()
    dead.write_text(conf.replace("SlurmctldPort=", "SlurmctldPort=1 #"))
    silent = SlurmScheduler(CommandClient(environment={**slurm_cluster.env, "SLURM_CONF": str(dead)}, timeout_s=1))
    with pytest.raises(SchedulerUnavailable, match="squeue did not answer"):
        silent.states([ref])
    with pytest.raises(SchedulerUnavailable):
        silent.find(slurm.key("r1"))
    with pytest.raises(SchedulerUnavailable):
        silent.cancel(ref)


@pytest.mark.slurm
def test_slurm_accounting_answers_for_jobs_the_queue_forgot(slurm: Site, slurm_cluster: PrivateCluster) -> None:
    done, stopped = slurm.submit("r1", "exit", "0"), slurm.submit("r2", "wait")
    wait_for(lambda: slurm.said("r2", "attempt-started"))
    slurm.scheduler.cancel(stopped)
    for ref in (done, stopped):
        slurm.booked(ref)

    def forgetful(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        return Completed(0, "", "") if argv[0] == "squeue" else run_process(argv, environment, timeout_s)

    scheduler = SlurmScheduler(CommandClient(forgetful, slurm_cluster.env))
    states = scheduler.states([done, stopped])
    assert states[done].state is JobState.COMPLETED
    assert (states[stopped].state, states[stopped].nodes) == (JobState.CANCELLED, slurm.status(stopped).nodes)
    assert "CANCELLED by" in (states[stopped].reason or "")
    assert (scheduler.find(slurm.key("r1")), scheduler.find(slurm.key("r2"))) == (done, stopped)


@pytest.mark.slurm
def test_slurm_usage_adds_up_the_attempts_of_a_requeued_job(slurm: Site, slurm_cluster: PrivateCluster) -> None:
    # Our own scripts say --no-requeue, so this job is submitted by hand.
    job_id = slurm_cluster.run(
        "sbatch", "--parsable", "--requeue", "--comment=again", "-o", "/dev/null", "--wrap", "sleep 300"
    ).strip()
    ref = slurm.scheduler.find("again")
    assert ref is not None and ref.job_id == job_id
    slurm.submitted.append(ref)
    wait_for(lambda: slurm.status(ref).state is JobState.RUNNING)
    wait_for(lambda: _elapsed(slurm, ref) >= 1)
    slurm_cluster.run("scontrol", "requeue", job_id)
    # Once Slurm has put it back (before, it is COMPLETING) it waits two minutes, unless it is told of another start and
    # does not put it back a moment later; and then until Slurm looks at its queue again.
    wait_for(lambda: slurm_cluster.run("squeue", "-h", "-j", job_id, "-o", "%T").strip() == "PENDING")
    assert slurm.status(ref).state is JobState.PENDING
    first = _elapsed(slurm, ref)
    slurm_cluster.run("scontrol", "update", f"JobId={job_id}", "StartTime=now")
    wait_for(lambda: slurm.status(ref).state is JobState.RUNNING, timeout=300)
    wait_for(lambda: _elapsed(slurm, ref) > first)  # one that is cancelled while it is launched can end as FAILED
    slurm.scheduler.cancel(ref)
    usage = slurm.booked(ref)
    printed = slurm_cluster.run("sacct", "-n", "-P", "-X", "-D", "-j", job_id, "-o", "ElapsedRaw").split()
    assert len(printed) == 2
    assert usage.elapsed_s == sum(int(s) for s in printed)
    assert slurm.status(ref).state is JobState.CANCELLED


def _elapsed(site: Site, ref: JobRef) -> int:
    usage = site.scheduler.usage([ref]).get(ref)
    return usage.elapsed_s if usage else 0


# -- local processes alone ------------------------------------------------------------------------------------------


def test_a_local_job_is_in_a_session_of_its_own_and_no_child_of_its_submitter(local: Site) -> None:
    ref = local.submit("r1", "wait")
    (started,) = wait_for(lambda: local.said("r1", "attempt-started"))
    assert started.facts["session"] != os.getsid(0)
    assert int(ref.job_id) not in [child.pid for child in psutil.Process().children(recursive=True)]
    assert psutil.Process(int(ref.job_id)).terminal() is None or os.getsid(int(ref.job_id)) != os.getsid(0)


def test_a_local_job_submitted_inside_a_slurm_job_is_no_part_of_it(
    local: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_CPUS_PER_TASK", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "99")
    ref = local.submit("r1", "exit", "0")
    assert local.ended(ref).state is JobState.COMPLETED
    (started,) = local.said("r1", "attempt-started")
    assert (started.facts["job_id"], started.facts["cpus"]) == (ref.job_id, None)


def test_a_local_job_without_gpus_sees_none(local: Site) -> None:
    local.ended(local.submit("r1", "exit", "0"))
    local.ended(local.submit("r2", "exit", "0", gpus_per_node=2))
    assert local.said("r1", "attempt-started")[0].facts["cuda"] == ""
    assert local.said("r2", "attempt-started")[0].facts["cuda"] == "0,1"


def test_a_local_job_whose_processes_were_killed_is_failed(local: Site) -> None:
    ref = local.submit("r1", "wait")
    (started,) = wait_for(lambda: local.said("r1", "attempt-started"))
    os.kill(int(ref.job_id), signal.SIGKILL)
    os.kill(started.facts["pid"], signal.SIGKILL)
    status = local.ended(ref)
    assert (status.state, status.reason) == (JobState.FAILED, "the supervisor vanished")
    usage = local.booked(ref)
    assert 0 <= usage.elapsed_s < 60


def test_a_local_job_outlives_its_submitter_and_is_found_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r1")
    folder.create()
    program = f"""
import os, signal, sys
from pathlib import Path
from launchers.local_scheduler import LocalScheduler
from launchers.scheduler import JobRequest
from launchers.spec import Resources
command = ({sys.executable!r}, {str(SUPERVISOR)!r}, {str(folder.root)!r}, "wait")
LocalScheduler(Path({str(tmp_path / "spool")!r})).submit(
    JobRequest("r1", "r1", command, Path({str(folder.logs)!r}), Resources(time_limit_s=60)))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=SUPERVISOR.parents[1], check=False)
    assert done.returncode == -signal.SIGKILL
    site = Site(lambda: LocalScheduler(tmp_path / "spool"), tmp_path)
    ref = site.scheduler.find("r1")
    assert ref is not None
    site.submitted.append(ref)
    wait_for(lambda: site.said("r1", "attempt-started"))
    assert site.status(ref).state is JobState.RUNNING
    site.scheduler.cancel(ref)
    assert site.ended(ref).state is JobState.CANCELLED


def test_a_local_job_is_told_before_its_time_limit_and_ended_at_it(local: Site) -> None:
    ref = local.submit("r1", "wait", "0", time_limit_s=12)  # told three seconds before
    assert local.ended(ref).state is JobState.TIMEOUT
    assert local.said("r1", "attempt-ended")[0].facts["cause"] == "timeout"


def test_a_local_job_that_runs_says_when_its_time_is_up(local: Site) -> None:
    ref = local.submit("r1", "wait", time_limit_s=600)
    status = local.status(ref)
    assert status.ends_at is not None and abs((status.ends_at - ref.submitted_at).total_seconds() - 600) <= 1
    local.scheduler.cancel(ref)
    assert local.ended(ref).ends_at is None


def test_local_jobs_have_one_node(local: Site) -> None:
    with pytest.raises(SchedulerError, match="can use only one node"):
        local.submit("r1", "exit", "0", nodes=2)


def test_a_local_job_of_two_tasks_gets_both_cancelled(local: Site) -> None:
    ref = local.submit("r1", "wait", tasks_per_node=2)
    wait_for(lambda: len(local.said("r1", "attempt-started")) == 2)
    local.scheduler.cancel(ref)
    assert local.ended(ref).state is JobState.CANCELLED
    assert [a.facts["cause"] for a in local.said("r1", "attempt-ended")] == ["cancelled", "cancelled"]
    assert local.booked(ref).cpus == 2


def _ended(cause: str, exit_code: int) -> Announcement:
    return Announcement(f"{cause}.json", "attempt-ended", 1.0, {"attempt": 1, "cause": cause, "exit_code": exit_code})


@pytest.mark.parametrize(
    ("ended", "cancelled", "state", "reason"),
    [
        ([], False, JobState.FAILED, "the supervisor vanished"),
        ([], True, JobState.CANCELLED, "cancelled before its supervisor said how it ended"),
        ([_ended("completed", 0)], True, JobState.COMPLETED, None),
        ([_ended("training ended with exit code 1", 1)], False, JobState.FAILED, "(exit code 1)"),
        ([_ended("completed", 0), _ended("the engine died", 137)], False, JobState.FAILED, "the engine died"),
        ([_ended("another task of this job died", 1), _ended("cancelled", 0)], True, JobState.CANCELLED, "cancelled"),
        ([_ended("timeout", 0)], False, JobState.TIMEOUT, "timeout"),
    ],
)
def test_how_a_local_job_ended_is_what_its_supervisors_said(
    ended: list[Announcement], cancelled: bool, state: JobState, reason: str | None
) -> None:
    decided, words = how_it_ended(ended, cancelled)
    assert decided is state
    assert (words is None) == (reason is None) and (reason or "") in (words or "")


def test_announcements_of_another_job_in_the_same_run_folder_are_not_this_ones() -> None:
    def said(kind: str, at: float, **facts: object) -> Announcement:
        return Announcement(f"{at}-{kind}.json", kind, at, facts)

    story = [
        said("attempt-started", 10, job_id="7", attempt=1),
        said("attempt-ended", 20, attempt=1),
        said("attempt-started", 30, job_id="8", attempt=2),
        said("checkpoint", 35, iteration=1),
        said("attempt-ended", 40, attempt=2),
    ]
    started, ended = attempts_of(story, "8", since=29)
    assert ([a.at for a in started], [a.at for a in ended]) == ([30], [40])
    assert attempts_of(story, "7", since=29) == ([], [])  # the process id was recycled
