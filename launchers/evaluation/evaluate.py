"""What a model is worth by its owner's tasks: `python -m launchers.evaluation.evaluate RUN_FOLDER`.

The engine and the harness (lm_eval, in an environment of its own) are children of this program; the results are
announced, and compared with what is required of them. Ends with 0 when all of that is met.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from launchers.announce import announce
from launchers.environment import child_env, inside
from launchers.evaluation import engine, results, step, tasks
from launchers.evaluation.harness import CONTEXT_VARIABLE, MODEL_VARIABLE, URL_VARIABLE
from launchers.evaluation.results import Result
from launchers.run_folder import RunFolder
from launchers.spec import EvaluateSpec
from launchers.task import Task, task_of
from launchers.untrusted import read_bytes

MAX_BYTES = 4 << 20  # of the results


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    def work(folder: RunFolder, spec: EvaluateSpec) -> None:
        required = [results.requirement(text) for text in spec.require]
        task = task_of(environ)
        require_unchanged(spec)  # before the engine, which takes long
        folder.evaluation.unlink(missing_ok=True)  # an earlier attempt's
        with engine.running(spec, folder, task) as started, tempfile.TemporaryDirectory() as scratch:
            env = harness_env(spec, folder, task, started, Path(scratch), environ)
            measure(spec, folder, task, env, scratch)
        require_unchanged(spec)
        try:
            measured = results.believed(json.loads(read_bytes(folder.evaluation, MAX_BYTES)))
        except ValueError as e:
            raise step.Refused(f"{folder.evaluation}: {e}") from e
        unmet = results.unmet(required, measured)
        announce(
            folder.announcements,
            "model-evaluated",
            results=[dataclasses.asdict(r) for r in measured],
            unmet=unmet,
            tasks_sha256=spec.tasks_sha256,
        )
        for result in measured:
            print(in_words(result), flush=True)
        if unmet:
            raise step.Refused("; ".join(unmet))

    return step.run(arguments, EvaluateSpec, work)


def require_unchanged(spec: EvaluateSpec) -> None:
    try:
        tasks.require_unchanged(Path(spec.tasks_dir), spec.tasks_sha256)
    except tasks.Changed as e:
        raise step.Refused(str(e)) from e


def measure(spec: EvaluateSpec, folder: RunFolder, task: Task, env: Mapping[str, str], scratch: str) -> None:
    """Run the harness to its end; it leaves `folder.evaluation`. Raises step.Refused when it does not."""
    program = ["{python}", "-m", "launchers.evaluation.harness", str(folder.root)]
    places = (str(folder.root), spec.model_path, spec.tasks_dir, scratch)
    command = inside(spec.harness, program, spec.resources, task.node, places)
    harness = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=dict(env))
    try:
        code = harness.wait()
    finally:
        engine.end(harness)  # where we are told to end
    if code:
        raise step.Refused(f"lm_eval ended with exit code {code}; its last lines are in the log")


def harness_env(
    spec: EvaluateSpec, folder: RunFolder, task: Task, started: engine.Engine, scratch: Path, environ: Mapping[str, str]
) -> dict[str, str]:
    """The harness may ask our engine, whose certificate is the only one it trusts, and nobody else."""
    ours = {
        URL_VARIABLE: f"{started.url}/v1/completions",
        MODEL_VARIABLE: started.model,
        CONTEXT_VARIABLE: str(started.context_tokens or ""),
        "OPENAI_API_KEY": started.endpoint.key,
        "SSL_CERT_FILE": str(folder.tls_certificate(task.attempt)),
        "REQUESTS_CA_BUNDLE": str(folder.tls_certificate(task.attempt)),
        "HF_HOME": str(scratch),
        "HF_DATASETS_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return child_env(environ, spec.harness, folder.code, spec.resources.cpus_per_task) | ours


def in_words(result: Result) -> str:
    name = result.metric if result.filter == "none" else f"{result.metric},{result.filter}"
    spread = "" if result.stderr is None else f" ± {result.stderr:.4f}"
    return f"{result.task}.{name}: {result.value:.6g}{spread}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
