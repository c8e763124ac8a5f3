"""Specs, and run folders that carry them, for tests of what is done with them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from launchers import spec as specs
from launchers.run_folder import RunFolder
from launchers.spec import (
    ConvertSpec,
    Environment,
    EvaluateSpec,
    Resources,
    ServeSpec,
    SmokeSpec,
    Spec,
    TrainSpec,
)

CREATED_AT = "2026-01-01T00:00:00.000000Z"
COMMON: dict[str, Any] = {
    "owner": "ada",
    "created_at": CREATED_AT,
    "resources": Resources(),
    "environment": Environment(kind="venv", python=sys.executable),
}


def train(run_id: str = "pretrain-1", **changed: Any) -> TrainSpec:
    made = TrainSpec(id=run_id, name="pretrain", recipe={"model": {"layers": [1, 2]}}, dataset_dir="/data", **COMMON)
    return dataclasses.replace(made, **changed)


def convert(run_id: str = "publish-1", **changed: Any) -> ConvertSpec:
    made = ConvertSpec(
        id=run_id, name="publish", checkpoint="/c/10", checkpoint_id="pretrain-1/10", model="tiny", **COMMON
    )
    return dataclasses.replace(made, **changed)


def smoke(run_id: str = "smoke-1", **changed: Any) -> SmokeSpec:
    made = SmokeSpec(id=run_id, name="smoke", model="tiny", model_path="/models/tiny", **COMMON)
    return dataclasses.replace(made, **changed)


def evaluate(run_id: str = "evaluate-1", **changed: Any) -> EvaluateSpec:
    harness, tasks = COMMON["environment"], "/tasks"
    made = EvaluateSpec(
        id=run_id,
        name="evaluate",
        model="tiny",
        model_path="/models/tiny",
        harness=harness,
        tasks_dir=tasks,
        tasks_sha256="0" * 64,
        **COMMON,
    )
    return dataclasses.replace(made, **changed)


def serve(replica_id: str = "chat-1", **changed: Any) -> ServeSpec:
    made = ServeSpec(id=replica_id, name="chat", model_path="/models/tiny", **COMMON)
    return dataclasses.replace(made, **changed)


def folder_of(spec: Spec, runs: Path) -> RunFolder:
    """A run folder that holds the spec, as a launch leaves it."""
    folder = RunFolder(runs / spec.id)
    folder.create()
    whole = folder.root / "spec.whole"
    whole.write_text(specs.dump(spec))
    whole.rename(folder.spec)  # as a launch does it: a controller may be looking
    return folder
