"""The path of a request through a whole gateway: which replica gets it, when it waits, and who answers instead."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from engine import Engine, running
from gateway_fixtures import HELLO, Platform, gateway, until
from prometheus_client.parser import text_string_to_metric_families

from gateway import calls, dispatch, replica_health
from gateway.app_keys import GATEWAY
from gateway.attempt import retry_after
from gateway.calls import Kind
from gateway.dispatch import ATTEMPTS, PRIORITY, SESSION
from gateway.replica_health import Fault
from registry import deployments, endpoints
from registry.demand import DemandReader
from registry.deployments import DeploymentState, ReplicaState
from registry.ledger import Outcome

PATH = "/v1/chat/completions"
STREAM = {**HELLO, "stream": True}


@asynccontextmanager
async def served_by(platform: Platform, **engines: Engine) -> AsyncIterator[None]:
    """A deployment of one replica, called NAME-1, for each name, and the gateway knows of them."""
    async with AsyncExitStack() as stack:
        for name, engine in engines.items():
            platform.deploy(name)
            platform.ready(await stack.enter_async_context(running(engine)), f"{name}-1", name)
        assert platform.app is not None
        platform.app[GATEWAY].catalog.refresh()
        yield


async def ask(platform: Platform, key: str | None = None, **more: Any) -> str:
    """The text of a whole answer."""
    headers = more.pop("headers", {})
    async with platform.http(key) as http, http.post(PATH, json={**HELLO, **more}, headers=headers) as response:
        said = await response.json()
        assert response.status == 200, said
        return str(said["choices"][0]["message"]["content"])


# Which replica is tried next.


@pytest.mark.parametrize("how", ["die", "error event", "give up"])
async def test_a_stream_that_only_opened_the_assistants_turn_is_begun_anew_elsewhere(tmp_path: Path, how: str) -> None:
    failing = Engine(fail=how, hold_after=0, chunk_id="failed")
    async with gateway(tmp_path, failing, Engine()) as platform, platform.http() as http:
        async with http.post(PATH, json=STREAM) as response:
            body = (await response.read()).decode()
            assert response.headers["x-headgate-replica"] == "replica-2"
        assert '"failed"' not in body and body.count('"role"') == 1
        (event,) = await platform.settled()
        assert (event.attempt.replica, event.outcome) == ("replica-2", Outcome.COMPLETED)


async def test_a_whole_answer_whose_replica_dies_while_it_generates_is_made_elsewhere(tmp_path: Path) -> None:
    dying = Engine(fail="die")
    async with gateway(tmp_path, dying, Engine()) as platform:
        assert await ask(platform) == "Gravity is round."
        assert len(dying.requests) == 1
        await platform.settled()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_tried_on_so_many_replicas_and_no_more(tmp_path: Path, stream: bool) -> None:
    engines = [Engine(fail="500") for _ in range(ATTEMPTS)] + [Engine()]
    async with gateway(tmp_path, *engines) as platform, platform.openai() as client:
        with pytest.raises(openai.InternalServerError, match="cannot schedule") as failure:
            await client.chat.completions.create(**HELLO, stream=stream)
        assert failure.value.status_code == 502
        assert [len(e.requests) for e in engines] == [1] * ATTEMPTS + [0]
        await platform.settled(0)


async def test_a_failing_replica_is_left_alone_until_a_probe_of_it_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_health, "FIRST_S", replica_health.LONGEST_S)
    broken, sound = Engine(fail="500"), Engine()
    asked = 0

    async def another(platform: Platform) -> None:
        nonlocal asked
        asked += 1  # not alike, so that no prompt's beginning draws them to where it was answered
        messages = [{"role": "user", "content": f"{asked} apples"}]
        assert await ask(platform, messages=messages) == "Gravity is round."

    async with gateway(tmp_path, broken, sound) as platform:
        assert platform.app is not None
        health = platform.app[GATEWAY].health
        while health.usable("replica-1"):
            await another(platform)
        tried = len(broken.requests)
        assert tried == replica_health.LIMITS[replica_health.Fault.REQUEST]
        for _ in range(3):
            await another(platform)
        assert len(broken.requests) == tried

        health._standings["replica-1"] = replace(health.snapshot()["replica-1"], until=0.0)  # its time is over
        assert health.usable("replica-1")  # due: the next one there is its probe
        broken.fail, broken.hold_after = None, 0
        answers = []
        while not broken.running:
            answers.append(asyncio.create_task(another(platform)))
            await asyncio.sleep(0.02)
        for _ in range(3):
            await another(platform)  # they go elsewhere until it has said how it went
        assert len(broken.requests) == tried + 1
        broken.go.set()
        await asyncio.gather(*answers)
        for _ in range(2):
            await another(platform)
        assert len(broken.requests) > tried + 1
        await platform.settled(asked)


async def test_a_draining_replica_gets_nothing_new_and_finishes_what_it_has(tmp_path: Path) -> None:
    draining, other = Engine(hold_after=1), Engine()
    async with gateway(tmp_path, draining, other) as platform, platform.openai() as client:
        stream = await client.chat.completions.create(**HELLO, stream=True)
        deployments.set_replica_state(platform.registry, "replica-1", ReplicaState.DRAINING)
        assert platform.app is not None
        platform.app[GATEWAY].catalog.refresh()
        for _ in range(3):
            await ask(platform)
        assert (len(draining.requests), len(other.requests)) == (1, 3)
        draining.go.set()
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "Gravity is round."
        await platform.settled(4)


# Waiting for a replica.


async def test_a_stream_is_told_what_it_waits_for_and_gets_its_answer_in_the_same_stream(tmp_path: Path) -> None:
    async with gateway(tmp_path, heartbeat_s=0.05) as platform, platform.http() as http, running(Engine()) as engine:
        registry = platform.registry
        deployments.add_replica(registry, "replica-1", "tiny", "root", "/runs/replica-1")
        deployments.note_job(registry, "replica-1", job_id="4711", waiting_reason="Resources")
        async with http.post(PATH, json=STREAM) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            comment = b": waiting for deployment tiny: job 4711 is pending (Resources)\n\n"
            for _ in range(2):
                assert await response.content.readuntil(b"\n\n") == comment
            deployments.replica_is_ready(registry, "replica-1", engine.host, engine.port, engine.key)
            events = (await response.read()).split(b"\n\n")
        said = [json.loads(e[6:])["choices"][0]["delta"] for e in events if e.startswith(b"data: {")]
        assert "".join(d.get("content", "") for d in said) == "Gravity is round."
        assert events[-2:] == [b"data: [DONE]", b""]
        await platform.settled()


async def test_a_stream_whose_deployment_fails_meanwhile_ends_with_an_error_event(tmp_path: Path) -> None:
    async with gateway(tmp_path) as platform, platform.http() as http:
        async with http.post(PATH, json=STREAM) as response:
            await response.content.readuntil(b"\n\n")
            deployments.set_state(platform.registry, "tiny", DeploymentState.FAILED, "no GPU has 80 GB")
            events = [e for e in (await response.read()).split(b"\n\n") if e and not e.startswith(b":")]
        (event,) = events
        error = json.loads(event.removeprefix(b"data: "))["error"]
        assert "no GPU has 80 GB" in error["message"] and error["code"] == "no_ready_replica"
        await platform.settled(0)


async def test_an_openai_sdk_raises_what_ended_its_waiting_stream(tmp_path: Path) -> None:
    async with gateway(tmp_path) as platform, platform.openai() as client:
        stream = await client.chat.completions.create(**HELLO, stream=True)
        deployments.set_state(platform.registry, "tiny", DeploymentState.STOPPING)
        with pytest.raises(openai.APIError, match="tiny is stopping"):
            async for _ in stream:
                pass


async def test_a_whole_answer_that_waited_comes_when_a_replica_is_ready(tmp_path: Path) -> None:
    async with gateway(tmp_path) as platform, running(Engine()) as engine:
        assert platform.app is not None
        room = platform.app[GATEWAY].room
        answer = asyncio.create_task(ask(platform))
        await until(lambda: room.waiting().get("tiny"))
        platform.ready(engine)
        assert await answer == "Gravity is round."
        await platform.settled()


async def test_a_waiting_stream_whose_request_the_engine_refuses_is_told_in_it(tmp_path: Path) -> None:
    async with gateway(tmp_path) as platform, platform.openai() as client, running(Engine(fail="refuse")) as engine:
        stream = await client.chat.completions.create(**HELLO, stream=True)
        platform.ready(engine)
        with pytest.raises(openai.APIError, match="maximum context length"):
            async for _ in stream:
                pass
        await platform.settled(0)


# Waiting for a turn.


async def test_a_full_queue_is_429_with_the_seconds_to_wait(tmp_path: Path) -> None:
    engine = Engine(hold_after=0)
    async with gateway(tmp_path, engine, max_in_flight=1, queue_length=0) as platform, platform.http() as http:
        first = asyncio.create_task(ask(platform))
        await until(lambda: engine.running)
        async with http.post(PATH, json=HELLO) as response:
            assert response.status == 429
            assert int(response.headers["Retry-After"]) > 0
            assert (await response.json())["error"]["code"] == "deployment_overloaded"
        engine.go.set()
        await first
        await platform.settled()


async def in_line(platform: Platform, *asked: tuple[str, str | None, dict[str, str]]) -> list[asyncio.Task[str]]:
    """Requests of (text, key, headers) that stand in line at `tiny`, in this order."""
    assert platform.app is not None
    queues = platform.app[GATEWAY].queues
    tasks = []
    for n, (text, key, headers) in enumerate(asked, start=1):
        messages = [{"role": "user", "content": text}]
        tasks.append(asyncio.create_task(ask(platform, key, messages=messages, headers=headers)))
        await until(lambda n=n: queues.waiting().get(("tiny",)) == n)
    return tasks


def texts(engine: Engine) -> list[str]:
    return [request["messages"][0]["content"] for request in engine.requests]


async def test_two_tenants_take_turns_however_much_one_of_them_asks(tmp_path: Path) -> None:
    engine = Engine(hold_after=0)
    async with gateway(tmp_path, engine, max_in_flight=1) as platform:
        biology = platform.tenant("biology")
        first = asyncio.create_task(ask(platform))
        await until(lambda: engine.running)
        waiting = [(f"physics {n}", None, {}) for n in range(4)] + [(f"biology {n}", biology, {}) for n in range(2)]
        tasks = await in_line(platform, *waiting)
        engine.go.set()
        await asyncio.gather(first, *tasks)
        served = [text.split()[0] for text in texts(engine)[1:]]
        assert served.index("biology") <= 1
        assert served[:4].count("biology") == 2
        assert len(await platform.settled(7)) == 7


async def test_a_tenants_own_requests_go_by_their_priority(tmp_path: Path) -> None:
    engine = Engine(hold_after=0)
    async with gateway(tmp_path, engine, max_in_flight=1) as platform, platform.http() as http:
        first = asyncio.create_task(ask(platform))
        await until(lambda: engine.running)
        named = [(name, None, {PRIORITY: name}) for name in ("low", "normal", "high")]
        tasks = await in_line(platform, *named)
        async with http.post(PATH, json=HELLO, headers={PRIORITY: "urgent"}) as response:
            assert response.status == 400 and "high, normal, low" in (await response.json())["error"]["message"]
        engine.go.set()
        await asyncio.gather(first, *tasks)
        assert texts(engine)[1:] == ["high", "normal", "low"]
        await platform.settled(4)


async def test_a_client_that_leaves_the_line_is_passed_over(tmp_path: Path) -> None:
    engine = Engine(hold_after=0)
    async with gateway(tmp_path, engine, max_in_flight=1) as platform:
        first = asyncio.create_task(ask(platform))
        await until(lambda: engine.running)
        gone, stays = await in_line(platform, ("gone", None, {}), ("stays", None, {}))
        gone.cancel()
        assert platform.app is not None
        queues = platform.app[GATEWAY].queues
        await until(lambda: queues.waiting()[("tiny",)] == 1)
        engine.go.set()
        await asyncio.gather(first, stays)
        assert texts(engine)[1:] == ["stays"]
        await platform.settled(2)


async def test_requests_of_a_session_go_where_the_first_one_went(tmp_path: Path) -> None:
    engines = Engine(), Engine()
    async with gateway(tmp_path, *engines) as platform:
        for n in range(4):  # not alike, so that no prompt's beginning draws them
            messages = [{"role": "user", "content": f"{n} apples"}]
            await ask(platform, headers={SESSION: "basket"}, messages=messages)
        assert sorted(len(e.requests) for e in engines) == [0, 4]
        for n in range(2):
            await ask(platform, messages=[{"role": "user", "content": f"{n} pears"}])
        assert min(len(e.requests) for e in engines) > 0
        await platform.settled(6)


# Endpoints, their shadows, and adapters.


async def test_an_endpoints_canary_that_fails_is_covered_by_the_fallback_under_its_own_name(tmp_path: Path) -> None:
    canary, fallback = Engine(fail="500"), Engine()
    async with gateway(tmp_path) as platform, served_by(platform, canary=canary, small=fallback):
        endpoints.put(platform.registry, "chat", "root", targets=[("canary", 1)], fallbacks=["small"])
        async with platform.http() as http:
            for stream in (False, True):
                asked = {**HELLO, "model": "chat", "stream": stream}
                async with http.post(PATH, json=asked) as response:
                    assert response.status == 200
                    assert b"round." in await response.read()
                    assert response.headers["x-headgate-deployment"] == "small"
        assert {r["model"] for r in canary.requests} == {"canary"}
        assert {r["model"] for r in fallback.requests} == {"small"}
        events = await platform.settled(2)
        assert {(e.attempt.model, e.attempt.replica) for e in events} == {("small", "small-1")}


async def test_a_stream_that_broke_off_is_not_begun_again_by_a_fallback(tmp_path: Path) -> None:
    dying, fallback = Engine(fail="die", hold_after=2), Engine()
    async with gateway(tmp_path) as platform, served_by(platform, large=dying, small=fallback):
        endpoints.put(platform.registry, "chat", "root", targets=[("large", 1)], fallbacks=["small"])
        async with platform.openai() as client:
            with pytest.raises(openai.APIError, match="closed the connection"):
                async for _ in await client.chat.completions.create(**{**STREAM, "model": "chat"}):
                    pass
        assert fallback.requests == []
        await platform.settled()


async def test_an_endpoints_sleeping_target_is_wakened_while_others_serve(tmp_path: Path) -> None:
    fallback = Engine()
    async with gateway(tmp_path) as platform, served_by(platform, small=fallback):
        for name in ("large", "reserve"):
            platform.deploy(name)
            deployments.set_state(platform.registry, name, DeploymentState.ASLEEP)
        endpoints.put(platform.registry, "chat", "root", targets=[("large", 1)], fallbacks=["small", "reserve"])
        assert await ask(platform, model="chat") == "Gravity is round."
        reader = DemandReader(platform.site.ledger_db)
        await until(lambda: "large" in reader.latest())
        assert "reserve" not in reader.latest()
        reader.close()
        await platform.settled()


async def test_a_shadow_gets_copies_and_one_that_fails_bills_nobody(tmp_path: Path) -> None:
    served, tried = Engine(), Engine(fail="500")
    async with gateway(tmp_path) as platform, served_by(platform, large=served, next=tried):
        endpoints.put(platform.registry, "chat", "root", targets=[("large", 1)], shadow=[("next", 100)])
        for _ in range(2):
            assert await ask(platform, model="chat") == "Gravity is round."
        await until(lambda: len(tried.requests) == 2)
        assert [r["model"] for r in tried.requests] == ["next", "next"]
        assert tried.requests[0]["messages"] == HELLO["messages"]
        events = await platform.settled(2)
        assert {e.attempt.model for e in events} == {"large"}


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_shadow_used_is_the_platforms(tmp_path: Path, stream: bool) -> None:
    tried = Engine(pieces=["a", "b"], cached=4)
    async with gateway(tmp_path) as platform, served_by(platform, large=Engine(), next=tried):
        endpoints.put(platform.registry, "chat", "root", targets=[("large", 1)], shadow=[("next", 100)])
        async with (
            platform.http() as http,
            http.post(PATH, json={**HELLO, "model": "chat", "stream": stream}) as answer,
        ):
            assert answer.status == 200
            await answer.read()
        ours, theirs = sorted(await platform.settled(2), key=lambda e: e.attempt.tenant)
        assert (theirs.attempt.tenant, theirs.attempt.model) == ("physics", "large")
        assert (ours.attempt.tenant, ours.attempt.user, ours.attempt.key_id) == ("(platform)", "shadow", "")
        assert (ours.attempt.model, ours.attempt.replica, ours.outcome) == ("next", "next-1", Outcome.COMPLETED)
        assert (ours.prompt_tokens, ours.completion_tokens, ours.cached_tokens) == (7, 2, 4)


async def test_a_shadow_that_breaks_off_costs_what_it_had_counted(tmp_path: Path) -> None:
    tried = Engine(fail="error event", hold_after=3)
    async with gateway(tmp_path) as platform, served_by(platform, large=Engine(), next=tried):
        endpoints.put(platform.registry, "chat", "root", targets=[("large", 1)], shadow=[("next", 100)])
        async with platform.http() as http, http.post(PATH, json={**HELLO, "model": "chat", "stream": True}) as answer:
            await answer.read()
        (ours,) = [e for e in await platform.settled(2) if e.attempt.tenant == "(platform)"]
        assert (ours.outcome, ours.prompt_tokens, ours.completion_tokens) == (Outcome.UPSTREAM_FAILED, 7, 3)


async def test_attempts_of_one_request_are_events_of_its_id(tmp_path: Path) -> None:
    breaking = [
        Engine(fail="die", hold_after=2, pieces=[*"abcd"]) for _ in range(2)
    ]  # what is left of the answer breaks no more
    async with gateway(tmp_path, *breaking, continue_streams=True) as platform:
        async with platform.http() as http, http.post(PATH, json=STREAM) as answer:
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")
            named = answer.headers["x-request-id"]
        events = await platform.settled(2)
        assert [e.attempt.event_id for e in events] == [f"{named}:1", f"{named}:2"]
        assert [e.outcome for e in events] == [Outcome.UPSTREAM_FAILED, Outcome.COMPLETED]


async def test_a_stream_that_breaks_off_names_its_request_in_its_error(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine(fail="error event", hold_after=2)) as platform:
        for sent in ({}, {"x-request-id": "mine-1"}):
            async with platform.http() as http, http.post(PATH, json=STREAM, headers=sent) as answer:
                last = (await answer.text()).strip().rpartition("\n\n")[2]
                error = orjson.loads(last.removeprefix("data: "))["error"]
                assert error["request_id"] == answer.headers["x-request-id"]
                assert (error["request_id"] == "mine-1") is bool(sent)


async def test_an_adapters_name_reaches_the_engine_that_has_it(tmp_path: Path) -> None:
    async with gateway(tmp_path) as platform, running(Engine()) as engine:
        arguments = {"engine_args": ["--enable-lora", "--lora-modules", "poet=/m/poet", "--max-loras", "2"]}
        deployments.create(
            platform.registry,
            "base",
            "root",
            model="base",
            version=1,
            model_path="/m",
            min_replicas=1,
            max_replicas=1,
            request=arguments,
            by="root",
            why="served",
        )
        platform.ready(engine, "base-1", "base")
        assert await ask(platform, model="poet") == "Gravity is round."
        assert [r["model"] for r in engine.requests] == ["poet"]
        (event,) = await platform.settled()
        assert (event.attempt.model, event.attempt.replica) == ("poet", "base-1")


async def test_what_an_adapter_has_cached_is_nothing_to_another_of_the_same_engine(tmp_path: Path) -> None:
    async with gateway(tmp_path, Engine()) as platform:
        assert platform.app is not None
        gw = platform.app[GATEWAY]

        def uncached(model: str) -> int:
            body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": "word " * 4000}]})
            routed = dispatch.route(gw, "tiny", calls.read(Kind.CHAT, body))
            assert routed is not None
            with routed:
                return routed.uncached_tokens

        whole = uncached("poet")
        assert uncached("tiny") == whole > 5 * uncached("poet")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_with_tls_is_asked_by_its_own_certificate(tmp_path: Path, stream: bool) -> None:
    async with gateway(tmp_path, Engine(tls=True)) as platform, platform.http() as http:
        async with http.post(PATH, json={**HELLO, "stream": stream}) as response:
            assert response.status == 200 and b"round." in await response.read()
        await platform.settled()


# What /metrics says of it.


async def requests_counted(platform: Platform) -> dict[str, float]:
    """By "STATUS OUTCOME"."""
    assert platform.app is not None
    page = (await platform.app[GATEWAY].metrics.page()).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    samples = families["headgate_requests"].samples
    return {f"{s.labels['status']} {s.labels['outcome']}": s.value for s in samples if s.value}


@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_engine_refuses_is_counted_as_refused_and_not_as_a_client_that_left(
    tmp_path: Path, stream: bool
) -> None:
    async with gateway(tmp_path, Engine(fail="refuse")) as platform, platform.http() as http:
        async with http.post(PATH, json={**HELLO, "stream": stream}) as response:
            assert response.status == 400
        assert await requests_counted(platform) == {"4xx refused": 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_names_the_request_as_its_header_does(tmp_path: Path, stream: bool) -> None:
    asked = {**HELLO, "max_tokens": 5, "stream": stream}
    async with gateway(tmp_path, Engine(fail="refuse")) as platform, platform.http() as http:
        for model, status in (("tiny", 400), ("nobody's", 404)):
            for sent in ({}, {"x-request-id": "mine-1"}):
                async with http.post("/v1/messages", json={**asked, "model": model}, headers=sent) as response:
                    assert response.status == status
                    named = (await response.json())["request_id"]
                    assert named == response.headers.get("x-request-id")
                    assert named == "mine-1" if sent else named != "mine-1"
                    assert response.headers.get("retry-after") == ("120" if model == "tiny" else None)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"7", "7"),
        (b"0", "0"),
        (b"1.2", "2"),
        (b"3600", "120"),
        (b"9" * 5000, "120"),
        (b"wed, 21 oct 2026 07:28:00 gmt", None),
        (b"-1", None),
        (b"nan", None),
        (b"", None),
        (None, None),
    ],
)
def test_an_upstreams_word_on_when_to_come_again_is_passed_on_within_what_sdks_take(
    said: bytes | None, told: str | None
) -> None:
    assert dict(retry_after(said)).get("retry-after") == told


async def test_a_continued_stream_is_counted_once_and_with_what_both_replicas_wrote(tmp_path: Path) -> None:
    engines = Engine(fail="die", hold_after=2), Engine()
    async with gateway(tmp_path, *engines, continue_streams=True) as platform, platform.http() as http:
        async with http.post(PATH, json=STREAM) as response:
            await response.read()
        events = await platform.settled(2)
        assert await requests_counted(platform) == {"2xx completed": 1}
        assert platform.app is not None
        page = (await platform.app[GATEWAY].metrics.page()).decode()
        (line,) = [x for x in page.splitlines() if x.startswith("headgate_tenant_generation_tokens_total{")]
        assert float(line.split()[-1]) == sum(e.completion_tokens for e in events)


# Replicas that hang, and clients that have what they want.


@pytest.mark.parametrize("stream", [False, True])
async def test_what_waits_at_a_replica_that_hangs_is_asked_elsewhere(tmp_path: Path, stream: bool) -> None:
    hangs, well = Engine(fail="silent"), Engine()
    async with gateway(tmp_path, hangs, well) as platform, platform.http() as http:
        assert platform.app is not None
        health = platform.app[GATEWAY].health
        for _ in range(replica_health.LIMITS[Fault.REQUEST]):
            health.failed("replica-2", "so that the first one is asked")
        asking = asyncio.create_task(http.post(PATH, json={**HELLO, "stream": stream}))
        await until(lambda: hangs.running)
        health.forget(["replica-2"])
        for _ in range(replica_health.LIMITS[Fault.POLL]):
            health.failed("replica-1", "/health answered 503", Fault.POLL)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(hangs.requests) == 1 and not well.requests and not asking.done()  # it may be doing what it has
        health.forget(["replica-1"])
        for _ in range(replica_health.LIMITS[Fault.HUNG]):
            health.failed("replica-1", "/health said nothing", Fault.HUNG)
        async with await asking as response:
            assert response.status == 200
            assert response.headers["x-headgate-replica"] == "replica-2"
            assert "Gra" in await response.text()
        (event,) = await platform.settled()
        assert (event.attempt.replica, event.outcome) == ("replica-2", Outcome.COMPLETED)


async def test_a_client_that_hangs_up_on_the_last_event_has_had_a_whole_answer(tmp_path: Path) -> None:
    engine = Engine(linger=True)
    async with gateway(tmp_path, engine) as platform, platform.http() as http:
        async with http.post(PATH, json=STREAM) as response:
            async for line in response.content:
                if line.strip() == b"data: [DONE]":
                    break
            response.close()
        (event,) = await platform.settled()
        assert (event.outcome, event.completion_tokens) == (Outcome.COMPLETED, 4)
        engine.go.set()
