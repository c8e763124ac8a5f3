"""What vLLM says of its own load: its /metrics page (Prometheus text), read for the few lines that routing needs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gateway.routing import Gauges

RUNNING = b"vllm:num_requests_running"
WAITING = b"vllm:num_requests_waiting"
KV_USAGE = b"vllm:kv_cache_usage_perc"  # a fraction, whatever its name says
PROMPT = b"vllm:prompt_tokens_total"
GENERATION = b"vllm:generation_tokens_total"


def read(page: bytes, at: float) -> Gauges | None:
    """Pure. The engines of one server (data parallel) are summed, the use of their caches is averaged.

    None when one of the three is missing: no vLLM, or a version that calls it otherwise. `at` is when the page was
    read, in monotonic seconds.
    """
    running, waiting, usage = (list(_values(page, name)) for name in (RUNNING, WAITING, KV_USAGE))
    if not (running and waiting and usage):
        return None
    return Gauges(round(sum(running)), round(sum(waiting)), sum(usage) / len(usage), at)


def tokens(page: bytes) -> tuple[int, int] | None:
    """Pure. Prompt tokens read and tokens generated since the start, of all engines of one server; None without."""
    prompt, generated = list(_values(page, PROMPT)), list(_values(page, GENERATION))
    return (round(sum(prompt)), round(sum(generated))) if prompt and generated else None


def _values(page: bytes, name: bytes) -> Iterator[float]:
    """Of every sample of one metric. A page has thousands of lines, most of them buckets, so they are not looked at one
    by one: the samples of a metric stand together, behind its `# TYPE` (which the format requires).
    """
    head = page.find(b"# TYPE " + name + b" ")
    at = page.find(b"\n", head) + 1 if head >= 0 else 0
    while at > 0 and page.startswith(name, at):
        end = page.find(b"\n", at)
        line = page[at : end if end >= 0 else len(page)]
        # The value follows the labels, if there are any; a time may follow the value.
        _, brace, rest = line.rpartition(b"}")
        fields = rest.split() if brace else line.split()[1:]
        value = _number(fields[0]) if fields else None
        if value is not None:
            yield value
        at = end + 1


def _number(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
