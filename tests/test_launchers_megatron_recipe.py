"""The arithmetic of a recipe, and the command line it ends up in: no torch, no processes."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from launchers.megatron.arithmetic import HEAD_DIMS, check
from launchers.megatron.command import Rank, child_argv, child_env
from launchers.megatron.recipe import Init, Recipe, RecipeError, from_dict, read_recipe, to_dict
from launchers.spec import ConvertSpec, Environment, Resources, SpecError, TrainSpec

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted([*(ROOT / "tests" / "recipes").glob("*.toml"), *(ROOT / "cli" / "recipes").glob("*.toml")])


@pytest.fixture
def plain() -> dict[str, Any]:
    return tomllib.loads((ROOT / "tests" / "recipes" / "tiny.toml").read_text())


def with_(plain: dict[str, Any], **settings: Any) -> dict[str, Any]:
    changed = json.loads(json.dumps(plain))
    for name, value in settings.items():
        section, key = name.split("__")
        changed.setdefault(section, {})[key] = value
    return changed


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_shipped_recipe_works_out_on_one_rank_and_on_two(path: Path) -> None:
    recipe = read_recipe(path)
    check(recipe, 1)
    check(recipe, 2)


def test_the_reference_says_every_setting_and_what_holds_without_it(tmp_path: Path) -> None:
    path = ROOT / "cli" / "recipes" / "reference.toml"
    known = read_recipe(path)
    for section in dataclasses.fields(Recipe):
        value = Init() if section.name == "init" else getattr(known, section.name)
        for setting in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
            assert re.search(rf"\b{setting.name}\b", path.read_text()), f"{section.name}.{setting.name}"
    least = tmp_path / "least.toml"
    least.write_text(
        '[model]\npreset = "llama-125m"\n[data]\ntext = ["x"]\nvocab_size = 32000\n'
        "[train]\niterations = 100000\nmicro_batch = 4\nglobal_batch = 256\nlr = 6e-4\n"
    )
    assert dataclasses.replace(read_recipe(least), data=known.data) == known


def test_a_recipe_survives_the_journey_through_a_spec(plain: dict[str, Any]) -> None:
    recipe = from_dict(plain)
    assert from_dict(json.loads(json.dumps(to_dict(recipe)))) == recipe


@pytest.mark.parametrize(
    ("changes", "world", "told"),
    [
        ({"model__heads": 3}, 1, "model.hidden = 64 is not divisible by model.heads = 3"),
        ({"model__heads": 4}, 1, "64 / 4 = 16 is a head size that vLLM's CPU attention cannot serve"),
        ({"model__hidden": 192, "model__heads": 6, "model__kv_heads": 4}, 1, "model.heads = 6 .* model.kv_heads = 4"),
        ({"parallel__tensor": 2}, 2, "model.kv_heads = 1 is not divisible by parallel.tensor = 2"),
        ({"parallel__pipeline": 3}, 3, "model.layers = 2 is not divisible by parallel.pipeline = 3"),
        ({"parallel__pipeline": 2}, 3, "= 3 is not divisible by parallel.tensor x parallel.pipeline = 2"),
        ({"train__global_batch": 6}, 2, r"train.global_batch = 6 .* = 4 \(6 = 1 x 4 \+ 2\)"),
        ({"train__warmup": 20}, 1, "train.warmup = 20 must be less than train.iterations = 20"),
        ({"train__micro_batch": 0}, 1, "train.micro_batch = 0: must be at least 1"),
        ({"data__split": "90,10"}, 1, "data.split = '90,10' is not three parts"),
        ({"data__jsonl": ["x"]}, 1, "data names text and jsonl: one of data.text, data.jsonl and data.dataset says"),
        ({"data__text": []}, 1, "data names no documents"),
        ({"data__sources": [{"text": ["x"]}]}, 1, r"names documents and \[\[data.sources\]\] too"),
        (
            {"data__text": [], "data__max_mb": 0.0, "data__field": "body", "data__sources": [{"text": ["x"]}]},
            1,
            r"data.field = 'body' beside \[\[data.sources\]\]",
        ),
        (
            {"data__text": [], "data__max_mb": 2.0, "data__field": "body", "data__sources": [{"text": ["x"]}]},
            1,
            r"data.field = 'body' and data.max_mb = 2.0 beside",
        ),
        (
            {"data__text": [], "data__max_mb": 0.0, "data__sources": [{"text": ["x"], "weight": 0.0}]},
            1,
            r"data.sources\[0\].weight = 0:",
        ),
        ({"parallel__sequence": True}, 1, "parallel.sequence .* but parallel.tensor = 1"),
        (
            {"model__kv_heads": 2, "model__seq_length": 65, "parallel__tensor": 2, "parallel__sequence": True},
            2,
            r"model.seq_length = 65 is not divisible by parallel.tensor = 2 \(65 = 32 x 2 \+ 1\)",
        ),
        (
            {"model__hidden": 96, "model__heads": 3, "model__kv_heads": 3, "model__ffn": 96, "parallel__tensor": 3},
            3,
            r"data.vocab_size = 512, padded to 4 x 128 = 512 is not divisible by parallel.tensor = 3",
        ),
        ({"model__max_length": 32}, 1, "model.seq_length = 64 is above model.max_length = 32"),
        ({"train__beta2": 1.0}, 1, "train.beta2 = 1: must be at least 0 and less than 1"),
        ({"train__eps": 0.0}, 1, "train.eps = 0: must be more than 0"),
        ({"train__decay": 5}, 1, 'train.decay = 5 has a meaning with train.schedule = "wsd" only'),
        ({"train__schedule": "wsd", "train__decay": 18}, 1, r"train.warmup - 1 = 20 - 2 - 1 = 17"),
        ({"data__vocab_size": 100}, 1, "data.vocab_size = 100: must be at least 512"),
        ({"train__lr": math.nan}, 1, "train.lr = nan: must be a finite number"),
        ({"train__grad_clip": math.inf}, 1, "train.grad_clip = inf: must be a finite number"),
        ({"model__rope_scaling": math.inf}, 1, "model.rope_scaling = inf: must be a finite number"),
        (
            {"data__text": [], "data__sources": [{"text": ["x"], "weight": math.nan}]},
            1,
            r"data.sources\[0\].weight = nan: must be a finite number",
        ),
        ({"data__split": "nan,1,0"}, 1, "data.split = 'nan,1,0' is not three parts"),
        ({"data__split": "inf,1,0"}, 1, "data.split = 'inf,1,0' is not three parts"),
        ({"model__init_std": 0.0}, 1, "model.init_std = 0: must be more than 0"),
        ({"model__norm_epsilon": -1e-5}, 1, "model.norm_epsilon = -1e-05: must not be negative"),
        ({"train__seed": -1}, 1, r"train.seed = -1: must be at least 0 and less than 2\*\*32 = 4294967296"),
        ({"train__seed": 2**32}, 1, "train.seed = 4294967296: must be at least 0 and less than"),
        (
            {"evaluation__interval": 5, "evaluation__iterations": 0},
            1,
            "evaluation.interval = 5, but evaluation.iterations = 0: say how many",
        ),
    ],
)
def test_arithmetic_that_does_not_work_out_is_shown(
    plain: dict[str, Any], changes: dict[str, Any], world: int, told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        check(from_dict(with_(plain, **changes)), world)


@pytest.mark.parametrize(
    ("top", "told"),
    [
        ({"kind": "dpo"}, "kind = 'dpo' is none of pretrain, continue"),
        ({"kind": "continue"}, "kind = 'continue' needs one of init.hugging_face and init.checkpoint"),
        ({"kind": "continue", "init": {"hugging_face": "a", "checkpoint": "b"}}, "needs one of init.hugging_face and"),
        ({"init": {"hugging_face": "a"}}, r"kind = 'pretrain' begins with random weights; \[init\] goes with continue"),
    ],
)
def test_a_kind_of_run_is_known_and_begins_with_what_it_says(
    plain: dict[str, Any], top: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        check(from_dict({**plain, **top}), 1)


def test_a_recipe_of_an_earlier_release_is_still_read(plain: dict[str, Any]) -> None:
    before = from_dict({k: plain[k] for k in ("model", "data", "train")})
    assert (before.kind, before.init, before.parallel.recompute, before.model.context) == ("pretrain", None, "none", 64)
    assert [(s.text, s.weight) for s in before.data.blend] == [(tuple(plain["data"]["text"]), 1.0)]


def test_every_head_size_that_can_be_served_is_allowed(plain: dict[str, Any]) -> None:
    for size in HEAD_DIMS:
        check(from_dict(with_(plain, model__hidden=2 * size)), 1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train__iteration": 5}, "unknown key 'train.iteration'.* did you mean 'iterations'"),
        ({"trian__lr": 1.0}, "unknown key 'trian'.* did you mean 'train'"),
        ({"train__iterations": "20"}, "train.iterations must be int, not '20'"),
        ({"train__iterations": True}, "train.iterations must be int, not True"),
        ({"train__precision": "fp8"}, "train.precision = 'fp8' is none of auto, fp32, bf16"),
        ({"data__text": "{stdlib}"}, "data.text must be a list of strings"),
        ({"data__sources": ["a"]}, r"data.sources\[0\] must be a table, not 'a'"),
        ({"data__sources": [{"txet": []}]}, r"unknown key 'data.sources\[0\].txet'.* did you mean 'text'"),
    ],
)
def test_a_key_that_cannot_be_meant_is_named(plain: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        from_dict(with_(plain, **changes))


def test_a_missing_key_is_named(plain: dict[str, Any]) -> None:
    del plain["train"]["lr"]
    with pytest.raises(RecipeError, match=r"missing key 'train\.lr'"):
        from_dict(plain)


def test_what_the_control_plane_imports_needs_neither_torch_nor_numpy() -> None:
    modules = "recipe, arithmetic, kinds, flops, foundations, manifest, corpus, command, pretrain, convert"
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'numpy', 'megatron', 'transformers', 'tokenizers')));"
        f"from launchers.megatron import {modules}"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


RUN = Path("/shared/runs/r1")
RANK = Rank(rank=3, world_size=4, local_rank=1, master_addr="node1", master_port=29500, attempt=2)


def train_spec(**environment: Any) -> TrainSpec:
    return TrainSpec(
        id="r1", name="n", owner="ada", created_at="2026-01-01T00:00:00+00:00",
        resources=Resources(cpus_per_task=6, gpus_per_node=2),
        environment=Environment(**{"kind": "venv", "python": "/env/bin/python", **environment}),
        recipe={}, dataset_dir="/shared/datasets",
    )  # fmt: skip


def test_in_a_virtual_environment_the_program_is_started_directly() -> None:
    assert child_argv(train_spec(), RUN) == ["/env/bin/python", "-m", "launchers.megatron.pretrain", "/shared/runs/r1"]


def test_in_a_container_run_folder_datasets_and_mounts_are_visible_and_gpus_with_them() -> None:
    argv = child_argv(
        train_spec(kind="apptainer", image="/images/t.sif", python="python3", mounts=("/data:/data",)), RUN
    )
    assert argv == [
        "apptainer", "exec", "--nv", "--bind", "/shared/runs/r1:/shared/runs/r1",
        "--bind", "/shared/datasets:/shared/datasets", "--bind", "/data:/data",
        "/images/t.sif", "python3", "-m", "launchers.megatron.pretrain", "/shared/runs/r1",
    ]  # fmt: skip


def test_a_container_sees_the_weights_and_the_tokenizer_that_a_run_begins_with() -> None:
    recipe = {"init": {"hugging_face": "/models/x", "checkpoint": None}, "data": {"tokenizer": "/models/y"}}
    spec = dataclasses.replace(
        train_spec(kind="apptainer", image="i.sif", python="python3"), recipe=recipe, dataset_dir="/d"
    )
    argv = child_argv(spec, RUN)
    binds = [argv[i + 1] for i, word in enumerate(argv) if word == "--bind"]
    assert binds == [f"{p}:{p}" for p in ("/shared/runs/r1", "/d", "/models/x", "/models/y")]


def test_a_conversion_sees_its_checkpoint_and_needs_no_gpu() -> None:
    common = {f.name: getattr(train_spec(), f.name) for f in dataclasses.fields(TrainSpec)[:4]}
    spec = ConvertSpec(
        **common, resources=Resources(), environment=Environment(kind="apptainer", python="python3", image="i.sif"),
        checkpoint="/other/run/checkpoints/iter_0000020", checkpoint_id="c", model="m",
    )  # fmt: skip
    argv = child_argv(spec, RUN)
    assert "--nv" not in argv
    seen = "/other/run/checkpoints/iter_0000020"
    assert argv[argv.index(f"{seen}:{seen}") - 1] == "--bind"
    assert "launchers.megatron.convert" in argv


def test_an_unknown_environment_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="'docker' is none of apptainer, pyxis, venv"):
        child_argv(train_spec(kind="docker"), RUN)
    with pytest.raises(SpecError, match=r"environment\.image is missing"):
        child_argv(train_spec(kind="apptainer"), RUN)


def test_the_child_runs_the_frozen_code_knows_its_rank_and_keeps_compiled_files() -> None:
    inherited = {"HOME": "/home/ada", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "/elsewhere", "RANK": "9"}
    env = child_env(train_spec(env={"NCCL_DEBUG": "WARN"}), RUN, RANK, inherited)
    assert "PYTHONDONTWRITEBYTECODE" not in env
    expected = {
        "HOME": "/home/ada", "PYTHONPATH": "/shared/runs/r1/code", "OMP_NUM_THREADS": "6", "HF_HUB_OFFLINE": "1",
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
        "HEADGATE_ATTEMPT": "2", "NCCL_DEBUG": "WARN",
    }  # fmt: skip
    assert expected.items() <= env.items()
