"""Two replicas in one job of a real Slurm, each with an engine in miniature: neither ends with the other."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
from conftest import PrivateCluster
from replica_fixtures import asked, launched
from specs import serve
from waiting import wait_for

from launchers.scheduler import JobState
from launchers.slurm_scheduler import SlurmScheduler
from launchers.spec import Environment, Resources
from launchers.vllm.endpoint import Endpoint, call
from slurm.commands import CommandClient

ENGINE = str(Path(__file__).with_name("stand_in_engine.py"))
pytestmark = pytest.mark.slurm


def answers(endpoint: Endpoint) -> bool:
    body = {"model": "chat", "prompt": "a", "max_tokens": 3}
    return call(endpoint, "POST", "/v1/completions", body, 30)[0] == 200


def gpus_of(supervisor: int) -> set[str]:
    (engine,) = psutil.Process(supervisor).children()
    return set(engine.environ()["CUDA_VISIBLE_DEVICES"].split(","))


def test_members_of_a_pack_serve_and_end_each_by_itself(slurm_cluster: PrivateCluster, tmp_path: Path) -> None:
    environment = Environment(kind="venv", python=sys.executable, command=("{python}", ENGINE))
    job = Resources(partition="gpu", gpus_per_node=4, cpus_per_task=1, mem_gb=0.5, time_limit_s=600)
    ids = ("chat-1", "chat-2")
    specs = [serve(i, name="chat", environment=environment, resources=job, pack=ids) for i in ids]
    scheduler = SlurmScheduler(CommandClient(environment=slurm_cluster.env))
    with launched(scheduler, tmp_path, *specs) as (first, second):
        one, other = first.ready(90), second.ready(90)
        assert asked(one, "/v1/completions", model="chat", prompt="a", max_tokens=3)["usage"]["completion_tokens"] == 3
        assert answers(other)
        assert one.port != other.port
        assert not answers(Endpoint(one.host, one.port, other.key, one.certificate))
        started = [member.said("attempt-started")[0].facts for member in (first, second)]
        attempt = (first.job.job_id, f"{first.job.job_id}.0", 1)
        assert [(f["job_id"], f["attempt"], f["tasks"]) for f in started] == [attempt, attempt]
        sees = [gpus_of(facts["pid"]) for facts in started]
        assert [len(gpus) for gpus in sees] == [2, 2]
        assert not sees[0] & sees[1]

        (first.folder.switches / "stop").touch()
        wait_for(lambda: first.said("attempt-ended"), timeout=60)
        assert first.said("attempt-ended")[0].facts["cause"] == "cancelled"
        assert first.state is JobState.RUNNING
        assert answers(other)
        assert not answers(one)

        scheduler.drain(first.job)
        first.ends()
        assert second.said("attempt-ended")[0].facts["cause"] == "cancelled"
