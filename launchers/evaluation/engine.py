"""An engine for one job alone: started on a model, asked over its own key and certificate, and ended with the job."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from launchers import task as tasks
from launchers.child import end_with_parent
from launchers.environment import child_env
from launchers.run_folder import RunFolder
from launchers.spec import ServeSpec, StepSpec
from launchers.task import Task
from launchers.vllm import server
from launchers.vllm.endpoint import Endpoint, call
from launchers.vllm.probes import context_tokens, healthy, proven

LISTEN = "127.0.0.1"
LOOK_S = 0.2
END_S = 10.0  # for an engine to end by itself once it is told to
ANSWER_S = 300.0  # for one prompt
GENERATE = "generate"  # what an engine is for: launchers.spec.ServeSpec.runner


class EngineError(RuntimeError):
    """The engine did not start, or did not answer as it should; the message says how."""


@dataclass(frozen=True, slots=True)
class Engine:
    endpoint: Endpoint
    model: str  # as it is called
    start_s: float  # until it had generated a token
    context_tokens: int | None  # the longest sequence that it takes, where it says so

    @property
    def url(self) -> str:
        scheme = "http" if self.endpoint.certificate is None else "https"
        return f"{scheme}://{self.endpoint.host}:{self.endpoint.port}"

    def complete(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        """What it generates, greedily and with logprobs, as its own JSON. Raises EngineError."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 1}
        status, raw = call(self.endpoint, "POST", "/v1/completions", {**body, "ignore_eos": True}, ANSWER_S)
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = None
        if status != 200 or not isinstance(answer, dict):
            said = f"{status}: {raw[:300].decode(errors='replace')}" if status else "nothing"
            raise EngineError(f"the engine answered {prompt!r} with {said}")
        return answer


@contextmanager
def running(spec: StepSpec, folder: RunFolder, task: Task) -> Iterator[Engine]:
    """The step's engine, once it has generated a token. Raises EngineError, OSError, SpecError.

    It prints where we print: into the attempt's log.
    """
    serving = served(spec)
    port = tasks.free_port(LISTEN)
    endpoint = server.mint_endpoint(folder, serving, task.attempt, port)
    env = child_env(os.environ, spec.environment, folder.code, spec.resources.cpus_per_task)
    env.update(server.closing_env(endpoint.key))
    command = server.argv(serving, port, folder, task)
    # In our own session: what ends us for good ends it as well.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env, preexec_fn=end_with_parent)
    try:
        yield _ready(child, endpoint, spec)
    finally:
        end(child)
        server.forget(folder, task.attempt)
        folder.secret.unlink(missing_ok=True)


def served(spec: StepSpec) -> ServeSpec:
    """The step's model, as a replica of nobody's deployment would serve it."""
    return ServeSpec(
        id=spec.id,
        name=spec.model,
        owner=spec.owner,
        created_at=spec.created_at,
        resources=spec.resources,
        environment=spec.environment,
        model_path=spec.model_path,
        listen=LISTEN,
        engine_args=spec.engine_args,
        shutdown_timeout_s=1,
        start_timeout_s=spec.start_timeout_s,
    )


def end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _ready(child: subprocess.Popen[bytes], endpoint: Endpoint, spec: StepSpec) -> Engine:
    began = time.monotonic()
    while not (healthy(endpoint) and proven(endpoint, GENERATE, spec.model)):
        if (code := child.poll()) is not None:
            raise EngineError(f"the engine ended with exit code {code} before it had generated a token")
        if time.monotonic() - began > spec.start_timeout_s:
            raise EngineError(f"the engine was not ready after {spec.start_timeout_s} s")
        time.sleep(LOOK_S)
    start_s = round(time.monotonic() - began, 1)
    return Engine(endpoint, spec.model, start_s, context_tokens(endpoint))
