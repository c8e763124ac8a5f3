"""Real engines of other shapes than one that generates: LoRA adapters that come and go; embeddings, scores, ranks."""

from __future__ import annotations

import array
import dataclasses
import json
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from platform_fixtures import ROOT
from specs import folder_of, serve
from vllm_fixtures import START_S, make_llamas
from waiting import wait_for

from launchers.environment import child_env
from launchers.launch import freeze
from launchers.resources import engine_environment
from launchers.spec import ServeSpec
from launchers.task import Task, free_port
from launchers.vllm import adapters, server, staging
from launchers.vllm.endpoint import Endpoint, call
from registry.site import load_site

TASK = Task(rank=0, tasks=1, local_rank=0, job_id="7", restart=0, node="here")


@pytest.fixture(scope="module")
def models(training_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llamas(training_python, tmp_path_factory.mktemp("models"))


def spec_on(root: Path, model: Path, **asked: Any) -> ServeSpec:
    """For an engine of the laptop's site; skips where there is none."""
    if not (ROOT / ".venvs" / "engine" / "bin" / "python").exists():
        pytest.skip("no engine environment (make environments)")
    site = load_site(ROOT / "site-configs" / "laptop.toml", {}, [f"state_dir={root}", f"shared_dir={root}"])
    args = (*site.environment("engine").args, "--max-model-len", "128")
    return serve(environment=engine_environment(site), model_path=str(model), engine_args=args, **asked)


@contextmanager
def running(spec: ServeSpec, root: Path) -> Iterator[Endpoint]:
    """The engine as a replica's supervisor starts it, until it answers /health."""
    folder = folder_of(spec, root)
    freeze(folder.code)
    endpoint = server.mint_endpoint(folder, spec, TASK.attempt, free_port(spec.listen))
    env = child_env(os.environ, spec.environment, folder.code, 1)
    env |= server.closing_env(endpoint.key) | adapters.env(spec)
    with (root / "log").open("w") as log:
        argv = server.argv(spec, endpoint.port, folder, TASK)
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: process.poll() is not None or server.healthy(endpoint), timeout=START_S, every=0.5)
        assert process.poll() is None, (root / "log").read_text()[-3000:]
        yield endpoint
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def adapter(directory: Path, seed: int) -> str:
    """A LoRA adapter for make_llamas.py's models, with weights large enough to change what is said."""
    directory.mkdir(parents=True)
    rank, width, drawn = 8, 128, random.Random(seed)
    shapes = {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.{part}.weight": shape
        for layer in (0, 1)
        for module, out in (("q_proj", 128), ("v_proj", 64))
        for part, shape in (("lora_A", (rank, width)), ("lora_B", (out, rank)))
    }
    header, data = {}, bytearray()
    for name, (rows, columns) in shapes.items():
        begin = len(data)
        data += array.array("f", (drawn.gauss(0, 0.5) for _ in range(rows * columns))).tobytes()
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [begin, len(data)]}
    head = json.dumps(header).encode()
    (directory / "adapter_model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return str(directory)


def asked(endpoint: Endpoint, path: str, **body: Any) -> dict[str, Any]:
    status, raw = call(endpoint, "POST", path, body, 120)
    assert status == 200, raw
    answer: dict[str, Any] = json.loads(raw)
    return answer


def said_by(endpoint: Endpoint, model: str) -> str:
    body: dict[str, Any] = {"prompt": "import json", "max_tokens": 12, "temperature": 0}
    answer = asked(endpoint, "/v1/completions", model=model, **body)
    return str(answer["choices"][0]["text"])


def test_adapters_come_and_go_while_an_engine_serves_staged_weights(models: Path, tmp_path: Path) -> None:
    there = {name: adapter(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "c"))}
    spec = spec_on(tmp_path, models / "plain", adapters={"a": there["a"]}, stage_dir=str(tmp_path / "stage"))
    told: list[str] = []
    with staging.staged(spec, told.append) as path:
        assert Path(path).parent == tmp_path / "stage", told
        with running(dataclasses.replace(spec, model_path=path), tmp_path) as endpoint:
            base = said_by(endpoint, "chat")
            assert adapters.load(endpoint, spec.adapters) == ["a"]
            first = said_by(endpoint, "a")
            assert first != base

            loaded = adapters.change(endpoint, spec.adapters, {"a": there["b"], "c": there["c"]})
            assert loaded == adapters.Loaded({"a": there["b"], "c": there["c"]})
            second, third = said_by(endpoint, "a"), said_by(endpoint, "c")
            assert len({base, first, second, third}) == 4

            assert adapters.change(endpoint, loaded.adapters, {"c": there["c"]}).problem is None
            gone, _ = call(endpoint, "POST", "/v1/completions", {"model": "a", "prompt": "x", "max_tokens": 1}, 60)
            assert gone == 404
            assert (said_by(endpoint, "c"), said_by(endpoint, "chat")) == (third, base)

            # One that does not fit is refused in the engine's words, and nothing else changes.
            config = Path(there["a"]) / "adapter_config.json"
            config.write_text(config.read_text().replace('"r": 8', '"r": 64'))
            refused = adapters.change(endpoint, {"c": there["c"]}, {"c": there["c"], "a": there["a"]})
            assert refused.adapters == {"c": there["c"]}
            assert refused.problem is not None and "rank" in refused.problem
            # And nobody without the replica's key changes anything.
            stranger = dataclasses.replace(endpoint, key="guessed")
            assert adapters.change(stranger, {"c": there["c"]}, {}).problem is not None


def test_an_engine_that_embeds_gives_vectors_scores_and_ranks(models: Path, tmp_path: Path) -> None:
    with running(spec_on(tmp_path, models / "plain", runner="embed"), tmp_path) as endpoint:
        vectors = [
            d["embedding"] for d in asked(endpoint, "/v1/embeddings", model="chat", input=["a cat", "json"])["data"]
        ]
        assert [len(vector) for vector in vectors] == [128, 128]
        assert vectors[0] != vectors[1]
        scores = asked(endpoint, "/v1/score", model="chat", text_1="a cat", text_2=["a cat", "json"])["data"]
        assert scores[0]["score"] > scores[1]["score"]
        ranks = asked(endpoint, "/v1/rerank", model="chat", query="a cat", documents=["json", "a cat"])["results"]
        assert [rank["index"] for rank in ranks] == [1, 0]
        assert call(endpoint, "POST", "/v1/completions", {"model": "chat", "prompt": "a"}, 60)[0] == 404
