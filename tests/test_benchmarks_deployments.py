"""What the benchmark of deployments takes for whole, for its clients' loss and for a succession."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gateway_fixtures import Platform, free_port, gateway, until

from benchmarks.deployments import Part, excused, shown
from benchmarks.deployments_clients import INTERVAL_MS, Clients, Saw, Seen, table
from benchmarks.deployments_engine import START_VARIABLE, Asked, read
from benchmarks.deployments_faults import Fault, successions
from benchmarks.deployments_platform import ENGINE
from registry import deployments, replicas
from registry.db import open_reader, rows


def test_whoever_gives_a_beginning_of_the_answer_gets_the_rest_with_the_white_space_that_was_lost() -> None:
    asked = Asked(12, 11, 0)
    whole = "".join(asked.pieces())
    assert whole.startswith("12.1 12.2 ") and whole.endswith(" 12.11 ")
    for n in range(1, 11):
        said = "".join(list(asked.pieces())[:n])
        assert said + "".join(asked.pieces(said)) == whole
        rest = list(asked.pieces(said.rstrip()))
        assert said.rstrip() + "".join(rest) == whole and len(rest) == 11 - n


def test_a_question_to_go_on_is_read_with_what_was_said_and_a_probe_is_one_token() -> None:
    asked = Asked(3, 5, 20)
    messages = [{"role": "user", "content": asked.prompt}]
    assert read({"messages": messages}) == (asked, "")
    more = [*messages, {"role": "assistant", "content": "3.1 3.2"}]
    assert read({"messages": more, "continue_final_message": True}) == (asked, "3.1 3.2")
    assert read({"prompt": "a", "max_tokens": 1}) == (Asked(0, 1, 0), "")


@contextlib.asynccontextmanager
async def engine(platform: Platform, replica: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of it, ready in the registry."""
    port = free_port()
    words = [sys.executable, str(ENGINE), "--served-model-name", "tiny", "--port", str(port), "--shutdown-timeout", "0"]
    env = os.environ | {"HEADGATE_REPLICA_KEY": "k", START_VARIABLE: "0"}
    process = await asyncio.create_subprocess_exec(*words, env=env, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None and b"serving tiny" in await process.stdout.readline()
        deployments.add_replica(platform.registry, replica, "tiny", "root", f"/runs/{replica}")
        replicas.replica_is_ready(platform.registry, replica, "127.0.0.1", port, "k")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def generated(platform: Platform) -> int:
    """Tokens of what still streams, as noted for the ledger."""
    with contextlib.closing(open_reader(platform.site.ledger_db)) as db:
        return sum(r["completion_tokens"] for r in rows(db, "SELECT completion_tokens FROM holds"))


async def test_a_stream_whose_engine_is_stopped_is_whole_for_its_client_and_continued_once(tmp_path: Path) -> None:
    async with gateway(tmp_path, continue_streams=True) as platform, engine(platform, "first") as first:
        clients = Clients(platform.url, platform.key, random.Random(1), 1.0)
        tokens = 3000 // INTERVAL_MS
        asked = asyncio.create_task(clients.ask("tiny", tokens))
        async with engine(platform, "second"):
            await until(lambda: generated(platform) > 2)
            replicas.drain_replica(platform.registry, "first", "its successor is ready")
            first.send_signal(signal.SIGTERM)
            await until(lambda: clients.running("tiny"))
            assert clients.running("other") == 0
            seen = await asked
            assert clients.running("tiny") == 0
            assert (seen.saw, seen.came, seen.continued, seen.text) == (Saw.WHOLE, tokens, 1, "")
            assert await first.wait() == 0


@pytest.mark.parametrize(
    ("saw", "ended", "is_excused"),
    [(Saw.CUT, 10.5, True), (Saw.CUT, 9.0, False), (Saw.CUT, 30.0, False), (Saw.WRONG, 10.5, False)],
)
def test_only_a_stream_that_was_cut_as_the_gateway_was_killed_is_excused(
    saw: Saw, ended: float, is_excused: bool
) -> None:
    faults = [Fault("kill -9 of the engine", 30.0), Fault("kill -9 of the gateway", 10.0)]
    assert excused(Seen(1, "m", 0, 5, 5.0, ended, saw), faults) is is_excused


@pytest.mark.parametrize(
    ("faults", "streams", "good", "said"),
    [
        (2, 1, True, ""),
        (1, 1, False, "1 of 2 faults happened"),
        (0, 0, False, "0 of 2 faults happened"),
        (2, 0, False, "no stream met a fault"),
    ],
)
def test_a_part_is_good_only_with_all_its_faults_and_streams_that_met_them(
    capsys: pytest.CaptureFixture[str], faults: int, streams: int, good: bool, said: str
) -> None:
    whole = Seen(1, "m", 0, 5, 0.0, 2.0, Saw.WHOLE, 5, 0.25)
    part = Part("kills", 2, "from kill -9", [Fault("kill -9 of the engine", 1.0, 2.0)] * faults, [whole] * streams)
    assert shown(part) is good
    assert said in capsys.readouterr().err


def test_what_each_client_saw_is_a_line(tmp_path: Path) -> None:
    seen = [
        Seen(1, "m", 0, 5, 0.0, 2.0, Saw.WHOLE, 5, 0.25, continued=1),
        Seen(2, "m", 0, 5, 0.0, 9.0, Saw.CUT, 2, 0.5, waited=True),
        Seen(3, "m", 1, 5, 0.0, 1.0, Saw.REFUSED),
    ]
    _, first, second = table(seen).splitlines()
    assert first.split() == ["0", "2", "1", "0", "1", "0", "1", "1", "9.0", "s", "0.50", "s"]
    assert second.split() == ["1", "1", "0", "1", "0", "0", "0", "0", "1.0", "s", "0.00", "s"]


async def test_a_succession_is_a_replica_with_the_one_that_it_was_started_for(tmp_path: Path) -> None:
    async with gateway(tmp_path) as platform:
        for name, old in (("a", None), ("b", "a"), ("c", None)):
            deployments.add_replica(platform.registry, name, "tiny", "root", f"/runs/{name}", replaces=old)
        found = successions(deployments.replicas(platform.registry))
        assert [(old.id, new.id) for old, new in found] == [("a", "b")]
