"""When an engine is taken to hang, and what its answers and its page of metrics say."""

from __future__ import annotations

import pytest

from launchers.vllm import probes
from launchers.vllm.endpoint import Endpoint
from launchers.vllm.probes import Load, Probe
from launchers.vllm.watch import LOOK_S, PROBE_S, Pulse

ENDPOINT = Endpoint("127.0.0.1", 1, "key")


def look(pulse: Pulse, since: int, until: int, *, healthy: bool = True, tokens: int | None = 7) -> int | None:
    """Looks as often as the watch does, sending probes that nobody answers; when it was taken to hang."""
    for now in range(since, until, int(LOOK_S)):
        pulse.saw(now, healthy, tokens)
        if pulse.wants_probe(now):
            pulse.asked(now)
        if pulse.hangs(now):
            return now
    return None


def test_an_engine_that_generates_nothing_hangs_once_a_probe_has_waited_for_its_time() -> None:
    found = look(Pulse(0, hang_timeout_s=120), 0, 1000)
    assert found == PROBE_S + 120


def test_a_probe_that_is_answered_is_a_sign_of_life() -> None:
    pulse = Pulse(0, hang_timeout_s=120)
    assert look(pulse, 0, 140) is None
    pulse.worked(140)
    assert not pulse.wants_probe(145) and look(pulse, 145, 280) is None


def test_a_probe_that_waits_behind_others_does_not_make_an_engine_hang() -> None:
    pulse = Pulse(0, hang_timeout_s=60)
    assert all(look(pulse, now, now + 5, tokens=now) is None for now in range(0, 1000, 5))
    pulse.asked(1000)
    assert all(look(pulse, now, now + 5, tokens=now) is None for now in range(1000, 1200, 5))


def test_an_engine_that_is_never_healthy_again_hangs_whatever_it_says_of_tokens() -> None:
    assert look(Pulse(0, hang_timeout_s=60), 0, 1000, healthy=False, tokens=None) == 60


def test_an_engine_that_was_suspended_with_its_job_does_not_hang() -> None:
    pulse = Pulse(0, hang_timeout_s=60)
    assert look(pulse, 0, 50) is None
    pulse.saw(10_000, False, None)  # neither it nor we were awake
    assert pulse.hangs(10_000) is None
    assert look(pulse, 10_005, 20_000, healthy=False, tokens=None) is not None


def test_a_long_prompt_that_is_read_bit_by_bit_does_not_make_an_engine_hang() -> None:
    pulse = Pulse(0, hang_timeout_s=60)
    for now in range(0, 1000, 5):
        pulse.saw(now, True, 7, now / 1000)
        assert not pulse.wants_probe(now) and pulse.hangs(now) is None


def test_counters_that_fell_are_no_sign_of_life() -> None:
    pulse = Pulse(0, hang_timeout_s=60)
    for now, tokens in ((0, 100), (5, 50), (10, 50)):
        pulse.saw(now, True, tokens)
    assert pulse.wants_probe(PROBE_S)


def answer(monkeypatch: pytest.MonkeyPatch, status: int, body: bytes) -> list[tuple[str, object]]:
    asked: list[tuple[str, object]] = []

    def call(endpoint: Endpoint, method: str, path: str, body_: object, timeout_s: float) -> tuple[int, bytes]:
        asked.append((path, body_))
        return status, body

    monkeypatch.setattr(probes, "call", call)
    return asked


@pytest.mark.parametrize(
    ("runner", "path", "body", "took"),
    [
        ("generate", "/v1/completions", b'{"usage": {"prompt_tokens": 2, "completion_tokens": 1}}', Probe(2, 1, 0)),
        ("generate", "/v1/completions", b'{"usage": {"prompt_tokens": 2, "completion_tokens": 0}}', None),
        ("embed", "/v1/embeddings", b'{"data": [{"embedding": [1]}], "usage": {"prompt_tokens": 2}}', Probe(2, 0, 0)),
        ("embed", "/v1/embeddings", b'{"data": [{"embedding": [1, NaN]}], "usage": {"prompt_tokens": 2}}', None),
        ("embed", "/v1/embeddings", b'{"data": [{"embedding": []}]}', None),
        ("embed", "/v1/embeddings", b'{"data": []}', None),
        ("score", "/score", b'{"data": [{"score": 0.25}], "usage": {"prompt_tokens": 4}}', Probe(4, 0, 0)),
        ("score", "/score", b'{"data": [{"score": "high"}]}', None),
        ("score", "/score", b"[]", None),
    ],
)  # fmt: skip
def test_an_engine_is_proven_by_what_it_is_for(
    monkeypatch: pytest.MonkeyPatch, runner: str, path: str, body: bytes, took: Probe | None
) -> None:
    asked = answer(monkeypatch, 200, body)
    assert probes.proven(ENDPOINT, runner, "chat") == took
    assert asked[0][0] == path
    answer(monkeypatch, 500, body)
    assert probes.proven(ENDPOINT, runner, "chat") is None


def test_the_load_is_that_of_all_engines_behind_one_front() -> None:
    page = """# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="a b"} 2.0
vllm:num_requests_running{engine="1",model_name="a b"} 1.0
vllm:num_requests_waiting{engine="0"} 4.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5
vllm:prompt_tokens_total{engine="0"} 1e+06
vllm:generation_tokens_total{engine="0"} 9.0
vllm:generation_tokens_created{engine="0"} 1.7e+09
"""
    assert probes.load_of(page) == Load(3, 4, 0.5, 1_000_000, 9)
    assert probes.load_of("") == Load(0, 0, 0.0, 0, 0)
