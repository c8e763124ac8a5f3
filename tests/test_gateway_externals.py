"""Models that others serve, through a whole gateway, which starts the process that calls their provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from engine import served
from gateway_fixtures import HELLO, Platform, gateway, until
from provider_fixtures import TEXT, Provider

from registry.ledger import Outcome
from registry.site import External

ASK = {**HELLO, "model": "claude"}
MODEL = "anthropic/claude-3-5-haiku-20241022"


@asynccontextmanager
async def platform_with(
    provider: Provider, state_dir: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[Platform]:
    monkeypatch.setenv("CLAUDE_KEY", "provider-secret")
    async with served(provider.app()) as port:
        claude = External(model=MODEL, api_base=f"http://127.0.0.1:{port}", api_key_env="CLAUDE_KEY")
        async with gateway(state_dir, external={"claude": claude}, **settings) as platform:
            yield platform


async def test_an_external_model_answers_and_is_billed_at_its_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider()
    async with platform_with(provider, tmp_path, monkeypatch) as platform, platform.openai() as client:
        answer = await client.chat.completions.create(**ASK, temperature=0.5)
        assert answer.choices[0].message.content == "Apples fall down."
        assert answer.model == "claude"
        (event,) = await platform.settled()
        assert (event.prompt_tokens, event.completion_tokens) == (12, 5)
        assert event.microcredits == 12 * 3 + 5 * 15
        assert provider.keys == ["provider-secret"]
        assert {m.id for m in (await client.models.list()).data} == {"tiny", "claude"}


async def test_an_external_stream_arrives_as_it_comes_and_shows_usage_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider(hold_after=1)
    async with platform_with(provider, tmp_path, monkeypatch) as platform, platform.openai() as client:
        for asked in (False, True):
            provider.go.clear()
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
            assert (usages[-1] is not None) == asked
        counts = [(event.prompt_tokens, event.completion_tokens) for event in await platform.settled(2)]
        assert counts == [(12, 5), (12, 5)]


async def test_a_client_that_leaves_an_external_stream_pays_for_about_what_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider(hold_after=1)
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
    provider = Provider(hold_after=0)
    async with platform_with(provider, tmp_path, monkeypatch) as platform, platform.openai() as client:
        task = asyncio.create_task(client.chat.completions.create(**ASK))
        await until(lambda: provider.requests)
        task.cancel()
        (event,) = await platform.settled()
        assert (event.outcome, event.completion_tokens) == (Outcome.CLIENT_LEFT, 0)
        assert event.prompt_tokens == len("What is gravity?") // 3


async def test_a_providers_error_reaches_the_client_in_our_terms_and_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider()
    async with platform_with(provider, tmp_path, monkeypatch) as platform, platform.openai() as client:
        for theirs, ours in ((400, 400), (401, 502), (429, 429), (500, 502)):
            provider.fail = theirs
            for stream in (False, True):
                with pytest.raises(openai.APIStatusError, match="the provider says no") as failure:
                    await client.chat.completions.create(**ASK, stream=stream)
                assert failure.value.status_code == ours
        assert len(provider.requests) == 8  # not retried behind the client's back
        await platform.settled(0)


async def test_what_cannot_be_sent_reaches_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider()
    async with platform_with(provider, tmp_path, monkeypatch) as platform, platform.openai() as client:
        with pytest.raises(openai.BadRequestError, match="'api_base' cannot be sent"):
            await client.chat.completions.create(**ASK, extra_body={"api_base": "http://127.0.0.1:1"})
        monkeypatch.delenv("CLAUDE_KEY")
        with pytest.raises(openai.InternalServerError, match="CLAUDE_KEY"):
            await client.chat.completions.create(**ASK)
        assert provider.requests == []
        await platform.settled(0)


async def test_an_external_model_answers_anthropics_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider()
    async with platform_with(provider, tmp_path, monkeypatch) as platform:
        client = AsyncAnthropic(base_url=platform.url, api_key=platform.key, max_retries=0, timeout=20)
        async with client:
            answer = await client.messages.create(**ASK)
            assert (answer.content[0].text, answer.model) == ("Apples fall down.", "claude")
            async with client.messages.stream(**ASK) as stream:
                assert "".join([text async for text in stream.text_stream]) == "Apples fall down."
            provider.fail = 429
            with pytest.raises(anthropic.RateLimitError, match="the provider says no"):
                await client.messages.create(**ASK)
        counts = [(event.prompt_tokens, event.completion_tokens) for event in await platform.settled(2)]
        assert counts == [(12, 5), (12, 5)]


async def test_an_external_model_answers_openais_responses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"model": "claude", "input": "What is gravity?", "max_output_tokens": 50, "store": False}
    async with platform_with(Provider(), tmp_path, monkeypatch) as platform, platform.openai() as client:
        answer = await client.responses.create(**asked)
        assert (answer.output_text, answer.model) == ("Apples fall down.", "claude")
        events = [event async for event in await client.responses.create(**asked, stream=True)]
        assert events[-1].response.output_text == "Apples fall down."
        counts = [(event.prompt_tokens, event.completion_tokens) for event in await platform.settled(2)]
        assert counts == [(12, 5), (12, 5)]
