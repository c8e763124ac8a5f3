"""Models that others serve, through LiteLLM: the only module that imports it, at first use and in a thread.

Importing it costs 3 CPU-seconds and 180 MiB, which a site without external models never pays.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway import relay
from gateway.calls import BYTES_PER_TOKEN, Call, Kind
from gateway.errors import BadRequest, GatewayError, TooManyRequests, UpstreamFailed
from gateway.metering import Meter, Usage
from registry.site import External

OURS = frozenset({"model", "messages", "stream", "stream_options"})  # read by the gateway, and sent in its own words
# Passed on as they are. Nothing else is: LiteLLM takes its own settings from the same arguments, and with `api_base`,
# `fallbacks` or `mock_response` a client could have the provider's key sent to itself, or answers that nobody bills.
PASSED_ON = frozenset(
    "frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens n "
    "parallel_tool_calls presence_penalty reasoning_effort response_format seed stop temperature tool_choice tools "
    "top_logprobs top_p user verbosity".split()
)


@dataclass(frozen=True, slots=True)
class _Library:
    litellm: Any
    failures: type[Exception]  # what every error of LiteLLM derives from


class Providers:
    """`environ` holds the providers' keys; `read_timeout` is in seconds, for each wait of a stream."""

    def __init__(self, environ: Mapping[str, str], read_timeout: float) -> None:
        self._environ = environ
        self._read_timeout = read_timeout
        self._library: _Library | None = None
        self._loading = asyncio.Lock()

    async def close(self) -> None:
        """x"""

    async def whole(self, external: External, call: Call, meter: Meter) -> bytes:
        """The answer as JSON in OpenAI's shape. Raises GatewayError."""
        answer = (await self._complete(external, call, meter)).model_dump(exclude_none=True)
        return orjson.dumps({**answer, "model": call.model})

    async def stream(self, external: External, call: Call, meter: Meter) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events. Raises GatewayError.

        Providers count at the end. Until then the meter gets an estimate from the text that came so far, so that a
        stream that breaks off is not free.
        """
        chunks = await self._complete(external, call, meter)
        assert self._library is not None
        size = 0
        head: dict[str, Any] = {}
        try:
            async for chunk in chunks:
                event = chunk.model_dump(exclude_none=True)
                event["model"] = call.model
                usage = event.pop("usage", None)
                head = {name: event[name] for name in ("id", "object", "created", "model") if name in event}
                if usage is not None:
                    meter.count(Usage(usage["prompt_tokens"], usage["completion_tokens"]))
                    if not any(c.get("delta") or c.get("finish_reason") for c in event.get("choices", [])):
                        continue
                else:
                    size += sum(len(orjson.dumps(c.get("delta", {}).get("content", ""))) for c in event["choices"])
                    meter.count(Usage(call.prompt_tokens, size // BYTES_PER_TOKEN))
                yield b"data: " + orjson.dumps(event) + b"\n\n"
        except self._library.failures as e:
            raise _failure(external, e) from e
        finally:
            await chunks.aclose()
        used = meter.usage
        if call.wants_usage and used is not None:
            counts = {
                "prompt_tokens": used.prompt_tokens,
                "completion_tokens": used.completion_tokens,
                "total_tokens": used.tokens,
            }
            yield b"data: " + orjson.dumps({**head, "choices": [], "usage": counts}) + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def _complete(self, external: External, call: Call, meter: Meter) -> Any:
        if call.kind is not Kind.CHAT:
            raise BadRequest(f"{call.model} is served by a provider, which answers /v1/chat/completions only", "model")
        for name in sorted(call.fields.keys() - OURS - PASSED_ON):
            allowed = ", ".join(sorted(OURS | PASSED_ON))
            raise BadRequest(
                f"{name!r} cannot be sent to {call.model}, which a provider serves; allowed: {allowed}", name
            )
        for tool in call.fields.get("tools") or []:
            # A provider runs tools of its own (search, code) at its own price, and LiteLLM reaches out for some.
            if not isinstance(tool, dict) or tool.get("type") != "function":
                raise BadRequest(
                    f"'tools' of {call.model}, which a provider serves, must be of type 'function'", "tools"
                )
        key = None
        if external.api_key_env is not None:
            key = self._environ.get(external.api_key_env)
            if not key:
                raise UpstreamFailed(f"{call.model}: its provider's key is not set ({external.api_key_env})")
        library = await self._load()
        meter.sent()
        try:
            return await library.litellm.acompletion(
                **{name: value for name, value in call.fields.items() if name in PASSED_ON},
                model=external.model,
                messages=call.fields["messages"],
                stream=call.stream,
                stream_options={"include_usage": True} if call.stream else None,
                api_base=external.api_base,
                api_key=key,
                timeout=self._read_timeout if call.stream else relay.WHOLE_S,
                num_retries=0,
                max_retries=0,
                _skip_mcp_handler=True,  # it imports a package we do not install, whatever the tools are
            )
        except library.failures as e:
            raise _failure(external, e) from e

    async def _load(self) -> _Library:
        async with self._loading:
            if self._library is None:
                self._library = await asyncio.to_thread(_import)
            return self._library


def _import() -> _Library:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise the import fetches it
    import litellm
    import openai

    litellm.suppress_debug_info = True  # it prints advertisements to stdout on errors
    return _Library(litellm, openai.OpenAIError)


def _failure(external: External, error: Exception) -> GatewayError:
    """A provider's refusal of our key is not the client's 401; what the client can mend, it is told."""
    status = getattr(error, "status_code", None)
    text = f"{external.model}: {error}"
    if status == 429:
        return TooManyRequests(text, 10)
    if isinstance(status, int) and 400 <= status < 500 and status not in (401, 403, 408):
        return BadRequest(text)
    return UpstreamFailed(text)
