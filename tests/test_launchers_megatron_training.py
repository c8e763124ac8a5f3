"""Real training in the training environment: data, stages, checkpoints, ranks that find each other, conversion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from megatron_fixtures import LIMIT_S, ROOT, Bench, announced, losses, metrics, progress

from launchers.megatron import manifest
from launchers.run_folder import RunFolder


def test_a_run_reports_its_stages_and_every_iteration_and_learns(trained: RunFolder) -> None:
    said = metrics(trained)
    data, model, done = said[0], said[1], said[-1]
    assert (data["stage"], data["reused"], data["vocab"]) == ("data", False, 512)
    assert (model["stage"], model["parameters"], model["resumed_from"]) == ("model", 139_584, None)
    assert sorted(losses(trained)) == list(range(1, 21))
    first = next(m for m in said if m.get("iteration") == 1)
    assert {"loss", "grad_norm", "lr", "tokens_per_s", "seconds", "eta_s", "elapsed_s"} <= first.keys()
    assert (first["iterations"], first["tokens"]) == (20, 4 * 64)
    assert list(trained.tensorboard.glob("events.out.*"))
    assert done["stage"] == "done"
    assert done["last_loss"] < done["first_loss"] - 0.5
    assert any("validation_loss" in m for m in said)


def test_each_checkpoint_is_complete_self_contained_and_announced_once(trained: RunFolder) -> None:
    told = announced(trained, "checkpoint")
    assert [t["iteration"] for t in told] == [4, 8, 12, 16, 20]
    for fact in told[1:]:
        path = trained.root / fact["path"]
        found = manifest.verify(path)
        assert found.bytes == fact["bytes"]
        assert manifest.sha256(path / "manifest.json") == fact["manifest_sha256"]
        assert (found.facts["iteration"], found.facts["run"]) == (fact["iteration"], "trained")
        assert {"recipe.json", "tokenizer/tokenizer.json"} <= {f.path for f in found.files}


def test_what_is_not_wanted_any_more_goes_and_what_is_pinned_stays(trained: RunFolder) -> None:
    kept = sorted(p.name for p in trained.checkpoints.iterdir())
    assert kept == ["iter_0000008", "iter_0000012", "iter_0000016", "iter_0000020", "latest"]
    assert [p["path"] for p in announced(trained, "checkpoint-pruned")] == ["checkpoints/iter_0000004"]
    assert trained.latest.read_text() == "iter_0000020\n"


def test_each_save_says_what_it_cost_and_where_training_stands(trained: RunFolder) -> None:
    saves = [m for m in metrics(trained) if "checkpoint" in m]
    sizes = {t["iteration"]: t["bytes"] for t in announced(trained, "checkpoint")}
    assert {m["checkpoint"]: m["bytes"] for m in saves} == sizes
    assert all(0 < m["blocked_s"] <= m["total_s"] for m in saves)
    now = progress(trained)
    assert now == {
        "attempt": "7.0", "phase": "done", "iteration": 20, "iterations": 20, "saved": 20,
        "save_s": saves[-1]["total_s"], "at": now["at"],
    }  # fmt: skip


def test_a_finished_run_says_so_and_trains_no_further(bench: Bench, trained: RunFolder) -> None:
    before = (losses(trained), len(announced(trained, "checkpoint")))
    assert "nothing to do: iter_0000020" in bench.run(trained)
    assert (losses(trained), len(announced(trained, "checkpoint"))) == before


def test_prepared_text_is_built_again_when_it_is_incomplete(bench: Bench, trained: RunFolder) -> None:
    (dataset,) = (bench.root / "datasets").glob("text-*")
    (dataset / "text.bin").unlink()
    folder = bench.train_folder("rebuilt", train={"iterations": 3, "warmup": 1})
    bench.run(folder)
    assert metrics(folder)[0]["reused"] is False
    assert manifest.verify(dataset).kind == "dataset"
    kept = {p.name for p in (bench.root / "datasets").iterdir() if p.name.split("-")[0] != "tokenizer"}
    assert kept == {dataset.name}


def test_two_jobs_that_prepare_the_same_text_at_once_end_up_with_one_dataset(
    training_python: str, tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from launchers.megatron.data import Data, prepare;"
        "data = Data(text=('{stdlib}/json/*.py',), vocab_size=600); sys.stdin.read(1);"
        "made = prepare(data, Path(sys.argv[1])); print(made.tokenizer, made.where)"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    both = [
        subprocess.Popen(
            [training_python, "-W", "ignore", "-c", program, str(tmp_path)],
            cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        for process in both:
            assert process.stdin
            process.stdin.write("x")
            process.stdin.flush()
        said = {p.communicate(timeout=LIMIT_S)[0].strip() for p in both}
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert len(said) == 1
    tokenizer, text = (Path(path) for path in said.pop().split())
    assert set(tmp_path.iterdir()) == {tokenizer, text}
    assert (manifest.verify(tokenizer).kind, manifest.verify(text).kind) == ("tokenizer", "dataset")


def test_a_rank_ends_when_another_one_dies(bench: Bench) -> None:
    folder = bench.train_folder("bereft", train={"iterations": 5000})
    group = bench.start(folder, ranks=2)
    assert group[0].stdout
    for line in group[0].stdout:
        if line.startswith("iteration    3/5000"):
            group[1].kill()
            break
    group[0].communicate(timeout=LIMIT_S)
    assert group[0].returncode not in (0, None)


def test_a_converted_model_computes_what_the_checkpoint_computes(bench: Bench, trained: RunFolder) -> None:
    folder = bench.convert_folder("converted", trained.checkpoints / "iter_0000020")
    bench.run(folder)
    (fact,) = announced(folder, "model-converted")
    assert fact["max_logit_difference"] < 1e-4
    assert (fact["path"], fact["parameters"]) == ("model", 139_584)
    found = manifest.verify(folder.model)
    assert found.bytes == fact["bytes"]
    names = {f.path for f in found.files}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    } <= names
    assert json.loads((folder.model / "config.json").read_text())["max_position_embeddings"] == 64
    assert not (folder.root / "model.partial").exists()


def test_a_damaged_checkpoint_is_not_converted(bench: Bench, trained: RunFolder, tmp_path: Path) -> None:
    damaged = tmp_path / "iter_0000008"
    shutil.copytree(trained.checkpoints / "iter_0000008", damaged)
    shard = next(damaged.glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    folder = bench.convert_folder("damaged", damaged)
    said = bench.refused(folder)
    assert said.startswith(f"error: {shard}: damaged")
    shard.unlink()
    assert bench.refused(folder).startswith(f"error: {shard}: missing")
    assert not folder.model.exists()
    assert not (folder.root / "model.partial").exists()
    assert announced(folder, "model-converted") == []


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"train": {"global_batch": 3}}, "error: train.global_batch = 3 is not divisible by"),
        ({"data": {"text": ["/nowhere/*.txt"]}}, "error: data.text: '/nowhere/*.txt' matches no text file"),
        ({"data": {"vocab_size": 60_000}}, "error: data.vocab_size = 60000: .* characters only make"),
    ],
    ids=["arithmetic", "no text", "vocabulary"],
)
def test_what_a_person_must_change_ends_in_one_line(
    bench: Bench, sections: dict[str, Any], told: str, request: pytest.FixtureRequest
) -> None:
    folder = bench.train_folder(request.node.callspec.id.replace(" ", "-"), **sections)
    said = bench.refused(folder, os.EX_CONFIG)
    start, _, end = told.partition(".* ")
    assert said.startswith(start)
    assert end in said
