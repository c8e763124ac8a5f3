"""One engine on two nodes of a real Slurm: half of each layer on either, and one front."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PrivateCluster
from replica_fixtures import Replica, asked, launched, real_spec
from vllm_fixtures import START_S, make_llamas
from waiting import wait_for

from launchers.slurm_scheduler import SlurmScheduler
from launchers.spec import Resources
from launchers.vllm import multi_node, probes
from launchers.vllm.endpoint import Endpoint
from registry.settings import Replicas
from slurm.commands import CommandClient

pytestmark = pytest.mark.slurm


def processes(replica: Replica) -> list[psutil.Process]:
    """The parts of its engine and their supervisors."""
    running = psutil.process_iter(["cmdline"])
    return [p for p in running if str(replica.folder.root) in " ".join(p.info["cmdline"] or ())]


def completion(endpoint: Endpoint, tokens: int, choices: int) -> dict[str, Any]:
    body: dict[str, Any] = {"prompt": "import", "max_tokens": tokens, "n": choices, "ignore_eos": True}
    return asked(endpoint, "/v1/completions", model="chat", **body)


def busy(endpoint: Endpoint) -> bool:
    load = probes.load(endpoint)
    return load is not None and load.running > 0


def test_an_engine_on_two_nodes_is_one_replica_that_answers_drains_and_ends_as_one(
    slurm_cluster: PrivateCluster, training_python: str, tmp_path: Path
) -> None:
    model = make_llamas(training_python, tmp_path / "models") / "plain"
    job = Resources(partition="cpu", nodes=2, mem_gb=2.0, time_limit_s=1200)
    spec = real_spec(
        tmp_path,
        model,
        "--tensor-parallel-size",
        "2",
        resources=job,
        start_timeout_s=int(START_S),
        shutdown_timeout_s=60,
    )
    multi_node.check(spec.resources, spec.engine_args, Replicas(isolated_network=True))
    scheduler = SlurmScheduler(CommandClient(environment=slurm_cluster.env))
    with launched(scheduler, tmp_path / "runs", spec) as (replica,):
        endpoint = replica.ready(START_S)
        assert replica.said("attempt-started")[0].facts["tasks"] == 2
        assert set(scheduler.states([replica.job])[replica.job].nodes) == {"c1", "c2"}
        answer = completion(endpoint, 8, 1)
        assert answer["usage"]["completion_tokens"] == 8
        assert "tp2" in answer["system_fingerprint"]  # vLLM's own word for how many it is

        # What is under way when it is told to end is finished, by both halves. By the switch: this cluster's Slurm
        # (proctrack/linuxproc) sends a signal to every process of a step, and not just to the supervisors.
        with ThreadPoolExecutor(1) as client:
            long = client.submit(completion, endpoint, 110, 16)
            wait_for(lambda: long.done() or busy(endpoint), every=0.02)
            assert not long.done()
            (replica.folder.switches / "stop").touch()
            assert long.result()["usage"]["completion_tokens"] == 16 * 110
        replica.ends()
        (ended,) = replica.said("attempt-ended")
        assert (ended.facts["exit_code"], ended.facts["end"]) == (0, "cancelled"), replica.logs()
        wait_for(lambda: not processes(replica))
