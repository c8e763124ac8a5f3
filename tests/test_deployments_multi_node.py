"""One engine on two nodes of a real Slurm: half of each layer on either, and one front."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PrivateCluster
from platform_fixtures import ROOT
from specs import serve
from vllm_fixtures import START_S, make_llamas
from waiting import wait_for

from launchers import announce
from launchers.announce import Announcement
from launchers.launch import launch
from launchers.resources import engine_environment
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobState
from launchers.slurm_scheduler import SlurmScheduler
from launchers.spec import Resources, ServeSpec
from launchers.vllm import multi_node
from launchers.vllm.endpoint import Endpoint, call
from registry.settings import Replicas
from registry.site import load_site
from slurm.commands import CommandClient

pytestmark = pytest.mark.slurm


@dataclass(frozen=True)
class Replica:
    folder: RunFolder
    scheduler: SlurmScheduler
    job: JobRef

    def said(self, kind: str) -> list[Announcement]:
        directory = self.folder.announcements
        read = (announce.read(directory / name, os.getuid()) for name in announce.names(directory))
        return [a for a in read if a.kind == kind]

    @property
    def state(self) -> JobState:
        return self.scheduler.states([self.job])[self.job].state

    @property
    def processes(self) -> list[psutil.Process]:
        """The parts of its engine and their supervisors."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if f"{self.folder.root}" in " ".join(process.info["cmdline"] or ()):
                found.append(process)
        return found

    def logs(self) -> str:
        return "\n".join(f"{p}:\n{p.read_text()[-2000:]}" for p in sorted(self.folder.logs.glob("*.*")))


def spec_for(root: Path, model: Path) -> ServeSpec:
    if not (ROOT / ".venvs" / "engine" / "bin" / "python").exists():
        pytest.skip("no engine environment (make environments)")
    site = load_site(ROOT / "site-configs" / "laptop.toml", {}, [f"state_dir={root}", f"shared_dir={root}"])
    return serve(
        environment=engine_environment(site),
        model_path=str(model),
        engine_args=(*site.environment("engine").args, "--max-model-len", "128", "--tensor-parallel-size", "2"),
        resources=Resources(partition="cpu", nodes=2, mem_gb=2.0, time_limit_s=1200),
        start_timeout_s=int(START_S),
    )


@pytest.fixture
def replica(slurm_cluster: PrivateCluster, training_python: str, tmp_path: Path) -> Iterator[Replica]:
    spec = spec_for(tmp_path, make_llamas(training_python, tmp_path / "models") / "plain")
    multi_node.check(spec.resources, spec.engine_args, Replicas(isolated_network=True))
    scheduler = SlurmScheduler(CommandClient(environment=slurm_cluster.env))
    launched = launch(spec, tmp_path / "runs", scheduler)
    yield (made := Replica(launched.folder, scheduler, launched.job))
    scheduler.cancel(made.job)
    wait_for(lambda: made.state.ended, timeout=120)


def answered(endpoint: Endpoint, tokens: int, choices: int = 1) -> dict[str, Any]:
    body = {"model": "chat", "prompt": "import", "max_tokens": tokens, "n": choices, "ignore_eos": True}
    status, raw = call(endpoint, "POST", "/v1/completions", body, 120)
    assert status == 200, raw
    answer: dict[str, Any] = json.loads(raw)
    return answer


def busy(endpoint: Endpoint) -> bool:
    _, raw = call(endpoint, "GET", "/metrics", None, 30)
    return re.search(rb"vllm:num_requests_running\{[^}]*\} [1-9]", raw) is not None


def test_an_engine_on_two_nodes_is_one_replica_that_answers_and_ends_as_one(replica: Replica) -> None:
    wait_for(lambda: replica.said("replica-ready") or replica.state.ended, timeout=START_S, every=0.5)
    (ready,) = replica.said("replica-ready") or pytest.fail(replica.logs())
    (started,) = replica.said("attempt-started")
    assert started.facts["tasks"] == 2
    assert set(replica.scheduler.states([replica.job])[replica.job].nodes) == {"c1", "c2"}
    facts = ready.facts
    key = replica.folder.secret.read_text()
    endpoint = Endpoint(facts["host"], facts["port"], key, facts["certificate"])
    answer = answered(endpoint, 8)
    assert answer["usage"]["completion_tokens"] == 8
    assert "tp2" in answer["system_fingerprint"]  # vLLM's own word for how many it is

    # What is under way when it is told to end is finished, by both halves.
    with ThreadPoolExecutor(1) as client:
        long = client.submit(answered, endpoint, 110, 16)
        wait_for(lambda: long.done() or busy(endpoint), every=0.02)
        assert not long.done()
        replica.scheduler.drain(replica.job)
        assert long.result()["usage"]["completion_tokens"] == 16 * 110
    wait_for(lambda: replica.state.ended, timeout=120)
    (ended,) = replica.said("attempt-ended")
    assert (ended.facts["exit_code"], ended.facts["end"]) == (0, "cancelled"), replica.logs()
    wait_for(lambda: not replica.processes)
