"""Around an answer: errors in OpenAI's shape, what is left of limits, and counts of what generates nothing."""

from __future__ import annotations

import orjson
import pytest

from gateway import errors, rate_headers
from gateway.dialects import OPENAI
from gateway.errors import (
    BadRequest,
    BudgetExhausted,
    Bug,
    GatewayError,
    NoReplica,
    QueueFull,
    TooManyRequests,
    UpstreamFailed,
    UpstreamSilent,
    WrongKey,
)
from gateway.metering import Usage
from gateway.pooling_metering import FreeMeter, PoolingMeter
from gateway.rate_headers import Left
from gateway.surfaces.table import SURFACES

RERANK = SURFACES["/v1/rerank"].read(b'{"model":"tiny","query":"q","documents":["a"]}')
EMBEDDING = SURFACES["/v1/embeddings"].read(b'{"model":"tiny","input":"a"}')


def headers_of(error: GatewayError) -> dict[str, str]:
    return dict(errors.raw(error)[1])


@pytest.mark.parametrize("error", [BadRequest("no", "n"), WrongKey("no"), TooManyRequests("no", 3), Bug()])
def test_errors_have_openais_shape_raw_and_through_aiohttp(error: GatewayError) -> None:
    status, headers, body = errors.raw(error)
    said = {"message": str(error), "type": error.type, "param": error.param, "code": error.code}
    assert orjson.loads(body) == {"error": said}
    assert errors.raw(error, OPENAI) == (status, headers, body)
    assert errors.event(error) == errors.event(error, OPENAI) == b"data: " + body + b"\n\n"
    answer = errors.response(error)
    assert (answer.status, answer.body, answer.content_type) == (status, body, "application/json")
    assert {name: answer.headers[name] for name, _ in headers} == dict(headers)


def test_a_client_is_told_how_long_to_wait_but_never_so_long_that_it_gives_up() -> None:
    told = headers_of(TooManyRequests("x", 7))
    assert (told["retry-after"], told["retry-after-ms"]) == ("7", "7000")
    told = headers_of(QueueFull("x", 4000))
    assert (told["retry-after"], told["retry-after-ms"]) == ("120", "120000")
    soon = NoReplica("x")
    soon.retry_after = 0
    assert headers_of(soon)["retry-after"] == "0"
    assert "retry-after" not in headers_of(BadRequest("x"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BadRequest("x"), "false"),
        (WrongKey("x"), "false"),
        (BudgetExhausted("x", None), "false"),
        (BudgetExhausted("x", 1), "true"),
        (TooManyRequests("x", 1), "true"),
        (QueueFull("x", 1), "true"),
        (NoReplica("x"), "true"),
        (UpstreamFailed("x"), "true"),
        (UpstreamSilent("x"), None),
    ],
)
def test_a_client_is_told_whether_trying_again_can_help(error: GatewayError, told: str | None) -> None:
    assert headers_of(error).get("x-should-retry") == told


def test_who_brings_no_key_is_told_how_to() -> None:
    assert headers_of(WrongKey("x"))["www-authenticate"] == "Bearer"


def test_limits_are_told_as_openai_tells_them() -> None:
    assert OPENAI.headers(Left(600, 599, 0.1), Left(1000, 0, 360), 0) == [
        ("x-ratelimit-limit-requests", "600"),
        ("x-ratelimit-remaining-requests", "599"),
        ("x-ratelimit-reset-requests", "100ms"),
        ("x-ratelimit-limit-tokens", "1000"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "6m0s"),
    ]
    assert OPENAI.headers(None, None, 0) == []


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"), (0.0001, "1ms"), (0.012, "12ms"), (0.9995, "1s"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"),
        (3599.5, "1h0m0s"), (3665, "1h1m5s"),
    ],
)  # fmt: skip
def test_a_duration_is_written_as_go_does(seconds: float, written: str) -> None:
    assert rate_headers.go_duration(seconds) == written


def test_an_embedding_is_counted_by_its_prompt_and_arrives_untouched() -> None:
    data = [{"index": 0, "embedding": [0.1] * 1000}]
    answer = orjson.dumps({"data": data, "usage": {"prompt_tokens": 9, "total_tokens": 9, "completion_tokens": 0}})
    meter = PoolingMeter(EMBEDDING)
    assert meter.whole(answer) is answer
    assert meter.usage == Usage(9, 0)


def test_a_documents_text_is_not_taken_for_the_count_of_a_ranking() -> None:
    text = '"usage":{"prompt_tokens":0}'
    document = {"text": text, "usage": {"prompt_tokens": 0}}
    used = {"prompt_tokens": 9, "total_tokens": 9}
    meter = PoolingMeter(RERANK)
    meter.whole(orjson.dumps({"id": "r", "usage": used, "results": [{"document": document}]}))
    assert meter.usage == Usage(9, 0)


def test_an_answer_that_states_no_count_is_left_to_be_billed_as_held() -> None:
    meter = PoolingMeter(EMBEDDING)
    meter.whole(b'{"data":[]}')
    assert meter.usage is None


def test_tokens_cost_nothing() -> None:
    meter = FreeMeter(SURFACES["/tokenize"].read(b'{"model":"tiny","prompt":"a"}'))
    assert meter.whole(b'{"count":3}') == b'{"count":3}'
    assert meter.usage == Usage(0, 0)


@pytest.mark.parametrize("kind", [PoolingMeter, FreeMeter])
def test_an_answer_that_is_no_json_object_is_the_replicas_failure(kind: type[PoolingMeter] | type[FreeMeter]) -> None:
    with pytest.raises(UpstreamFailed):
        kind(EMBEDDING).whole(b"<html>")
