"""OpenAI's Responses: what an answer used, as it comes and as a whole; and how a stream ends that broke off."""

from __future__ import annotations

import orjson
import pytest

from gateway import errors
from gateway.calls import Call
from gateway.dialects import RESPONSES
from gateway.errors import UpstreamFailed
from gateway.metering import Usage
from gateway.responses_metering import ResponseMeter, ResponseStreamMeter
from gateway.surfaces.responses import read

PROMPT = "What is gravity? " * 6  # estimated at 34 tokens
USED = {"input_tokens": 7, "output_tokens": 4, "total_tokens": 11}


def call(stream: bool = True) -> Call:
    return read(orjson.dumps({"model": "tiny", "input": PROMPT, "stream": stream}))


def event(name: str, **data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({**data, "type": name}))


def response(status: str, **fields: object) -> dict[str, object]:
    tool = {"type": "function", "name": "f", "parameters": {"properties": {"usage": {"input_tokens": 1}}}}
    return {"response": {"id": "resp_1", "status": status, "tools": [tool], "usage": None, **fields}}


BEGIN = [
    event("response.created", **response("in_progress"), sequence_number=0),
    event("response.in_progress", **response("in_progress"), sequence_number=1),
]
ITEM = event("response.output_item.added", item={}, sequence_number=2)
DELTAS = [event("response.output_text.delta", delta=text, sequence_number=n) for n, text in enumerate("abc", start=3)]
END = event("response.completed", **response("completed", usage=USED), sequence_number=6)
ANSWER = [*BEGIN, ITEM, *DELTAS, END]


def test_a_stream_is_counted_as_it_comes_and_by_its_last_event() -> None:
    meter = ResponseStreamMeter(call())
    for begin in BEGIN:
        assert meter.feed(begin) == begin
        assert (meter.usage, meter.generated) == (None, False)
    meter.feed(ITEM)
    assert (meter.usage, meter.generated) == (Usage(), True)
    for n, delta in enumerate(DELTAS, start=1):
        assert meter.feed(delta) == delta
        assert meter.usage == Usage(0, n)  # of the prompt's tokens nothing is known yet
    assert meter.feed(END) == END
    assert (meter.rest(), meter.usage, meter.failure) == (b"", Usage(7, 4), None)


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_a_stream_arrives_untouched_however_it_is_cut(size: int) -> None:
    whole = b"".join(ANSWER)
    meter = ResponseStreamMeter(call())
    out = b"".join(meter.feed(whole[at : at + size]) for at in range(0, len(whole), size)) + meter.rest()
    assert (out, meter.usage, meter.failure) == (whole, Usage(7, 4), None)


@pytest.mark.parametrize("name", ["response.function_call_arguments.delta", "response.reasoning_text.delta"])
def test_every_kind_of_output_counts(name: str) -> None:
    meter = ResponseStreamMeter(call())
    meter.feed(event(name, delta="x", sequence_number=2))
    assert (meter.usage, meter.generated) == (Usage(0, 1), True)


def test_a_client_that_leaves_pays_for_its_prompt_as_estimated() -> None:
    meter = ResponseStreamMeter(call())
    meter.sent()
    for part in (*BEGIN, ITEM, *DELTAS):
        meter.feed(part)
    meter.left()
    assert meter.usage == Usage(34, 3)


def test_text_that_looks_like_an_event_is_text() -> None:
    meter = ResponseStreamMeter(call())
    looks = "event: response.completed\ndata: {}\n\nevent: response.output_text.delta\ndata: {}\n\n"
    delta = event("response.output_text.delta", delta=looks, sequence_number=3)
    assert meter.feed(delta) == delta
    assert (meter.usage, meter.failure) == (Usage(0, 1), None)


@pytest.mark.parametrize("last", ["response.completed", "response.incomplete"])
def test_an_answer_cut_at_its_bound_has_ended_well(last: str) -> None:
    meter = ResponseStreamMeter(call())
    meter.feed(DELTAS[0] + event(last, **response("incomplete", usage=USED)))
    meter.rest()
    assert (meter.usage, meter.failure) == (Usage(7, 4), None)


@pytest.mark.parametrize(
    "last",
    [
        event("response.completed", **response("cancelled", usage=USED)),
        event("response.failed", **response("failed")),
        event("error", message="out of memory", code="server_error"),
        b"",
    ],
)
def test_an_engine_that_gives_up_is_noticed_and_not_passed_on(last: bytes) -> None:
    meter = ResponseStreamMeter(call())
    assert meter.feed(DELTAS[0] + last) == DELTAS[0]
    meter.rest()
    assert meter.failure
    assert meter.feed(END) == b""


def test_an_engine_that_gives_up_before_its_first_token_leaves_room_for_another() -> None:
    meter = ResponseStreamMeter(call())
    meter.feed(b"".join(BEGIN) + event("response.completed", **response("cancelled", usage=USED)))
    assert meter.failure and not meter.generated


def test_a_whole_answer_is_counted_by_its_own_usage_and_no_tools() -> None:
    answer = orjson.dumps(response("completed", usage=USED, output=[])["response"])
    meter = ResponseMeter(call(stream=False))
    assert meter.whole(answer) is answer
    assert meter.usage == Usage(7, 4)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"status": "cancelled"}', b'{"status": "failed"}'])
def test_a_whole_answer_that_is_none_is_the_replicas_failure(answer: bytes) -> None:
    meter = ResponseMeter(call(stream=False))
    with pytest.raises(UpstreamFailed):
        meter.whole(answer)
    assert meter.usage is None


def test_a_stream_that_broke_off_ends_with_an_error_event() -> None:
    said = errors.event(UpstreamFailed("gone"), RESPONSES)
    assert said.startswith(b"event: error\ndata: ") and said.endswith(b"\n\n")
    data = orjson.loads(said.split(b"data: ")[1])
    assert (data["type"], data["message"], data["code"]) == ("error", "gone", "upstream_failed")
    assert data["error"] == errors.shape(UpstreamFailed("gone"))["error"]
