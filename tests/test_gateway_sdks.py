"""The SDKs that people use, and curl, against the gateway with a real vLLM behind it.

One engine serves the whole file (and others): a small Llama with random weights, so that what it says is nonsense of
the right shape. Routes of models that generate nothing (embeddings, rankings, scores) are driven with the scripted
engine, in test_gateway_routes.py: they would need a second engine.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pytest
from anthropic import Anthropic, AsyncAnthropic
from cutting import cutting
from engine import Engine
from gateway_fixtures import Platform, prepared, site_at, started
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, SecretStr
from vllm_fixtures import CONTEXT
from waiting import wait_for

from registry import tenants
from registry.ledger import Outcome
from registry.limits import Limits

pytestmark = pytest.mark.chain
ROOM = 900  # tokens for the call of a tool: between its words a random model puts blanks, tens or hundreds
LONG = 96  # tokens of a stream that breaks: a busy engine puts several into an event, and there must be some left
ASK: list[Any] = [{"role": "user", "content": "def f("}]
TOOL = {
    "name": "paint",
    "description": "Paint it.",
    "strict": True,  # else an engine leaves the arguments to the model, which is a random one
    "parameters": {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}


class Colour(BaseModel):
    colour: Literal["red", "blue"]


@pytest.fixture(scope="module")
def platform(vllm: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A gateway on a thread of its own, so that SDKs may block in the test's."""
    made = prepared(site_at(tmp_path_factory.mktemp("gateway")))
    made.ready(vllm)
    loop = asyncio.new_event_loop()
    listens, over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with started(made):
            listens.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert listens.wait(30)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)
        loop.close()
        made.registry.close()


@dataclass(frozen=True)
class Client:
    """A tenant of its own for each test, so that its bill is the test's."""

    platform: Platform
    name: str
    key: str

    @property
    def url(self) -> str:
        return self.platform.url

    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60)

    def aopenai(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60)

    def anthropic(self) -> Anthropic:
        return Anthropic(base_url=self.url, api_key=self.key, max_retries=0, timeout=60)

    def aanthropic(self) -> AsyncAnthropic:
        return AsyncAnthropic(base_url=self.url, api_key=self.key, max_retries=0, timeout=60)

    def langchain(self, **settings: Any) -> ChatOpenAI:
        url, key = f"{self.url}/v1", SecretStr(self.key)
        return ChatOpenAI(model="tiny", base_url=url, api_key=key, max_retries=0, timeout=60, **settings)

    def curl(self, path: str, body: dict[str, Any], *flags: str) -> str:
        words = ["curl", "-sS", "-m", "60", "-H", f"Authorization: Bearer {self.key}", *flags]
        words += ["-H", "Content-Type: application/json", "-d", json.dumps(body), self.url + path]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=90).stdout

    def billed(self, requests: int = 1) -> tuple[int, int]:
        """Tokens of the prompts and of the answers, once so many requests are settled."""

        def events() -> list[Any]:
            found = [e for e in self.platform.events() if e.attempt.tenant == self.name]
            return found if len(found) >= requests and self.platform.open_holds() == 0 else []

        settled = wait_for(events)
        assert len(settled) == requests
        return sum(e.prompt_tokens for e in settled), sum(e.completion_tokens for e in settled)


@pytest.fixture
def client(platform: Platform, request: pytest.FixtureRequest) -> Client:
    return tenant(platform, request)


def tenant(platform: Platform, request: pytest.FixtureRequest, requests_per_minute: int | None = None) -> Client:
    name = f"t{abs(hash(request.node.nodeid)) % 10**9}" + ("-hasty" if requests_per_minute else "")
    tenants.create(platform.registry, name, "root", limited=Limits(requests_per_minute=requests_per_minute))
    return Client(platform, name, platform.new_key(name))


def counts(usage: Any) -> tuple[int, int]:
    return usage.prompt_tokens, usage.completion_tokens


def test_openai_chats(client: Client) -> None:
    with client.openai() as sdk:
        answer = sdk.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=8, n=2, logprobs=True, top_logprobs=2, seed=1
        )
        assert len(answer.choices) == 2
        logprobs = answer.choices[1].logprobs
        assert logprobs and logprobs.content and len(logprobs.content[0].top_logprobs) == 2
        assert answer.usage and client.billed() == counts(answer.usage)
        assert answer._request_id


def test_openai_streams_chats_with_the_counts_asked_for_and_no_others(client: Client) -> None:
    with client.openai() as sdk:
        plain = list(sdk.chat.completions.create(model="tiny", messages=ASK, max_tokens=8, n=2, stream=True))
        assert {choice.index for chunk in plain for choice in chunk.choices} == {0, 1}
        assert all(chunk.usage is None for chunk in plain)
        prompt, completion = client.billed()
        assert prompt > 0 and 2 <= completion <= 16
        counted = list(
            sdk.chat.completions.create(
                model="tiny", messages=ASK, max_tokens=8, stream=True, stream_options={"include_usage": True}
            )
        )
    assert [chunk.usage is not None for chunk in counted] == [False] * (len(counted) - 1) + [True]
    used = counts(counted[-1].usage)
    assert client.billed(2) == (prompt + used[0], completion + used[1])


async def test_openai_chats_asynchronously(client: Client) -> None:
    async with client.aopenai() as sdk:
        whole = await sdk.chat.completions.create(model="tiny", messages=ASK, max_tokens=8)
        assert whole.usage and whole.choices[0].finish_reason in ("length", "stop")
        async with sdk.chat.completions.stream(model="tiny", messages=ASK, max_tokens=8) as stream:
            kinds = [event.type async for event in stream]
    assert kinds[0] == "chunk" and "content.delta" in kinds
    await asyncio.to_thread(client.billed, 2)


def test_openai_completes(client: Client) -> None:
    with client.openai() as sdk:
        answer = sdk.completions.create(model="tiny", prompt=["def f(", "import"], max_tokens=4, logprobs=1, echo=True)
        assert len(answer.choices) == 2 and answer.choices[0].text.startswith("def f(")
        assert answer.choices[0].logprobs and answer.usage
        first = counts(answer.usage)
        assert client.billed() == first
        text = "".join(c.choices[0].text for c in sdk.completions.create(
            model="tiny", prompt="def f(", max_tokens=4, stream=True, extra_body={"ignore_eos": True}
        ))  # fmt: skip
        assert text
    assert client.billed(2)[1] == first[1] + 4


@pytest.mark.parametrize("kind", ["chat", "completion"])
async def test_openai_notices_nothing_of_a_replica_lost_in_mid_stream(vllm: Engine, tmp_path: Path, kind: str) -> None:
    """What follows is what the engine says to the prompt and the text so far, less the white space at its end that the
    engine writes again. Whether there is any depends on the machine: on its arithmetic, and on tokens per event."""
    site = prepared(site_at(tmp_path, continue_streams=True))
    chat = kind == "chat"
    how: Any = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}
    asked: Any = {"messages": ASK} if chat else {"prompt": "def f("}
    counting: Any = {"stream": True, "stream_options": {"include_usage": True}}
    async with cutting(vllm, after=4) as breaking:
        site.ready(breaking, "replica-1")
        site.ready(vllm, "replica-2")
        async with started(site), site.openai() as sdk:
            create: Any = sdk.chat.completions.create if chat else sdk.completions.create
            chunks = [chunk async for chunk in await create(**how, **asked, **counting, max_tokens=LONG)]
            lost, rest = await site.settled(2)
            assert (lost.outcome, rest.outcome) == (Outcome.UPSTREAM_FAILED, Outcome.COMPLETED)
            assert 0 < lost.completion_tokens < LONG == lost.completion_tokens + rest.completion_tokens
            assert counts(chunks[-1].usage) == (lost.prompt_tokens, LONG)
            assert len({chunk.id for chunk in chunks}) == 1
            told = [c.choices[0].delta.content or "" if chat else c.choices[0].text for c in chunks[:-1]]
            (continued,) = [n for n, chunk in enumerate(chunks) if getattr(chunk, "headgate", None)]
            so_far, space = "".join(told[:continued]), ""
            site.gone("replica-1")
            repeats = 0
            if chat:
                replayed = so_far.rstrip()  # as templates leave it
                space = so_far.removeprefix(replayed)
                before = [len("".join(told[:n])) for n in range(continued)]
                repeats = sum(bool(t) and at + len(t) > len(replayed) for at, t in zip(before, told, strict=False))
                asked = {"messages": [*ASK, {"role": "assistant", "content": replayed}]}
                how["extra_body"] |= {"add_generation_prompt": False, "continue_final_message": True}
            else:
                asked = {"prompt": "def f(" + so_far}
            (choice,) = (await create(**how, **asked, max_tokens=rest.completion_tokens + repeats)).choices
            said = choice.message.content if chat else choice.text
            again = next(n for n in range(len(space), -1, -1) if said.startswith(space[:n]))
            assert so_far and said and so_far + said[again:] == "".join(told)
    site.registry.close()


def test_openai_gets_json_of_a_schema(client: Client) -> None:
    with client.openai() as sdk:
        answer = sdk.chat.completions.parse(model="tiny", messages=ASK, max_tokens=100, response_format=Colour)
    assert answer.choices[0].message.parsed
    assert answer.choices[0].message.parsed.colour in ("red", "blue")


def test_openai_calls_tools(client: Client) -> None:
    chosen: Any = {"type": "function", "function": {"name": "paint"}}
    tool: Any = {"type": "function", "function": TOOL}
    asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "tools": [tool], "tool_choice": chosen}
    with client.openai() as sdk:
        answer = sdk.chat.completions.create(**asked, max_tokens=ROOM)
        assert answer.choices[0].message.tool_calls
        call = answer.choices[0].message.tool_calls[0]
        assert call.type == "function" and json.loads(call.function.arguments)["colour"] in ("red", "blue")
        arguments = ""
        for chunk in sdk.chat.completions.create(**asked, max_tokens=ROOM, stream=True):
            for delta in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
                if delta.index == 0 and delta.function:
                    arguments += delta.function.arguments or ""
        assert json.loads(arguments)["colour"] in ("red", "blue")
        again = [*ASK, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
        assert sdk.chat.completions.create(model="tiny", messages=again, max_tokens=4).choices
    client.billed(3)


def test_openai_responds(client: Client) -> None:
    with client.openai() as sdk:
        answer = sdk.responses.create(model="tiny", input="def f(", max_output_tokens=8)
        assert answer.usage and client.billed() == (answer.usage.input_tokens, answer.usage.output_tokens)
        events = list(sdk.responses.create(model="tiny", input=ASK, max_output_tokens=8, stream=True))
    assert events[0].type == "response.created"
    last = events[-1]
    assert last.type == "response.completed" and last.response.usage
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == last.response.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    used = (answer.usage.input_tokens + last.response.usage.input_tokens,
            answer.usage.output_tokens + last.response.usage.output_tokens)  # fmt: skip
    assert client.billed(2) == used


async def test_openai_responds_asynchronously(client: Client) -> None:
    async with (
        client.aopenai() as sdk,
        sdk.responses.stream(model="tiny", input="def f(", max_output_tokens=8) as stream,
    ):
        kinds = [event.type async for event in stream]
    assert kinds[-1] == "response.completed"


def test_anthropic_talks_streams_and_counts(client: Client) -> None:
    with client.anthropic() as sdk:
        counted = sdk.messages.count_tokens(model="tiny", messages=ASK).input_tokens
        answer = sdk.messages.create(model="tiny", messages=ASK, max_tokens=8)
        assert answer.content[0].type == "text" and answer.usage.input_tokens == counted
        with sdk.messages.stream(model="tiny", messages=ASK, system="Be brief.", max_tokens=8) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
    assert final.content[0].type == "text" and final.content[0].text == text
    used = (counted + final.usage.input_tokens, answer.usage.output_tokens + final.usage.output_tokens)
    assert client.billed(3) == used


async def test_anthropic_talks_asynchronously_and_with_a_bearer_key(client: Client) -> None:
    async with client.aanthropic() as sdk:
        stream = await sdk.messages.create(model="tiny", messages=ASK, max_tokens=8, stream=True)
        kinds = [event.type async for event in stream]
        assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    async with AsyncAnthropic(base_url=client.url, auth_token=client.key, max_retries=0) as sdk:
        assert (await sdk.messages.create(model="tiny", messages=ASK, max_tokens=8)).role == "assistant"


def test_anthropic_calls_tools(client: Client) -> None:
    tool: Any = {"name": "paint", "strict": True, "input_schema": TOOL["parameters"]}
    asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": ROOM, "tools": [tool]}
    with client.anthropic() as sdk:
        answer = sdk.messages.create(**asked, tool_choice={"type": "tool", "name": "paint"})
        used, *_ = [block for block in answer.content if block.type == "tool_use"]
        assert used.input in ({"colour": "red"}, {"colour": "blue"}) and answer.stop_reason == "tool_use"
        with sdk.messages.stream(**asked, tool_choice={"type": "tool", "name": "paint"}) as stream:
            final = stream.get_final_message()
        assert "tool_use" in {block.type for block in final.content}
    assert client.billed(2)[1] == answer.usage.output_tokens + final.usage.output_tokens


def test_langchain_chats_streams_and_calls_tools(client: Client) -> None:
    chat = client.langchain(max_tokens=8, stream_usage=True)
    answer = chat.invoke("def f(")
    assert isinstance(answer.content, str) and answer.usage_metadata
    chunks = list(chat.stream("def f("))
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    assert total.usage_metadata
    used = [answer.usage_metadata, total.usage_metadata]
    assert client.billed(2) == (sum(u["input_tokens"] for u in used), sum(u["output_tokens"] for u in used))
    painting = client.langchain(max_tokens=ROOM).bind_tools([TOOL], tool_choice="paint", strict=True)
    call = painting.invoke("def f(").tool_calls[0]
    assert call["name"] == "paint" and call["args"]["colour"] in ("red", "blue")
    structured = client.langchain(max_tokens=100).with_structured_output(Colour, method="json_schema")
    parsed = structured.invoke("def f(")
    assert isinstance(parsed, Colour)


async def test_langchain_streams_asynchronously(client: Client) -> None:
    texts = [chunk.content async for chunk in client.langchain(max_tokens=8).astream("def f(")]
    assert any(texts)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed (on Debian: apt-get install curl)")
def test_curl_chats_streams_and_turns_text_into_tokens_and_back(client: Client) -> None:
    whole = json.loads(client.curl("/v1/chat/completions", {"model": "tiny", "messages": ASK, "max_tokens": 4}))
    assert whole["choices"][0]["message"]["role"] == "assistant"
    told = client.curl("/v1/chat/completions", {"model": "tiny", "messages": ASK, "max_tokens": 4, "stream": True})
    lines = [line for line in told.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    tokens = json.loads(client.curl("/tokenize", {"model": "tiny", "prompt": "def f("}))["tokens"]
    assert json.loads(client.curl("/detokenize", {"model": "tiny", "tokens": tokens}))["prompt"] == "def f("
    billed = client.billed(4)
    assert billed[0] == 2 * whole["usage"]["prompt_tokens"]


def test_curl_sees_the_headers_and_the_errors(client: Client) -> None:
    said = client.curl("/v1/chat/completions", {"model": "tiny", "messages": ASK, "max_tokens": 4}, "-i")
    head, _, body = said.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200 OK\n") and "x-headgate-deployment: tiny" in head.lower()
    assert json.loads(body)["object"] == "chat.completion"
    refused = client.curl("/v1/chat/completions", {"model": "tiny", "messages": ASK, "priority": 1}, "-i")
    assert refused.startswith("HTTP/1.1 400 Bad Request") and "x-should-retry: false" in refused.lower()


def test_openai_knows_what_went_wrong(platform: Platform, client: Client, request: pytest.FixtureRequest) -> None:
    with client.openai() as sdk:
        with pytest.raises(openai.NotFoundError, match="no model is called 'large'"):
            sdk.chat.completions.create(model="large", messages=ASK)
        with pytest.raises(openai.BadRequestError, match="cannot be greater than max_model_len") as engines:
            sdk.chat.completions.create(model="tiny", messages=ASK, max_tokens=CONTEXT + 1)
        assert engines.value.param == "max_tokens"
        with pytest.raises(openai.BadRequestError, match="cannot be greater than max_model_len"):
            sdk.chat.completions.create(model="tiny", messages=ASK, max_tokens=CONTEXT + 1, stream=True)
        with pytest.raises(openai.BadRequestError, match="cannot be greater than max_model_len"):
            sdk.responses.create(model="tiny", input="x", max_output_tokens=CONTEXT + 1)
        with pytest.raises(openai.BadRequestError, match="'cache_salt' is set by the gateway"):
            sdk.chat.completions.create(model="tiny", messages=ASK, extra_body={"cache_salt": "x"})
        with pytest.raises(openai.BadRequestError, match="engines may not fetch"):
            part: Any = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}
            sdk.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [part]}])
        assert "tiny" in [model.id for model in sdk.models.list()]
    stranger = replace(client, key="wrong")
    with stranger.openai() as sdk, pytest.raises(openai.AuthenticationError):
        sdk.chat.completions.create(model="tiny", messages=ASK)
    with tenant(platform, request, requests_per_minute=1).openai() as hasty:
        hasty.chat.completions.create(model="tiny", messages=ASK, max_tokens=1)
        with pytest.raises(openai.RateLimitError) as limited:
            hasty.chat.completions.create(model="tiny", messages=ASK, max_tokens=1)
        assert 0 < int(limited.value.response.headers["retry-after-ms"]) <= 60_000


def test_anthropic_knows_what_went_wrong(platform: Platform, client: Client, request: pytest.FixtureRequest) -> None:
    with client.anthropic() as sdk:
        with pytest.raises(anthropic.NotFoundError, match="no model is called 'large'"):
            sdk.messages.create(model="large", messages=ASK, max_tokens=8)
        for stream in (False, True):
            with pytest.raises(anthropic.BadRequestError, match="cannot be greater than max_model_len") as engines:
                sdk.messages.create(model="tiny", messages=ASK, max_tokens=CONTEXT + 1, stream=stream)
            error: Any = engines.value.body
            assert error["error"]["type"] == "invalid_request_error"
        with pytest.raises(anthropic.BadRequestError, match="validation error"):
            nobody: Any = {"role": "nobody", "content": "x"}
            sdk.messages.create(model="tiny", messages=[nobody], max_tokens=8)
    stranger = replace(client, key="wrong")
    with stranger.anthropic() as sdk, pytest.raises(anthropic.AuthenticationError):
        sdk.messages.create(model="tiny", messages=ASK, max_tokens=8)
    with tenant(platform, request, requests_per_minute=1).anthropic() as hasty:
        hasty.messages.create(model="tiny", messages=ASK, max_tokens=1)
        with pytest.raises(anthropic.RateLimitError):
            hasty.messages.create(model="tiny", messages=ASK, max_tokens=1)
