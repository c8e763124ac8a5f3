"""The process that calls providers: LiteLLM itself, asked as the gateway asks it, against a local provider."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import ROOT
from engine import served
from gateway_answers import Answer, counted
from provider_fixtures import TEXT, Provider
from waiting import eventually

from gateway import calls, provider_worker
from gateway.anthropic_metering import MessageMeter, MessageStreamMeter
from gateway.calls import Call, Kind
from gateway.metering import Usage
from gateway.provider_worker import prices
from gateway.providers import Providers
from gateway.responses_metering import ResponseMeter, ResponseStreamMeter
from gateway.surfaces.table import SURFACES
from registry.site import External, Gateway, Scheduler, Site

HELLO = {"model": "claude", "messages": [{"role": "user", "content": "What is gravity?"}], "max_tokens": 50}
PRICED = "anthropic/claude-haiku-4-5"


@dataclass(frozen=True)
class Worker:
    socket: Path
    said: Any  # what it printed once it listened
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    root = Path(tempfile.mkdtemp(prefix="headgate-"))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.provider_worker", str(root / "s"), PRICED, "anthropic/unheard-of"],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        line = process.stdout.readline()
        yield Worker(root / "s", json.loads(line), process)
        process.stdin.close()
        assert process.wait(20) == 0
        assert not (root / "s").exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        shutil.rmtree(root)


@dataclass(frozen=True)
class Asking:
    provider: Provider
    external: External
    session: aiohttp.ClientSession
    providers: Providers

    def call(self, kind: Kind = Kind.CHAT, **fields: Any) -> tuple[Call, bytes]:
        call = calls.read(kind, json.dumps({**HELLO, **fields}).encode())
        return call, self.providers.request(self.external, call)

    async def ask(self, path: str = "/v1/chat/completions", **fields: Any) -> Answer:
        """The whole answer, a stream's events too."""
        call, body = self.call(**fields)
        return await self.post(path, call, body)

    async def post(self, path: str, call: Call, body: bytes) -> Answer:
        async with self.session.post(f"http://providers{path}", data=body) as response:
            return Answer(response.status, dict(response.headers), await response.read(), call)


@pytest.fixture
async def asking(worker: Worker, tmp_path: Path) -> AsyncIterator[Asking]:
    async with asking_with(Provider(), worker, tmp_path) as made:
        yield made


@asynccontextmanager
async def asking_with(
    provider: Provider, worker: Worker, tmp_path: Path, read_timeout: float = 30
) -> AsyncIterator[Asking]:
    async with (
        served(provider.app()) as port,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(worker.socket))) as session,
    ):
        external = External(
            model="anthropic/claude-3-5-haiku-20241022", api_base=f"http://127.0.0.1:{port}", api_key_env="CLAUDE_KEY"
        )
        site = Site(
            name="test",
            state_dir=tmp_path,
            shared_dir=tmp_path,
            gateway=Gateway(read_timeout_s=read_timeout),
            scheduler=Scheduler(kind="local"),
        )
        providers = Providers(site, {"CLAUDE_KEY": "provider-secret"})
        yield Asking(provider, external, session, providers)


async def test_a_whole_answer_is_openais_under_the_name_the_client_used(asking: Asking) -> None:
    answer = await asking.ask(temperature=0.5)
    assert answer.status == 200
    assert answer.json["model"] == "claude"
    assert answer.json["choices"][0]["message"]["content"] == "Apples fall down."
    assert (answer.json["usage"]["prompt_tokens"], answer.json["usage"]["completion_tokens"]) == (12, 5)
    (asked,) = asking.provider.requests
    assert (asked["max_tokens"], asked["temperature"]) == (50, 0.5)
    assert asking.provider.keys == ["provider-secret"]


async def test_a_stream_is_counted_as_an_engine_counts_and_ends_with_the_providers_count(asking: Asking) -> None:
    answer = await asking.ask(stream=True)
    *events, end = answer.events
    assert end == "[DONE]"
    assert "".join(c["delta"].get("content") or "" for e in events for c in e["choices"]) == "Apples fall down."
    assert {e["model"] for e in events} == {"claude"}
    estimate = answer.call.prompt_tokens
    running = [e["usage"] for e in events[:-1]]
    assert {u["prompt_tokens"] for u in running} == {estimate}
    assert [u["completion_tokens"] for u in running if u["completion_tokens"]][:3] == [
        len(json.dumps("Apples ")) // 3,
        (len(json.dumps("Apples ")) + len(json.dumps("fall "))) // 3,
        sum(len(json.dumps(text)) for text in TEXT) // 3,
    ]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {"prompt_tokens": 12, "total_tokens": 17, "completion_tokens": 5}


@pytest.mark.parametrize("asked", [False, True])
async def test_the_gateways_meter_reads_it_and_shows_the_count_only_to_who_asked(asking: Asking, asked: bool) -> None:
    answer = await asking.ask(stream=True, **({"stream_options": {"include_usage": True}} if asked else {}))
    usage, events = counted(answer)
    assert (usage.prompt_tokens, usage.completion_tokens) == (12, 5)
    *events, end = events
    assert end == "[DONE]"
    assert ["usage" in e for e in events] == [False] * (len(events) - 1) + [asked]


async def test_a_stream_arrives_as_it_comes_and_one_that_is_left_ends_the_providers(
    worker: Worker, tmp_path: Path
) -> None:
    async with asking_with(Provider(hold_after=1), worker, tmp_path) as asking:
        _, body = asking.call(stream=True)
        async with asking.session.post("http://providers/v1/chat/completions", data=body) as response:
            came = b""
            while b"Apples" not in came:
                came += await response.content.readany()
        await asyncio.wait_for(asking.provider.left.wait(), 10)


async def test_a_stream_that_a_provider_breaks_off_ends_with_an_error_and_no_done(
    worker: Worker, tmp_path: Path
) -> None:
    async with asking_with(Provider(hold_after=2, die=True), worker, tmp_path) as asking:
        answer = await asking.ask(stream=True)
        assert answer.status == 200
        assert answer.events[-1]["error"]["code"] == "upstream_failed"
        usage, _ = counted(answer)
        assert usage.completion_tokens == (len(json.dumps("Apples ")) + len(json.dumps("fall "))) // 3


async def test_a_whole_answer_may_take_longer_than_the_wait_between_two_reads(worker: Worker, tmp_path: Path) -> None:
    async with asking_with(Provider(hold_after=0), worker, tmp_path, read_timeout=0.1) as asking:
        waiting = asyncio.create_task(asking.ask())

        async def asked() -> bool:
            return bool(asking.provider.requests)

        await eventually(asked)
        await asyncio.wait([waiting], timeout=0.5)
        assert not waiting.done()
        asking.provider.go.set()
        assert (await waiting).status == 200
        assert len(asking.provider.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("theirs", "ours"), [(400, 400), (401, 502), (403, 502), (408, 502), (429, 429), (500, 502)])
async def test_a_providers_error_is_told_in_our_terms_and_is_not_tried_again(
    worker: Worker, tmp_path: Path, theirs: int, ours: int, stream: bool
) -> None:
    async with asking_with(Provider(fail=theirs), worker, tmp_path) as asking:
        answer = await asking.ask(stream=stream)
        assert answer.status == ours
        error = answer.json["error"]
        assert "the provider says no" in error["message"]
        assert "provider-secret" not in error["message"]
        types = {400: "invalid_request_error", 429: "requests", 502: "server_error"}
        assert error["type"] == types[ours]
        assert answer.headers.get("Retry-After") == ("10" if ours == 429 else None)
        assert len(asking.provider.requests) == 1


async def test_a_provider_that_cannot_be_reached_is_502(asking: Asking) -> None:
    call = calls.read(Kind.CHAT, json.dumps(HELLO).encode())
    nowhere = External(model="anthropic/claude-3-5-haiku-20241022", api_base="http://127.0.0.1:9", api_key_env=None)
    answer = await asking.post("/v1/chat/completions", call, asking.providers.request(nowhere, call))
    assert answer.status == 502


def message_call(asking: Asking, **fields: Any) -> tuple[Call, bytes]:
    call = SURFACES["/v1/messages"].read(json.dumps({**HELLO, **fields}).encode())
    return call, asking.providers.request(asking.external, call)


async def test_anthropics_messages_are_answered_and_counted(asking: Asking) -> None:
    mine = {"name": "f", "input_schema": {"type": "object", "properties": {}}}
    call, body = message_call(asking, tools=[mine], metadata={"user_id": "u"}, system="Be short.")
    answer = await asking.post("/v1/messages", call, body)
    assert (answer.status, answer.json["model"]) == (200, "claude")
    assert answer.json["content"] == [{"type": "text", "text": "Apples fall down."}]
    meter = MessageMeter(call)
    meter.whole(answer.body)
    assert meter.usage == Usage(12, 5)
    (asked,) = asking.provider.requests
    assert (asked["metadata"], asked["tools"][0]["name"]) == ({"user_id": "u"}, "f")
    assert "Be short." in json.dumps(asked["system"])


async def test_a_stream_of_messages_names_the_model_and_is_counted(asking: Asking) -> None:
    call, body = message_call(asking, stream=True)
    answer = await asking.post("/v1/messages", call, body)
    meter = MessageStreamMeter(call)
    shown = (meter.feed(answer.body) + meter.rest()).decode()
    assert meter.failure is None
    assert meter.usage == Usage(12, 5)
    assert shown.startswith("event: message_start\n") and '"model":"claude"' in shown
    assert shown.count("text_delta") == 3


async def test_a_stream_of_messages_that_is_left_ends_the_providers_and_is_not_free(
    worker: Worker, tmp_path: Path
) -> None:
    async with asking_with(Provider(hold_after=1), worker, tmp_path) as asking:
        call, body = message_call(asking, stream=True)
        meter = MessageStreamMeter(call)
        async with asking.session.post("http://providers/v1/messages", data=body) as response:
            while not (meter.usage and meter.usage.completion_tokens):
                meter.feed(await response.content.readany())
        assert meter.usage == Usage(call.prompt_tokens, 1)
        await asyncio.wait_for(asking.provider.left.wait(), 10)


async def test_a_stream_of_messages_that_a_provider_breaks_off_says_so(worker: Worker, tmp_path: Path) -> None:
    async with asking_with(Provider(hold_after=2, die=True), worker, tmp_path) as asking:
        call, body = message_call(asking, stream=True)
        answer = await asking.post("/v1/messages", call, body)
        meter = MessageStreamMeter(call)
        meter.feed(answer.body)
        assert meter.failure
        assert meter.usage == Usage(call.prompt_tokens, 2)


def response_call(asking: Asking, **fields: Any) -> tuple[Call, bytes]:
    asked = {"model": "claude", "input": "What is gravity?", "max_output_tokens": 50, **fields}
    call = SURFACES["/v1/responses"].read(json.dumps(asked).encode())
    return call, asking.providers.request(asking.external, call)


async def test_openais_responses_are_answered_and_counted(asking: Asking) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    call, body = response_call(asking, tools=[tool], instructions="Be short.")
    answer = await asking.post("/v1/responses", call, body)
    assert (answer.status, answer.json["model"], answer.json["status"]) == (200, "claude", "completed")
    assert answer.json["output"][0]["content"][0]["text"] == "Apples fall down."
    meter = ResponseMeter(call)
    meter.whole(answer.body)
    assert meter.usage == Usage(12, 5)
    (asked,) = asking.provider.requests
    assert (asked["max_tokens"], asked["tools"][0]["name"]) == (50, "f")
    assert "Be short." in json.dumps(asked["system"])


async def test_a_stream_of_a_response_names_the_model_and_is_counted(asking: Asking) -> None:
    call, body = response_call(asking, stream=True)
    answer = await asking.post("/v1/responses", call, body)
    meter = ResponseStreamMeter(call)
    shown = (meter.feed(answer.body) + meter.rest()).decode()
    assert meter.failure is None
    assert meter.usage == Usage(12, 5)
    said = [json.loads(event.partition("\ndata: ")[2]) for event in shown.removesuffix("\n\n").split("\n\n")]
    assert [event["sequence_number"] for event in said] == list(range(len(said)))
    assert {event["response"]["model"] for event in said if "response" in event} == {"claude"}
    assert "".join(e["delta"] for e in said if e["type"] == "response.output_text.delta") == "Apples fall down."
    assert (said[0]["type"], said[-1]["type"]) == ("response.created", "response.completed")


async def test_a_stream_of_a_response_that_is_left_ends_the_providers(worker: Worker, tmp_path: Path) -> None:
    async with asking_with(Provider(hold_after=1), worker, tmp_path) as asking:
        call, body = response_call(asking, stream=True)
        meter = ResponseStreamMeter(call)
        async with asking.session.post("http://providers/v1/responses", data=body) as response:
            while not (meter.usage and meter.usage.completion_tokens):
                meter.feed(await response.content.readany())
        await asyncio.wait_for(asking.provider.left.wait(), 10)


async def test_a_stream_of_a_response_that_a_provider_breaks_off_says_so(worker: Worker, tmp_path: Path) -> None:
    async with asking_with(Provider(hold_after=2, die=True), worker, tmp_path) as asking:
        call, body = response_call(asking, stream=True)
        answer = await asking.post("/v1/responses", call, body)
        meter = ResponseStreamMeter(call)
        meter.feed(answer.body)
        assert meter.failure
        assert meter.usage is not None and meter.usage.completion_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("call_of", [message_call, response_call])
async def test_an_error_of_another_surface_has_our_status(
    worker: Worker, tmp_path: Path, stream: bool, call_of: Callable[..., tuple[Call, bytes]]
) -> None:
    for theirs, ours in ((400, 400), (401, 502), (429, 429)):
        async with asking_with(Provider(fail=theirs), worker, tmp_path) as asking:
            call, body = call_of(asking, stream=stream)
            answer = await asking.post(calls.PATHS[call.kind], call, body)
            assert answer.status == ours
            assert "the provider says no" in answer.json["error"]["message"]


async def test_embeddings_are_asked_for(asking: Asking) -> None:
    external = External(
        model="openai/text-embedding-3-small", api_base=f"{asking.external.api_base}/v1", api_key_env="CLAUDE_KEY"
    )
    call = SURFACES["/v1/embeddings"].read(b'{"model": "small", "input": "gravity"}')
    answer = await asking.post("/v1/embeddings", call, asking.providers.request(external, call))
    assert (answer.status, answer.json["model"]) == (200, "small")
    assert answer.json["data"][0]["embedding"] == [0.5, 0.25]
    assert answer.json["usage"]["prompt_tokens"] == 4
    assert asking.provider.keys == ["Bearer provider-secret"]
    assert asking.provider.requests[0]["model"] == "text-embedding-3-small"


async def test_a_tool_of_the_clients_own_reaches_the_provider(asking: Asking) -> None:
    function = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    assert (await asking.ask(tools=[function])).status == 200
    assert [tool["name"] for tool in asking.provider.requests[0]["tools"]] == ["f"]


def test_only_its_owner_may_call_it(worker: Worker) -> None:
    assert stat.S_IMODE(worker.socket.stat().st_mode) & 0o077 == 0


def test_a_signal_to_the_whole_group_does_not_end_it(worker: Worker) -> None:
    worker.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(0.3)


def test_it_says_the_prices_of_those_models_that_litellm_knows(worker: Worker) -> None:
    assert set(worker.said["prices"]) == {PRICED}
    prompt, completion, cached = worker.said["prices"][PRICED]
    assert 0 < cached < prompt < completion < 1e-3


def test_a_price_is_found_by_the_whole_name_or_within_the_provider_only() -> None:
    gpt = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, "cache_read_input_token_cost": 1e-7}
    costs = {
        "gpt": {**gpt, "litellm_provider": "openai"},
        "gemini/flash": {"input_cost_per_token": 3e-6, "output_cost_per_token": 4e-6, "litellm_provider": "gemini"},
        "embed": {"input_cost_per_token": 5e-6, "litellm_provider": "openai"},
        "picture": {"output_cost_per_image": 1.0, "litellm_provider": "openai"},
    }
    asked = ["openai/gpt", "azure/gpt", "gemini/flash", "openai/embed", "openai/picture", "openai/gone", "gpt"]
    assert prices(costs, asked) == {
        "openai/gpt": (1e-6, 2e-6, 1e-7),
        "gemini/flash": (3e-6, 4e-6, None),
        "openai/embed": (5e-6, 0.0, None),
        "gpt": (1e-6, 2e-6, 1e-7),
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_provider_had_cached_is_told_apart(asking: Asking, stream: bool) -> None:
    asking.provider.cached = 8
    chat = asking.call(stream=stream)
    message, response = message_call(asking, stream=stream), response_call(asking, stream=stream)
    for path, (call, body) in (
        ("/v1/chat/completions", chat),
        ("/v1/messages", message),
        ("/v1/responses", response),
    ):
        answer = await asking.post(path, call, body)
        surface = SURFACES[path]
        if stream:
            assert surface.stream_meter is not None
            streamed = surface.stream_meter(call)
            streamed.feed(answer.body)
            streamed.rest()
            assert (streamed.usage, streamed.failure) == (Usage(12, 5, cached_tokens=8), None), path
        else:
            meter = surface.meter(call)
            meter.whole(answer.body)
            assert meter.usage == Usage(12, 5, cached_tokens=8), path


def test_a_providers_reasoning_is_told_as_an_engine_tells_it() -> None:
    total = {
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 8, "text_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    assert provider_worker.counted(total) == {
        "prompt_tokens": 12,
        "total_tokens": 17,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
