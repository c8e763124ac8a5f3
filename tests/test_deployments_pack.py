"""Two replicas in one job of a real Slurm, each with an engine in miniature: neither ends with the other."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import PrivateCluster
from specs import serve
from waiting import wait_for

from launchers import announce
from launchers.announce import Announcement
from launchers.launch import read_job
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobState
from launchers.slurm_scheduler import SlurmScheduler
from launchers.spec import Environment, Resources
from launchers.vllm import pack
from launchers.vllm.endpoint import Endpoint, call
from slurm.commands import CommandClient

ENGINE = str(Path(__file__).with_name("stand_in_engine.py"))
pytestmark = pytest.mark.slurm


@dataclass(frozen=True)
class Pack:
    folders: tuple[RunFolder, ...]
    scheduler: SlurmScheduler
    job: JobRef

    @property
    def state(self) -> JobState:
        return self.scheduler.states([self.job])[self.job].state


def said(folder: RunFolder, kind: str) -> list[Announcement]:
    read = (announce.read(folder.announcements / name, os.getuid()) for name in announce.names(folder.announcements))
    return [a for a in read if a.kind == kind]


@pytest.fixture
def packed(slurm_cluster: PrivateCluster, tmp_path: Path) -> Iterator[Pack]:
    environment = Environment(kind="venv", python=sys.executable, command=("{python}", ENGINE))
    asked = Resources(partition="gpu", gpus_per_node=4, cpus_per_task=1, mem_gb=0.5, time_limit_s=600)
    ids = ("chat-1", "chat-2")
    specs = [serve(i, name="chat", environment=environment, resources=asked, pack=ids) for i in ids]
    scheduler = SlurmScheduler(CommandClient(environment=slurm_cluster.env))
    launched = pack.launch(specs, tmp_path, scheduler)
    made = Pack(tuple(member.folder for member in launched), scheduler, launched[0].job)
    yield made
    scheduler.cancel(made.job)
    wait_for(lambda: made.state.ended, timeout=60)


def endpoint_of(folder: RunFolder) -> Endpoint:
    (ready,) = said(folder, "replica-ready")
    facts = ready.facts
    return Endpoint(facts["host"], facts["port"], folder.secret.read_text(), facts["certificate"])


def answers(endpoint: Endpoint) -> bool:
    status, raw = call(endpoint, "POST", "/v1/completions", {"model": "chat", "prompt": "a", "max_tokens": 3}, 30)
    return status == 200 and json.loads(raw)["usage"]["completion_tokens"] == 3


def gpus_of(supervisor: int) -> set[str]:
    (engine,) = psutil.Process(supervisor).children()
    return set(engine.environ()["CUDA_VISIBLE_DEVICES"].split(","))


def test_members_of_a_pack_serve_and_end_each_by_itself(packed: Pack) -> None:
    first, second = packed.folders
    assert [read_job(folder) for folder in packed.folders] == [packed.job] * 2
    wait_for(lambda: all(said(f, "replica-ready") for f in packed.folders) or packed.state.ended, timeout=90)
    one, other = map(endpoint_of, packed.folders)
    assert one.port != other.port
    assert one.key != other.key
    assert answers(one) and answers(other)
    stranger = Endpoint(one.host, one.port, other.key, one.certificate)
    assert not answers(stranger)
    started = [said(folder, "attempt-started")[0].facts for folder in packed.folders]
    assert [(f["job_id"], f["attempt"], f["tasks"]) for f in started] == [
        (packed.job.job_id, f"{packed.job.job_id}.0", 1)
    ] * 2

    sees = [gpus_of(facts["pid"]) for facts in started]
    assert [len(gpus) for gpus in sees] == [2, 2]
    assert not sees[0] & sees[1]

    (first.switches / "stop").touch()
    wait_for(lambda: said(first, "attempt-ended"), timeout=60)
    assert said(first, "attempt-ended")[0].facts["cause"] == "cancelled"
    assert packed.state is JobState.RUNNING
    assert answers(other)
    assert not answers(one)

    packed.scheduler.drain(packed.job)
    wait_for(lambda: packed.state.ended, timeout=60)
    assert said(second, "attempt-ended")[0].facts["cause"] == "cancelled"
