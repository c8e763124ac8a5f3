"""Anthropic's Messages: what an answer used, as it comes and as a whole; and errors as its SDKs know them."""

from __future__ import annotations

import orjson
import pytest

from gateway import errors
from gateway.anthropic_metering import MessageMeter, MessageStreamMeter
from gateway.calls import Call
from gateway.dialects import ANTHROPIC
from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    GatewayError,
    LedgerUnwritable,
    NoReplica,
    TooManyRequests,
    UnknownModel,
    UpstreamFailed,
    UpstreamSilent,
    WrongKey,
)
from gateway.metering import Usage
from gateway.rate_headers import Left
from gateway.surfaces.anthropic import read


def call(stream: bool = True) -> Call:
    said = [{"role": "user", "content": "What is gravity?"}]
    return read(orjson.dumps({"model": "tiny", "max_tokens": 50, "stream": stream, "messages": said}))


def event(name: str, **data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **data}))


START = event("message_start", message={"id": "m", "content": [], "usage": {"input_tokens": 7, "output_tokens": 0}})
BLOCK = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
DELTAS = [event("content_block_delta", index=0, delta={"type": "text_delta", "text": t}) for t in ("Gra", "vity", "…")]
END = [
    event("content_block_stop", index=0),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"input_tokens": 7, "output_tokens": 4}),
    event("message_stop"),
]
ANSWER = [START, BLOCK, *DELTAS, *END]


def test_a_stream_is_counted_as_it_comes_and_by_its_last_events() -> None:
    meter = MessageStreamMeter(call())
    assert meter.feed(START) == START
    assert (meter.usage, meter.generated) == (Usage(7, 0), False)
    meter.feed(event("ping"))
    assert not meter.generated
    for n, delta in enumerate(DELTAS, start=1):
        assert meter.feed(delta) == delta
        assert (meter.usage, meter.generated) == (Usage(7, n), True)
    for last in END:
        assert meter.feed(last) == last
    assert (meter.rest(), meter.usage, meter.failure) == (b"", Usage(7, 4), None)


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_a_stream_arrives_untouched_however_it_is_cut(size: int) -> None:
    whole = b"".join(ANSWER)
    meter = MessageStreamMeter(call())
    out = b"".join(meter.feed(whole[at : at + size]) for at in range(0, len(whole), size)) + meter.rest()
    assert (out, meter.usage, meter.failure) == (whole, Usage(7, 4), None)


def test_a_signature_is_no_token() -> None:
    meter = MessageStreamMeter(call())
    meter.feed(START)
    for delta in (
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "signature_delta", "signature": "x"},
        {"type": "text_delta", "text": '"type":"signature_delta"'},
    ):
        meter.feed(event("content_block_delta", index=0, delta=delta))
    assert meter.usage == Usage(7, 2)


def test_a_call_of_a_tool_is_output_before_its_arguments_come() -> None:
    meter = MessageStreamMeter(call())
    meter.feed(START + event("content_block_start", index=0, content_block={"type": "tool_use", "name": "look"}))
    assert meter.generated


def test_text_that_looks_like_an_event_is_text() -> None:
    meter = MessageStreamMeter(call())
    looks = "event: content_block_delta\ndata: {}\n\nevent: error\ndata: {}\n\nevent: message_stop\n\n"
    delta = event("content_block_delta", index=0, delta={"type": "text_delta", "text": looks})
    assert meter.feed(START + delta) == START + delta
    assert (meter.usage, meter.failure) == (Usage(7, 1), None)


def test_an_engine_that_gives_up_is_noticed_and_not_passed_on() -> None:
    meter = MessageStreamMeter(call())
    gave_up = event("message_delta", delta={"stop_reason": None}, usage={"input_tokens": 7, "output_tokens": 0})
    assert meter.feed(START + gave_up + END[-1]) == START
    assert meter.failure and not meter.generated
    assert meter.feed(END[-1]) == meter.rest() == b""


def test_an_error_event_of_the_engine_is_noticed_and_not_passed_on() -> None:
    meter = MessageStreamMeter(call())
    error = event("error", error={"type": "internal_error", "message": "out of memory"})
    assert meter.feed(START + DELTAS[0] + error) == START + DELTAS[0]
    assert (meter.failure, meter.usage) == ("out of memory", Usage(7, 1))


def test_a_stream_that_just_ends_has_failed() -> None:
    meter = MessageStreamMeter(call())
    meter.feed(START + DELTAS[0])
    assert (meter.rest(), meter.failure) == (b"", "the replica ended the stream before its answer was complete")


def test_tokens_that_came_from_a_cache_are_billed_as_tokens_of_the_prompt() -> None:
    used = {"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": 16, "cache_creation_input_tokens": 1}
    answer = orjson.dumps({"type": "message", "stop_reason": "tool_use", "usage": used})
    meter = MessageMeter(call(stream=False))
    assert meter.whole(answer) is answer
    assert meter.usage == Usage(20, 4, cached_tokens=16)


def test_what_a_tool_is_given_is_not_taken_for_the_count() -> None:
    given = {"type": "tool_use", "input": {"usage": {"input_tokens": 0, "output_tokens": 0}}}
    used = {"input_tokens": 3, "output_tokens": 4}
    meter = MessageMeter(call(stream=False))
    meter.whole(orjson.dumps({"usage": used, "stop_reason": "tool_use", "content": [given]}))
    assert meter.usage == Usage(3, 4)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"content": [], "usage": {"input_tokens": 1}}'])
def test_a_whole_answer_that_is_none_is_the_replicas_failure(answer: bytes) -> None:
    meter = MessageMeter(call(stream=False))
    with pytest.raises(UpstreamFailed):
        meter.whole(answer)
    assert meter.usage is None


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadRequest("x"), 400, "invalid_request_error"),
        (WrongKey("x"), 401, "authentication_error"),
        (UnknownModel("x"), 404, "not_found_error"),
        (BodyTooLarge("x"), 413, "request_too_large"),
        (TooManyRequests("x", 9), 429, "rate_limit_error"),
        (UpstreamFailed("x"), 502, "api_error"),
        (UpstreamSilent("x"), 504, "timeout_error"),
        (NoReplica("x"), 529, "overloaded_error"),
        (LedgerUnwritable("x"), 529, "overloaded_error"),
    ],
)
def test_errors_have_anthropics_status_type_and_shape(error: GatewayError, status: int, kind: str) -> None:
    answered, headers, body = errors.raw(error, ANTHROPIC, "req_1")
    said = {"type": "error", "error": {"type": kind, "message": str(error)}, "request_id": "req_1"}
    assert (answered, orjson.loads(body)) == (status, said)
    assert ("content-type", "application/json") in headers
    assert errors.event(error, ANTHROPIC, "req_1") == b"event: error\ndata: " + body + b"\n\n"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"type":"error","error":{"type":"BadRequestError","message":"too long"}}', "too long"),
        (b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}', "too long"),
        (b'{"object":"error","message":"too long","code":400}', "too long"),
        (b'{"error":"too long"}', "too long"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b"too long", "too long"),
        (b'{"error":[]}', '{"error":[]}'),
    ],
)
def test_an_engines_refusal_becomes_anthropics_whatever_shape_it_had(answer: bytes, message: str) -> None:
    assert orjson.loads(ANTHROPIC.refusal(400, answer, "req_1")) == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": message},
        "request_id": "req_1",
    }


def test_limits_are_told_with_the_time_at_which_they_are_whole_again() -> None:
    told = ANTHROPIC.headers(Left(600, 599, 0.1), Left(1000, 0, 0), 1_790_000_000.0)
    assert told == [
        ("anthropic-ratelimit-requests-limit", "600"),
        ("anthropic-ratelimit-requests-remaining", "599"),
        ("anthropic-ratelimit-requests-reset", "2026-09-21T14:13:21Z"),
        ("anthropic-ratelimit-tokens-limit", "1000"),
        ("anthropic-ratelimit-tokens-remaining", "0"),
        ("anthropic-ratelimit-tokens-reset", "2026-09-21T14:13:20Z"),
    ]
