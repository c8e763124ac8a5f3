"""One contract, two back ends, a real Slurm: Slurm's own commands, and pyslurm where it fits the running release."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import PrivateCluster
from waiting import wait_for

from slurm.backend import connect, installed
from slurm.client import SlurmClient
from slurm.errors import SlurmError, SlurmUnavailable
from slurm.model import Job, JobState, NodeState

HEADER = "#!/bin/bash\n#SBATCH --output=/dev/null --time=10\n"


BACKENDS = ["commands", *(["pyslurm"] if installed() else [])]


@pytest.fixture(params=BACKENDS)
def client(request: pytest.FixtureRequest, slurm_cluster: PrivateCluster) -> SlurmClient:
    return connect(slurm_cluster.env, backend=request.param)


class Jobs:
    """Submits jobs that are cancelled at the end of the test; each under a comment of its own."""

    def __init__(self, client: SlurmClient, cluster: PrivateCluster, folder: Path) -> None:
        self.client, self.cluster, self.folder = client, cluster, folder
        self.ids: list[str] = []

    def submit(self, options: str, body: str = "srun --overlap sleep 300", comment: str | None = None) -> str:
        script = self.folder / f"{uuid.uuid4().hex}.sh"
        script.write_bytes(HEADER.encode() + f"#SBATCH {options}\n".encode(errors="surrogateescape") + body.encode())
        self.ids.append(self.client.submit(script, comment or f"contract-{uuid.uuid4().hex}"))
        return self.ids[-1]

    def job(self, job_id: str) -> Job:
        (job,) = self.client.jobs([job_id])
        return job

    def reaches(self, job_id: str, *states: JobState) -> Job:
        return wait_for(lambda: job if (job := self.job(job_id)).state in states else None)

    def ends(self, job_id: str) -> None:
        wait_for(lambda: all(j.state.ended for j in self.client.jobs([job_id])))


@pytest.fixture
def jobs(client: SlurmClient, slurm_cluster: PrivateCluster, tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(client, slurm_cluster, tmp_path)
    yield made
    for job_id in made.ids:
        client.cancel(job_id)
    for job_id in made.ids:
        made.ends(job_id)


# -- the cluster ----------------------------------------------------------------------------------------------------


def test_the_configuration_is_the_running_slurmctlds(client: SlurmClient, slurm_cluster: PrivateCluster) -> None:
    config = client.config()
    assert config.name == "headgate-test"
    assert config.version_text == slurm_cluster.run("scontrol", "-V").split()[1]
    assert (config.accounting, config.auth, config.enforce) == (
        True, "munge", frozenset({"associations", "limits", "qos", "safe"}),
    )  # fmt: skip
    assert (config.kill_wait_s, config.job_requeue, config.min_job_age_s) == (10, True, 300)
    assert (config.preempt_type, config.preempt_mode) == ("qos", frozenset({"REQUEUE"}))
    assert config.preempt_sends_signal
    assert abs(config.answered_at - datetime.now(UTC)) < timedelta(minutes=1)
    books = client.accounting_config()
    assert books is not None and (books.version_text, books.private_data) == (config.version_text, frozenset())
    assert client.privileged()  # the cluster is ours


def test_nodes_say_what_they_have_and_partitions_what_they_allow(client: SlurmClient) -> None:
    nodes = {node.name: node for node in client.nodes()}
    assert set(nodes) == {"g1", "g2", "c1", "c2"}
    g1 = nodes["g1"]
    assert (g1.partitions, g1.features, g1.tres.cpus, g1.tres.memory_bytes) == (("gpu",), ("h100",), 16, 64000 * 2**20)
    assert (g1.tres.gpus, g1.tres.gpus_by_type, nodes["c1"].tres.gpus) == (8, (("h100", 8),), 0)

    partitions = {partition.name: partition for partition in client.partitions()}
    assert set(partitions) == {"gpu", "cpu"}
    gpu = partitions["gpu"]
    assert (gpu.nodes, gpu.state, gpu.default, partitions["cpu"].default) == (("g1", "g2"), "UP", False, True)
    assert (gpu.max_time_s, gpu.default_time_s, gpu.allow_accounts, gpu.tres.gpus) == (None, 600, None, 16)


def test_a_drained_node_is_not_available_and_says_why(client: SlurmClient, slurm_cluster: PrivateCluster) -> None:
    slurm_cluster.run("scontrol", "update", "node=c2", "state=drain", "reason=bad disk, see #4")
    try:
        node = next(n for n in client.nodes() if n.name == "c2")
        assert (node.available, "DRAIN" in node.flags, node.reason) == (False, True, "bad disk, see #4")
    finally:
        slurm_cluster.run("scontrol", "update", "node=c2", "state=resume")
    node = next(n for n in client.nodes() if n.name == "c2")
    assert (node.state in (NodeState.IDLE, NodeState.MIXED), node.reason) == (True, None)


def test_a_reservation_is_known_before_it_begins(client: SlurmClient, slurm_cluster: PrivateCluster) -> None:
    name = f"maint-{uuid.uuid4().hex[:6]}"
    slurm_cluster.run(
        "scontrol", "create", "reservation", f"ReservationName={name}", "StartTime=now+1day", "Duration=2:00:00",
        "Nodes=c2", "Flags=MAINT", "Users=root",
    )  # fmt: skip
    try:
        (found,) = [r for r in client.reservations() if r.name == name]
        assert (found.nodes, found.maintenance, found.active, found.users) == (("c2",), True, False, ("root",))
        assert found.ends_at - found.starts_at == timedelta(hours=2)
        assert timedelta(hours=23) < found.starts_at - datetime.now(UTC) < timedelta(hours=25)
    finally:
        slurm_cluster.run("scontrol", "delete", "reservation", name)
    assert name not in {r.name for r in client.reservations()}


# -- jobs -----------------------------------------------------------------------------------------------------------


def test_a_jobs_life_from_the_queue_into_the_books(client: SlurmClient, jobs: Jobs) -> None:
    before = datetime.now(UTC)
    comment = f"life-{uuid.uuid4().hex}"
    job_id = jobs.submit("-p gpu --gpus-per-node=h100:1 -c 2 -J life -t 7-00:00:00", "sleep 1; exit 3", comment)
    job = jobs.job(job_id)
    assert (job.id, str(job.raw_id), job.name, job.comment) == (job_id, job_id, "life", comment)
    assert (job.partition, job.account, job.qos, job.restarts) == ("gpu", "research", "normal", 0)
    assert job.time_limit_s == 7 * 86400
    assert abs(job.submitted_at - before) < timedelta(seconds=5)
    assert (job.tres.cpus, job.tres.gpus, job.tres.gpus_by_type) == (2, 1, (("h100", 1),))

    running = jobs.reaches(job_id, JobState.RUNNING, JobState.FAILED)
    assert running.started_at is not None and running.expected_start_at is None
    ended = jobs.reaches(job_id, JobState.FAILED)
    assert (ended.reason, ended.ended_at is not None, ended.node_count) == ("NonZeroExitCode", True, 1)

    (attempt,) = wait_for(lambda: [a for a in client.accounting([job_id]) if a.ended_at])
    assert (attempt.id, attempt.raw_id, attempt.cluster) == (job_id, int(job_id), "headgate-test")
    assert (attempt.state, attempt.exit_code, attempt.allocated.gpus) == (JobState.FAILED, "3:0", 1)
    assert (attempt.name, attempt.account, attempt.qos, attempt.nodes) == ("life", "research", "normal", ended.nodes)
    assert attempt.submitted_at == job.submitted_at
    assert attempt.ended_at and attempt.started_at
    assert attempt.elapsed_s == (attempt.ended_at - attempt.started_at).total_seconds()
    assert attempt.carries(comment) and not attempt.carries(comment[:-1])
    client.cancel(job_id)  # it has ended, which is not an error


def test_a_running_job_takes_its_gpus_and_says_how_long_it_may_go_on(client: SlurmClient, jobs: Jobs) -> None:
    job_id = jobs.submit("-p gpu -N2 --gpus-per-node=3")
    job = jobs.reaches(job_id, JobState.RUNNING)
    assert job.nodes == ("g1", "g2")
    assert job.time_left_s is not None and 500 < job.time_left_s <= 600
    nodes = {n.name: n for n in client.nodes()}
    for name in job.nodes:
        node = nodes[name]
        assert node.allocated.gpus >= 3
        assert node.free_gpus_by_type == {"h100": 8 - node.allocated.gpus}
    assert {s.id for s in wait_for(lambda: client.steps([job_id]))} >= {f"{job_id}.batch"}


def test_a_job_that_cannot_start_yet_says_why_and_when(jobs: Jobs) -> None:
    job_id = jobs.submit("-p cpu --begin=now+2hours")
    job = wait_for(lambda: j if (j := jobs.job(job_id)).expected_start_at else None)
    assert (job.state, job.reason, job.started_at) == (JobState.PENDING, "BeginTime", None)
    assert timedelta(minutes=110) < job.expected_start_at - datetime.now(UTC) < timedelta(minutes=130)
    assert job.tres.cpus == 1  # what it asks for


def test_hold_release_and_update(client: SlurmClient, jobs: Jobs) -> None:
    job_id = jobs.submit("-p cpu -H")
    assert jobs.job(job_id).reason == "JobHeldUser"
    client.update(job_id, time_limit_s=3601, comment="a comment, of two = parts")
    held = jobs.job(job_id)
    assert (held.time_limit_s, held.comment) == (61 * 60, "a comment, of two = parts")
    client.release(job_id)
    jobs.reaches(job_id, JobState.RUNNING)
    second = jobs.submit("-p cpu --begin=now+1hour")
    client.hold(second)
    assert jobs.job(second).priority == 0


def test_a_requeued_job_has_two_attempts_in_the_books(client: SlurmClient, jobs: Jobs) -> None:
    job_id = jobs.submit("-p cpu --requeue")
    first = jobs.reaches(job_id, JobState.RUNNING)
    client.requeue(job_id)
    again = wait_for(lambda: j if (j := jobs.job(job_id)).restarts == 1 and j.state.pending else None)
    assert again.submitted_at >= first.submitted_at
    attempts = wait_for(lambda: a if (a := client.accounting([job_id])) and a[0].ended_at else None)
    assert (attempts[0].state, attempts[0].submitted_at) == (JobState.REQUEUED, first.submitted_at)


def test_a_signal_reaches_the_steps_and_leaves_the_batch_script_alone(
    client: SlurmClient, jobs: Jobs, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    step = tmp_path / "step.sh"
    step.write_text(
        f"trap 'echo term >> {said}; exit 0' TERM\necho up >> {said}\nfor ((i = 0; i < 300; i++)); do sleep 0.1; done\n"
    )
    job_id = jobs.submit("-p cpu", f"srun --overlap bash {step}\necho script >> {said}\n")
    wait_for(said.exists)
    client.signal(job_id, "TERM")
    jobs.reaches(job_id, JobState.COMPLETED)
    assert said.read_text().split() == ["up", "term", "script"]
    client.signal(job_id, "TERM")  # it has ended, which is not an error


def test_tasks_of_an_array_that_wait_are_one_record_and_those_that_run_one_each(
    client: SlurmClient, jobs: Jobs
) -> None:
    job_id = jobs.submit("-p cpu -a 0-30%1 -J tasks")
    wait_for(lambda: any(j.state is JobState.RUNNING for j in client.jobs([job_id])))
    found = {j.id: j for j in client.jobs([job_id])}
    assert set(found) == {f"{job_id}_0", f"{job_id}_[1-30%1]"}
    rest = found[f"{job_id}_[1-30%1]"]
    assert (rest.array_job_id, rest.array_task, rest.state) == (int(job_id), "1-30%1", JobState.PENDING)
    assert (found[f"{job_id}_0"].array_task, found[f"{job_id}_0"].state) == ("0", JobState.RUNNING)
    client.cancel(f"{job_id}_0")
    wait_for(lambda: next(j for j in client.jobs([job_id]) if j.id == f"{job_id}_0").state.ended)


def test_the_parts_of_a_heterogeneous_job_know_each_other(client: SlurmClient, jobs: Jobs) -> None:
    job_id = jobs.submit("-p cpu -n1\n#SBATCH hetjob\n#SBATCH -p gpu --gpus=1")
    found = {j.id: j for j in client.jobs([job_id])}
    assert set(found) == {f"{job_id}+0", f"{job_id}+1"}
    assert {j.het_job_id for j in found.values()} == {int(job_id)}
    assert found[f"{job_id}+1"].raw_id == int(job_id) + 1


def test_a_name_of_any_bytes_is_read_whole(jobs: Jobs) -> None:
    job_id = jobs.submit('-p cpu -H -J "caf\udce9|a,b=c;\x1f %j"')
    assert jobs.job(job_id).name == "caf\ufffd|a,b=c;\x1f %j"


def test_jobs_of_one_user_are_those_of_that_user(client: SlurmClient, jobs: Jobs) -> None:
    job_id = jobs.submit("-p cpu -H")
    mine = client.jobs(user=str(os.getuid()))
    assert job_id in {j.id for j in mine}
    assert {j.user for j in mine} == {jobs.job(job_id).user}
    assert client.jobs([job_id], user="nobody") == []


def test_a_job_that_slurm_never_saw_is_in_no_answer(client: SlurmClient) -> None:
    assert client.jobs(["4000000"]) == client.jobs(["4000000", "4000001"]) == []
    assert client.accounting(["4000000"]) == []
    client.cancel("4000000")


def test_a_refusal_is_an_error_with_slurms_own_words(client: SlurmClient, jobs: Jobs, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(HEADER + "#SBATCH --partition=nowhere\n")
    refusals: list[Callable[[], object]] = [
        lambda: client.submit(script, "x"),
        lambda: client.update("4000000", time_limit_s=60),
        lambda: client.hold("4000000"),
        lambda: client.requeue("4000000"),
    ]
    for refused in refusals:
        with pytest.raises(SlurmError, match=r"(?i)invalid (partition|job id)") as e:
            refused()
        assert not isinstance(e.value, SlurmUnavailable)


# -- limits and books -----------------------------------------------------------------------------------------------


def test_associations_and_qos_have_limits_with_their_live_use(
    client: SlurmClient, jobs: Jobs, slurm_cluster: PrivateCluster
) -> None:
    def limit(of: str, kind: str, tres: str | None) -> tuple[int | None, int | None]:
        whole = {a.account: a for a in client.associations() if a.user is None}
        qos = {q.name: q for q in client.qos()}
        limits = (whole[of] if of in whole else qos[of]).limits
        found = [(x.allowed, x.used) for x in limits if (x.kind, x.tres, x.holder) == (kind, tres, None)]
        return found[0] if found else (None, 0)

    name = f"project-{uuid.uuid4().hex[:6]}"
    user = jobs.cluster.run("id", "-un").strip()
    limits = ("GrpTRES=gres/gpu=12,mem=1T", "GrpTRESMins=cpu=600")
    slurm_cluster.run("sacctmgr", "-i", "-Q", "add", "account", name, *limits)
    slurm_cluster.run("sacctmgr", "-i", "-Q", "add", "user", user, f"account={name}", "qos=normal,high")
    try:
        wait_for(lambda: name in {a.account for a in client.associations()})
        assert limit(name, "GrpTRES", "gres/gpu") == (12, 0)
        assert limit(name, "GrpTRES", "mem")[0] == 2**40
        assert limit(name, "GrpTRESMins", "cpu")[0] == 600 * 60
        _, before = limit("high", "GrpTRES", "gres/gpu")
        job_id = jobs.submit(f"-p gpu --gpus=2 -A {name} -q high")
        jobs.reaches(job_id, JobState.RUNNING)
        assert wait_for(lambda: limit(name, "GrpTRES", "gres/gpu")[1]) == 2
        assert limit("high", "GrpTRES", "gres/gpu")[1] == (before or 0) + 2
        ours = next(a for a in client.associations() if (a.account, a.user) == (name, user))
        assert (ours.parent, ours.default, ours.shares) == (name, False, 1)
        client.cancel(job_id)
        jobs.ends(job_id)
    finally:
        wait_for(lambda: subprocess.run(
            ["sacctmgr", "-i", "-Q", "delete", "account", name], env=slurm_cluster.env, capture_output=True, check=False
        ).returncode == 0)  # fmt: skip
    high = next(q for q in client.qos() if q.name == "high")
    assert (high.priority, high.preempts, high.grace_time_s) == (1000, ("preemptible",), 0)
    assert next(q for q in client.qos() if q.name == "preemptible").grace_time_s == 15


def test_accounting_between_two_instants_has_the_attempts_that_existed_then(client: SlurmClient, jobs: Jobs) -> None:
    comment = f"window-{uuid.uuid4().hex}"
    job_id = jobs.submit("-p cpu", "exit 0", comment)
    jobs.ends(job_id)
    (attempt,) = wait_for(lambda: [a for a in client.accounting([job_id]) if a.ended_at])
    hour = timedelta(hours=1)

    def ids(start: datetime, end: datetime, **selection: str) -> set[str]:
        return {a.id for a in client.accounting_between(start, end, **selection)}

    now = datetime.now(UTC)
    assert job_id in ids(now - hour, now)
    assert job_id in ids(now - hour, now, account="research")
    assert job_id in ids(now - hour, now, user=attempt.user)
    assert job_id not in ids(now - hour, now, account="teaching")
    assert job_id not in ids(now - hour, attempt.submitted_at - timedelta(seconds=2))


# -- no answer ------------------------------------------------------------------------------------------------------


def test_dead_accounting_is_no_answer_while_the_queue_still_answers(
    slurm_cluster: PrivateCluster, tmp_path: Path
) -> None:
    """The commands only: libslurm reads its configuration once in a process."""
    conf = (slurm_cluster.root / "etc" / "slurm.conf").read_text()
    dead = tmp_path / "slurm.conf"
    dead.write_text(conf.replace("AccountingStoragePort=", "AccountingStoragePort=1 #"))
    client = connect({**slurm_cluster.env, "SLURM_CONF": str(dead)}, backend="commands")
    assert client.jobs(["4000000"]) == []
    for ask in (lambda: client.accounting(["4000000"]), client.qos, client.accounting_config):
        with pytest.raises(SlurmUnavailable):
            ask()
