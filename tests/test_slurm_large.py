"""A large cluster: 10,000 jobs that wait, on 1,000 nodes, all of it in typed records. What that costs: benchmarks/."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from conftest import CLUSTER, ROOT, PrivateCluster, private_cluster

from slurm.client import SlurmClient
from slurm.commands import CommandClient
from slurm.model import Job, JobState, NodeState

JOBS, NODES = 10_000, 1_000
pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def large_cluster() -> Iterator[PrivateCluster]:
    with private_cluster("--paper-nodes", str(NODES)) as cluster:
        subprocess.run([CLUSTER / "cluster", "--dir", cluster.root, "fill", str(JOBS)], check=True)
        yield cluster


@pytest.fixture(scope="module")
def client(large_cluster: PrivateCluster) -> SlurmClient:
    return CommandClient(environment=large_cluster.env)


@pytest.fixture(scope="module")
def jobs(client: SlurmClient) -> list[Job]:
    return client.jobs()


def test_every_one_of_ten_thousand_pending_jobs_is_answered_once(jobs: list[Job]) -> None:
    assert Counter(job.name for job in jobs) == Counter(f"job-{i}" for i in range(JOBS))
    assert len({(job.raw_id, job.submitted_at) for job in jobs}) == JOBS
    assert {job.state for job in jobs} == {JobState.PENDING}
    assert {"JobHeldUser", "BeginTime"} < {job.reason for job in jobs}


def test_each_job_asks_for_what_it_was_submitted_with(jobs: list[Job]) -> None:
    def submitted(i: int) -> tuple[object, ...]:  # the cluster's `paper_job` says what the i-th job is
        nodes, gpus_per_node = 1 + i % 4, 2 ** (i % 4)
        gpus, account = nodes * gpus_per_node, "research" if i % 5 else "teaching"
        return nodes, nodes, gpus, (("h100", gpus),), (1 + i % 48) * 3600, f"run-{i // 7}", account

    def answered(job: Job) -> tuple[object, ...]:
        tres = job.tres
        return job.node_count, tres.nodes, tres.gpus, tres.gpus_by_type, job.time_limit_s, job.comment, job.account

    wrong = [job for job in jobs if answered(job) != submitted(int(job.name.removeprefix("job-")))]
    assert not wrong, f"{len(wrong)} jobs, such as {wrong[0]}"


def test_more_jobs_can_be_asked_for_by_id_than_fit_into_one_command(client: SlurmClient, jobs: list[Job]) -> None:
    some = [job.id for job in jobs[::4]]
    assert {job.id for job in client.jobs(some)} == set(some)


def test_every_one_of_a_thousand_nodes_is_answered_once(client: SlurmClient) -> None:
    nodes = [node for node in client.nodes() if "paper" in node.partitions]
    assert [node.name for node in nodes] == [f"n{i:04}" for i in range(1, NODES + 1)]
    assert {(node.state, node.tres.gpus_by_type, node.allocated.gpus) for node in nodes} == {
        (NodeState.UNKNOWN, (("h100", 8),), 0)
    }
    assert not any(node.available for node in nodes), "nobody has heard of them"


@pytest.fixture(scope="module")
def figures(large_cluster: PrivateCluster) -> dict[str, dict[str, object]]:
    argv = [sys.executable, "-m", "benchmarks.slurm", "--cluster", large_cluster.root, "--rounds", "1"]
    done = subprocess.run(argv, cwd=ROOT, env=large_cluster.env, stdout=subprocess.PIPE, text=True, check=True)
    return {line["figure"].partition(": ")[2]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(
    "figure",
    [
        "poll of 10,000 jobs by commands, CPU",
        "poll of 1,000 nodes by commands, CPU",
        "accounting of 10,000 jobs by commands, CPU",
        "headgate queue of somebody without a job, CPU",
    ],
)
def test_the_benchmark_compares_with_slurms_own_commands(figures: dict[str, dict[str, object]], figure: str) -> None:
    assert figures[figure]["ratio"], figures[figure]


def test_slurm_is_asked_as_often_for_many_jobs_and_readers_as_for_one(figures: dict[str, dict[str, object]]) -> None:
    calls = [line["value"] for figure, line in figures.items() if "per hour, submits: 6," in figure]
    assert (len(calls), len(set(calls))) == (3, 1)
