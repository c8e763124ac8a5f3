"""Every route through a whole gateway, with a scripted engine behind it: what arrives, what is billed, how it fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from engine import Engine
from gateway_fixtures import Platform, gateway

from gateway.calls import FREE
from gateway.surfaces.table import SURFACES
from registry import endpoints
from registry.ledger import Outcome

ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "What is gravity?"}]},
    "/v1/completions": {"prompt": "Gravity is"},
    "/v1/responses": {"input": "What is gravity?"},
    "/v1/messages": {"messages": [{"role": "user", "content": "What is gravity?"}], "max_tokens": 9},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "What is gravity?"}]},
    "/v1/embeddings": {"input": ["a", "b"]},
    **{path: {"query": "q", "documents": ["a", "b"]} for path in ("/v1/rerank", "/rerank", "/v2/rerank")},
    **{path: {"text_1": "q", "text_2": ["a", "b"]} for path in ("/v1/score", "/score")},
    "/tokenize": {"prompt": "Gravity"},
    "/detokenize": {"tokens": [1, 2]},
}
STREAMING = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
READING = {"/v1/embeddings", "/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/score"}


def claude(platform: Platform, key: str | None = None) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=platform.url, api_key=key or platform.key, max_retries=0, timeout=20)


@pytest.mark.parametrize("path", SURFACES)
async def test_every_route_answers_and_is_billed_to_the_token(tmp_path: Path, path: str) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, platform.http() as http:
        asked = {"model": "tiny", "some_new_parameter": 1, **ASKED[path]}
        async with http.post(path, json=asked) as answer:
            assert answer.status == 200, await answer.text()
            assert isinstance(await answer.json(), dict)
        assert engine.requests == [asked]
        (event,) = await platform.settled()
        free, reading = SURFACES[path].kind in FREE, path in READING
        assert (event.prompt_tokens, event.completion_tokens) == ((0, 0) if free else (14, 0) if reading else (7, 4))
        assert (event.attempt.kind, event.outcome) == (SURFACES[path].kind, Outcome.COMPLETED)


@pytest.mark.parametrize("path", STREAMING)
async def test_every_stream_is_billed_to_the_token(tmp_path: Path, path: str) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.http() as http:
        async with http.post(path, json={"model": "tiny", "stream": True, **ASKED[path]}) as answer:
            assert answer.content_type == "text/event-stream"
            text = await answer.text()
        assert all(piece in text for piece in Engine().pieces)
        (event,) = await platform.settled()
        assert (event.prompt_tokens, event.completion_tokens) == (7, 4)


@pytest.mark.parametrize("path", STREAMING)
async def test_a_client_that_leaves_pays_for_what_had_come(tmp_path: Path, path: str) -> None:
    engine = Engine(hold_after=2)
    async with gateway(tmp_path, engine) as platform:
        async with platform.http() as http:
            answer = await http.post(path, json={"model": "tiny", "stream": True, **ASKED[path]})
            while b"vity" not in await answer.content.readline():
                pass
            answer.close()
        await asyncio.wait_for(engine.aborted.wait(), 10)
        (event,) = await platform.settled()
        assert (event.completion_tokens, event.outcome) == (2, Outcome.CLIENT_LEFT)


@pytest.mark.parametrize("path", STREAMING)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_replica_that_gives_up_is_replaced_unseen(tmp_path: Path, path: str, stream: bool) -> None:
    engines = [Engine(fail="abort"), Engine()]
    async with gateway(tmp_path, *engines) as platform, platform.http() as http:
        for _ in range(2):  # whichever of the two is asked first
            async with http.post(path, json={"model": "tiny", "stream": stream, **ASKED[path]}) as answer:
                assert answer.status == 200
                assert "round" in await answer.text()
        events = await platform.settled(2)
        assert {event.attempt.replica for event in events} == {"replica-2"}


async def test_anthropics_sdk_streams_counts_and_lists(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, claude(platform) as client:
        said: Any = ASKED["/v1/messages"]
        async with client.messages.stream(model="tiny", **said) as stream:
            assert "".join([text async for text in stream.text_stream]) == "Gravity is round."
            whole = await stream.get_final_message()
        assert (whole.usage.input_tokens, whole.usage.output_tokens) == (7, 4)
        counted = await client.messages.count_tokens(model="tiny", messages=said["messages"])
        assert counted.input_tokens == 7
        listed = await client.models.list()
        assert [model.id for model in listed.data] == ["tiny"]
        assert (await client.models.retrieve("tiny")).type == "model"
        with pytest.raises(anthropic.NotFoundError, match="no model is called 'large'"):
            await client.models.retrieve("large")


async def test_anthropics_beta_calls_are_the_same_routes(tmp_path: Path) -> None:
    """Its SDK adds `?beta=true`, which is how coding agents call."""
    async with gateway(tmp_path, Engine()) as platform, claude(platform) as client:
        said: Any = ASKED["/v1/messages"]
        assert (await client.beta.messages.create(model="tiny", **said)).stop_reason == "end_turn"
        counted = await client.beta.messages.count_tokens(model="tiny", messages=said["messages"])
        assert counted.input_tokens == 7


async def test_anthropics_sdk_knows_what_went_wrong(tmp_path: Path) -> None:
    engine = Engine(fail="refuse")
    async with gateway(tmp_path, engine) as platform, claude(platform) as client:
        said: Any = {"model": "tiny", **ASKED["/v1/messages"]}
        with pytest.raises(anthropic.BadRequestError, match="maximum context length") as bad:
            await client.messages.create(**said)
        error: Any = bad.value.body
        assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
        with pytest.raises(anthropic.BadRequestError, match="'priority' is set by the gateway"):
            await client.messages.create(**said, extra_body={"priority": 1})
        with pytest.raises(anthropic.NotFoundError, match="no model is called 'large'"):
            await client.messages.create(**{**said, "model": "large"})
        async with claude(platform, "wrong") as stranger:
            with pytest.raises(anthropic.AuthenticationError):
                await stranger.messages.create(**said)
        async with claude(platform, platform.tenant("poor", token_budget=0)) as poor:
            with pytest.raises(anthropic.RateLimitError) as spent:
                await poor.messages.create(**said)
            assert spent.value.response.headers["x-should-retry"] == "false"
        engine.fail = "500"
        with pytest.raises(anthropic.InternalServerError):
            await client.messages.create(**said)


async def test_a_stream_of_anthropics_that_breaks_off_ends_with_its_error_event(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine(hold_after=2, fail="error event")) as platform, claude(platform) as client:
        heard: list[str] = []
        with pytest.raises(anthropic.APIStatusError, match="out of memory") as broke:
            async with client.messages.stream(model="tiny", **ASKED["/v1/messages"]) as stream:
                async for text in stream.text_stream:
                    heard.append(text)
        assert "".join(heard) == "Gravity "
        error: Any = broke.value.body
        assert error["type"] == "error"
        (event,) = await platform.settled()
        assert (event.prompt_tokens, event.completion_tokens) == (7, 2)
        assert event.outcome is Outcome.UPSTREAM_FAILED


async def test_a_stream_of_a_response_that_breaks_off_is_raised_by_openais_sdk(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine(hold_after=2, fail="error event")) as platform, platform.openai() as client:
        stream = await client.responses.create(model="tiny", input="What is gravity?", stream=True)
        heard = []
        with pytest.raises(openai.APIError, match="out of memory"):
            async for event in stream:
                if event.type == "response.output_text.delta":
                    heard.append(event.delta)
        assert heard == ["Gra", "vity "]


async def test_openais_sdk_embeds(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.openai() as client:
        embedded = await client.embeddings.create(model="tiny", input=["a", "b"], encoding_format="float")
        assert [e.embedding for e in embedded.data] == [[0.5, -0.5], [0.5, -0.5]]
        assert embedded.usage.prompt_tokens == 14


@pytest.mark.parametrize("allowed", [(), ("*.example.org",)])
async def test_pictures_come_from_the_sites_hosts_only(tmp_path: Path, allowed: tuple[str, ...]) -> None:
    engine = Engine()
    part = {"type": "image_url", "image_url": {"url": "https://a.example.org/a.png"}}
    asked = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
    async with (
        gateway(tmp_path, engine, media_hosts=allowed) as platform,
        platform.http() as http,
        http.post("/v1/chat/completions", json=asked) as answer,
    ):
        assert answer.status == (200 if allowed else 400)
        assert allowed or "engines may not fetch from the host 'a.example.org'" in await answer.text()
    assert engine.requests == ([asked] if allowed else [])


async def test_models_are_listed_with_endpoints_and_asked_for_by_name(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.openai() as client:
        endpoints.put(platform.registry, "stable", "alice", targets=[("tiny", 1)])
        listed = {model.id: model for model in (await client.models.list()).data}
        assert set(listed) == {"tiny", "stable"}
        assert listed["stable"].owned_by == "alice" and listed["stable"].created > 0
        assert (await client.models.retrieve("stable")).id == "stable"
        with pytest.raises(openai.NotFoundError, match="there are: stable, tiny"):
            await client.models.retrieve("large")
