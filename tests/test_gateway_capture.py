"""The ledger's tokens against the engines' own, in the gateway's memory, in its file and on its page of metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway import capture
from gateway.capture import Capture, Errand
from gateway.engine_gauges import tokens
from registry import ledger
from registry.capture import Compared, compare
from registry.db import Database
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
    watched.counted(R2, 5, 5)
    watched.tell()
    watched.tell()  # the first has not been run yet
    (first,) = errands
    first(db)
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
