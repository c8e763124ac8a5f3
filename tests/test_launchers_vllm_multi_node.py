"""Engines that span nodes: what may, and what each node's part is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from specs import serve

from launchers.run_folder import RunFolder
from launchers.spec import Environment, Resources
from launchers.task import Task
from launchers.vllm import multi_node
from launchers.vllm.arguments import last
from registry.settings import Replicas

FOLDER = RunFolder(Path("/runs/chat-1"))
PLACE = ("g1", 29500)
ISOLATED = Replicas(isolated_network=True)
SPANNING = serve(engine_args=("--tensor-parallel-size", "2"), resources=Resources(nodes=2))


def task(rank: int) -> Task:
    return Task(rank=rank, tasks=2, local_rank=0, job_id="7", restart=0, node=f"g{rank + 1}")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, ()),
        ({"gpus_per_node": 8}, ("--tensor-parallel-size", "8")),
        ({"nodes": 2}, ("--tensor-parallel-size", "2")),
        ({"nodes": 2, "gpus_per_node": 8}, ("-tp", "8", "-pp", "2")),
        ({"nodes": 4, "gpus_per_node": 4}, ("--tensor-parallel-size=4", "--pipeline-parallel-size=4")),
    ],
)
def test_an_engine_may_span_nodes_whose_gpus_it_fills(asked: dict[str, Any], words: tuple[str, ...]) -> None:
    multi_node.check(Resources(**asked), words, ISOLATED)


@pytest.mark.parametrize(
    ("asked", "words", "site", "complaint"),
    [
        ({"nodes": 2}, ("-tp", "2"), Replicas(), "replicas.isolated_network"),
        ({"tasks_per_node": 2}, (), ISOLATED, "'tasks_per_node' must be 1, not 2"),
        ({"nodes": 2}, (), ISOLATED, "is 1, and must be a multiple of 2 nodes"),
        ({"nodes": 3}, ("-tp", "4"), ISOLATED, "is 4, and must be a multiple of 3 nodes"),
        ({"nodes": 2, "gpus_per_node": 8}, ("-tp", "8"), ISOLATED, "is 8, and must be 2 nodes x 8 GPUs"),
        ({"nodes": 2}, ("-tp", "x"), ISOLATED, "'x' is not a whole number"),
        ({"nodes": 2}, ("-tp", "2", "--nnodes", "4"), ISOLATED, "--nnodes: not for an engine of several nodes"),
        ({"nodes": 2}, ("-tp", "2", "--data_parallel_size=2"), ISOLATED, "--data_parallel_size=2: not for an engine"),
    ],
)
def test_what_cannot_span_nodes_is_refused_in_words(
    asked: dict[str, Any], words: tuple[str, ...], site: Replicas, complaint: str
) -> None:
    with pytest.raises(ValueError) as e:
        multi_node.check(Resources(**asked), words, site)
    assert complaint in str(e.value)


@pytest.mark.parametrize("rank", [0, 1])
def test_all_parts_meet_at_the_first_nodes_port_each_with_a_number_of_its_own(rank: int) -> None:
    command = multi_node.argv(SPANNING, 8000, FOLDER, task(rank), PLACE)
    told = {name: last(command, f"--{name}") for name in ("nnodes", "node-rank", "master-addr", "master-port")}
    assert told == {"nnodes": "2", "node-rank": str(rank), "master-addr": "g1", "master-port": "29500"}
    assert last(command, "--tensor-parallel-size") == "2"
    assert last(command, "--distributed-executor-backend") == "mp"


def test_only_the_first_node_has_a_front() -> None:
    head, worker = (multi_node.argv(SPANNING, 8000, FOLDER, task(rank), PLACE) for rank in (0, 1))
    assert "--headless" not in head
    assert "--ssl-keyfile" in head
    assert "--headless" in worker
    assert "--ssl-keyfile" not in worker  # the first one's key is nobody else's
    assert worker[1:3] == ["-m", "launchers.vllm.headless"]


def test_vllms_own_command_starts_a_part_without_a_front_by_itself() -> None:
    environment = Environment(kind="venv", python="python3", command=("vllm", "serve"))
    spec = dataclasses.replace(SPANNING, environment=environment)
    assert multi_node.argv(spec, 8000, FOLDER, task(1), PLACE)[:3] == ["vllm", "serve", spec.model_path]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["mp", "ray"])
@pytest.mark.parametrize("kind", ["apptainer", "pyxis"])
def test_a_part_in_a_container_is_on_its_own_node_and_sees_the_code_and_the_weights(
    kind: str, how: Any, rank: int
) -> None:
    environment = Environment(kind=kind, python="python3", image="vllm.sif")
    spec = dataclasses.replace(SPANNING, environment=environment, multi_node=how)
    command = multi_node.argv(spec, 8000, FOLDER, task(rank), PLACE)
    assert "vllm.sif" in command
    for place in (FOLDER.code, spec.model_path):
        assert f"{place}:{place}" in ",".join(command)
    if kind == "pyxis":
        assert last(command, "--nodelist") == f"g{rank + 1}"


def test_with_ray_the_others_join_the_first_nodes_cluster_and_it_starts_the_engine_there() -> None:
    spec = dataclasses.replace(SPANNING, multi_node="ray")
    head, worker = (multi_node.argv(spec, 8000, FOLDER, task(rank), PLACE) for rank in (0, 1))
    assert worker == ["ray", "start", "--address=g1:29500", "--block", "--disable-usage-stats"]
    assert head[:2] == ["sh", "-c"]
    assert "ray start --head --node-ip-address=g1 --port=29500" in head[2]
    assert last(head, "--distributed-executor-backend") == "ray"
    assert "--nnodes" not in head
    assert multi_node.env(spec, task(1), ("127.0.0.1", 29500)) == {"RAY_ADDRESS": "127.0.0.1:29500"}


def test_the_parts_speak_on_the_interface_that_leads_to_the_first_one() -> None:
    assert multi_node.env(SPANNING, task(0), ("127.0.0.1", 29500)) == {}  # no other node reaches that
    assert multi_node.env(SPANNING, task(0), ("no-such-host.invalid", 29500)) == {}
    alone = dataclasses.replace(task(0), tasks=1)
    assert multi_node.env(SPANNING, alone, PLACE) == {}
