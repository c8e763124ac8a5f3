"""What is said of deployments in words: explanations, tables, differences and what is waited for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli import apply, rollout, settling
from cli.client import Control, Unreachable
from cli.deployments import explained, of_one, ready_of_wanted, replicas_in_words
from cli.main import main
from cli.serve import changes_in_words
from cli.settling import wait_settled, wait_stopped, waiting_for
from launchers.deployment_spec import DeploymentSpec
from launchers.run_folder import RunFolder

NOW = datetime(2026, 11, 29, 14, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    os.environ.pop("TZ")
    time.tzset()


@contextmanager
def nobody() -> Iterator[None]:
    """No root meanwhile, who may read everything."""
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)


def deployment(**fields: Any) -> dict[str, Any]:
    return {
        **{"name": "chat", "state": "ready", "model": "llama", "version": 4, "follows": None, "paused": False},
        **{"min_replicas": 1, "max_replicas": 1, "desired": None, "revision": 1, "stable": 1},
        **fields,
    }


def replica(state: str, revision: int = 1, waits: str | None = None) -> dict[str, Any]:
    jobs = [{"state": "PENDING", "reason": waits}] if waits else []
    told = {"id": f"chat-{state}", "state": state, "revision": revision, "cause": None}
    return {"replica": told, "jobs": jobs}


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
        ({"desired": 1, "min_replicas": 4, "max_replicas": 4}, "1/4", "1 of 4 replicas ready"),
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
    of["replicas"][-1]["replica"]["cause"] = "sbatch: limit exceeded"
    assert waiting_for(of).endswith(": no replica yet; the last one: sbatch: limit exceeded")


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

    def __init__(self, revisions: list[dict[str, Any]], *said: dict[str, Any] | Unreachable) -> None:
        super().__init__(Path("nowhere"))
        self.revisions, self.said = revisions, list(said)

    def get(self, path: str, *names: str, **query: str | None) -> Any:
        if path.endswith("/revisions"):
            return self.revisions
        now = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if isinstance(now, Unreachable):
            raise now
        return now


def test_a_revision_is_waited_for_until_it_has_proven_itself() -> None:
    waits = list[str]()
    control = Answers([], described(replica("ready"), revision=2), described(replica("ready", 2), revision=2, stable=2))
    done = wait_settled(control, "chat", 2, lambda said: waits.append(waiting_for(said)))
    assert done["deployment"]["stable"] == 2
    assert waits == ["waiting for revision 2 to prove itself: chat-ready ready"]


def test_one_that_sleeps_is_not_waited_for_unless_it_is_to_have_a_replica() -> None:
    asleep = described(state="asleep", revision=2, min_replicas=0)
    assert wait_settled(Answers([], asleep), "chat", 2) == asleep
    woken, awake = described(state="asleep", min_replicas=1), described(replica("ready"))
    assert wait_settled(Answers([], woken, awake), "chat", 1) == awake


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


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 2)])
def test_what_was_scaled_is_waited_for_until_just_as_many_serve(before: int, after: int) -> None:
    bounds = {"min_replicas": after, "max_replicas": after, "desired": before}  # nobody has planned anything since
    few = described(*[replica("ready")] * before, **bounds)
    just = described(*[replica("ready")] * after, **bounds)
    waits = list[str]()
    assert wait_settled(Answers([], few, just), "chat", 1, lambda said: waits.append(waiting_for(said)), True) == just
    assert len(waits) == 1


def test_a_replica_that_drains_still_serves() -> None:
    draining = described(replica("ready"), replica("draining"))
    gone = described(replica("ready"))
    assert wait_settled(Answers([], draining, gone), "chat", 1, scaled=True) == gone


def test_one_that_slept_until_it_was_scaled_is_waited_for() -> None:
    asleep = described(state="asleep", desired=0)
    ready = described(replica("ready"))
    assert wait_settled(Answers([], asleep, ready), "chat", 1, scaled=True) == ready


@pytest.mark.parametrize(
    ("now", "scaled"),
    [
        (described(replica("ready"), revision=2, paused=True), False),
        (described(replica("ready"), min_replicas=2, max_replicas=2, paused=True), True),
    ],
)
def test_nothing_is_waited_for_that_a_pause_keeps_from_happening(now: dict[str, Any], scaled: bool) -> None:
    with pytest.raises(click.ClickException, match=r"chat is paused, .*: `headgate pause chat --off` goes on"):
        wait_settled(Answers([], now), "chat", None, scaled=scaled)


def test_a_deployment_that_failed_says_why_to_whoever_may_not_read_its_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "chat-1")
    folder.create()
    (folder.logs / "1.0-0.log").write_text("what the engine printed\n")
    gone = replica("failed")
    gone["replica"]["folder"] = str(folder.root)
    failed = described(gone, state="failed", cause="bad model: no such file")
    with pytest.raises(click.ClickException, match=r"no such file\nits last lines .*\nwhat the engine printed"):
        wait_settled(Answers([], failed), "chat", 1)
    folder.root.chmod(0)
    with nobody(), pytest.raises(click.ClickException, match=r"chat failed: bad model: no such file$"):
        wait_settled(Answers([], failed), "chat", 1)
    folder.root.chmod(0o700)


def test_what_ended_while_it_was_paused_is_waited_for() -> None:
    coming, back = described(replica("starting"), state="starting", paused=True), described(replica("ready"))
    assert wait_settled(Answers([], coming, back), "chat", 1) == back
    first = described(replica("starting"), stable=None, state="starting", paused=True)
    assert wait_settled(Answers([], first, back), "chat", 1) == back


def test_a_wait_outlives_the_controller() -> None:
    gone = Unreachable("no controller listens")
    ready = described(replica("ready"))
    assert wait_settled(Answers([], gone, gone, ready), "chat", 1) == ready
    assert wait_stopped(Answers([], described(state="stopping"), gone, described(state="stopped")), "chat") == "stopped"


def test_a_controller_that_stays_away_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "PATIENCE_S", 0)
    with pytest.raises(Unreachable, match="no controller listens"):
        wait_settled(Answers([], Unreachable("no controller listens")), "chat", 1)


def test_one_deployment_is_shown_with_its_replicas_and_the_causes_of_their_ends() -> None:
    ended = replica("failed")
    ended["replica"] |= {"created_at": NOW.isoformat(), "cause": "the engine ran out of memory\nmore", "job_id": "7"}
    serving = replica("ready")
    serving["replica"] |= {"created_at": NOW.isoformat(), "cause": None, "job_id": "8"}
    theirs = [{**r, "load": None} for r in (ended, serving)]
    of = described(*theirs, created_at=NOW.isoformat(), cause="all of it")
    lines = [line.split() for line in of_one(of).splitlines()]
    shown = {line[0]: line for line in lines if line}
    assert shown["chat"][1] == "ready" and shown["chat"][-3:] == ["all", "of", "it"]
    assert shown["chat-failed"][1:4] == ["failed", "1", "7"]
    assert " ".join(shown["chat-failed"]).endswith("the engine ran out of memory")
    assert shown["chat-ready"][1:4] == ["ready", "1", "8"]


class Applies(Control):
    """A control API that goes away after some deployments."""

    def __init__(self, most: int) -> None:
        super().__init__(Path("nowhere"))
        self.most = most

    def post(self, path: str, *names: str, **body: Any) -> Any:
        self.most -= not body["dry_run"]
        if self.most < 0:
            raise Unreachable("no controller listens")
        return {"done": "created", "changes": [], "deployment": deployment(name=names[0])}


@pytest.mark.parametrize("as_json", [False, True])
def test_what_was_applied_is_told_although_the_next_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    file = tmp_path / "all.toml"
    file.write_text("[deployments]\none.model = 'llama'\ntwo.model = 'llama'\n")
    monkeypatch.setattr(apply, "Control", lambda _: Applies(1))
    site = [w for s in (f"state_dir={tmp_path}", f"shared_dir={tmp_path}") for w in ("--set", s)]
    done = CliRunner().invoke(main, [*site, "apply", "-f", str(file), *(["--json"] if as_json else [])])
    assert done.exit_code == 1 and "no controller listens" in done.stderr
    told = [one["name"] for one in json.loads(done.stdout)] if as_json else done.stdout.splitlines()
    assert told == (["one"] if as_json else ["deployment one: created"])
