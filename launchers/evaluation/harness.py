"""lm_eval on the tasks of an evaluation: `python -m launchers.evaluation.harness RUN_FOLDER`, in its environment.

The engine is somebody else's: its URL, its key and the only certificate to trust are in our environment.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

from launchers.evaluation import results
from launchers.run_folder import RunFolder
from launchers.spec import EvaluateSpec, load

URL_VARIABLE, MODEL_VARIABLE, CONTEXT_VARIABLE = "HEADGATE_ENGINE", "HEADGATE_MODEL", "HEADGATE_CONTEXT"
CONCURRENT = 16  # requests: an engine batches them
TIMEOUT_S = 600  # of one
DEFAULT_CONTEXT = 2048


def main(arguments: list[str]) -> int:
    folder = RunFolder(Path(arguments[0]))
    spec = load(folder.spec)
    assert isinstance(spec, EvaluateSpec), spec.kind
    os.chdir(spec.tasks_dir)  # where relative paths in the tasks begin
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as e:
        print(f"error: {sys.executable} has no lm_eval ({e}): name one that has, environments.evaluation.python")
        return 1
    known = TaskManager(include_path=spec.tasks_dir, include_defaults=False)
    names = list(spec.tasks) or sorted(known.all_subtasks)
    if unknown := [name for name in names if name not in known.all_tasks]:
        print(f"error: {spec.tasks_dir} has no task {', '.join(unknown)}; it has: {', '.join(known.all_tasks)}")
        return 1
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "base_url": os.environ[URL_VARIABLE],
            "model": os.environ[MODEL_VARIABLE],
            "tokenizer": spec.model_path,
            "tokenizer_backend": "huggingface",
            "max_length": int(os.environ[CONTEXT_VARIABLE] or DEFAULT_CONTEXT),
            "num_concurrent": CONCURRENT,
            "timeout": TIMEOUT_S,
        },
        tasks=names,
        task_manager=known,
        limit=spec.limit,
        bootstrap_iters=1000,
        log_samples=False,
    )
    measured = [dataclasses.asdict(result) for result in results.of_harness(found)]
    if not measured:
        print(f"error: {', '.join(names) or spec.tasks_dir}: no task gave a number")
        return 1
    whole = folder.evaluation.with_suffix(".part")
    whole.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    whole.rename(folder.evaluation)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
