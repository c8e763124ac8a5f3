"""Models that others serve: through LiteLLM, against a local server that speaks Anthropic's Messages API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from engine import served
from gateway_fixtures import HELLO, Platform, gateway, until

from registry.ledger import Outcome
from registry.site import External

ASK = {**HELLO, "model": "claude"}
TEXT = ["Apples ", "fall ", "down."]


@dataclass
class Anthropic:
    """`POST /v1/messages`, whole and streamed."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    fail: int | None = None
    hold_after: int | None = None
    go: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def messages(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("x-api-key"))
        if self.fail is not None:
            error = {"type": "error", "error": {"type": "some_error", "message": "the provider says no"}}
            return web.json_response(error, status=self.fail)
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "stop_sequence": None}
        if not body.get("stream"):
            if self.hold_after is not None:
                await self.go.wait()
            content = [{"type": "text", "text": "".join(TEXT)}]
            usage = {"input_tokens": 12, "output_tokens": 5}
            return web.json_response({**message, "content": content, "stop_reason": "end_turn", "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(kind: str, **rest: Any) -> None:
            await response.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **rest})}\n\n".encode())

        try:
            start = {**message, "content": [], "stop_reason": None, "usage": {"input_tokens": 12, "output_tokens": 1}}
            await send("message_start", message=start)
            await send("content_block_start", index=0, content_block={"type": "text", "text": ""})
            for n, text in enumerate(TEXT):
                if n == self.hold_after:
                    await self.go.wait()
                await send("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
            await send("content_block_stop", index=0)
            delta = {"stop_reason": "end_turn", "stop_sequence": None}
            await send("message_delta", delta=delta, usage={"output_tokens": 5})
            await send("message_stop")
        except asyncio.CancelledError:
            self.left.set()
            raise
        return response


@asynccontextmanager
async def platform_with(
    provider: Anthropic, state_dir: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[Platform]:
    monkeypatch.setenv("CLAUDE_KEY", "provider-secret")
    app = web.Application()
    app.router.add_post("/v1/messages", provider.messages)
    async with served(app) as port:
        claude = External(
            model="anthropic/claude-3-5-haiku-20241022", api_base=f"http://127.0.0.1:{port}", api_key_env="CLAUDE_KEY"
        )
        async with gateway(state_dir, external={"claude": claude}, **settings) as platform:
            yield platform


async def test_an_external_model_answers_and_is_billed_at_its_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Anthropic()
    async with platform_with(provider, tmp_path, monkeypatch) as platform, platform.openai() as client:
        answer = await client.chat.completions.create(**ASK, temperature=0.5)
        assert answer.choices[0].message.content == "Apples fall down."
        assert answer.model == "claude"
        assert provider.keys == ["provider-secret"]
        assert (provider.requests[0]["max_tokens"], provider.requests[0]["temperature"]) == (50, 0.5)
        (event,) = await platform.settled()
        assert (event.prompt_tokens, event.completion_tokens) == (12, 5)
        assert event.microcredits == 12 * 3 + 5 * 15
        assert event.attempt.replica == "anthropic/claude-3-5-haiku-20241022"
        assert {m.id for m in (await client.models.list()).data} == {"tiny", "claude"}


async def test_a_provider_is_told_the_bound_that_a_budget_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Anthropic()
    async with platform_with(provider, tmp_path, monkeypatch) as platform:
        async with platform.openai(platform.tenant("biology", token_budget=2000)) as client:
            await client.chat.completions.create(model="claude", messages=ASK["messages"])
        assert provider.requests[0]["max_tokens"] == 1024


@pytest.mark.parametrize("asked", [False, True])
async def test_an_external_stream_arrives_as_it_comes_and_shows_usage_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    provider = Anthropic(hold_after=1)
    async with platform_with(provider, tmp_path, monkeypatch) as platform, platform.openai() as client:
        options = {"stream_options": {"include_usage": True}} if asked else {}
        text, usages = "", []
        async for chunk in await client.chat.completions.create(**ASK, stream=True, **options):
            usages.append(chunk.usage)
            for choice in chunk.choices:
                text += choice.delta.content or ""
            if text == TEXT[0]:
                provider.go.set()
        assert text == "Apples fall down."
        assert not any(usages[:-1])
        if asked:
            assert (usages[-1].prompt_tokens, usages[-1].completion_tokens) == (12, 5)
        else:
            assert usages[-1] is None
        (event,) = await platform.settled()
        assert (event.prompt_tokens, event.completion_tokens) == (12, 5)


async def test_an_external_whole_answer_may_take_longer_than_the_wait_between_two_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Anthropic(hold_after=0)
    async with (
        platform_with(provider, tmp_path, monkeypatch, read_timeout_s=0.1) as platform,
        platform.openai() as client,
    ):
        task = asyncio.create_task(client.chat.completions.create(**ASK))
        await until(lambda: provider.requests)
        await asyncio.wait([task], timeout=0.5)
        provider.go.set()
        assert (await task).choices[0].message.content == "Apples fall down."
        assert len(provider.requests) == 1
        await platform.settled()


async def test_a_client_that_leaves_an_external_stream_pays_for_about_what_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Anthropic(hold_after=1)
    async with platform_with(provider, tmp_path, monkeypatch) as platform, platform.openai() as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        await until(provider.left.is_set)
        (event,) = await platform.settled()
        assert event.outcome is Outcome.CLIENT_LEFT
        assert event.completion_tokens == len('"Apples "') // 3


async def test_a_client_that_leaves_an_external_whole_answer_pays_about_its_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Anthropic(hold_after=0)
    async with platform_with(provider, tmp_path, monkeypatch) as platform, platform.openai() as client:
        task = asyncio.create_task(client.chat.completions.create(**ASK))
        await until(lambda: provider.requests)
        task.cancel()
        (event,) = await platform.settled()
        assert (event.outcome, event.completion_tokens) == (Outcome.CLIENT_LEFT, 0)
        assert event.prompt_tokens == len("What is gravity?") // 3


@pytest.mark.parametrize(("theirs", "ours"), [(400, 400), (401, 502), (429, 429), (500, 502)])
async def test_a_providers_error_is_told_in_our_terms_and_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: int, ours: int
) -> None:
    provider = Anthropic(fail=theirs)
    async with platform_with(provider, tmp_path, monkeypatch) as platform, platform.openai() as client:
        for stream in (False, True):
            with pytest.raises(openai.APIStatusError, match="the provider says no") as failure:
                await client.chat.completions.create(**ASK, stream=stream)
            assert failure.value.status_code == ours
        assert len(provider.requests) == 2  # not retried behind the client's back
        await platform.settled(0)


async def test_a_provider_without_its_key_is_502_and_says_which_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with platform_with(Anthropic(), tmp_path, monkeypatch) as platform, platform.openai() as client:
        monkeypatch.delenv("CLAUDE_KEY")
        with pytest.raises(openai.InternalServerError, match="CLAUDE_KEY"):
            await client.chat.completions.create(**ASK)
        await platform.settled(0)


@pytest.mark.parametrize(
    "name",
    """api_base api_key api_version base_url caching client context_window_fallback_dict cooldown_time
    custom_llm_provider deployment_id drop_params extra_body extra_headers fallbacks headers http_client
    input_cost_per_token litellm_logging_obj max_retries metadata mock_response mock_timeout mock_tool_calls
    model_list num_retries organization output_cost_per_token proxy_server_request shared_session ssl_verify
    timeout web_search_options
    """.split(),
)
async def test_a_field_that_would_configure_the_library_is_400_and_reaches_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    provider = Anthropic()
    async with platform_with(provider, tmp_path, monkeypatch) as platform, platform.openai() as client:
        with pytest.raises(
            openai.BadRequestError, match=rf"'{name}' cannot be sent .*allowed: .*temperature"
        ) as failure:
            await client.chat.completions.create(**ASK, extra_body={name: "http://127.0.0.1:1"})
        assert failure.value.param == name
        assert provider.requests == []
        await platform.settled(0)


async def test_only_tools_that_the_client_runs_itself_may_be_sent_to_a_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Anthropic()
    function = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    async with platform_with(provider, tmp_path, monkeypatch) as platform, platform.openai() as client:
        await client.chat.completions.create(**ASK, tools=[function])
        for tools in ([{"type": "mcp", "server_url": "http://127.0.0.1:1"}], ["search"]):
            with pytest.raises(openai.BadRequestError, match="'tools'"):
                await client.chat.completions.create(**ASK, extra_body={"tools": tools})
        assert len(provider.requests) == 1
        await platform.settled(1)
