"""vLLM's own page of metrics, read for the few numbers that routing needs."""

from __future__ import annotations

import timeit

import pytest

from gateway.engine_gauges import read
from gateway.routing import Gauges

# As vLLM 0.1x writes it, one sample of each and one of its forty histograms.
PAGE = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 11029.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
# HELP vllm:num_requests_waiting_by_reason Why.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 2.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.125
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="tiny"} 0.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="tiny"} 3.5
"""


def metric(name: str, *samples: str) -> str:
    return f"# HELP vllm:{name} Text.\n# TYPE vllm:{name} gauge\n" + "".join(f"vllm:{name}{s}\n" for s in samples)


def test_the_page_of_one_engine_is_read() -> None:
    assert read(PAGE.encode(), 7.5) == Gauges(running=3, waiting=2, kv_usage=0.125, at=7.5)


def test_the_engines_of_one_server_are_summed_and_their_caches_averaged() -> None:
    page = (
        metric("num_requests_running", '{engine="0"} 3.0', '{engine="1"} 4.0')
        + metric("num_requests_waiting", '{engine="0"} 0', '{engine="1"} 1e+01')
        + metric("kv_cache_usage_perc", '{engine="0"} 0.25', '{engine="1"} 0.75')
    )
    assert read(page.encode(), 0.0) == Gauges(7, 10, 0.5, 0.0)


@pytest.mark.parametrize("missing", ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"])
def test_a_page_that_lacks_one_of_them_says_nothing(missing: str) -> None:
    assert read(PAGE.replace(f"vllm:{missing}", "other:name").encode(), 0.0) is None


@pytest.mark.parametrize(
    "page", [b"", b"\n", b"\xff\x00", b"<html>", b"# TYPE vllm:num_requests_running gauge", b"}\n} 1"]
)
def test_what_is_no_page_of_metrics_says_nothing(page: bytes) -> None:
    assert read(page, 0.0) is None


@pytest.mark.parametrize(
    ("sample", "running"),
    [
        (" 5", 5),
        ('{model_name="a} b{ \\"c\\" 9"} 5.0', 5),
        ('{model_name="m"} 5.0 1763971200000', 5),
        ('{model_name="m"}\t5.0  ', 5),
        ('{model_name="m"}', None),
        ('{model_name="m"} NaN', None),
        ('{model_name="m"} +Inf', None),
        ('{model_name="m"} five', None),
        ("", None),
    ],
)
def test_a_sample_is_read_as_the_format_allows_it_to_be_written(sample: str, running: int | None) -> None:
    page = PAGE.replace('running{engine="0",model_name="tiny"} 3.0', f"running{sample}")
    gauges = read(page.encode(), 0.0)
    assert (gauges and gauges.running) == running


def test_a_page_may_end_within_a_line() -> None:
    page = (
        metric("kv_cache_usage_perc", " 0.5")
        + metric("num_requests_waiting", " 1")
        + metric("num_requests_running", " 2")
    )
    assert read(page.rstrip("\n").encode(), 0.0) == Gauges(2, 1, 0.5, 0.0)


def test_a_long_page_is_not_looked_at_line_by_line() -> None:
    buckets = "".join(
        f'vllm:e2e_request_latency_seconds_bucket{{engine="0",le="{n}",model_name="tiny"}} {n}.0\n' for n in range(2000)
    )
    page = (buckets + PAGE + buckets).encode()
    assert len(page) > 250_000 and read(page, 0.0) == Gauges(3, 2, 0.125, 0.0)
    best = min(timeit.repeat(lambda: read(page, 0.0), number=20, repeat=5)) / 20
    assert best < 2e-3, f"{best * 1e6:.0f} us"
