"""Hugging Face models in and out, and training that begins with one, in every layout: real torch, real files."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from megatron_fixtures import LIMIT_S, ROOT, Bench, announced, bench, losses, metrics

from launchers.megatron import manifest
from launchers.megatron.recipe import read_recipe, to_dict
from launchers.run_folder import RunFolder
from launchers.spec import ConvertSpec, TrainSpec

__all__ = ["bench"]
ITERATIONS = 5
RECIPE = """
kind = "continue"
[model]
seq_length = 64
[init]
{init}
[data]
{data}
[train]
iterations = {iterations}
micro_batch = 2
global_batch = 4
lr = 1e-3
warmup = 1
schedule = "wsd"
decay = 2
precision = "{precision}"
timeout_s = 60
"""


@pytest.fixture(scope="module")
def llamas(training_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What make_llamas.py leaves: plain (fp32) and tied (bf16, Llama 3.1's rotation), and datasets."""
    root = tmp_path_factory.mktemp("llamas")
    program = [training_python, "-W", "ignore", str(ROOT / "tests" / "make_llamas.py"), str(root)]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPATH": str(ROOT)}
    subprocess.run(program, env=env, check=True, timeout=LIMIT_S, capture_output=True)
    return root


@pytest.fixture(scope="module")
def converted_in(bench: Bench, llamas: Path) -> RunFolder:
    folder = from_hf(bench, "in", llamas / "plain")
    bench.run(folder)
    return folder


@pytest.fixture(scope="module")
def continued(bench: Bench, llamas: Path) -> RunFolder:
    """One rank goes on with the tied Llama: what every other layout is compared with."""
    folder = continue_folder(bench, llamas, "continued", f'hugging_face = "{llamas}/tied"')
    bench.run(folder)
    return folder


@pytest.fixture(scope="module")
def in_two_stages(bench: Bench, llamas: Path) -> RunFolder:
    parallel = {"pipeline": 2, "recompute": "selective"}
    folder = continue_folder(bench, llamas, "stages", f'hugging_face = "{llamas}/tied"', parallel=parallel)
    bench.run(folder, ranks=2)
    return folder


def same_losses(folder: RunFolder, other: RunFolder) -> None:
    ours, theirs = losses(folder), losses(other)
    assert sorted(ours) == sorted(theirs)
    for iteration, loss in ours.items():  # summed in another order, so not to the last bit
        assert loss == pytest.approx(theirs[iteration], abs=1e-5), iteration


def parameters(directory: Path) -> int:
    """As the header of its safetensors counts them."""
    raw = (directory / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def from_hf(bench: Bench, name: str, source: Path) -> RunFolder:
    return bench.folder(name, ConvertSpec, direction="from-hf", checkpoint=str(source), checkpoint_id="", model="")


def continue_folder(
    bench: Bench, llamas: Path, name: str, init: str, *, data: str = "", precision: str = "fp32", **sections: Any
) -> RunFolder:
    path = bench.root / f"{name}.toml"
    data = data or f'split = "80,20,0"\njsonl = ["{llamas}/texts.jsonl"]\nfield = "content"'
    path.write_text(RECIPE.format(init=init, data=data, iterations=ITERATIONS, precision=precision))
    recipe = to_dict(read_recipe(path))
    for section, settings in sections.items():
        recipe[section] |= settings
    return bench.folder(name, TrainSpec, recipe=recipe, dataset_dir=str(bench.root / "continued-datasets"))


def test_a_model_converted_in_and_out_again_is_the_same_to_the_last_bit(
    bench: Bench, llamas: Path, converted_in: RunFolder
) -> None:
    (told,) = announced(converted_in, "checkpoint")
    checkpoint = converted_in.root / told["path"]
    found = manifest.verify(checkpoint)
    assert (told["iteration"], found.facts["vocab"], found.facts["precision"]) == (0, 515, "float32")
    assert found.facts["max_logit_difference"] < 1e-4

    out = bench.convert_folder("out", checkpoint)
    bench.run(out)
    (fact,) = announced(out, "model-converted")
    assert fact["max_logit_difference"] < 1e-4
    assert fact["parameters"] == parameters(llamas / "plain")
    source = llamas / "plain"
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out.model / name).read_bytes() == (source / name).read_bytes(), name
    ours, theirs = (json.loads((d / "config.json").read_text()) for d in (out.model, source))
    assert {k for k in theirs if ours.get(k) != theirs[k]} <= {"initializer_range", "transformers_version"}


def test_a_model_that_cannot_be_trained_here_is_refused_by_what_it_says(
    bench: Bench, llamas: Path, tmp_path: Path
) -> None:
    shutil.copytree(llamas / "plain", tmp_path / "biased")
    config = json.loads((tmp_path / "biased" / "config.json").read_text())
    (tmp_path / "biased" / "config.json").write_text(json.dumps({**config, "attention_bias": True}))
    folder = from_hf(bench, "biased", tmp_path / "biased")
    assert "attention_bias = true cannot be trained here; allowed: false" in bench.refused(folder)
    assert not folder.checkpoints.exists()


def test_a_run_continues_from_a_hugging_face_model_after_comparing_logits(continued: RunFolder) -> None:
    said = {m["stage"]: m for m in metrics(continued) if "stage" in m}
    assert said["weights"]["max_logit_difference"] < 1e-3
    assert said["weights"]["compared_tokens"] == 64
    assert said["data"]["vocab"] == 515
    assert sorted(losses(continued)) == list(range(1, ITERATIONS + 1))
    assert losses(continued)[ITERATIONS] < losses(continued)[1]
    rates = [m["lr"] for m in metrics(continued) if "lr" in m]
    assert rates == pytest.approx([0.0, 1e-3, 1e-3, 5e-4, 0.0], abs=1e-9)


def test_tensor_and_sequence_parallel_ranks_that_recompute_everything_continue_with_the_same_losses(
    bench: Bench, llamas: Path, continued: RunFolder
) -> None:
    parallel = {"tensor": 2, "sequence": True, "recompute": "full", "distributed_optimizer": True}
    folder = continue_folder(bench, llamas, "tensor", f'hugging_face = "{llamas}/tied"', parallel=parallel)
    bench.run(folder, ranks=2)
    same_losses(folder, continued)


def test_two_stages_that_share_an_embedding_continue_with_the_same_losses(
    in_two_stages: RunFolder, continued: RunFolder
) -> None:
    same_losses(in_two_stages, continued)


def test_a_checkpoint_of_two_stages_that_share_an_embedding_is_converted_out(
    bench: Bench, llamas: Path, in_two_stages: RunFolder
) -> None:
    (told,) = announced(in_two_stages, "checkpoint")
    out = bench.convert_folder("stages-out", in_two_stages.root / told["path"])
    bench.run(out)
    (fact,) = announced(out, "model-converted")
    assert fact["parameters"] == parameters(llamas / "tied")
    config = json.loads((out.model / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["vocab_size"], config["max_position_embeddings"]) == (True, 515, 128)
    assert config["rope_parameters"] == json.loads((llamas / "tied" / "config.json").read_text())["rope_parameters"]


def test_a_run_continues_in_bf16_too(bench: Bench, llamas: Path, continued: RunFolder) -> None:
    folder = continue_folder(bench, llamas, "continued-bf16", f'hugging_face = "{llamas}/tied"', precision="bf16")
    bench.run(folder)
    assert next(m for m in metrics(folder) if m.get("stage") == "model")["precision"] == "bfloat16"
    for iteration, loss in losses(folder).items():
        assert loss == pytest.approx(losses(continued)[iteration], abs=0.05), iteration


def test_damaged_weights_refuse_a_run_on_every_rank(
    bench: Bench, llamas: Path, converted_in: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(converted_in.checkpoints / "iter_0000000", tmp_path / "iter_0000000")
    shard = next((tmp_path / "iter_0000000").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    shutil.copytree(llamas / "plain", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for name, init, told in (
        ("damaged-checkpoint", f'checkpoint = "{tmp_path}/iter_0000000"', f"error: [init]: {shard}: damaged"),
        ("cut-model", f'hugging_face = "{tmp_path}/cut"', f"error: [init]: {weights}: "),
    ):
        group = bench.start(continue_folder(bench, llamas, name, init), ranks=2)
        for process in group:
            said, _ = process.communicate(timeout=LIMIT_S)
            assert process.returncode == os.EX_CONFIG, said
            assert said.strip().splitlines()[-1].startswith(told)


def test_a_conversion_killed_after_its_last_rename_is_the_latest_all_the_same(
    bench: Bench, llamas: Path, converted_in: RunFolder
) -> None:
    folder = from_hf(bench, "late", llamas / "plain")
    shutil.copytree(converted_in.checkpoints / "iter_0000000", folder.checkpoints / "iter_0000000")
    bench.run(folder)
    assert folder.latest.read_text() == "iter_0000000\n"


def test_a_run_continues_from_a_checkpoint_as_from_the_model_it_was_made_of(
    bench: Bench, llamas: Path, converted_in: RunFolder
) -> None:
    blend = "\n".join(
        f'[[data.sources]]\n{kind} = ["{llamas}/{name}"]\nfield = "content"\nweight = {weight}'
        for kind, name, weight in (("dataset", "saved", 2), ("dataset", "texts.parquet", 1))
    )
    made = [
        continue_folder(bench, llamas, name, init, data=f'split = "80,20,0"\n{blend}')
        for name, init in (
            ("from-model", f'hugging_face = "{llamas}/plain"'),
            ("from-checkpoint", f'checkpoint = "{converted_in.checkpoints}/iter_0000000"'),
        )
    ]
    for group in [bench.start(folder) for folder in made]:
        bench.finish(group)
    assert losses(made[0]) == losses(made[1])
    said = next(m for m in metrics(made[1]) if m.get("stage") == "weights")
    assert (said["init_run"], said["init_iteration"]) == ("in", 0)
