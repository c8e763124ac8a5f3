"""What a request body means: what is refused, what is held for it, and what of it the engine is sent."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway import calls
from gateway.calls import COMPLETION_CAP, Call, Kind
from gateway.errors import BadRequest
from gateway.surfaces.table import SURFACES

HELLO = [{"role": "user", "content": "What is gravity?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "Once"},
    "/v1/responses": {"input": "Once"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/v1/embeddings": {"input": ["a", "b"]},
    "/v1/rerank": {"query": "q", "documents": ["a", "b"]},
    "/rerank": {"query": "q", "documents": ["a", "b"]},
    "/v2/rerank": {"query": "q", "documents": ["a", "b"]},
    "/v1/score": {"text_1": "a", "text_2": ["b", "c"]},
    "/score": {"queries": "a", "documents": ["b", "c"]},
    "/tokenize": {"prompt": "Once"},
    "/detokenize": {"tokens": [1, 2]},
}


def read(path: str, **fields: Any) -> Call:
    return SURFACES[path].read(body(path, **fields))


def body(path: str, **fields: Any) -> bytes:
    return orjson.dumps({"model": "tiny", **BODIES[path], **fields})


def test_the_table_and_these_bodies_name_the_same_routes() -> None:
    assert list(SURFACES) == list(BODIES)
    assert all(path == surface.path for path, surface in SURFACES.items())
    assert {surface.kind for surface in SURFACES.values()} == set(Kind) == set(calls.PATHS)


@pytest.mark.parametrize("path", BODIES)
def test_every_route_reads_its_body_and_sends_it_on_byte_for_byte(path: str) -> None:
    sent = b"\n " + body(path, some_new_parameter={"x": 1}) + b"\n"
    call = SURFACES[path].read(sent)
    assert (call.kind, call.model, call.stream) == (SURFACES[path].kind, "tiny", False)
    assert calls.upstream_body(call, sent) == sent


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"{", "the body is not JSON"),
        (b"[]", "a JSON list, not an object"),
        (b"{}", "'model' is missing"),
        (b'{"model": 3}', "'model' is missing or not a string"),
    ],
)
def test_what_is_no_request_is_refused_with_a_reason(path: str, sent: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        SURFACES[path].read(sent)


@pytest.mark.parametrize("path", [path for path in BODIES if not path.endswith("score")])
def test_what_asks_for_nothing_is_refused(path: str) -> None:
    """But for scores, for which an engine knows four ways of asking."""
    with pytest.raises(BadRequest, match=r"must be|are needed"):
        SURFACES[path].read(b'{"model": "tiny"}')


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", sorted(calls.RESERVED))
def test_what_reaches_into_others_requests_is_refused_by_name(path: str, name: str) -> None:
    with pytest.raises(BadRequest, match=f"'{name}' is set by the gateway") as refused:
        read(path, **{name: 1})
    assert refused.value.param == name
    read(path, **{name: None})  # what a client writes that means its default
    with pytest.raises(BadRequest, match=f"vllm_xargs.{name}"):
        read(path, vllm_xargs={name: 1})
    read(path, vllm_xargs={"of_a_plugin": 1})


@pytest.mark.parametrize(
    ("path", "fields", "held", "bound"),
    [
        ("/v1/chat/completions", {}, COMPLETION_CAP, None),
        ("/v1/chat/completions", {"max_completion_tokens": 7, "max_tokens": 9}, 7, "max_completion_tokens"),
        ("/v1/chat/completions", {"max_tokens": 9, "n": 3}, 27, "max_tokens"),
        ("/v1/completions", {"max_completion_tokens": 7, "max_tokens": 9, "best_of": 2}, 18, "max_tokens"),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 9}, 18, "max_tokens"),
        ("/v1/responses", {}, COMPLETION_CAP, None),
        ("/v1/responses", {"max_output_tokens": 9}, 9, "max_output_tokens"),
        ("/v1/responses", {"max_tokens": 9}, COMPLETION_CAP, None),
        ("/v1/messages", {}, 5, "max_tokens"),
        ("/v1/messages", {"max_tokens": 10**9}, COMPLETION_CAP, "max_tokens"),
        ("/v1/embeddings", {"max_tokens": 9}, 0, None),
        ("/v1/rerank", {}, 0, None),
        ("/v1/score", {}, 0, None),
    ],
)
def test_what_is_held_for_an_answer(path: str, fields: dict[str, Any], held: int, bound: str | None) -> None:
    call = read(path, **fields)
    assert (call.completion_tokens, call.bound) == (held, bound)
    assert call.prompt_tokens >= len(body(path, **fields)) // calls.BYTES_PER_TOKEN


@pytest.mark.parametrize(
    ("path", "fields", "tokens"),
    [
        ("/v1/chat/completions", {}, COMPLETION_CAP),
        ("/v1/chat/completions", {"n": 8, "max_tokens": 50}, 50),
        ("/v1/chat/completions", {"max_completion_tokens": 30_000}, 30_000),
        ("/v1/completions", {"prompt": ["a", "b"]}, 16),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 0}, 0),
        ("/v1/responses", {"max_output_tokens": 7000}, 7000),
        ("/v1/embeddings", {}, 0),
    ],
)
def test_how_long_one_answer_may_be(path: str, fields: dict[str, Any], tokens: int) -> None:
    call = read(path, **fields)
    assert calls.longest(call) == calls.longest(calls.bounded(call)) == tokens


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/messages/count_tokens"])
def test_nothing_is_held_where_no_model_runs(path: str) -> None:
    call = read(path)
    assert call.kind in calls.FREE and call.tokens == 0
    assert calls.bounded(call) is call


def test_a_query_is_held_for_once_for_each_document() -> None:
    one = read("/v1/rerank", query="q" * 3000, documents=["a"])
    three = read("/v1/rerank", query="q" * 3000, documents=["a", "b", "c"])
    assert three.prompt_tokens - one.prompt_tokens >= 2000
    assert read("/v1/score", text_1="q" * 3000, text_2=["a", "b", "c"]).prompt_tokens >= 3000


@pytest.mark.parametrize(
    ("path", "fields", "sent"),
    [
        ("/v1/responses", {}, {"max_output_tokens": COMPLETION_CAP}),
        ("/v1/responses", {"max_output_tokens": 5000}, {"max_output_tokens": 5000}),
        ("/v1/messages", {"max_tokens": 5000}, {"max_tokens": 5000}),
        ("/v1/chat/completions", {}, {"max_tokens": COMPLETION_CAP}),
    ],
)
def test_against_a_budget_all_that_an_answer_may_have_is_held(
    path: str, fields: dict[str, Any], sent: dict[str, int]
) -> None:
    raw = body(path, **fields)
    call = calls.bounded(SURFACES[path].read(raw))
    assert orjson.loads(calls.upstream_body(call, raw)) == {**orjson.loads(raw), **sent}
    assert call.completion_tokens == next(iter(sent.values()))


def test_of_a_stream_the_engine_is_asked_to_count_and_nothing_else_changes() -> None:
    raw = body("/v1/chat/completions", stream=True, seed=2**60)[:-1] + b', "temperature": 1.10 }\n'
    sent = calls.upstream_body(calls.read(Kind.CHAT, raw), raw)
    assert sent.startswith(raw[: raw.rindex(b"}")])
    counting = {"include_usage": True, "continuous_usage_stats": True}
    assert orjson.loads(sent) == {**orjson.loads(raw), "stream_options": counting}
    asked = body("/v1/chat/completions", stream=True, stream_options={"include_usage": True, "x": 1})
    sent = calls.upstream_body(calls.read(Kind.CHAT, asked), asked)
    assert orjson.loads(sent)["stream_options"] == {"x": 1, **counting}
    both = body("/v1/completions", stream=True, stream_options=counting)
    assert calls.upstream_body(calls.read(Kind.COMPLETION, both), both) is both


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_engines_count_these_streams_unasked(path: str) -> None:
    raw = body(path, stream=True)
    assert calls.upstream_body(SURFACES[path].read(raw), raw) is raw


def test_another_name_for_the_model_leaves_all_else() -> None:
    raw = body("/v1/messages", stream=True)
    call = calls.renamed(SURFACES["/v1/messages"].read(raw), "tiny-canary")
    assert call.model == "tiny-canary"
    assert orjson.loads(calls.upstream_body(call, raw)) == {**orjson.loads(raw), "model": "tiny-canary"}


@pytest.mark.parametrize("fields", [{"background": True}, {"previous_response_id": "resp_1"}])
def test_a_response_that_the_engine_would_have_to_keep_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="is not served"):
        read("/v1/responses", **fields)
    read("/v1/responses", **dict.fromkeys(fields))


def test_an_embedding_that_would_not_say_what_it_used_is_refused() -> None:
    with pytest.raises(BadRequest, match="allowed: float, base64"):
        read("/v1/embeddings", encoding_format="bytes")
    read("/v1/embeddings", encoding_format="base64")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_conversation_that_goes_on_begins_as_it_did(path: str) -> None:
    more = [*HELLO, {"role": "assistant", "content": "Round."}, {"role": "user", "content": "Why?"}]
    tools = [{"name": "look"}]
    before = calls.prompt_bytes(read(path, messages=HELLO, tools=tools, temperature=0))
    after = calls.prompt_bytes(read(path, temperature=1, tools=tools, messages=more))
    assert after.startswith(before[:-1]) and len(before) > 20
    assert not calls.prompt_bytes(read(path, messages=more)).startswith(before[:10])
    assert calls.prompt_bytes(read("/v1/embeddings")) == b""
    assert calls.prompt_bytes(read("/v1/completions", prompt="Once")) == b"Once"


def test_what_a_client_pays_that_left_early_is_its_text() -> None:
    said = {"messages": [{"role": "user", "content": "x" * 3000}], "tools": [{"name": "y" * 9000}]}
    assert calls.prompt_billed(read("/v1/chat/completions", **said)) == 1000
    assert calls.prompt_billed(read("/v1/messages", system="z" * 300, **said)) == 1100
    assert calls.prompt_billed(read("/v1/responses", input="x" * 3000, instructions="z" * 300)) == 1100


def test_a_body_nested_as_deep_as_json_goes_is_read() -> None:
    raw = b'{"model":"m","messages":[{"role":"user","content":' + b"[" * 900 + b"]" * 900 + b"}]}"
    assert calls.read(Kind.CHAT, raw).links == ()


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def test_what_is_nested_deeper_than_can_be_written_is_a_bad_request() -> None:
    for levels in (253, 300, 900):
        raw = b'{"model":"m","messages":[{"role":"user","content":%b}],"stream":true}' % nested(levels)
        call = calls.read(Kind.CHAT, raw)
        assert nested(levels) in calls.upstream_body(call, raw)
        for ask in (calls.prompt_bytes, lambda call: calls.upstream_body(calls.renamed(call, "n"), b"")):
            with pytest.raises(BadRequest, match="nested too deeply: 250 levels"):
                ask(call)
    allowed = calls.read(Kind.CHAT, b'{"model":"m","messages":[{"role":"user","content":%b}]}' % nested(247))
    assert nested(247) in calls.upstream_body(calls.renamed(allowed, "n"), b"")


@pytest.mark.parametrize("name", ["stream", "stream_options", "max_tokens", "n"])
def test_a_value_that_is_refused_is_shown_however_deeply_it_is_nested(name: str) -> None:
    raw = b'{"model":"m","messages":[{"role":"user","content":"x"}],"%b":%b}' % (name.encode(), nested(990))
    with pytest.raises(BadRequest, match=f"'{name}' is .*not") as refused:
        calls.read(Kind.CHAT, raw)
    assert len(str(refused.value)) < 200


def test_what_a_client_pays_is_counted_however_deeply_it_is_nested() -> None:
    raw = b'{"model":"m","messages":[{"role":"user","content":%b"%b"%b}]}' % (b"[" * 990, b"x" * 300, b"]" * 990)
    assert calls.prompt_billed(calls.read(Kind.CHAT, raw)) == 100
