"""What a client sees, and what the ledger says afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from unittest import mock

import httpx
import openai
import pytest
from aiohttp.test_utils import make_mocked_request
from engine import Engine, running
from gateway_fixtures import HELLO, gateway, until

from gateway import calls, relay
from gateway.metering import StreamMeter
from gateway.surfaces.health import from_this_host
from registry import deployments, keys
from registry.deployments import DeploymentState
from registry.ledger import Outcome


async def test_a_whole_answer_arrives_and_is_billed_to_the_token(tmp_path: Path) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, platform.openai() as client:
        answer = await client.chat.completions.create(**HELLO)
        assert answer.choices[0].message.content == "Gravity is round."
        (event,) = await platform.settled()
        assert (event.prompt_tokens, event.completion_tokens) == (7, 4)
        assert event.microcredits == 7 * 1 + 4 * 2
        assert event.outcome is Outcome.COMPLETED
        assert (event.attempt.tenant, event.attempt.model, event.attempt.replica) == ("physics", "tiny", "replica-1")


async def test_completions_are_served_too(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.openai() as client:
        answer = await client.completions.create(model="tiny", prompt="Gravity", max_tokens=5)
        assert answer.choices[0].text == "Gravity is round."
        (event,) = await platform.settled()
        assert event.attempt.kind == "completion"


async def test_a_stream_arrives_while_the_engine_is_still_writing(tmp_path: Path) -> None:
    engine = Engine(hold_after=1)
    async with gateway(tmp_path, engine) as platform, platform.openai() as client:
        stream = await client.chat.completions.create(**HELLO, stream=True)
        received = []
        async for chunk in stream:
            received.append(chunk.choices[0].delta.content)
            if received[-1] == "Gra":  # the engine holds back the rest until this has been seen
                assert engine.running == 1
                engine.go.set()
        assert "".join(r or "" for r in received) == "Gravity is round."
        (event,) = await platform.settled()
        assert (event.prompt_tokens, event.completion_tokens) == (7, 4)


@pytest.mark.parametrize("split", [False, True])
async def test_a_client_that_did_not_ask_for_usage_sees_none(tmp_path: Path, split: bool) -> None:
    quoting = Engine(split_events=split, pieces=["é", ' ,"usage":{"prompt_tokens":9} ', "}\n\n"])
    async with gateway(tmp_path, quoting) as platform, platform.http() as http:
        async with http.post("/v1/chat/completions", json={**HELLO, "stream": True}) as response:
            body = (await response.read()).decode()
        events = [json.loads(e[6:]) for e in body.split("\n\n")[:-2]]
        assert body.endswith("data: [DONE]\n\n")
        assert all("usage" not in e and e["choices"] for e in events)
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
        assert text == "".join(quoting.pieces)
        (event,) = await platform.settled()
        assert (event.prompt_tokens, event.completion_tokens) == (7, 3)
        assert quoting.requests[0]["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


async def test_a_client_that_asked_for_usage_sees_it_once_at_the_end(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.openai() as client:
        stream = await client.chat.completions.create(**HELLO, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 4
        await platform.settled()


async def test_a_client_that_asked_for_running_usage_sees_it_on_every_chunk(tmp_path: Path) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with gateway(tmp_path, Engine()) as platform, platform.http() as http:
        async with http.post(
            "/v1/chat/completions", json={**HELLO, "stream": True, "stream_options": options}
        ) as response:
            body = await response.text()
        assert all("usage" in json.loads(e[6:]) for e in body.split("\n\n")[:-2])


async def test_a_client_that_leaves_stops_the_engine_and_pays_the_last_count(tmp_path: Path) -> None:
    engine = Engine(hold_after=2)
    async with gateway(tmp_path, engine) as platform, platform.openai() as client:
        stream = await client.chat.completions.create(**HELLO, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content == "vity ":
                break
        await stream.close()
        await asyncio.wait_for(engine.aborted.wait(), 5)
        (event,) = await platform.settled()
        assert event.outcome is Outcome.CLIENT_LEFT
        assert (event.prompt_tokens, event.completion_tokens) == (7, 2)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_anything_was_counted_pays_about_its_prompt(
    tmp_path: Path, stream: bool
) -> None:
    engine = Engine(fail="silent")
    async with gateway(tmp_path, engine) as platform, platform.openai() as client:
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 90_000}}
        asked = [{"role": "user", "content": [{"type": "text", "text": "gravity " * 30}, picture]}]
        ask = client.chat.completions.create(**{**HELLO, "messages": asked}, stream=stream)
        task = asyncio.create_task(ask)
        await until(lambda: engine.running)
        task.cancel()
        await asyncio.wait_for(engine.aborted.wait(), 5)
        (event,) = await platform.settled()
        assert (event.outcome, event.completion_tokens) == (Outcome.CLIENT_LEFT, 0)
        assert (
            event.prompt_tokens == len("gravity " * 30) // 3
        )  # the text; not a token for each three bytes of the picture


async def test_a_client_that_leaves_before_its_request_was_sent_pays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting = asyncio.Event()

    async def connect(*_: object) -> None:
        connecting.set()
        await asyncio.Event().wait()

    async with gateway(tmp_path, Engine()) as platform, platform.openai() as client:
        monkeypatch.setattr(relay.Pool, "_connect", connect)
        task = asyncio.create_task(client.chat.completions.create(**HELLO))
        await connecting.wait()
        task.cancel()
        await until(lambda: platform.open_holds() == 0)
        await platform.settled(0)


async def test_the_engine_never_sees_the_clients_key(tmp_path: Path) -> None:
    engine = Engine(key="another")
    async with gateway(tmp_path, engine) as platform, platform.openai() as client:
        engine.key = "changed"  # an engine that does not know our key is not the client's 401
        with pytest.raises(openai.InternalServerError) as failure:
            await client.chat.completions.create(**HELLO)
        assert failure.value.status_code == 502
        await platform.settled(0)


async def test_a_key_that_is_wrong_missing_or_revoked_is_401(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        async with platform.openai("sk-hg-wrong") as client:
            with pytest.raises(openai.AuthenticationError, match="not known"):
                await client.chat.completions.create(**HELLO)
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with platform.openai() as client:
            await client.chat.completions.create(**HELLO)
            keys.revoke(platform.registry, keys.everything(platform.registry)[0].id)

            async def refused() -> bool:
                try:
                    await client.models.list()
                except openai.AuthenticationError:
                    return True
                return False

            async with asyncio.timeout(5):
                while not await refused():
                    pass


async def test_a_key_works_the_moment_it_was_created(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        async with platform.openai(platform.tenant("biology")) as client:
            await client.chat.completions.create(**HELLO)
        (event,) = await platform.settled()
        assert event.attempt.tenant == "biology"


async def test_an_unknown_model_is_404_and_named_with_those_there_are(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.openai() as client:
        with pytest.raises(openai.NotFoundError, match=r"'nonesuch'.*tiny") as failure:
            await client.chat.completions.create(**{**HELLO, "model": "nonesuch"})
        assert failure.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (b"{", "not JSON"),
        (b"[]", "not an object"),
        (b"{}", "'model'"),
        (b'{"model":"tiny"}', "'messages'"),
        (b'{"model":"tiny","messages":[]}', "'messages'"),
        (b'{"model":"tiny","messages":[{}],"max_tokens":-1}', "'max_tokens'"),
        (b'{"model":"tiny","messages":[{}],"n":4611686018427387904}', "'n' is 4611686018427387904, .* 1 to 1024"),
        (b'{"model":"tiny","messages":[{}],"n":0}', "'n'"),
        (b'{"model":"tiny","messages":[{}],"best_of":1025}', "'best_of' .* 1 to 1024"),
        (b'{"model":"tiny","messages":[{}],"max_tokens":2147483648}', "'max_tokens' .* 0 to 2147483647"),
        (b'{"model":"tiny","messages":[{}],"max_completion_tokens":2147483648}', "'max_completion_tokens'"),
        (b'{"model":"tiny","messages":[{}],"stream":"yes"}', "'stream'"),
        (b'{"model":"tiny","messages":[{}],"stream_options":3}', "'stream_options'"),
    ],
)
async def test_a_malformed_body_is_400_and_says_what_is_wrong(tmp_path: Path, body: bytes, wrong: str) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.http() as http:
        response = await http.post("/v1/chat/completions", data=body)
        assert response.status == 400
        error = (await response.json())["error"]
        assert error["type"] == "invalid_request_error"
        assert re.search(wrong, error["message"])
        assert platform.events() == []


async def test_a_prompt_may_be_scored_with_no_tokens_of_an_answer(tmp_path: Path) -> None:
    engine = Engine()
    async with gateway(tmp_path, engine) as platform, platform.openai() as client:
        await client.completions.create(model="tiny", prompt="Gravity", max_tokens=0, echo=True, logprobs=1)
        assert engine.requests[0]["max_tokens"] == 0
        await platform.settled()


async def test_a_body_over_the_limit_is_413_and_an_unknown_path_404(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine(), max_body_mb=1) as platform, platform.http() as http:
        async with http.post("/v1/chat/completions", data=b"x" * (1 << 21)) as response:
            assert response.status == 413
            assert "max_body_mb" in (await response.json())["error"]["message"]
        async with http.get("/v1/nothing") as response:
            assert response.status == 404
            assert "/v1/nothing" in (await response.json())["error"]["message"]


async def test_a_wrong_method_and_a_broken_body_are_told_in_openais_shape(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.http() as http:
        async with http.get("/v1/chat/completions") as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")
            error = (await response.json())["error"]
            assert error["type"] == "invalid_request_error" and "GET /v1/chat/completions" in error["message"]
        packed = {"Content-Encoding": "gzip"}
        async with http.post("/v1/chat/completions", data=b"not gzip", headers=packed) as response:
            assert response.status == 400
            assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_a_bug_is_500_in_openais_shape_and_logged_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.openai() as client:
        monkeypatch.setattr(calls, "read", lambda kind, body: 1 / 0)
        with pytest.raises(openai.InternalServerError) as failure:
            await client.chat.completions.create(**HELLO)
        assert failure.value.status_code == 500
        assert failure.value.type == "server_error"
        assert "ZeroDivisionError" in caplog.text
        assert "division" not in str(failure.value)


async def test_a_bug_in_the_middle_of_a_stream_cuts_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(hold_after=1)
    async with gateway(tmp_path, engine) as platform, platform.openai() as client:
        stream = await client.chat.completions.create(**HELLO, stream=True)
        await anext(stream)
        monkeypatch.setattr(StreamMeter, "feed", lambda self, data: 1 / 0)
        engine.go.set()
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            async for _ in stream:
                pass
        (event,) = await platform.settled()
        assert event.outcome is Outcome.UPSTREAM_FAILED


async def test_models_lists_what_is_deployed(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.openai() as client:
        assert [m.id for m in (await client.models.list()).data] == ["tiny"]
        platform.deploy("second")
        assert [m.id for m in (await client.models.list()).data] == ["second", "tiny"]
        deployments.set_state(platform.registry, "tiny", DeploymentState.FAILED)
        assert [m.id for m in (await client.models.list()).data] == ["second"]


async def test_a_replica_that_becomes_ready_is_routed_to_without_a_restart(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, start_wait_s=0.1) as platform,
        platform.openai() as client,
        running(Engine()) as engine,
    ):
        with pytest.raises(openai.InternalServerError, match="no replica of deployment tiny is ready") as failure:
            await client.chat.completions.create(**HELLO)
        assert failure.value.status_code == 503
        assert int(failure.value.response.headers["Retry-After"]) > 0
        platform.ready(engine)
        await client.chat.completions.create(**HELLO)
        await platform.settled()


async def test_health_is_alive_and_ready_waits_for_the_registry(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform, platform.http() as http:
        async with http.get("/health") as response:
            assert response.status == 200
            # Asked from this host: `headgate up` tells its own gateway from another one by it.
            told = {"status": "ok", "site": "test", "state_dir": str(tmp_path), "pid": os.getpid()}
            assert await response.json() == told
        async with http.get("/ready") as response:
            assert response.status == 200, await response.text()


@pytest.mark.parametrize(
    ("client", "here", "ours"),
    [("127.0.0.1", "127.0.0.1", True), ("10.0.0.5", "10.0.0.5", True), ("10.0.0.9", "10.0.0.5", False)],
)
def test_who_asks_from_another_host_is_not_told_where_the_state_is(client: str, here: str, ours: bool) -> None:
    transport = mock.Mock()
    transport.get_extra_info.side_effect = {"peername": (client, 5555), "sockname": (here, 8080)}.get
    assert from_this_host(make_mocked_request("GET", "/health", transport=transport)) is ours


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
def test_whoever_asks_through_a_proxy_on_this_host_is_not_told_either(name: str) -> None:
    transport = mock.Mock()
    transport.get_extra_info.side_effect = {"peername": ("127.0.0.1", 5555), "sockname": ("127.0.0.1", 8080)}.get
    request = make_mocked_request("GET", "/health", headers={name: "192.0.2.1"}, transport=transport)
    assert not from_this_host(request)
