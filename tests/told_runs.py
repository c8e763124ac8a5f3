"""Made-up run folders: what attempts announced, what training said, what was saved. And `headgate`, in this process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from platform_fixtures import ROOT
from specs import folder_of, train

from cli.context import Context
from cli.main import main
from launchers.megatron import manifest
from launchers.spec import Spec
from registry.site import Site

RUN = "pretrain-20260101-000000-abcd"
BEGAN = 1_767_225_600.0  # 2026-01-01 00:00 UTC
RECIPE: dict[str, Any] = {
    "model": {"hidden": 64, "layers": 2},
    "train": {"iterations": 100, "lr": 1e-3, "weight_decay": 0.0},
    "checkpoint": {"interval": 10, "keep_last": 2},
}


class ToldRun:
    """Times are seconds since the run began."""

    def __init__(self, root: Path, spec: Spec | None = None) -> None:
        spec = train(RUN, recipe=RECIPE) if spec is None else spec
        self.id = spec.id
        self.folder = folder_of(spec, root / "runs")

    def says(self, at: float, kind: str, **facts: Any) -> None:
        name = f"{int((BEGAN + at) * 1e9):020d}-{kind}.json"
        text = json.dumps({"schema": 1, "kind": kind, "at": BEGAN + at, **facts})
        (self.folder.announcements / name).write_text(text)

    def begins(self, at: float, attempt: str, saved: int | None = None, nodes: str = "g1") -> None:
        self.says(at, "attempt-started", attempt=attempt, job_id=attempt.split(".")[0], nodes=nodes, saved=saved)

    def ends(self, at: float, attempt: str, end: str, words: str = "", exit_code: int = 0, judged: bool = True) -> None:
        self.says(at, "attempt-ended", attempt=attempt, end=end, cause=words or end, exit_code=exit_code, judged=judged)

    def judged(self, at: float, attempt: str, cause: str, action: str, why: str) -> None:
        self.says(at, "attempt-judged", attempt=attempt, cause=cause, action=action, why=why, saved=None)

    def metric(self, at: float, **facts: Any) -> None:
        with open(self.folder.metrics, "a") as f:
            f.write(json.dumps({**facts, "at": BEGAN + at}) + "\n")

    def trains(self, at: float, number: int, first: int, last: int, each_s: float = 1.0) -> None:
        """Iterations first ... last, the first of which begins at `at`."""
        resumed = first - 1 if first > 1 else None
        self.metric(at, stage="model", attempt=number, parameters=1234, resumed_from=resumed)
        for done, iteration in enumerate(range(first, last + 1), 1):
            facts = {"loss": 8.0 - iteration / 100, "tokens_per_s": 5000.0, "seconds": each_s, "eta_s": 10.0}
            self.metric(at + done * each_s, iteration=iteration, iterations=100, **facts)

    def saves(self, *iterations: int, content: bytes = b"weights") -> None:
        for iteration in iterations:
            path = self.folder.checkpoints / f"iter_{iteration:07d}"
            path.mkdir(parents=True)
            (path / "shard.distcp").write_bytes(content)
            manifest.write(path, "checkpoint", iteration=iteration, run=self.id)


def restarted(root: Path) -> ToldRun:
    """Preempted after iteration 30 of 100, when 20 were saved; then it runs to 60 and goes on."""
    run = ToldRun(root)
    run.begins(0, "40.0")
    run.trains(10, 1, 1, 30)
    run.metric(30.5, checkpoint=20, blocked_s=0.5, total_s=2.0, bytes=7)
    run.ends(41, "40.0", "cancelled")
    run.judged(42, "40.0", "preempted", "restart", "it goes on from iteration 20")
    run.begins(100, "40.1", saved=20, nodes="g2")
    run.trains(110, 2, 21, 60)
    run.metric(150.2, validation_loss=7.5, iteration=60)
    run.saves(20, 50)
    return run


def invoke(root: Path, *words: str, color: bool = False) -> Result:
    """`headgate` on a laptop whose state and runs stand in `root`. `color`: escape sequences are not left out."""
    site = ("--site", str(ROOT / "site-configs" / "laptop.toml"))
    flags = [f for s in (f"state_dir={root}/state", f"shared_dir={root}") for f in ("--set", s)]
    os.environ.setdefault("COLUMNS", "100")
    return CliRunner().invoke(main, [*site, *flags, *words], catch_exceptions=False, color=color)


def site_of(root: Path) -> Site:
    """The same site, for functions that take one."""
    settings = (f"state_dir={root}/state", f"shared_dir={root}", "environments.training.python=/bin/sh")
    return Context(ROOT / "site-configs" / "laptop.toml", settings).site()


def ok(root: Path, *words: str) -> str:
    done = invoke(root, *words)
    assert done.exit_code == 0, done.output
    return done.output
