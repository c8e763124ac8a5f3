"""One replica: the engine's command line, and when it may be called ready.

Ready means that /health answered and the engine then generated a token: an engine with an unsupported attention shape
answers /health and dies at the first token.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launchers.environment import inside
from launchers.spec import ServeSpec
from launchers.task import own_address
from launchers.vllm.guard import KEY_VARIABLE

DEFAULT_COMMAND = ("{python}", "-m", "vllm.entrypoints.openai.api_server")
MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Endpoint:
    host: str  # where others reach it
    port: int
    key: str


def mint_key(path: Path) -> str:
    """A random key in a 0600 file of its own."""
    key = secrets.token_urlsafe(32)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as f:
        f.write(key)
    return key


def reachable_as(listen: str) -> str:
    return listen if listen.startswith("127.") else own_address()


def argv(spec: ServeSpec, port: int, code: Path, node: str | None) -> list[str]:
    """The engine's command line. The replica's key travels in the environment, where `ps` does not show it."""
    start = spec.environment.command or DEFAULT_COMMAND
    # `vllm serve` wants the model as its first word and is about to forget the option.
    model = (spec.model_path,) if start[-1] == "serve" else ("--model", spec.model_path)
    command = [
        *start,
        *model,
        *spec.engine_args,  # before ours: vLLM takes the last word of each
        *("--served-model-name", spec.name),
        *("--host", spec.listen, "--port", str(port)),
        *("--middleware", "launchers.vllm.guard.Guard"),
        *("--shutdown-timeout", str(spec.shutdown_timeout_s)),
    ]
    return inside(spec.environment, command, spec.resources, node, places=(str(code), spec.model_path))


def secret_env(key: str) -> dict[str, str]:
    return {KEY_VARIABLE: key}


class Readiness:
    """Asks a starting engine, in a thread of its own, until it has generated a token. `ready_after_s` says when."""

    def __init__(self, endpoint: Endpoint, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.endpoint, self.model, self.clock = endpoint, model, clock
        self.ready_after_s: float | None = None
        self.context_tokens: int | None = None  # known once it is ready, if the engine says so
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="readiness", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _ask(self) -> None:
        began = self.clock()
        while not self._stop.is_set():
            if healthy(self.endpoint) and generates(self.endpoint, self.model):
                self.context_tokens = context_tokens(self.endpoint)
                self.ready_after_s = self.clock() - began
                return
            self._stop.wait(0.5)


def healthy(endpoint: Endpoint, timeout_s: float = 5.0) -> bool:
    status, _ = _call(endpoint, "GET", "/health", None, timeout_s)
    return status == 200


def generates(endpoint: Endpoint, model: str, timeout_s: float = 120.0) -> bool:
    """Whether the engine produced a token when asked for one."""
    status, raw = _call(
        endpoint, "POST", "/v1/completions", {"model": model, "prompt": "a", "max_tokens": 1}, timeout_s
    )
    try:
        return status == 200 and int(json.loads(raw)["usage"]["completion_tokens"]) >= 1
    except (ValueError, KeyError, TypeError):
        return False  # not an OpenAI-compatible answer


def context_tokens(endpoint: Endpoint, timeout_s: float = 5.0) -> int | None:
    """The longest sequence (prompt and completion) that the engine takes, as its /v1/models has it."""
    status, raw = _call(endpoint, "GET", "/v1/models", None, timeout_s)
    try:
        return int(json.loads(raw)["data"][0]["max_model_len"]) if status == 200 else None
    except (ValueError, KeyError, TypeError, IndexError):
        return None  # an engine that does not say


def _call(endpoint: Endpoint, method: str, path: str, body: object, timeout_s: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {endpoint.key}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException):
        return 0, b""  # not listening yet, or gone: the supervisor sees which
    finally:
        connection.close()
