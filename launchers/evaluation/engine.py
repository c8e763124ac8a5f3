"""An engine for one job alone: started on a model, asked over its own key and certificate, and ended with the job."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from launchers import task as tasks
from launchers.environment import child_env
from launchers.run_folder import RunFolder
from launchers.spec import ServeSpec, StepSpec
from launchers.task import Task
from launchers.vllm import server

LISTEN = "127.0.0.1"
LOOK_S = 0.2
END_S = 10.0  # for an engine to end by itself once it is told to
ANSWER_S = 300.0  # for one prompt
MAX_ANSWER_BYTES = 1 << 20
LIBC = ctypes.CDLL(None)  # loaded before a fork, not after
PR_SET_PDEATHSIG = 1


class EngineError(RuntimeError):
    """The engine did not start, or did not answer as it should; the message says how."""


@dataclass(frozen=True, slots=True)
class Engine:
    endpoint: server.Endpoint
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
        try:
            status, raw = self._post("/v1/completions", json.dumps({**body, "ignore_eos": True}))
        except (OSError, http.client.HTTPException) as e:
            raise EngineError(f"the engine gave no answer to {prompt!r}: {e or type(e).__name__}") from e
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = None
        if status != 200 or not isinstance(answer, dict):
            raise EngineError(f"the engine answered {prompt!r} with {status}: {raw[:300].decode(errors='replace')}")
        return answer

    def _post(self, path: str, body: str) -> tuple[int, bytes]:
        host, port, certificate = self.endpoint.host, self.endpoint.port, self.endpoint.certificate
        connection = (
            http.client.HTTPConnection(host, port, timeout=ANSWER_S)
            if certificate is None
            else http.client.HTTPSConnection(
                host, port, timeout=ANSWER_S, context=ssl.create_default_context(cadata=certificate)
            )
        )
        try:
            headers = {"Authorization": f"Bearer {self.endpoint.key}", "Content-Type": "application/json"}
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, response.read(MAX_ANSWER_BYTES)
        finally:
            connection.close()


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
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env, preexec_fn=_end_with_parent)
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


def _ready(child: subprocess.Popen[bytes], endpoint: server.Endpoint, spec: StepSpec) -> Engine:
    readiness = server.Readiness(endpoint, spec.model)
    began = time.monotonic()
    try:
        while (start_s := readiness.ready_after_s) is None:
            if (code := child.poll()) is not None:
                raise EngineError(f"the engine ended with exit code {code} before it had generated a token")
            if time.monotonic() - began > spec.start_timeout_s:
                raise EngineError(f"the engine was not ready after {spec.start_timeout_s} s")
            time.sleep(LOOK_S)
        return Engine(endpoint, spec.model, round(start_s, 1), readiness.context_tokens)
    finally:
        readiness.stop()


def _end_with_parent() -> None:
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
