"""What is said of deployments in words: explanations, tables, differences and what is waited for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest

from cli import apply, rollout
from cli.client import Control
from cli.deployments import explained, ready_of_wanted, replicas_in_words
from cli.serve import changes_in_words
from cli.settling import wait_settled, waiting_for
from launchers.deployment_spec import DeploymentSpec

NOW = datetime(2026, 11, 29, 14, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    os.environ.pop("TZ")
    time.tzset()


def deployment(**fields: Any) -> dict[str, Any]:
    return {
        **{"name": "chat", "state": "ready", "model": "llama", "version": 4, "follows": None, "paused": False},
        **{"min_replicas": 1, "max_replicas": 1, "desired": None, "revision": 1, "stable": 1},
        **fields,
    }


def replica(state: str, revision: int = 1, waits: str | None = None) -> dict[str, Any]:
    jobs = [{"state": "PENDING", "reason": waits}] if waits else []
    return {"replica": {"id": f"chat-{state}", "state": state, "revision": revision}, "jobs": jobs}


def described(*replicas: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"deployment": deployment(**fields), "replicas": list(replicas)}


def test_an_explanation_says_why_and_what_comes_next_by_the_readers_own_clock() -> None:
    steps = [
        {"at": (NOW + timedelta(minutes=30)).isoformat(), "words": "a successor of chat-1 is submitted"},
        {"at": (NOW + timedelta(days=2)).isoformat(), "words": "chat-1's job ends"},
        {"at": (NOW - timedelta(seconds=5)).isoformat(), "words": "chat-2 is stopped"},
        {"at": None, "words": "chat-3 takes its place when it is ready"},
    ]
    said = {"deployment": deployment(), "why": ["wants 1", "has 1"], "next": steps, "planned_at": NOW.isoformat()}
    assert explained(said, NOW + timedelta(seconds=2)).splitlines() == [
        "chat  ready  llama@4, revision 1",
        "  wants 1",
        "  has 1",
        "next:",
        "  15:30:00 (in 30m): a successor of chat-1 is submitted",
        "  2026-12-01 15:00 (in 2d): chat-1's job ends",
        "  14:59:55 (now): chat-2 is stopped",
        "  chat-3 takes its place when it is ready",
        "as of 2s ago",
    ]


def test_a_trial_and_a_pause_are_named() -> None:
    said = {"deployment": deployment(revision=3, stable=2, paused=True), "why": [], "next": [], "planned_at": None}
    assert explained(said, NOW) == "chat  ready  llama@4, revision 3 on trial, 2 stable, paused"


@pytest.mark.parametrize(
    ("fields", "counted", "words"),
    [
        ({"min_replicas": 2, "max_replicas": 2}, "1/2", "1 of 2 replicas ready"),
        ({"min_replicas": 0}, "1/0", "1 of 0 replicas ready"),
        ({"desired": 3, "max_replicas": 8}, "1/3", "1 of 3 replicas ready, 1 to 8 as the load asks"),
        ({"state": "stopping", "min_replicas": 2, "max_replicas": 2}, "1/0", "1 of 0 replicas ready"),
    ],
)
def test_replicas_are_counted_against_those_that_are_wanted_now(
    fields: dict[str, Any], counted: str, words: str
) -> None:
    of = described(replica("ready"), replica("starting"), replica("failed"), **fields)
    assert (ready_of_wanted(of), replicas_in_words(of)) == (counted, words)


def test_what_is_waited_for_are_live_replicas_with_the_schedulers_reason() -> None:
    of = described(replica("failed"), replica("starting"), replica("pending", waits="Resources"), stable=None)
    assert waiting_for(of) == "waiting for a generated token: chat-starting starting, chat-pending pending (Resources)"
    of = described(replica("lost"), revision=2)
    assert waiting_for(of) == "waiting for revision 2 to prove itself: no replica yet"


def revision(number: int, state: str, **fields: Any) -> dict[str, Any]:
    return {
        **{"revision": number, "model": "llama", "version": number, "state": state, "cause": None, "why": "served"},
        **{"created_by": "ada", "created_at": datetime.now(UTC).isoformat()},
        **fields,
    }


def test_a_rollout_says_how_many_replicas_are_the_new_revisions() -> None:
    of = described(replica("ready", 1), replica("ready", 1), replica("ready", 2), revision=2)
    lines = rollout.progress(of, [revision(1, "good"), revision(2, "rolling", why="asked")]).splitlines()
    assert lines[0].startswith("revision 2 (llama@2) is rolling, asked for ") and lines[0].endswith("by ada: asked")
    assert lines[1:] == ["ready replicas: 1 of it, 2 of others", waiting_for(of)]


def test_a_rollout_that_was_given_up_says_why() -> None:
    bad = revision(2, "bad", cause="out of memory")
    lines = rollout.progress(described(replica("ready")), [revision(1, "good"), bad]).splitlines()
    assert lines[0].startswith("revision 1 (llama@1) is good")
    assert lines[-1] == "revision 2 (llama@2) is bad: out of memory"


CHANGES = [{"field": "min", "from": 1, "to": 2}, {"field": "routing", "from": None, "to": "round-robin"}]


def test_changes_are_named_with_both_values() -> None:
    assert changes_in_words(CHANGES) == "min: 1 -> 2, routing: - -> round-robin"
    assert changes_in_words([]) == "nothing changes"


def test_differences_from_a_file_are_told_by_deployment() -> None:
    found = [
        (DeploymentSpec(name="chat", model="llama"), {"done": "changed", "changes": CHANGES}),
        (DeploymentSpec(name="new", model="qwen@prod"), {"done": "created", "changes": []}),
    ]
    assert apply.render(Path("all.toml"), found).splitlines() == [
        "--- deployed",
        "+++ all.toml",
        "chat.min: 1 -> 2",
        "chat.routing: - -> round-robin",
        "new: - -> qwen@prod",
    ]


class Answers(Control):
    """A control API's, in the order in which it gives them; the last one again and again."""

    def __init__(self, revisions: list[dict[str, Any]], *said: dict[str, Any]) -> None:
        super().__init__(Path("nowhere"))
        self.revisions, self.said = revisions, list(said)

    def get(self, path: str, *names: str, **query: str | None) -> Any:
        if path.endswith("/revisions"):
            return self.revisions
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]


def test_a_revision_is_waited_for_until_it_has_proven_itself() -> None:
    waits = list[str]()
    control = Answers([], described(replica("ready"), revision=2), described(replica("ready", 2), revision=2, stable=2))
    done = wait_settled(control, "chat", 2, lambda said: waits.append(waiting_for(said)))
    assert done["deployment"]["stable"] == 2
    assert waits == ["waiting for revision 2 to prove itself: chat-ready ready"]


def test_one_that_sleeps_is_not_waited_for() -> None:
    asleep = described(state="asleep", revision=2)
    assert wait_settled(Answers([], asleep), "chat", 2) == asleep


@pytest.mark.parametrize(
    ("revisions", "now", "words"),
    [
        (
            [revision(1, "good"), revision(2, "bad", cause="worse")],
            {},
            "revision 2 was given up, and 1 is served again: worse",
        ),
        (
            [revision(2, "superseded"), revision(3, "rolling")],
            {"revision": 3},
            "revision 2 is superseded; 3 is the one",
        ),
        ([], {"revision": 2, "state": "failed", "cause": "no memory"}, "deployment chat failed: no memory"),
        ([], {"revision": 2, "state": "stopping", "cause": None}, "deployment chat stopping: no cause was given"),
    ],
)
def test_what_will_not_be_served_ends_the_wait_with_its_cause(
    revisions: list[dict[str, Any]], now: dict[str, Any], words: str
) -> None:
    with pytest.raises(click.ClickException, match=words):
        wait_settled(Answers(revisions, described(**now)), "chat", 2)
