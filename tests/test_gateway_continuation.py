"""A stream whose replica breaks off goes on at another one, where the site allows it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from unittest import mock

import openai
import orjson
import pytest
from engine import CONTINUES, PROMPT_TOKENS, Engine
from gateway_fixtures import HELLO, Platform, gateway, until

from gateway import calls
from gateway.calls import Call, Kind
from gateway.continuation import COMMENT, Said, SpokenMeter, may_continue
from gateway.delivery import Stream
from gateway.dispatch import ATTEMPTS
from gateway.metering import StreamMeter, Usage
from registry.ledger import Outcome, UsageEvent

PIECES = ["Gra", "vity ", " is", "\n", "\n\n", '"ro', "ünd\\", ".  "]
ANSWER = "".join(PIECES)
ON = {"continue_streams": True}
CHAT = ("/v1/chat/completions", HELLO)
COMPLETION = ("/v1/completions", {"model": "tiny", "prompt": CONTINUES, "max_tokens": 50})
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def breaking(after: int, how: str = "die", pieces: list[str] = PIECES, **more: Any) -> Engine:
    return Engine(
        pieces=list(pieces), hold_after=after, fail=how if how != "silent" else None, chunk_id="first", **more
    )


async def streamed(platform: Platform, path: str, asked: dict[str, Any]) -> list[bytes]:
    """The events, whole, as a client gets them."""
    async with platform.http() as http, http.post(path, json={**asked, "stream": True}) as response:
        assert response.status == 200
        body = await response.read()
    assert body.endswith(b"\n\n")
    return body.split(b"\n\n")[:-1]


def chunks(events: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(e[6:]) for e in events if e.startswith(b"data: {")]


def text(events: list[bytes]) -> str:
    said = [c["choices"][0] for c in chunks(events) if c.get("choices")]
    return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in said)


def by_outcome(events: list[UsageEvent]) -> dict[Outcome, tuple[str, int, int]]:
    found = {e.outcome: (e.attempt.replica, e.prompt_tokens, e.completion_tokens) for e in events}
    assert len(found) == len(events)
    return found


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("how", ["die", "error event", "give up"])
@pytest.mark.parametrize(("path", "asked"), [CHAT, COMPLETION])
async def test_no_character_is_doubled_or_lost_wherever_a_replica_breaks_off(
    tmp_path: Path, path: str, asked: dict[str, Any], how: str, split: bool
) -> None:
    for after in range(1, len(PIECES)):
        first, second = breaking(after, how, split_events=split), Engine(pieces=PIECES, split_events=split)
        async with gateway(tmp_path / str(after), first, second, **ON) as platform:
            events = await streamed(platform, path, asked | WITH_USAGE)
            assert text(events) == ANSWER
            assert events[-1] == b"data: [DONE]"
            assert {c["id"] for c in chunks(events)} == {"first"}
            assert events.count(COMMENT.strip()) == 1
            marked = [n for n, e in enumerate(events) if b'"headgate":{"continued":true}' in e]
            assert marked == [events.index(COMMENT.strip()) + 1]
            told = chunks(events)
            assert sum(c["choices"][0].get("finish_reason") is not None for c in told if c["choices"]) == 1
            assert sum("role" in c["choices"][0].get("delta", {}) for c in told if c["choices"]) <= 1
            billed = by_outcome(await platform.settled(2))
            rest = billed[Outcome.COMPLETED][2]
            assert billed == {
                Outcome.UPSTREAM_FAILED: ("replica-1", PROMPT_TOKENS, after),
                Outcome.COMPLETED: ("replica-2", 0, rest),
            }
            used = [c["usage"] for c in told if c.get("usage")]
            total = after + rest
            assert used == [{"prompt_tokens": 7, "total_tokens": 7 + total, "completion_tokens": total}]
            assert total == len(PIECES)  # white space that is written again is left out, and counted once


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
@pytest.mark.parametrize("how", ["die before count", "die before done"])
@pytest.mark.parametrize(("path", "asked"), [CHAT, COMPLETION])
async def test_a_stream_whose_replica_dies_after_its_last_token_is_whole(
    tmp_path: Path, path: str, asked: dict[str, Any], how: str, options: dict[str, Any]
) -> None:
    for engines in ([Engine(pieces=PIECES, fail=how)], [breaking(3), Engine(pieces=PIECES, fail=how)]):
        async with gateway(tmp_path / str(len(engines)), *engines, **ON) as platform:
            events = await streamed(platform, path, asked | options)
            assert text(events) == ANSWER
            assert events[-1] == b"data: [DONE]" and events.count(b"data: [DONE]") == 1
            counted = sum(e.completion_tokens for e in await platform.settled(len(engines)))
            used = [c["usage"] for c in chunks(events) if c.get("usage")]
            total = {"prompt_tokens": 7, "total_tokens": 7 + counted, "completion_tokens": counted}
            assert counted >= len(PIECES) and used == ([total] if options else [])
            assert len({c["id"] for c in chunks(events)}) == 1
            assert all(len(engine.requests) == 1 for engine in engines)


async def test_a_replica_that_falls_silent_is_continued_elsewhere_by_an_sdk_that_notices_nothing(
    tmp_path: Path,
) -> None:
    silent = breaking(2, "silent")
    async with (
        gateway(tmp_path, silent, Engine(pieces=PIECES), read_timeout_s=0.3, **ON) as platform,
        platform.openai() as client,
    ):
        stream = await client.chat.completions.create(**HELLO, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == ANSWER
        await until(silent.aborted.is_set)
        assert set(by_outcome(await platform.settled(2))) == {Outcome.UPSTREAM_FAILED, Outcome.COMPLETED}


async def test_the_other_replica_is_asked_for_the_rest_within_what_is_left_of_the_bounds(tmp_path: Path) -> None:
    engines = breaking(3), Engine(pieces=PIECES)
    bounds = {"max_tokens": 20, "max_completion_tokens": 10, "min_tokens": 5}
    async with gateway(tmp_path, *engines, **ON) as platform:
        assert text(await streamed(platform, CHAT[0], HELLO | bounds)) == ANSWER
        (asked,) = engines[1].requests
        assert asked["messages"] == [*HELLO["messages"], {"role": "assistant", "content": "Gravity  is"}]
        assert (asked["max_tokens"], asked["max_completion_tokens"], asked["min_tokens"]) == (17, 7, 2)
        assert asked["add_generation_prompt"] is False and asked["continue_final_message"] is True
        assert asked["stream_options"]["continuous_usage_stats"] is True
        await platform.settled(2)


@pytest.mark.parametrize(("after", "left"), [(2, 20 - 2 + 1), (3, 20 - 3), (5, 20 - 5 + 2)])
async def test_white_space_that_is_written_again_is_not_taken_off_the_bound(
    tmp_path: Path, after: int, left: int
) -> None:
    engines = breaking(after), Engine(pieces=PIECES)
    async with gateway(tmp_path, *engines, **ON) as platform:
        assert text(await streamed(platform, CHAT[0], HELLO | {"max_tokens": 20})) == ANSWER
        assert engines[1].requests[0]["max_tokens"] == left
        await platform.settled(2)


async def test_a_stream_goes_on_however_many_replicas_break_off_as_long_as_each_gets_further(tmp_path: Path) -> None:
    breaks = [breaking(1), breaking(2), breaking(1), breaking(1, "give up"), breaking(1)]
    assert len(breaks) > ATTEMPTS
    async with gateway(tmp_path, *breaks, Engine(pieces=PIECES), **ON) as platform:
        events = await streamed(platform, *COMPLETION)
        assert text(events) == ANSWER and events[-1] == b"data: [DONE]"
        settled = await platform.settled(len(breaks) + 1)
        assert [(e.outcome, e.prompt_tokens, e.completion_tokens) for e in settled] == [
            (Outcome.UPSTREAM_FAILED, 7, 1),
            (Outcome.UPSTREAM_FAILED, 0, 2),
            *[(Outcome.UPSTREAM_FAILED, 0, 1)] * 3,
            (Outcome.COMPLETED, 0, 2),
        ]


async def test_a_stream_that_no_replica_takes_up_is_tried_on_no_more_of_them_than_any_request(tmp_path: Path) -> None:
    refuse = [Engine(fail="500") for _ in range(ATTEMPTS)]
    async with gateway(tmp_path, breaking(2), *refuse, Engine(pieces=PIECES), **ON) as platform:
        events = await streamed(platform, *COMPLETION)
        assert text(events) == "".join(PIECES[:2]) and b'"error"' in events[-1]
        assert sum(len(e.requests) for e in refuse) == ATTEMPTS
        (event,) = await platform.settled()
        assert (event.outcome, event.completion_tokens) == (Outcome.UPSTREAM_FAILED, 2)


async def test_white_space_that_a_replica_writes_again_takes_a_stream_no_further(tmp_path: Path) -> None:
    """So replicas that break off after it are as many as those that do not take it up."""
    again = [breaking(1) for _ in range(ATTEMPTS)]
    async with gateway(tmp_path, breaking(2), *again, Engine(pieces=PIECES), **ON) as platform:
        events = await streamed(platform, *CHAT)
        assert text(events) == "Gravity " and b"closed the connection" in events[-1]
        await platform.settled(1 + ATTEMPTS)


async def test_a_stream_that_is_continued_twice_is_one_stream(tmp_path: Path) -> None:
    engines = [breaking(2), breaking(2), Engine(pieces=PIECES)]
    async with gateway(tmp_path, *engines, **ON) as platform:
        events = await streamed(platform, CHAT[0], HELLO | WITH_USAGE)
        assert text(events) == ANSWER
        settled = await platform.settled(3)
        used = chunks(events)[-1]["usage"]
        assert used["prompt_tokens"] == sum(e.prompt_tokens for e in settled) == 7
        assert used["completion_tokens"] == sum(e.completion_tokens for e in settled)
        assert events.count(COMMENT.strip()) == 2


@pytest.mark.parametrize("fail", ["500", "unreachable", "abort"])
async def test_a_replica_that_does_not_take_it_up_leaves_it_to_the_next(tmp_path: Path, fail: str) -> None:
    async with gateway(tmp_path, breaking(2), Engine(fail=fail), Engine(pieces=PIECES), **ON) as platform:
        events = await streamed(platform, CHAT[0], HELLO)
        assert text(events) == ANSWER
        assert by_outcome(await platform.settled(2)).keys() == {Outcome.UPSTREAM_FAILED, Outcome.COMPLETED}


async def test_an_engine_that_refuses_to_continue_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, breaking(2), Engine(fail="refuse"), **ON) as platform,
        platform.openai() as client,
    ):
        with pytest.raises(openai.APIError, match="broke off, and another replica will not go on with it"):
            async for _ in await client.chat.completions.create(**HELLO, stream=True):
                pass
        (event,) = await platform.settled()
        assert (event.outcome, event.completion_tokens) == (Outcome.UPSTREAM_FAILED, 2)


async def test_where_no_other_replica_is_ready_the_stream_ends_with_the_error(tmp_path: Path) -> None:
    async with gateway(tmp_path, breaking(2), **ON) as platform, platform.openai() as client:
        with pytest.raises(openai.APIError, match="closed the connection"):
            async for _ in await client.chat.completions.create(**HELLO, stream=True):
                pass
        await platform.settled()


@pytest.mark.parametrize(
    ("settings", "more"),
    [({}, {}), (ON, {"tools": [{"type": "function", "function": {"name": "f"}}]}), (ON, {"max_tokens": 2})],
    ids=["by default", "with tools", "with nothing left to say"],
)
async def test_otherwise_a_broken_stream_ends_with_an_error(
    tmp_path: Path, settings: dict[str, Any], more: dict[str, Any]
) -> None:
    engines = breaking(2), Engine(pieces=PIECES)
    async with gateway(tmp_path, *engines, **settings) as platform:
        events = await streamed(platform, CHAT[0], HELLO | more)
        assert text(events) == "Gravity "
        assert b"closed the connection" in events[-1] and COMMENT.strip() not in events
        assert engines[1].requests == []
        (event,) = await platform.settled()
        assert (event.outcome, event.completion_tokens) == (Outcome.UPSTREAM_FAILED, 2)


@pytest.mark.parametrize("counted", [True, False])
async def test_a_client_that_leaves_during_the_continuation_pays_what_it_was_sent(
    tmp_path: Path, counted: bool
) -> None:
    second = Engine(pieces=PIECES, hold_after=2) if counted else Engine(fail="silent")
    async with gateway(tmp_path, breaking(2), second, **ON) as platform, platform.openai() as client:
        stream = await client.chat.completions.create(**HELLO, stream=True)
        received = ""
        async for chunk in stream:
            received += chunk.choices[0].delta.content or ""
            if received == ("Gravity  is" if counted else "Gravity "):
                break
        await until(lambda: second.running)
        await stream.close()
        await asyncio.wait_for(second.aborted.wait(), 5)
        failed = {Outcome.UPSTREAM_FAILED: ("replica-1", 7, 2)}
        left = {Outcome.CLIENT_LEFT: ("replica-2", 0, 1)} if counted else {}
        assert by_outcome(await platform.settled(1 + counted)) == failed | left


def test_a_replica_that_takes_over_is_not_read_while_the_client_does_not_read() -> None:
    front, upstream = mock.Mock(blocked=True), mock.Mock()
    Stream(front, StreamMeter(chat()), upstream, [], lambda: None, lambda size: None, lambda: None)
    upstream.pause.assert_called_once_with()


# What may be continued, and how: pure.


def chat(**fields: Any) -> Call:
    return calls.read(Kind.CHAT, orjson.dumps({**HELLO, "stream": True, **fields}))


def completion(prompt: Any = "Say", **fields: Any) -> Call:
    return calls.read(Kind.COMPLETION, orjson.dumps({"model": "tiny", "prompt": prompt, "stream": True, **fields}))


@pytest.mark.parametrize(
    "call",
    [chat(), completion(), chat(temperature=0, stop=["x"], logprobs=False, tools=None), completion(echo=False, n=1)],
)
def test_plain_streams_may_be_continued(call: Call) -> None:
    assert may_continue(call)


@pytest.mark.parametrize(
    "call",
    [
        chat(stream=False),
        chat(n=2),
        completion(best_of=2),
        completion(["one", "two"]),
        completion(["one"]),
        completion([1, 2, 3]),
        completion(echo=True),
        completion(logprobs=0),
        completion(suffix="x"),
        chat(logprobs=True),
        chat(tools=[{"type": "function"}]),
        chat(response_format={"type": "json_object"}),
        chat(structured_outputs={"regex": "a"}),
        chat(guided_json={}),
        chat(add_generation_prompt=False, continue_final_message=True),
        chat(add_generation_prompt=False),
        chat(include_reasoning=False),
        chat(truncate_prompt_tokens=5),
        chat(stream_options={"include_usage": True, "continuous_usage_stats": True}),
    ],
)
def test_what_the_text_so_far_does_not_carry_may_not(call: Call) -> None:
    assert not may_continue(call)


def said(call: Call, *deltas: dict[str, Any], used: int = 2, reason: str | None = None) -> Said:
    told = Said(call)
    meter = told.meter(call)
    assert isinstance(meter, SpokenMeter)
    for delta in deltas:
        choice = {"index": 0, "finish_reason": reason, **({"delta": delta} if call.kind is Kind.CHAT else delta)}
        meter.feed(b"data: " + orjson.dumps({"id": "x", "choices": [choice]}) + b"\n\n")
    told.over(Usage(7, used))
    return told


@pytest.mark.parametrize(
    "told",
    [
        said(chat()),
        said(chat(), {"role": "assistant", "content": ""}),
        said(chat(), {"content": "a"}, used=0),
        said(chat(max_tokens=2), {"content": "ab"}),
        said(completion(), {"text": "ab"}, used=16),  # what vLLM allows where nobody says
        said(chat(), {"content": "ab"}, reason="stop"),
        said(chat(), {"reasoning": "hm"}, {"content": "ab"}),
        said(chat(), {"content": "ab"}, {"tool_calls": [{}]}),
    ],
)
def test_nothing_is_continued_that_was_not_begun_or_is_done_or_is_more_than_text(told: Said) -> None:
    assert told.continued() is None


def test_the_end_of_a_completions_text_is_kept_and_the_default_bound_is_what_is_left_of_it() -> None:
    rest = said(completion(), {"text": "a \n"}).continued()
    assert rest is not None
    assert (rest.fields["prompt"], rest.fields["max_tokens"]) == ("Saya \n", 14)


def test_white_space_that_was_written_again_counts_once_when_a_chat_breaks_off_again() -> None:
    told = said(chat(), {"content": "a"}, {"content": " "})  # 2 tokens
    first = told.continued()
    assert first is not None and first.fields["max_tokens"] == 49
    told.hear(b'data: {"choices":[{"index":0,"delta":{"content":"b"}}]}\n\n')
    told.over(Usage(0, 1))  # "b", for the " " was counted
    second = told.continued()
    assert second is not None and second.fields["max_tokens"] == 47


def test_a_chat_that_said_only_white_space_is_begun_again() -> None:
    rest = said(chat(), {"content": "\n"}).continued()
    assert rest is not None
    assert rest.fields == {**chat().fields, "max_tokens": 50}


@pytest.mark.parametrize(
    ("before", "again", "client"),
    [
        ("a ", [" ", "b"], "a b"),
        ("a ", [" b"], "a b"),
        ("a\n", ["\n\n", "b"], "a\n\nb"),
        ("a\n\n", ["\n", "\n", "b"], "a\n\nb"),
        ("a\n\n", ["\n", "b\n"], "a\n\nb\n"),
        ("a ", ["b"], "a b"),
        ("a", [" b"], "a b"),
        ("a \n", [" ", "c", " "], "a \nc "),
    ],
)
def test_white_space_that_is_written_again_is_left_out(before: str, again: list[str], client: str) -> None:
    told = said(chat(), {"content": before})
    meter = told.meter(chat())
    shown = b""
    for piece in again:
        data = orjson.dumps({"id": "y", "choices": [{"index": 0, "delta": {"content": piece}}]})
        shown += meter.feed(b"data: " + data + b"\n\n")
    assert told.text == client
    assert b'"y"' not in shown
