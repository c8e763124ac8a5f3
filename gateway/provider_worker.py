"""`python -m gateway.provider_worker SOCKET [MODEL...]`: models that others serve, as an engine on a Unix socket.

The only module that imports LiteLLM, which takes 3 CPU-seconds and 180 MiB, and milliseconds of pure Python a call:
in a process of its own these stall no stream of the gateway's. To the gateway it is one more upstream, that streams
and counts as vLLM does. It ends when its standard input does, so that it never outlives the gateway, and with nothing
else: a signal to the whole process group must not cut the streams that a stopping gateway still finishes.

Once it listens it says so in one line of JSON, {"prices": {MODEL: [dollars per prompt token, per completion token, per
cached one]}}, for those of the models whose price LiteLLM knows.

A request's body has, besides what its client sent, an object ENVELOPE: which model to ask, where, and with which key.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from gateway.calls import BYTES_PER_TOKEN
from gateway.errors import BadRequest, GatewayError, TooManyRequests, UpstreamFailed

ENVELOPE = "headgate"
RETRY_AFTER_S = 10  # told where a provider says that it has too many requests


@dataclass(frozen=True, slots=True)
class Library:
    litellm: Any
    messages: Callable[..., Awaitable[Any]]  # Anthropic's Messages, of any provider
    responses: Callable[..., Awaitable[Any]]  # OpenAI's Responses, of any provider
    failures: type[Exception]  # what every error of LiteLLM derives from


@dataclass(frozen=True, slots=True)
class Envelope:
    name: str  # what the client calls the model
    model: str  # LiteLLM's name for it
    api_base: str | None
    api_key: str | None
    timeout_s: float  # for a whole answer; of a stream, for each wait
    prompt_tokens: int  # estimated, until the provider counts


LIBRARY = web.AppKey("library", Library)


def make_app(library: Library) -> web.Application:
    app = web.Application(client_max_size=0)  # the gateway has seen to it
    app[LIBRARY] = library
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_post("/v1/messages", messages)
    app.router.add_post("/v1/responses", responses)
    app.router.add_post("/v1/embeddings", embeddings)
    return app


async def chat_completions(request: web.Request) -> web.StreamResponse:
    library = request.app[LIBRARY]
    envelope, fields = await _read(request)
    options = fields.pop("stream_options", None) or {}
    stream = bool(fields.get("stream"))
    asked = _arguments(envelope) | fields | {"stream_options": {"include_usage": True} if stream else None}
    try:
        answer = await _answer(library, envelope, library.litellm.acompletion, asked)
        if not stream:
            return _json({**answer.model_dump(exclude_none=True), "model": envelope.name})
        return await _stream(request, library, envelope, events(answer, envelope, options), b"")
    except GatewayError as e:
        return refusal(e)


async def messages(request: web.Request) -> web.StreamResponse:
    library = request.app[LIBRARY]
    envelope, fields = await _read(request)
    try:
        answer = await _answer(library, envelope, library.messages, _arguments(envelope) | fields)
        if not fields.get("stream"):
            return _json({**answer, "model": envelope.name})
        return await _stream(request, library, envelope, message_events(answer, envelope), b"event: error\n")
    except GatewayError as e:
        return refusal(e)


async def responses(request: web.Request) -> web.StreamResponse:
    library = request.app[LIBRARY]
    envelope, fields = await _read(request)
    asked: dict[str, Any] = {"input": fields.pop("input", None), "stream": bool(fields.pop("stream", False))}
    try:
        try:
            model, provider = library.litellm.get_llm_provider(envelope.model)[:2]
        except library.failures as e:
            raise failure(envelope.model, e) from e
        asked |= {"custom_llm_provider": provider, "responses_api_request": fields, "_is_async": True}
        answer = await _answer(library, envelope, library.responses, _arguments(envelope) | {"model": model} | asked)
        if not asked["stream"]:
            return _json({**answer.model_dump(mode="json"), "model": envelope.name})
        return await _stream(request, library, envelope, response_events(answer, envelope), b"event: error\n")
    except GatewayError as e:
        return refusal(e)


async def embeddings(request: web.Request) -> web.StreamResponse:
    library = request.app[LIBRARY]
    envelope, fields = await _read(request)
    try:
        answer = await _answer(library, envelope, library.litellm.aembedding, _arguments(envelope) | fields)
        return _json({**answer.model_dump(exclude_none=True), "model": envelope.name})
    except GatewayError as e:
        return refusal(e)


async def _read(request: web.Request) -> tuple[Envelope, dict[str, Any]]:
    fields = orjson.loads(await request.read())
    envelope = Envelope(**fields.pop(ENVELOPE))
    del fields["model"]
    return envelope, fields


def _arguments(envelope: Envelope) -> dict[str, Any]:
    return {
        "model": envelope.model,
        "api_base": envelope.api_base,
        "api_key": envelope.api_key,
        "timeout": envelope.timeout_s,
        "num_retries": 0,
        "max_retries": 0,
        "_skip_mcp_handler": True,  # it imports a package we do not install, whatever the tools are
    }


async def _answer(
    library: Library, envelope: Envelope, ask: Callable[..., Awaitable[Any]], arguments: Mapping[str, Any]
) -> Any:
    """Raises GatewayError."""
    try:
        return await ask(**arguments)
    except library.failures as e:
        raise failure(envelope.model, e) from e


async def _stream(
    request: web.Request, library: Library, envelope: Envelope, stream: AsyncGenerator[bytes, None], error_name: bytes
) -> web.StreamResponse:
    """Raises GatewayError before the first event; later it is the last event, with this line before it."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    async with contextlib.aclosing(stream):
        try:
            event = await anext(stream, b"")  # until then the status is open
            await response.prepare(request)
            while event:
                await response.write(event)
                event = await anext(stream, b"")
        except library.failures as e:
            error = failure(envelope.model, e)
            if not response.prepared:
                raise error from e
            await response.write(error_name + _event(shape(error)))
    await response.write_eof()
    return response


async def events(chunks: Any, envelope: Envelope, options: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
    """A provider's stream as vLLM would send it, a choice an event.

    Providers count at the end. Until then the counts are an estimate from the text that came so far, so that a stream
    that breaks off is not free.
    """
    counting = options.get("include_usage") is True
    running = counting and options.get("continuous_usage_stats") is True
    sizes: dict[int, int] = defaultdict(int)  # bytes of each choice so far
    head: dict[str, Any] = {}
    total: Mapping[str, Any] | None = None
    try:
        async for chunk in chunks:
            event = chunk.model_dump(exclude_none=True)
            total = event.pop("usage", None) or total
            head = {name: event[name] for name in ("id", "object", "created") if name in event}
            head["model"] = envelope.name
            for choice in event.pop("choices", ()):
                delta = choice.get("delta")
                if not delta and not choice.get("finish_reason"):
                    continue
                index = choice.pop("index", 0)
                sizes[index] += _size(delta or {})
                # `index` first, and the count after the choices, as vLLM writes them: meters rely on it.
                said = {**event, **head, "choices": [{"index": index, **choice}]}
                if running:
                    said["usage"] = _usage(envelope.prompt_tokens, sizes[index] // BYTES_PER_TOKEN)
                yield _event(said)
    finally:
        await chunks.aclose()
    if counting:
        estimate = sum(size // BYTES_PER_TOKEN for size in sizes.values())
        used = counted(total) if total else _usage(envelope.prompt_tokens, estimate)
        yield _event({**head, "choices": [], "usage": used})
    yield b"data: [DONE]\n\n"


async def message_events(said: Any, envelope: Envelope) -> AsyncGenerator[bytes, None]:
    """LiteLLM's events as they are, but for the first: it knows neither the name nor a count of the prompt."""
    begun = False
    async with contextlib.aclosing(said):
        async for event in said:
            if begun:
                yield event
                continue
            begun = True
            start = orjson.loads(event.partition(b"data:")[2])
            start["message"]["model"] = envelope.name
            start["message"]["usage"]["input_tokens"] = envelope.prompt_tokens
            yield b"event: message_start\n" + _event(start)


async def response_events(said: Any, envelope: Envelope) -> AsyncGenerator[bytes, None]:
    number = 0
    try:
        async for event in said:
            shown = {**event.model_dump(mode="json"), "sequence_number": number}
            if isinstance(shown.get("response"), dict):
                shown["response"]["model"] = envelope.name
            number += 1
            yield b"event: " + shown["type"].encode() + b"\n" + _event(shown)
    finally:
        await said.litellm_custom_stream_wrapper.aclose()


def failure(model: str, error: Exception) -> GatewayError:
    """A provider's refusal of our key is not the client's 401; what the client can mend, it is told."""
    status = getattr(error, "status_code", None)
    text = f"{model}: {error}"
    if status == 429:
        return TooManyRequests(text, RETRY_AFTER_S)
    if isinstance(status, int) and 400 <= status < 500 and status not in (401, 403, 408):
        return BadRequest(text)
    return UpstreamFailed(text)


def shape(error: GatewayError) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": error.type, "param": error.param, "code": error.code}}


def refusal(error: GatewayError) -> web.Response:
    response = _json(shape(error), error.status)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def prices(costs: Mapping[str, Any], models: Sequence[str]) -> dict[str, tuple[float, float, float | None]]:
    """Dollars per token, from LiteLLM's map: by the whole name, or within the provider.

    Of a prompt, of a completion, and of a prompt's token that the provider had cached; None: as any other of it.
    """
    found: dict[str, tuple[float, float, float | None]] = {}
    for model in models:
        provider, _, rest = model.partition("/")
        cost = costs.get(model) or costs.get(rest) or {}
        theirs = model in costs or str(cost.get("litellm_provider")).startswith(provider)
        if theirs and isinstance(cost.get("input_cost_per_token"), int | float):
            cached = cost.get("cache_read_input_token_cost")
            found[model] = (
                float(cost["input_cost_per_token"]),
                float(cost.get("output_cost_per_token") or 0),
                float(cached) if isinstance(cached, int | float) else None,
            )
    return found


def _size(delta: Mapping[str, Any]) -> int:
    """Bytes of the text in a part of an answer, as JSON."""
    texts = [delta.get("content"), delta.get("reasoning_content")]
    texts += [call.get("function", {}).get("arguments") for call in delta.get("tool_calls") or ()]
    return sum(len(orjson.dumps(text)) for text in texts if text)


def counted(total: Mapping[str, Any]) -> dict[str, Any]:
    """A provider's own count, as vLLM states one."""
    stated: dict[str, Any] = dict(_usage(total["prompt_tokens"], total["completion_tokens"]))
    for name, part in (("prompt_tokens_details", "cached_tokens"), ("completion_tokens_details", "reasoning_tokens")):
        if tokens := (total.get(name) or {}).get(part):
            stated[name] = {part: tokens}
    return stated


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def _event(event: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


# The process.


def run(path: Path, models: Sequence[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    threading.Thread(target=_end_with_stdin, args=(path,), daemon=True).start()
    said = os.dup(1)
    os.dup2(2, 1)  # libraries print what they like
    library = _load()
    asyncio.run(_serve(path, library, lambda: _say(said, {"prices": prices(library.litellm.model_cost, models)})))


def _end_with_stdin(path: Path) -> None:
    """On a thread, so that even a busy loop ends."""
    while os.read(0, 4096):
        pass
    path.unlink(missing_ok=True)
    os._exit(0)


def _load() -> Library:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise the import fetches it
    import litellm
    import openai

    # Not `litellm.anthropic_messages` and `aresponses`: they want packages of LiteLLM's proxy that we do not install.
    from litellm.llms.anthropic.pass_through.adapters.handler import LiteLLMMessagesToCompletionTransformationHandler
    from litellm.responses.litellm_completion_transformation.handler import LiteLLMCompletionTransformationHandler

    litellm.suppress_debug_info = True  # it prints advertisements on errors
    return Library(
        litellm,
        LiteLLMMessagesToCompletionTransformationHandler.async_anthropic_messages_handler,
        LiteLLMCompletionTransformationHandler().response_api_handler,
        openai.OpenAIError,
    )


async def _serve(path: Path, library: Library, listening: Callable[[], None]) -> None:
    # handler_cancellation: a client that is gone ends the provider's stream, too.
    runner = web.AppRunner(make_app(library), handler_cancellation=True, access_log=None)
    await runner.setup()
    path.unlink(missing_ok=True)
    await web.UnixSite(runner, str(path)).start()
    listening()
    await asyncio.Event().wait()


def _say(fd: int, line: Mapping[str, Any]) -> None:
    os.write(fd, orjson.dumps(line) + b"\n")
    os.close(fd)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
