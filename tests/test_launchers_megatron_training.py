"""Real training in the training environment: data, checkpoints, stopping and continuing, two ranks, conversion."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launchers import announce
from launchers.megatron import manifest
from launchers.megatron.command import Rank, child_argv, child_env
from launchers.run_folder import RunFolder
from launchers.spec import ConvertSpec, Environment, Resources, TrainSpec, dump

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 120.0


@dataclass
class Bench:
    """Makes run folders and starts what the supervisor would start in them."""

    root: Path
    python: str
    started: list[subprocess.Popen[str]]

    def train_folder(self, name: str, **sections: dict[str, Any]) -> RunFolder:
        recipe = tomllib.loads((ROOT / "tests" / "recipes" / "tiny.toml").read_text())
        for section, settings in sections.items():
            recipe.setdefault(section, {}).update(settings)
        return self._folder(name, TrainSpec, recipe=recipe, dataset_dir=str(self.root / "datasets"))

    def convert_folder(self, name: str, checkpoint: Path) -> RunFolder:
        return self._folder(name, ConvertSpec, checkpoint=str(checkpoint), checkpoint_id="c", model="m")

    def start(self, folder: RunFolder, ranks: int = 1) -> list[subprocess.Popen[str]]:
        spec = _load(folder)
        port = _free_port()
        group = []
        for rank in range(ranks):
            where = Rank(rank, ranks, rank, "127.0.0.1", port)
            group.append(
                subprocess.Popen(
                    child_argv(spec, folder.root), env=child_env(spec, folder.root, where, os.environ), text=True,
                    cwd=folder.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
        self.started += group
        return group

    def run(self, folder: RunFolder, ranks: int = 1) -> str:
        """Run to the end; the output of all ranks together. Every rank must succeed."""
        group = self.start(folder, ranks)
        said = [p.communicate(timeout=LIMIT_S)[0] for p in group]
        assert [p.returncode for p in group] == [0] * ranks, "\n".join(said)
        return "\n".join(said)

    def refused(self, folder: RunFolder, code: int = 1) -> str:
        """Run what must fail, with this exit code; the last line it said."""
        (process,) = self.start(folder)
        said, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, said
        return said.strip().splitlines()[-1]

    def _folder(self, name: str, kind: type, **fields: Any) -> RunFolder:
        folder = RunFolder(self.root / name)
        folder.create()
        folder.code.symlink_to(ROOT)
        spec = kind(
            id=name, name=name, owner="ada", created_at="2026-01-01T00:00:00+00:00", resources=Resources(),
            environment=Environment(kind="venv", python=self.python), **fields,
        )  # fmt: skip
        folder.spec.write_text(dump(spec))
        return folder


@pytest.fixture(scope="module")
def bench(training_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("megatron"), training_python, [])
    yield made
    for process in made.started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def trained(bench: Bench) -> RunFolder:
    """One rank, 20 iterations, never interrupted: what every other run is compared with."""
    folder = bench.train_folder("trained")
    bench.run(folder)
    return folder


def test_a_run_reports_its_stages_and_every_iteration_and_learns(trained: RunFolder) -> None:
    said = metrics(trained)
    data, model, done = said[0], said[1], said[-1]
    assert (data["stage"], data["reused"], data["vocab"]) == ("data", False, 512)
    assert (model["stage"], model["parameters"], model["resumed_from"]) == ("model", 139_584, None)
    assert sorted(losses(trained)) == list(range(1, 21))
    first = next(m for m in said if m.get("iteration") == 1)
    assert {"iterations", "loss", "grad_norm", "lr", "tokens_per_s", "eta_s", "elapsed_s"} <= first.keys()
    assert done["stage"] == "done"
    assert done["last_loss"] < done["first_loss"] - 0.5
    assert any("validation_loss" in m for m in said)


def test_each_checkpoint_is_complete_self_contained_and_announced_once(trained: RunFolder) -> None:
    told = announced(trained, "checkpoint")
    assert [t["iteration"] for t in told] == [10, 20]
    for fact in told:
        path = trained.root / fact["path"]
        found = manifest.verify(path)
        assert found.bytes == fact["bytes"]
        assert manifest.sha256(path / "manifest.json") == fact["manifest_sha256"]
        assert (found.facts["iteration"], found.facts["run"]) == (fact["iteration"], "trained")
        assert {"recipe.json", "tokenizer/tokenizer.json"} <= {f.path for f in found.files}


def test_a_finished_run_says_so_and_trains_no_further(bench: Bench, trained: RunFolder) -> None:
    before = (losses(trained), len(announced(trained, "checkpoint")))
    assert "nothing to do: iter_0000020" in bench.run(trained)
    assert (losses(trained), len(announced(trained, "checkpoint"))) == before


def test_a_run_that_was_asked_to_stop_continues_with_the_very_same_losses(bench: Bench, trained: RunFolder) -> None:
    folder = bench.train_folder("stopped")
    (process,) = bench.start(folder)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("iteration  4/20"):
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    stopped = metrics(folder)[-1]
    assert stopped["stage"] == "stopped"
    assert 4 <= stopped["iterations"] < 20
    assert announced(folder, "checkpoint")[-1]["iteration"] == stopped["iterations"]
    # As if that attempt had been killed before it could announce: the next one makes up for it.
    for path in folder.announcements.glob("*-checkpoint.json"):
        path.unlink()
    # A checkpoint cut short by a crash is not what it continues from.
    (folder.checkpoints / "iter_0000019").mkdir()

    said = bench.run(folder)
    assert f"continues after iteration {stopped['iterations']}" in said
    assert "iter_0000019: not complete" in said
    assert losses(folder) == losses(trained)
    assert announced(folder, "checkpoint")[0]["iteration"] == stopped["iterations"]
    assert [m["reused"] for m in metrics(folder) if m.get("stage") == "data"] == [True, True]


def test_prepared_text_is_built_again_when_it_is_incomplete(bench: Bench, trained: RunFolder) -> None:
    (dataset,) = (bench.root / "datasets").glob("text-*")
    (dataset / "text.bin").unlink()
    folder = bench.train_folder("rebuilt", train={"iterations": 3, "warmup": 1})
    bench.run(folder)
    assert metrics(folder)[0]["reused"] is False
    assert manifest.verify(dataset).kind == "dataset"
    kept = {p.name for p in (bench.root / "datasets").iterdir() if p.name.split("-")[0] != "tokenizer"}
    assert kept == {dataset.name}


def test_two_ranks_share_the_batch_save_in_the_background_and_learn_the_same(bench: Bench, trained: RunFolder) -> None:
    folder = bench.train_folder(
        "two-ranks", parallel={"distributed_optimizer": True}, checkpoint={"interval": 5, "asynchronous": True}
    )
    group = bench.start(folder, ranks=2)
    assert group[0].stdout
    for line in group[0].stdout:
        if line.startswith("iteration 12/20"):  # only one rank is asked; both stop together
            group[1].send_signal(signal.SIGUSR2)
            break
    for process in group:
        process.communicate(timeout=LIMIT_S)
    assert [p.returncode for p in group] == [0, 0]
    stopped = metrics(folder)[-1]["iterations"]
    assert 12 <= stopped < 20
    bench.run(folder, ranks=2)
    alone, together = losses(trained), losses(folder)
    assert sorted(together) == sorted(alone)
    for iteration, loss in together.items():  # summed in another order, so not to the last bit
        assert loss == pytest.approx(alone[iteration], abs=2e-3), iteration
    assert [t["iteration"] for t in announced(folder, "checkpoint")] == sorted({5, 10, stopped, 15, 20})


def test_a_checkpoint_continues_in_another_layout(bench: Bench, trained: RunFolder) -> None:
    folder = bench.train_folder("pipeline", parallel={"pipeline": 2})
    shutil.copytree(trained.checkpoints / "iter_0000010", folder.checkpoints / "iter_0000010")
    bench.run(folder, ranks=2)
    alone, together = losses(trained), losses(folder)
    assert sorted(together) == list(range(11, 21))
    for iteration, loss in together.items():
        assert loss == pytest.approx(alone[iteration], abs=2e-3), iteration
    assert manifest.read(folder.checkpoints / "iter_0000020").facts["parallel"] == {"tensor": 1, "pipeline": 2}


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
    damaged = tmp_path / "iter_0000010"
    shutil.copytree(trained.checkpoints / "iter_0000010", damaged)
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


def metrics(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def losses(folder: RunFolder) -> dict[int, float]:
    return {m["iteration"]: m["loss"] for m in metrics(folder) if "loss" in m}


def announced(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    names = announce.names(folder.announcements)
    told = [announce.read(folder.announcements / name, os.getuid()) for name in names]
    return [a.facts for a in told if a.kind == kind]


def _load(folder: RunFolder) -> Any:
    from launchers.spec import load

    return load(folder.spec)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
