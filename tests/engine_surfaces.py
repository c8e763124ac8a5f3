"""The scripted engine's other routes, as vLLM 0.32 answers them: Messages, Responses, pooling, tokens."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from engine import Engine

PROMPT_TOKENS = 7
Answer = Callable[["Engine", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


async def message(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if body.get("stream"):
        return await _stream(engine, request, _message_events(engine))
    used = _message_usage(engine)
    content = [{"type": "text", "text": "".join(engine.pieces)}]
    said = {"id": "msg_1", "type": "message", "role": "assistant", "content": content, "model": body["model"]}
    if engine.fail != "abort":  # vLLM leaves out what is null
        said["stop_reason"] = "end_turn"
    return _compact({**said, "usage": used})


async def _message_events(engine: Engine) -> AsyncIterator[dict[str, Any]]:
    start = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "tiny"}
    used = {"input_tokens": PROMPT_TOKENS, "output_tokens": 0}
    yield {"type": "message_start", "message": {**start, "stop_reason": None, "stop_sequence": None, "usage": used}}
    reason = None
    if engine.fail != "abort":
        reason = "end_turn"
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        async for piece in _pieces(engine):
            yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
        yield {"type": "content_block_stop", "index": 0}
        used = _message_usage(engine)
    yield {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": used}
    yield {"type": "message_stop"}


def _message_usage(engine: Engine) -> dict[str, int]:
    used = {"input_tokens": PROMPT_TOKENS, "output_tokens": len(engine.pieces)}
    if engine.cached is not None:
        used["input_tokens"] -= engine.cached
        used |= {"cache_read_input_tokens": engine.cached, "cache_creation_input_tokens": 0}
    return used


async def response(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if body.get("stream"):
        return await _stream(engine, request, _response_events(engine))
    return _compact(_response(engine, "cancelled" if engine.fail == "abort" else "completed"))


async def _response_events(engine: Engine) -> AsyncIterator[dict[str, Any]]:
    begun = {**_response(engine, "in_progress"), "usage": None, "output": []}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    if engine.fail != "abort":
        item = {"id": "item_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        yield {"type": "response.output_item.added", "output_index": 0, "item": item}
        at = {"item_id": "item_1", "output_index": 0, "content_index": 0}
        async for piece in _pieces(engine):
            yield {"type": "response.output_text.delta", "delta": piece, "logprobs": [], **at}
        yield {"type": "response.output_text.done", "text": "".join(engine.pieces), "logprobs": [], **at}
    status = "cancelled" if engine.fail == "abort" else "completed"
    yield {"type": "response.completed", "response": _response(engine, status)}


def _response(engine: Engine, status: str) -> dict[str, Any]:
    text = {"type": "output_text", "text": "".join(engine.pieces), "annotations": []}
    item = {"id": "item_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    used = {"input_tokens": PROMPT_TOKENS, "output_tokens": len(engine.pieces)}
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "tiny", "status": status, "output": [item],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "usage": {
            **used, "total_tokens": sum(used.values()), "input_tokens_details": {"cached_tokens": engine.cached or 0},
            "output_tokens_details": {"reasoning_tokens": engine.reasoning or 0},
        },
    }  # fmt: skip


async def embedding(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    data = [{"index": n, "object": "embedding", "embedding": [0.5, -0.5]} for n in range(len(inputs))]
    used = PROMPT_TOKENS * len(inputs)
    usage = {"prompt_tokens": used, "total_tokens": used, "completion_tokens": 0, "prompt_tokens_details": None}
    return _compact({"id": "embd-1", "object": "list", "created": 1, "model": "tiny", "data": data, "usage": usage})


async def rerank(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    used = PROMPT_TOKENS * len(body["documents"])
    results = [
        {"index": n, "document": {"text": text, "multi_modal": None}, "relevance_score": 1 / (n + 1)}
        for n, text in enumerate(body["documents"])
    ]
    usage = {"prompt_tokens": used, "total_tokens": used}
    return _compact({"id": "rerank-1", "model": "tiny", "usage": usage, "results": results})


async def score(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    data = [{"index": n, "object": "score", "score": 0.5} for n in range(len(body["text_2"]))]
    used = PROMPT_TOKENS * len(data)
    usage = {"prompt_tokens": used, "total_tokens": used, "completion_tokens": 0, "prompt_tokens_details": None}
    return _compact({"id": "embd-1", "object": "list", "created": 1, "model": "tiny", "data": data, "usage": usage})


async def tokenize(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return _compact({"count": 3, "max_model_len": 128, "tokens": [1, 2, 3], "token_strs": None})


async def detokenize(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return _compact({"prompt": "abc"})


async def count_tokens(engine: Engine, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return _compact({"input_tokens": PROMPT_TOKENS, "context_management": {"original_input_tokens": PROMPT_TOKENS}})


ANSWERS: dict[str, Answer] = {
    "/v1/messages": message,
    "/v1/messages/count_tokens": count_tokens,
    "/v1/responses": response,
    "/v1/embeddings": embedding,
    "/v1/rerank": rerank,
    "/v2/rerank": rerank,
    "/rerank": rerank,
    "/v1/score": score,
    "/score": score,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}


class OutOfMemory(Exception):
    pass


async def _pieces(engine: Engine) -> AsyncIterator[str]:
    for n, piece in enumerate(engine.pieces):
        if n == engine.hold_after:
            if engine.fail == "error event":
                raise OutOfMemory
            await engine.go.wait()
        yield piece


async def _stream(engine: Engine, request: web.Request, events: AsyncIterator[dict[str, Any]]) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await answer.prepare(request)
    number = 0
    try:
        async for event in events:
            if event["type"].startswith("response."):
                event["sequence_number"] = number
                number += 1
            data = json.dumps(event, separators=(",", ":"), ensure_ascii=False)
            await answer.write(f"event: {event['type']}\ndata: {data}\n\n".encode())
    except OutOfMemory:
        error = {"type": "error", "error": {"type": "internal_error", "message": "out of memory"}}
        await answer.write(b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n")
    return answer


def _compact(value: Any) -> web.Response:
    return web.Response(body=json.dumps(value, separators=(",", ":")).encode(), content_type="application/json")
