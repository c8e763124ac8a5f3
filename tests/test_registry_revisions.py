"""Revisions: what a deployment wants now, what proved itself, and what was given up for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry import aliases, clock, deployments, revisions
from registry.db import Conflict, Database, NotFound, open_writer, transaction
from registry.deployments import Deployment, DeploymentState, ReplicaState
from registry.migrations import MIGRATIONS
from registry.revisions import RevisionState


def deploy(db: Database, name: str = "chat", owner: str = "ada", **request: Any) -> Deployment:
    return deployments.create(
        db,
        name,
        owner,
        model="tiny",
        version=1,
        model_path="/m/1",
        min_replicas=1,
        max_replicas=4,
        request=request,
        by=owner,
        why="served",
    )


def roll(db: Database, version: int, name: str = "chat", **more: Any) -> Deployment:
    wanted = {"request": {}, "by": "bob", "why": "newer", **more}
    return revisions.add(db, name, model="tiny", version=version, model_path=f"/m/{version}", **wanted)


def states(db: Database, name: str = "chat") -> list[RevisionState]:
    return [r.state for r in revisions.of(db, name)]


def end(db: Database, name: str = "chat") -> None:
    for state in (DeploymentState.STOPPING, DeploymentState.STOPPED):
        assert deployments.set_state(db, name, state)


def test_a_deployment_begins_with_a_revision_that_has_to_prove_itself(registry: Database) -> None:
    made = deploy(registry, routing="round-robin")
    (first,) = revisions.of(registry, "chat")
    assert (made.revision, made.stable, made.rollout_at) == (1, None, made.created_at)
    assert (first.state, first.model, first.version, first.model_path) == (RevisionState.ROLLING, "tiny", 1, "/m/1")
    assert (first.request, first.created_by, first.why) == ({"routing": "round-robin"}, "ada", "served")
    revisions.settle(registry, "chat", 1, True, "its replica answered")
    assert deployments.get(registry, "chat").stable == 1
    good = revisions.get(registry, "chat", 1)
    assert (good.state, good.cause) == (RevisionState.GOOD, "its replica answered") and good.decided_at is not None


def test_a_new_revision_is_wanted_at_once_and_the_stable_one_stays_so(registry: Database) -> None:
    deploy(registry)
    revisions.settle(registry, "chat", 1, True, "good")
    rolled = roll(registry, 2, canary=10, request={"engine_args": ["--x"]})
    assert (rolled.revision, rolled.stable, rolled.version, rolled.canary) == (2, 1, 2, 10)
    assert (rolled.model_path, rolled.request) == ("/m/2", {"engine_args": ["--x"]})
    assert rolled.rollout_at is not None and rolled.rollout_at > rolled.created_at
    revisions.settle(registry, "chat", 2, True, "good")
    proven = deployments.get(registry, "chat")
    assert (proven.stable, proven.canary) == (2, None)  # the next one's is its own


def test_a_bad_revision_is_given_up_for_the_stable_one(registry: Database) -> None:
    deploy(registry, routing="round-robin")
    revisions.settle(registry, "chat", 1, True, "good")
    rolled = roll(registry, 2, canary=10)
    revisions.settle(registry, "chat", 2, False, "4 of 20 requests failed")
    back = deployments.get(registry, "chat")
    assert (back.revision, back.stable, back.version, back.model_path, back.canary) == (1, 1, 1, "/m/1", None)
    assert back.request == {"routing": "round-robin"} and (back.rollout_at or "") > (rolled.rollout_at or "")
    bad = revisions.get(registry, "chat", 2)
    assert (bad.state, bad.cause) == (RevisionState.BAD, "4 of 20 requests failed")
    assert roll(registry, 3).revision == 3


def test_the_first_revision_that_is_bad_has_nothing_to_give_way_to(registry: Database) -> None:
    deploy(registry)
    revisions.settle(registry, "chat", 1, False, "no such model")
    assert states(registry) == [RevisionState.BAD]
    assert (deployments.get(registry, "chat").revision, deployments.get(registry, "chat").stable) == (1, None)


def test_a_revision_on_trial_is_superseded_and_what_is_said_of_it_later_does_not_count(registry: Database) -> None:
    deploy(registry)
    revisions.settle(registry, "chat", 1, True, "good")
    roll(registry, 2)
    roll(registry, 3)
    assert states(registry) == [RevisionState.GOOD, RevisionState.SUPERSEDED, RevisionState.ROLLING]
    before = deployments.get(registry, "chat")
    for good in (True, False):
        revisions.settle(registry, "chat", 2, good, "too late")
    revisions.settle(registry, "chat", 1, False, "it was decided")
    assert deployments.get(registry, "chat") == before
    assert states(registry) == [RevisionState.GOOD, RevisionState.SUPERSEDED, RevisionState.ROLLING]


def test_the_last_good_one_before_the_wanted_one_is_what_is_gone_back_to(registry: Database) -> None:
    deploy(registry)
    with pytest.raises(Conflict, match="deployment chat has no good revision before 1 to go back to"):
        revisions.last_good(registry, "chat")
    revisions.settle(registry, "chat", 1, True, "good")
    for version, good in ((2, True), (3, False)):
        roll(registry, version)
        revisions.settle(registry, "chat", version, good, "")
    assert revisions.last_good(registry, "chat").revision == 1  # 2 is the one that is wanted
    roll(registry, 4)
    assert revisions.last_good(registry, "chat").revision == 2


def test_a_deployment_of_the_same_name_counts_on_and_has_no_revisions_but_its_own(
    registry: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = deploy(registry)
    revisions.settle(registry, "chat", 1, True, "good")
    roll(registry, 2, canary=10)
    deployments.set_scale(registry, "chat", 3, first.created_at)
    deployments.change(registry, "chat", paused=True)
    deployments.follow(registry, "chat", "tiny@prod")
    end(registry)
    monkeypatch.setattr(clock, "now", lambda: "2000-01-01T00:00:00.000000Z")  # a clock that was set back
    again = deploy(registry, owner="bob")
    assert (again.revision, again.stable, again.canary, again.follows, again.paused) == (3, None, None, None, False)
    assert (again.desired, again.scaled_at, again.low_since, again.owner) == (None, None, None, "bob")
    assert [r.revision for r in revisions.of(registry, "chat")] == [3]
    assert [r.revision for r in (roll(registry, 2), *revisions.of(registry, "chat"))] == [4, 3, 4]


def test_a_deployment_that_ends_gets_no_new_revision(registry: Database) -> None:
    deploy(registry)
    deployments.set_state(registry, "chat", DeploymentState.STOPPING)
    with pytest.raises(Conflict, match="deployment chat is being stopped; serve it again once it is"):
        roll(registry, 2)
    deployments.set_state(registry, "chat", DeploymentState.STOPPED)
    with pytest.raises(Conflict, match="deployment chat is stopped"):
        roll(registry, 2)
    assert states(registry) == [RevisionState.ROLLING]


def test_a_revisions_adapters_need_names_of_their_own_and_may_stay(registry: Database) -> None:
    deploy(registry, adapters={"legal": "/a/legal"})
    deploy(registry, "other", adapters={"poet": "/a/poet"})
    assert roll(registry, 2, request={"adapters": {"legal": "/a/legal-2"}}).revision == 2
    with pytest.raises(Conflict, match="poet is a LoRA adapter of deployment other"):
        roll(registry, 3, request={"adapters": {"poet": "/a/poet"}})
    assert len(states(registry)) == 2


def test_a_revision_that_there_is_not_is_answered_with_those_that_there_are(registry: Database) -> None:
    deploy(registry)
    roll(registry, 2)
    with pytest.raises(NotFound, match="deployment chat has no revision 7; it has: 1, 2"):
        revisions.get(registry, "chat", 7)


def test_deployments_of_before_there_were_revisions_have_one(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    before = MIGRATIONS[: [m.__name__ for m in MIGRATIONS].index("m010_deployments")]
    old = open_writer(path, before)
    at = "2026-01-01T00:00:00.000000Z"
    with transaction(old) as c:
        for name, state, replicas in (("up", "ready", 3), ("lazy", "asleep", 0), ("gone", "stopped", 1)):
            c.execute(
                "INSERT INTO deployments VALUES (?, 'ada', ?, 'tiny', 2, '/m/2', ?, '{\"routing\": \"round-robin\"}', "
                "NULL, ?, NULL)",
                (name, state, replicas, at),
            )
        c.execute("INSERT INTO models VALUES ('tiny', 2, 'ada', 'servable', '/m/2', NULL, 1, 1, 0, ?)", (at,))
        c.execute("INSERT INTO aliases VALUES ('tiny', 'prod', 2, 'ada', ?)", (at,))
        columns = "id, deployment, owner, state, folder, created_at"
        c.execute(f"INSERT INTO replicas ({columns}) VALUES ('r', 'up', 'ada', 'ready', '/runs/r', ?)", (at,))
    old.close()

    db = open_writer(path, MIGRATIONS)
    bounds = {d.name: (d.min_replicas, d.max_replicas, d.stable) for d in deployments.everything(db)}
    assert bounds == {"up": (3, 3, 1), "lazy": (0, 1, None), "gone": (1, 1, None)}
    (first,) = revisions.of(db, "up")
    assert (first.state, first.version, first.request) == (RevisionState.GOOD, 2, {"routing": "round-robin"})
    assert [r.state for r in revisions.of(db, "lazy")] == [RevisionState.ROLLING]
    (replica,) = deployments.live_replicas(db)["up"]
    assert (replica.revision, replica.adapters, replica.overflow, replica.restarts) == (1, (), False, 0)
    assert [(m.from_version, m.to_version, m.by) for m in aliases.moves(db)] == [(None, 2, "ada")]
    assert roll(db, 3, "up").revision == 2
    db.close()


def test_a_models_users_are_those_that_want_it_would_give_way_to_it_or_still_serve_it(registry: Database) -> None:
    def users() -> list[list[str]]:
        return [revisions.users_of(registry, "tiny", version) for version in (1, 2, 3)]

    deploy(registry)
    deploy(registry, "other")
    assert users() == [["chat", "other"], [], []]
    deployments.add_replica(registry, "r-1", "chat", "ada", "/runs/r-1", revision=1)
    revisions.settle(registry, "chat", 1, True, "good")
    roll(registry, 2)
    assert users() == [["chat", "other"], ["chat"], []]
    revisions.settle(registry, "chat", 2, True, "good")
    roll(registry, 3)
    assert users() == [["chat", "other"], ["chat"], ["chat"]]  # its replica serves the first one still
    deployments.set_replica_state(registry, "r-1", ReplicaState.STOPPED)
    assert users() == [["other"], ["chat"], ["chat"]]
    revisions.settle(registry, "chat", 3, False, "bad")
    assert users() == [["other"], ["chat"], []]
    end(registry)
    assert users() == [["other"], [], []]
    assert revisions.users_of(registry, "big", 1) == []


def test_words_that_need_no_new_replicas_count_for_the_wanted_and_the_stable_revision(registry: Database) -> None:
    deploy(registry, target_tokens=1)
    revisions.settle(registry, "chat", 1, True, "good")
    roll(registry, 2, request={"target_tokens": 2, "pack": 2})
    roll(registry, 3, request={"target_tokens": 3, "pack": 3})
    revisions.amend(registry, "chat", {"target_tokens": 9})
    assert deployments.get(registry, "chat").request == {"target_tokens": 9, "pack": 3}
    assert [r.request.get("target_tokens") for r in revisions.of(registry, "chat")] == [9, 2, 9]
    end(registry)
    with pytest.raises(Conflict, match="serve it again first"):
        revisions.amend(registry, "chat", {"target_tokens": 1})


def test_a_rollouts_canary_is_its_own_and_the_next_one_has_the_deployments(registry: Database) -> None:
    deploy(registry, canary=20)
    revisions.settle(registry, "chat", 1, True, "good")
    assert roll(registry, 2, canary=50, request={"canary": 20}).canary == 50
    revisions.end_trial(registry, "chat", 1)
    assert deployments.get(registry, "chat").canary == 50
    revisions.end_trial(registry, "chat", 2)
    assert deployments.get(registry, "chat").canary is None
    revisions.settle(registry, "chat", 2, False, "bad")
    assert deployments.get(registry, "chat").canary == 20
    assert roll(registry, 3, request={"canary": 20}).canary == 20
    assert revisions.amend(registry, "chat", {"canary": 5}).canary == 5


def test_what_was_good_before_is_proven_and_what_is_stable_once_more_is_not(registry: Database) -> None:
    deploy(registry)
    revisions.settle(registry, "chat", 1, True, "good")
    assert not revisions.is_proven(registry, roll(registry, 1))  # started once more
    revisions.settle(registry, "chat", 2, True, "good")
    assert not revisions.is_proven(registry, roll(registry, 2, request={"canary": 10}))
    revisions.settle(registry, "chat", 3, True, "good")
    assert not revisions.is_proven(registry, roll(registry, 1, request={"pack": 2}))
    back = roll(registry, 1, request={})
    assert revisions.is_proven(registry, back) and back.canary is None
