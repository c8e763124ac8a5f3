"""What a supervisor asks its engine: whether it listens, whether it really works, and how much it has to do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launchers.vllm.endpoint import Endpoint, call

ANSWER_S = 5.0  # for what an engine answers without any work


@dataclass(frozen=True, slots=True)
class Probe:
    """What the engine says that a question used."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt's

    def __add__(self, other: Probe) -> Probe:
        return Probe(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


NOTHING = Probe(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Load:
    """An engine's own page of metrics. Tokens: since it was started."""

    running: int
    waiting: int
    kv_cache_usage: float  # 0 ... 1
    prompt_tokens: int
    generated_tokens: int


def healthy(endpoint: Endpoint, timeout_s: float = ANSWER_S) -> bool:
    status, _ = call(endpoint, "GET", "/health", None, timeout_s)
    return status == 200


def proven(endpoint: Endpoint, runner: str, model: str, timeout_s: float = 120.0) -> Probe | None:
    """What it took the engine to do a little of what it is for; None when it did not.

    `runner` (launchers.spec.ServeSpec's) generates a token, embeds a word as a vector, or scores a pair with a number.
    """
    path, body, done = _QUESTIONS[runner]
    status, raw = call(endpoint, "POST", path, {"model": model, **body}, timeout_s)
    try:
        answer: dict[str, Any] = json.loads(raw) if status == 200 else {}
        if not done(answer):
            return None
        usage = answer.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Probe(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0), int(cached))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None  # not an OpenAI-compatible answer


def _generated(answer: dict[str, Any]) -> bool:
    return bool(answer) and int(answer["usage"]["completion_tokens"]) >= 1


def _embedded(answer: dict[str, Any]) -> bool:
    vector = answer["data"][0]["embedding"]
    return isinstance(vector, list) and len(vector) > 0 and all(math.isfinite(x) for x in vector)


def _scored(answer: dict[str, Any]) -> bool:
    return math.isfinite(answer["data"][0]["score"])


_QUESTIONS: dict[str, tuple[str, dict[str, object], Callable[[dict[str, Any]], bool]]] = {
    "generate": ("/v1/completions", {"prompt": "a", "max_tokens": 1}, _generated),
    "embed": ("/v1/embeddings", {"input": "a"}, _embedded),
    "score": ("/score", {"text_1": "a", "text_2": "a"}, _scored),
}


def context_tokens(endpoint: Endpoint, timeout_s: float = ANSWER_S) -> int | None:
    """The longest sequence (prompt and completion) that the engine takes, as its /v1/models has it."""
    status, raw = call(endpoint, "GET", "/v1/models", None, timeout_s)
    try:
        return int(json.loads(raw)["data"][0]["max_model_len"]) if status == 200 else None
    except (ValueError, KeyError, TypeError, IndexError):
        return None  # an engine that does not say


def load(endpoint: Endpoint, timeout_s: float = ANSWER_S) -> Load | None:
    """None when the engine does not say."""
    status, raw = call(endpoint, "GET", "/metrics", None, timeout_s)
    return load_of(raw.decode(errors="replace")) if status == 200 else None


def load_of(page: str) -> Load:
    """Of a page in Prometheus's text format. Of several engines behind one front the sum; the fullest cache."""
    found: dict[str, list[float]] = {}
    for line in page.splitlines():
        name, _, value = line.rpartition(" ")
        try:
            found.setdefault(name.partition("{")[0], []).append(float(value))
        except ValueError:
            continue  # a comment
    return Load(
        running=int(sum(found.get("vllm:num_requests_running", ()))),
        waiting=int(sum(found.get("vllm:num_requests_waiting", ()))),
        kv_cache_usage=max(found.get("vllm:kv_cache_usage_perc", ()), default=0.0),
        prompt_tokens=int(sum(found.get("vllm:prompt_tokens_total", ()))),
        generated_tokens=int(sum(found.get("vllm:generation_tokens_total", ()))),
    )
