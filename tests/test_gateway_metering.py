"""What answers used, cached and reasoning tokens included, on every surface."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from engine import Engine
from gateway_fixtures import HELLO, gateway, until

from gateway import billing
from gateway.calls import Kind
from gateway.errors import UpstreamFailed
from gateway.metering import Meter, StreamMeter, Usage
from gateway.surfaces.table import SURFACES
from registry.db import open_reader, row
from registry.ledger import Outcome

CHAT, COMPLETION, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: HELLO,
    COMPLETION: {"model": "tiny", "prompt": "What is gravity?", "max_tokens": 50},
    MESSAGES: HELLO,
    RESPONSES: {"model": "tiny", "input": "What is gravity?", "max_output_tokens": 50},
}
NONSENSE: list[dict[str, Any]] = [
    {"prompt_tokens": -1},
    {"prompt_tokens": "7"},
    {"prompt_tokens": 7, "completion_tokens": True},
    {"prompt_tokens": 7, "completion_tokens": 2.0},
    {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 8}},
    {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": -8}},
    {"prompt_tokens": 7, "prompt_tokens_details": 3},
    {"prompt_tokens": 7, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 3}},
    {"prompt_tokens": 7, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": "some"}},
]


def meter(path: str, **fields: Any) -> Meter:
    surface = SURFACES[path]
    call = surface.read(orjson.dumps({**BODIES[path], **fields}))
    return surface.stream_meter(call) if call.stream and surface.stream_meter else surface.meter(call)


def streamed(path: str, **fields: Any) -> StreamMeter:
    made = meter(path, stream=True, **fields)
    assert isinstance(made, StreamMeter)
    return made


def chunk(index: int | None, usage: dict[str, Any]) -> bytes:
    choices = [] if index is None else [{"index": index, "delta": {"content": "x"}}]
    return b"data: " + orjson.dumps({"id": "x", "choices": choices, "usage": usage}) + b"\n\n"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_surface_bills_what_was_cached_and_thought(tmp_path: Path, path: str, stream: bool) -> None:
    thinks = 3 if path != MESSAGES else None  # Anthropic's usage does not tell
    engine = Engine(cached=5, reasoning=thinks)
    async with gateway(tmp_path, engine) as platform, platform.http() as http:
        async with http.post(path, json={**BODIES[path], "stream": stream}) as answer:
            assert answer.status == 200
            await answer.read()
        (event,) = await platform.settled()
    assert (event.attempt.kind, event.outcome) == (SURFACES[path].kind, Outcome.COMPLETED)
    counted = (event.prompt_tokens, event.completion_tokens, event.cached_tokens, event.reasoning_tokens)
    assert counted == (7, 4, 5, thinks or 0)


@pytest.mark.parametrize("usage", NONSENSE)
def test_counts_that_are_none_are_the_replicas_failure(usage: dict[str, Any]) -> None:
    whole = meter(CHAT)
    with pytest.raises(UpstreamFailed, match="usage"):
        whole.whole(orjson.dumps({"choices": [], "usage": usage}))
    assert whole.usage is None
    with pytest.raises(UpstreamFailed, match="usage"):
        streamed(CHAT).feed(chunk(None, usage))
    running = streamed(CHAT)
    running.feed(chunk(0, usage))
    assert running.usage == Usage() and running.failure and "usage" in running.failure


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
@pytest.mark.parametrize("tokens", [-1, "7", True, 7.5])
def test_counts_of_other_dialects_are_checked_alike(path: str, tokens: object) -> None:
    answer = {"stop_reason": "end_turn", "status": "completed", "usage": {"input_tokens": tokens, "output_tokens": 1}}
    whole = meter(path)
    with pytest.raises(UpstreamFailed, match="not in numbers"):
        whole.whole(orjson.dumps(answer))
    assert whole.usage is None


def test_cached_tokens_that_a_stream_states_while_it_runs_are_billed_if_it_is_cut() -> None:
    cut = streamed(CHAT, n=2)
    used = {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}
    cut.feed(chunk(0, {**used, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 2}}))
    cut.feed(chunk(1, {**used, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 1}}))
    assert cut.usage == Usage(7, 8, 4, 3)


def test_the_prompts_of_a_batch_are_counted_once_each_and_its_choices_all() -> None:
    cut = streamed(COMPLETION, prompt=["a", "b"], n=2)
    for index, (prompt, completion) in enumerate([(3, 1), (3, 2), (5, 4), (5, 8)]):
        cut.feed(chunk(index, {"prompt_tokens": prompt, "completion_tokens": completion}))
    assert cut.usage == Usage(8, 15)


@pytest.mark.parametrize(("fields", "again"), [({}, 0), ({"n": 3}, 14), ({"n": 1}, 0)])
def test_an_engine_reads_a_prompt_once_for_each_choice(fields: dict[str, Any], again: int) -> None:
    whole = meter(CHAT, **fields)
    assert whole.repeated_tokens == 0
    whole.whole(orjson.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}))
    assert whole.repeated_tokens == again


def test_an_embeddings_cached_tokens_are_told_apart() -> None:
    pooled = SURFACES["/v1/embeddings"].meter(SURFACES["/v1/embeddings"].read(b'{"model":"tiny","input":"a"}'))
    usage = {"prompt_tokens": 9, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    pooled.whole(orjson.dumps({"data": [{"embedding": [0.5]}], "usage": usage}))
    assert pooled.usage == Usage(9, 0, 4)
    with pytest.raises(UpstreamFailed, match="not in numbers"):
        pooled.whole(b'{"data":[],"usage":{"prompt_tokens":-1}}')


async def test_a_running_count_is_noted_with_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(billing, "NOTE_S", 0.01)
    engine = Engine(hold_after=3, reasoning=2)
    async with gateway(tmp_path, engine) as platform, platform.http() as http:

        def noted() -> tuple[int, ...]:
            db = open_reader(platform.site.ledger_db)
            try:
                hold = row(db, "SELECT prompt_tokens, completion_tokens, reasoning_tokens FROM holds")
            finally:
                db.close()
            return tuple(hold) if hold else ()

        async with http.post(CHAT, json={**HELLO, "stream": True}) as answer:
            await until(lambda: noted() == (7, 3, 2))
            answer.close()
        await asyncio.wait_for(engine.aborted.wait(), 30)
        (event,) = await platform.settled()
    assert (event.outcome, event.completion_tokens, event.reasoning_tokens) == (Outcome.CLIENT_LEFT, 3, 2)


def test_kinds_without_an_answer_use_no_completion() -> None:
    for path in ("/v1/rerank", "/v1/score"):
        surface = SURFACES[path]
        call = surface.read(b'{"model":"tiny","query":"q","documents":["a"],"text_1":"q","text_2":"a"}')
        pooled = surface.meter(call)
        pooled.whole(b'{"usage":{"prompt_tokens":5,"completion_tokens":1}}')
        assert pooled.usage == Usage(5, 0) and call.kind in (Kind.RERANK, Kind.SCORE)
