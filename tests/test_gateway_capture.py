"""The ledger's tokens against the engines' own, in the gateway's memory, in its file and on its page of metrics."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from engine import Engine
from gateway_fixtures import Platform, prepared, site_at, started, until

from gateway import capture
from gateway.capture import Capture, Errand
from gateway.engine_gauges import read, tokens
from registry import ledger
from registry.capture import Compared, compare
from registry.db import Database, open_reader
from registry.deployments import Replica, ReplicaState
from registry.steps import Attempt, Hold, Outcome, UsageEvent

NONE: Any = (None,) * 5
R1 = Replica("r1", "tiny", "root", ReplicaState.READY, "/runs", *NONE, "2026-11-28T09:00:00.000000Z", None, None)
R2 = replace(R1, id="r2")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    opened = ledger.open_ledger(tmp_path / "ledger.db")
    yield opened
    opened.close()


def used(db: Database, replica: str, prompt: int, completion: int) -> None:
    attempt = Attempt(f"{prompt}:1", "physics", "k1", "tiny", replica, "chat", "2026-11-28T10:00:00.000000Z", "ada")
    event = UsageEvent(attempt, prompt, completion, 1, Outcome.COMPLETED, "2026-11-28T10:00:01.000000Z")
    assert ledger.record(db, [Hold(attempt, 100, 10), event]) == [None, None]


def test_the_ratio_is_the_ledgers_tokens_for_each_of_the_engines() -> None:
    compared = [
        Compared("r1", "tiny", 90, 100, 50, 50),
        Compared("r2", "tiny", 0, 0, 0, 0),
        Compared("r3", "big", 0, 7, 3, 0),
    ]
    assert capture.ratios(compared) == {
        ("tiny", "r1", "prompt"): 0.9,
        ("tiny", "r1", "generation"): 1.0,
        ("big", "r3", "prompt"): 0.0,
    }


def test_only_what_changed_is_written_and_only_ready_replicas_are_shown(db: Database) -> None:
    errands: list[Errand] = []
    ready = [R1, R2]
    watched = Capture(errands.append, lambda: ready)
    used(db, "r1", 7, 4)
    watched.counted(R1, 8, 4)
    watched.tell()
    watched.counted(R2, 5, 5)
    watched.tell()
    while errands:  # another gateway had the ledger for a while
        errands.pop(0)(db)
    assert watched.ratios() == {
        ("tiny", "r1", "prompt"): 7 / 8,
        ("tiny", "r1", "generation"): 1.0,
        ("tiny", "r2", "prompt"): 0.0,
        ("tiny", "r2", "generation"): 0.0,
    }
    written = db.conn.total_changes
    watched.counted(R1, 8, 4)
    watched.tell()
    errands.pop()(db)
    assert db.conn.total_changes == written
    ready.remove(R2)
    assert {labels[1] for labels in watched.ratios()} == {"r1"}
    assert [c.replica for c in compare(db)] == ["r1", "r2"]


def test_prompt_tokens_that_were_read_again_are_kept_until_their_engine_is_known(db: Database) -> None:
    errands: list[Errand] = []
    watched = Capture(errands.append, lambda: [R1])
    watched.repeated("r1", 7)
    watched.tell()
    errands.pop()(db)
    watched.repeated("r1", 7)
    watched.counted(R1, 21, 12)
    watched.tell()
    errands.pop()(db)
    assert compare(db) == [Compared("r1", "tiny", 0, 7, 0, 12)]


def test_the_counts_of_a_servers_engines_are_summed_and_absent_ones_are_not_zero() -> None:
    page = """\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 1.5e+06
vllm:prompt_tokens_total{engine="1",model_name="tiny"} 3.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="tiny"} 1.7e+09
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="tiny"} 12.0
"""
    assert tokens(page.encode()) == (1_500_003, 12)
    assert tokens(page.replace("vllm:generation_tokens_total", "other").encode()) is None
    assert tokens(b"") is None


# A real engine.

LONG = "the quick brown fox jumps over the lazy dog " * 20  # 560 tokens: more than a block, so that it is cached
ASK = [{"role": "user", "content": "def f("}]
PAINT = {
    "name": "paint",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}
TOOL = {"type": "function", "function": PAINT}
CHAT, COMPLETION, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
STREAM = {"stream": True}
COUNTED = {**STREAM, "stream_options": {"include_usage": True}}
RUNNING = {**STREAM, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
TOOLS = {"max_tokens": 900, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "paint"}}}
MIXED: list[tuple[str, dict[str, Any]]] = [
    *[(CHAT, {"messages": ASK, "max_tokens": 8, **how}) for how in ({}, STREAM, RUNNING)],
    *[(CHAT, {"messages": ASK, "max_tokens": 8, "n": 2, **how}) for how in ({}, COUNTED)],
    *[(CHAT, {"messages": ASK, **TOOLS, **how}) for how in ({}, STREAM)],
    (COMPLETION, {"prompt": ["def f(", LONG], "max_tokens": 4, "n": 3}),
    (COMPLETION, {"prompt": ["def f(", "import"], "max_tokens": 4, "n": 2, **COUNTED}),
    (COMPLETION, {"prompt": "def f(", "max_tokens": 0, "echo": True, "logprobs": 1}),
    *[(COMPLETION, {"prompt": LONG, "max_tokens": 4, **how}) for how in ({}, STREAM, COUNTED)],
    *[(RESPONSES, {"input": LONG, "max_output_tokens": 8, **how}) for how in ({}, STREAM)],
    *[(MESSAGES, {"messages": ASK, "max_tokens": 8, **how}) for how in ({}, STREAM)],
    ("/v1/messages/count_tokens", {"messages": ASK}),
    ("/tokenize", {"prompt": LONG}),
]


async def counted_by(engine: Engine) -> tuple[int, int]:
    """Its own prompt and completion tokens, once it does nothing."""
    url = f"http://{engine.host}:{engine.port}/metrics"
    headers = {"Authorization": f"Bearer {engine.key}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        while True:
            async with http.get(url) as answer:
                page = await answer.read()
            gauges, found = read(page, 0.0), tokens(page)
            assert gauges is not None and found is not None
            if not gauges.running and not gauges.waiting:
                return found
            await asyncio.sleep(0.1)


async def written_down(site: Platform, engine: tuple[int, int], repeated: int) -> Compared:
    """What the gateway compares, once it has read these counters and told of all that was read again."""

    def found() -> Compared | None:
        db = open_reader(site.site.ledger_db)
        try:
            (compared,) = compare(db) or [None]
        finally:
            db.close()
        said = (engine[0] - repeated, engine[1])
        return compared if compared and (compared.engine_prompt, compared.engine_completion) == said else None

    seen: Compared = await until(found)
    return seen


@pytest.mark.chain
async def test_ledger_and_engine_agree_to_the_token_and_what_was_cut_is_listed(
    vllm: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "EVERY_S", 0.2)
    before = await counted_by(vllm)  # by other tests, whose gateways had ledgers of their own
    site = prepared(site_at(tmp_path))
    site.ready(vllm)
    keys = [site.key, site.tenant("biology")]
    async with started(site):

        async def ask(key: str, path: str, body: dict[str, Any]) -> int:
            """Prompt tokens that the engine read more than once for it."""
            async with site.http(key) as http, http.post(path, json={"model": "tiny", **body}) as answer:
                text = await answer.text()
                assert answer.status == 200, text
            return (body["n"] - 1) * int(re.findall(r'"prompt_tokens":(\d+)', text)[-1]) if "n" in body else 0

        repeated = 0
        for again in range(2):
            repeated += sum(await asyncio.gather(*(ask(key, *asked) for key in keys for asked in MIXED)))
            events = await site.settled(2 * len(MIXED) * (again + 1))
        assert {e.outcome for e in events} == {Outcome.COMPLETED}
        assert {e.attempt.tenant for e in events} == {"physics", "biology"}
        assert sum(e.cached_tokens for e in events) > 512
        ended = (sum(e.prompt_tokens for e in events), sum(e.completion_tokens for e in events))

        # Somebody who has the engine's key asks it directly: that is not in the ledger.
        url, headers = f"http://{vllm.host}:{vllm.port}{COMPLETION}", {"Authorization": f"Bearer {vllm.key}"}
        body = {"model": "tiny", "prompt": "def f(", "max_tokens": 3, "ignore_eos": True}
        async with aiohttp.ClientSession(headers=headers) as http, http.post(url, json=body) as answer:
            direct = (await answer.json())["usage"]
        beside = (before[0] + direct["prompt_tokens"], before[1] + direct["completion_tokens"])

        found = await written_down(site, await counted_by(vllm), repeated)
        assert (found.ledger_prompt, found.ledger_completion) == ended
        assert (found.engine_prompt - beside[0], found.engine_completion - beside[1]) == ended
        assert found.cut == ()

        body = {"model": "tiny", "prompt": "def f(", "max_tokens": 900, "ignore_eos": True, **STREAM}
        async with site.http() as http, http.post(COMPLETION, json=body) as stream:
            for _ in range(8):
                await stream.content.readuntil(b"\n\n")
            stream.close()
        await site.settled(len(events) + 1)
        found = await written_down(site, await counted_by(vllm), repeated)
        (cut,) = found.cut
        assert (cut.tenant, cut.outcome) == ("physics", Outcome.CLIENT_LEFT) and cut.completion_tokens >= 8
        assert (found.ledger_prompt, found.ledger_completion) == (
            ended[0] + cut.prompt_tokens,
            ended[1] + cut.completion_tokens,
        )
        assert found.engine_prompt - beside[0] == found.ledger_prompt
        missed = found.engine_completion - beside[1] - found.ledger_completion
        assert 0 <= missed < 900 - cut.completion_tokens

        async with aiohttp.ClientSession() as http, http.get(f"{site.url}/metrics") as answer:
            page = await answer.text()
        assert 'headgate_ledger_engine_tokens_ratio{deployment="tiny",replica="replica-1",type="generation"}' in page
