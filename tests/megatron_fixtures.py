"""Run folders, and training started in them as the supervisor would start it. Imported by the tests that need them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launchers import announce
from launchers.megatron.command import Rank, child_argv, child_env
from launchers.run_folder import RunFolder
from launchers.spec import ConvertSpec, Environment, Resources, TrainSpec, dump, load

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 120.0


def answer_of(program: str, python: str, root: Path) -> dict[str, Any]:
    """What a program of the training environment printed last, as JSON; it must succeed. Its argument is `root`."""
    (root / "program.py").write_text(program)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPATH": str(ROOT)}
    command = [python, "-W", "ignore", str(root / "program.py"), str(root)]
    done = subprocess.run(command, env=env, timeout=LIMIT_S, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


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
        return self.folder(name, TrainSpec, recipe=recipe, dataset_dir=str(self.root / "datasets"))

    def convert_folder(self, name: str, checkpoint: Path) -> RunFolder:
        return self.folder(name, ConvertSpec, checkpoint=str(checkpoint), checkpoint_id="c", model="m")

    def start(self, folder: RunFolder, ranks: int = 1) -> list[subprocess.Popen[str]]:
        spec = load(folder.spec)
        assert isinstance(spec, TrainSpec | ConvertSpec)
        port = _free_port()
        group = []
        for rank in range(ranks):
            where = Rank(rank, ranks, rank, "127.0.0.1", port, attempt_name="7.0")
            group.append(
                subprocess.Popen(
                    child_argv(spec, folder.root), env=child_env(spec, folder.root, where, os.environ), text=True,
                    cwd=folder.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
        self.started += group
        return group

    def finish(self, group: list[subprocess.Popen[str]]) -> str:
        """Wait for the end; the output of all ranks together. Every rank must succeed."""
        said = [p.communicate(timeout=LIMIT_S)[0] for p in group]
        assert [p.returncode for p in group] == [0] * len(group), "\n".join(said)
        return "\n".join(said)

    def run(self, folder: RunFolder, ranks: int = 1) -> str:
        return self.finish(self.start(folder, ranks))

    def refused(self, folder: RunFolder, code: int = 1) -> str:
        """Run what must fail, with this exit code; the last line it said."""
        (process,) = self.start(folder)
        said, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, said
        return said.strip().splitlines()[-1]

    def folder(self, name: str, kind: type, **fields: Any) -> RunFolder:
        folder = RunFolder(self.root / name)
        folder.create()
        folder.code.symlink_to(ROOT)
        spec = kind(
            id=name, name=name, owner="ada", created_at="2026-01-01T00:00:00+00:00", resources=Resources(),
            environment=Environment(kind="venv", python=self.python), **fields,
        )  # fmt: skip
        folder.spec.write_text(dump(spec))
        return folder


@pytest.fixture(scope="session")
def bench(training_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("megatron"), training_python, [])
    yield made
    for process in made.started:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def trained(bench: Bench) -> RunFolder:
    """One rank, 20 iterations, never interrupted: what every other run is compared with.

    It keeps the newest checkpoint, every eighth iteration, and iteration 12, which somebody asked to keep.
    """
    folder = bench.train_folder("trained", checkpoint={"interval": 4, "keep_last": 1, "keep_every": 8})
    (folder.switches / "keep-iter_0000012").touch()
    bench.run(folder)
    return folder


def metrics(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def progress(folder: RunFolder) -> dict[str, Any]:
    """What the run says of itself now; nothing before it has begun to."""
    found: dict[str, Any] = json.loads(folder.progress.read_text()) if folder.progress.exists() else {}
    return found


def losses(folder: RunFolder) -> dict[int, float]:
    return {m["iteration"]: m["loss"] for m in metrics(folder) if "loss" in m}


def announced(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    names = announce.names(folder.announcements)
    told = [announce.read(folder.announcements / name, os.getuid()) for name in names]
    return [a.facts for a in told if a.kind == kind]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
