"""Real engines of other shapes than one that generates: LoRA adapters that come and go; embeddings, scores, ranks."""

from __future__ import annotations

import array
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from replica_fixtures import Replica, asked, launched, real_spec
from vllm_fixtures import START_S, make_llamas
from waiting import wait_for

from launchers.local_scheduler import LocalScheduler
from launchers.vllm import adapters
from launchers.vllm.endpoint import Endpoint, call


@pytest.fixture(scope="module")
def models(training_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llamas(training_python, tmp_path_factory.mktemp("models"))


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


def said_by(endpoint: Endpoint, model: str) -> str:
    body: dict[str, Any] = {"prompt": "import json", "max_tokens": 12, "temperature": 0}
    answer = asked(endpoint, "/v1/completions", model=model, **body)
    return str(answer["choices"][0]["text"])


def changed(replica: Replica, wanted: dict[str, str]) -> dict[str, Any]:
    """What a running replica says after it was asked for other adapters."""
    before = len(replica.said("adapters-loaded"))
    adapters.ask(replica.folder, wanted)
    wait_for(lambda: len(replica.said("adapters-loaded")) > before, timeout=120)
    return replica.said("adapters-loaded")[-1].facts


def test_adapters_come_and_go_while_an_engine_serves_staged_weights(models: Path, tmp_path: Path) -> None:
    there = {name: adapter(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "c"))}
    stage = tmp_path / "stage"
    spec = real_spec(tmp_path, models / "plain", adapters={"a": there["a"]}, stage_dir=str(stage))
    with launched(LocalScheduler(tmp_path / "spool"), tmp_path / "runs", spec) as (replica,):
        endpoint = replica.ready(START_S)
        (copy,) = (path for path in stage.iterdir() if path.is_dir())
        assert f"model='{copy}'" in replica.folder.attempt_log(f"{replica.job.job_id}.0", 0).read_text()
        assert replica.said("adapters-loaded")[-1].facts["adapters"] == ["a"]
        base, first = said_by(endpoint, "chat"), said_by(endpoint, "a")
        assert first != base

        said = changed(replica, {"a": there["b"], "c": there["c"]})
        assert (said["adapters"], said["problem"]) == (["a", "c"], None)
        second, third = said_by(endpoint, "a"), said_by(endpoint, "c")
        assert len({base, first, second, third}) == 4

        assert changed(replica, {"c": there["c"]})["adapters"] == ["c"]
        gone, _ = call(endpoint, "POST", "/v1/completions", {"model": "a", "prompt": "x", "max_tokens": 1}, 60)
        assert gone == 404
        assert (said_by(endpoint, "c"), said_by(endpoint, "chat")) == (third, base)

        # One that does not fit is refused in the engine's words, and nothing else changes.
        config = Path(there["a"]) / "adapter_config.json"
        config.write_text(config.read_text().replace('"r": 8', '"r": 64'))
        said = changed(replica, {"c": there["c"], "a": there["a"]})
        assert said["adapters"] == ["c"]
        assert "rank" in said["problem"]
        # And nobody without the replica's key changes anything.
        stranger = dataclasses.replace(endpoint, key="guessed")
        assert adapters.change(stranger, {"c": there["c"]}, {}).problem is not None


def test_an_engine_that_embeds_proves_it_and_gives_vectors_scores_and_ranks(models: Path, tmp_path: Path) -> None:
    spec = real_spec(tmp_path, models / "plain", runner="embed")
    with launched(LocalScheduler(tmp_path / "spool"), tmp_path / "runs", spec) as (replica,):
        endpoint = replica.ready(START_S)
        (ready,) = replica.said("replica-ready")
        assert (ready.facts["probe"]["prompt_tokens"], ready.facts["probe"]["completion_tokens"]) == (1, 0)
        found = asked(endpoint, "/v1/embeddings", model="chat", input=["a cat", "json"])["data"]
        vectors = [one["embedding"] for one in found]
        assert [len(vector) for vector in vectors] == [128, 128]
        assert vectors[0] != vectors[1]
        scores = asked(endpoint, "/v1/score", model="chat", text_1="a cat", text_2=["a cat", "json"])["data"]
        assert scores[0]["score"] > scores[1]["score"]
        ranks = asked(endpoint, "/v1/rerank", model="chat", query="a cat", documents=["json", "a cat"])["results"]
        assert [rank["index"] for rank in ranks] == [1, 0]
        assert call(endpoint, "POST", "/v1/completions", {"model": "chat", "prompt": "a"}, 60)[0] == 404
