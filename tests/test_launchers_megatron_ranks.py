"""What one rank does alone: its seed, its GPU, its loss, its copy of the state. One training process says all of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from megatron_fixtures import answer_of

from launchers.megatron import convert

PROGRAM = """
import json, os, sys, torch, torch.distributed as dist, weakref
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
from megatron.core import parallel_state
from safetensors.torch import save_file
from launchers.megatron import cpu, llama, model, optimizer, training
from launchers.megatron.corpus import DataError
from launchers.megatron.manifest import CheckpointError
from launchers.megatron.progress import Progress
from launchers.megatron.ranks import Ranks, connect, join
from launchers.megatron.recipe import Data, Model, Parallel, Recipe, Train
from launchers.megatron.report import Report
from launchers.megatron.writer import Writing
from launchers.run_folder import RunFolder

root = Path(sys.argv[1])
cpu.install()

def drawn(stage):
    join(Ranks(0, 1, torch.device("cpu"), dist.HashStore()), Parallel(), 1234, 60)
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    return torch.rand(1).item()

stages = []
for stage in range(3):
    with patch.object(parallel_state, "get_pipeline_model_parallel_rank", lambda: stage):
        stages.append(drawn(stage))

def gpu(local, seen):
    with ExitStack() as patched:
        for name, value in (("is_available", True), ("device_count", seen), ("set_device", None)):
            patched.enter_context(patch.object(torch.cuda, name, lambda *_, value=value: value))
        patched.enter_context(patch.dict(os.environ, LOCAL_RANK=str(local)))
        return connect(1.0).device.index

loss, _report = training._mean_loss(torch.zeros(1, 4), torch.ones(1, 4))

class Unpinned(torch.Tensor): pass
tensor = torch.ones(4).as_subclass(Unpinned)
gone = weakref.ref(tensor)
buckets = [(str(root / "part"), "part", ([], [("item", tensor)]))]
def write(rank, held, results): Path(held[0][0]).touch()
request = SimpleNamespace(async_fn=write, async_fn_args=(0, buckets, None))
del tensor
writing = Writing(request, root, list, background=True)
kept = gone() is not None
writing.wait()

def mfu(precision):
    folder = RunFolder(root / precision)
    folder.root.mkdir()
    recipe = Recipe(
        model=Model(hidden=64, layers=1, heads=2, kv_heads=1, ffn=64, seq_length=8), data=Data(),
        train=Train(iterations=1, micro_batch=1, global_batch=1, lr=1.0, precision=precision),
    )
    ranks = SimpleNamespace(device=torch.device("cuda", 0), world=1, has_loss=True)
    with patch.dict(os.environ, HEADGATE_PEAK_TFLOPS="1e-6"):
        report = Report(folder, recipe, 512, ranks, Progress(folder.progress, True, "7.0"), 0.0)
    report.begin(0)
    report.iteration(1, 1.0, 1.0, 1.0, 1.0)
    return "mfu" in json.loads(folder.metrics.read_text().splitlines()[-1])

def absent():
    parts = [{"path": "/gone/text", "weight": 1.0}]
    note = {"tokenizer": "/gone/tokenizer", "vocab": 9, "reused": True, "parts": parts}
    ranks, early = Ranks(1, 2, torch.device("cpu"), dist.HashStore()), SimpleNamespace(wait=lambda: json.dumps(note))
    try:
        training._dataset(None, None, None, ranks, early)
    except DataError as e:
        return str(e)

small = Model(hidden=64, layers=2, heads=2, kv_heads=2, ffn=64, seq_length=8)

def settings(**parallel):
    c = model.config(small, Parallel(**parallel), torch.float32)
    return [c.recompute_granularity, c.recompute_modules, c.recompute_method, c.sequence_parallel]

def rates(iterations, warmup, decay):
    said = {"iterations": iterations, "warmup": warmup, "decay": decay, "schedule": "wsd"}
    train = Train(micro_batch=1, global_batch=1, lr=1.0, **said)
    group = {}
    with patch.object(optimizer, "get_megatron_optimizer", lambda *_: SimpleNamespace(param_groups=[group])):
        _optimizer, schedule = optimizer.build(Recipe(model=small, data=Data(), train=train), None, torch.float32)
    told = []
    for _ in range(iterations):
        told.append(group["lr"])
        schedule.step(1)
    return told

def unfit(index):
    (root / "weights").mkdir(exist_ok=True)
    save_file({"model.norm.weight": torch.ones(3)}, str(root / "weights" / "model.safetensors"))
    if index:
        (root / "weights" / "model.safetensors.index.json").write_text(index)
    norm = torch.nn.Parameter(torch.zeros(4))
    gpt = SimpleNamespace(
        decoder=SimpleNamespace(layers=[SimpleNamespace(layer_number=1)]),
        named_parameters=lambda: [("decoder.final_layernorm.weight", norm)],
    )
    try:
        llama.fill(gpt, root / "weights", small, 0, 1)
    except CheckpointError as e:
        return str(e)

print(json.dumps({
    "absent": absent(), "rates": [rates(6, 1, 1), rates(4, 0, 3), rates(2, 0, 1), rates(5, 3, 1)],
    "recompute": {name: settings(recompute=name) for name in ("none", "selective", "full")},
    "sequence": settings(tensor=2, sequence=True), "unfit": [unfit(index) for index in ("", "{}", "[]", "{")],
    "stages": stages, "gpus": [gpu(3, 1), gpu(3, 4)], "loss": loss.item(), "kept": kept, "error": writing.error,
    "files": [f.path for f in writing.files], "buckets": len(buckets),
    "mfu": {name: mfu(name) for name in ("auto", "bf16", "fp32")},
}))
"""


@pytest.fixture(scope="module")
def said(training_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return answer_of(PROGRAM, training_python, tmp_path_factory.mktemp("ranks"))


def test_each_stage_of_a_pipeline_draws_weights_of_its_own(said: dict[str, Any]) -> None:
    assert len(set(said["stages"])) == 3


def test_a_rank_takes_its_gpu_of_all_and_the_only_one_that_it_sees(said: dict[str, Any]) -> None:
    assert said["gpus"] == [0, 3]


def test_a_sample_in_which_nothing_counts_has_no_loss_rather_than_none_that_is_a_number(said: dict[str, Any]) -> None:
    assert said["loss"] == 0.0


def test_what_a_save_gathered_is_let_go_once_it_is_copied(said: dict[str, Any]) -> None:
    assert (said["kept"], said["error"], said["files"]) == (False, "", ["part"])
    assert said["buckets"] == 1  # megatron counts them when it completes the checkpoint


def test_utilisation_is_of_the_bf16_peak_and_told_of_bf16_only(said: dict[str, Any]) -> None:
    assert said["mfu"] == {"auto": True, "bf16": True, "fp32": False}


def test_a_rank_that_does_not_see_the_dataset_names_it(said: dict[str, Any]) -> None:
    assert said["absent"].startswith("rank 1: /gone/tokenizer or /gone/text is not whole here; dataset_dir must be")


def test_the_last_iterations_of_a_wsd_schedule_fall_to_the_least_rate(said: dict[str, Any]) -> None:
    expected = [[0, 1, 1, 1, 1, 0], [1, 2 / 3, 1 / 3, 0], [1, 0], [0, 1 / 3, 2 / 3, 1, 0]]
    assert said["rates"] == [pytest.approx(rates) for rates in expected]


def test_megatron_is_told_what_to_recompute_and_to_share_out(said: dict[str, Any]) -> None:
    assert said["recompute"] == {
        "none": [None, ["core_attn"], None, False],  # megatron's own word, which means nothing without a granularity
        "selective": ["selective", ["mlp"], None, False],
        "full": ["full", ["core_attn"], "uniform", False],
    }
    assert said["sequence"] == [None, ["core_attn"], None, True]


def test_weights_that_do_not_fit_or_have_no_index_are_named(said: dict[str, Any]) -> None:
    shape, *indices = said["unfit"]
    assert shape.endswith("/weights: what becomes decoder.final_layernorm.weight has shape [3]; allowed: [4]")
    for told in indices:
        assert "/weights/model.safetensors.index.json: no weight_map that can be read: " in told


def test_a_conversion_hides_the_gpus_of_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    (tmp_path / "spec.json").write_text("{}")
    assert convert.main([str(tmp_path)]) == 1
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["HIP_VISIBLE_DEVICES"]) == ("", "")
