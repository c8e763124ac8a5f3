"""Deployments that follow an alias: each of its moves becomes a revision, once."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launchers import following, situations
from launchers.deployment_plans import DeploymentPlans
from launchers.following import follow
from launchers.planning.facts import Cluster, Scale, Settle
from registry import aliases, deployments, models, revisions
from registry.db import Conflict, Database
from registry.deployments import Deployment, DeploymentState
from registry.revisions import RevisionState
from registry.settings import Scheduler
from registry.site import Site


class Chat:
    """A deployment that follows tiny@prod, and proved itself."""

    def __init__(self, db: Database, root: Path) -> None:
        self.db, self.root = db, root
        for version in (1, 2, 3):
            directory = root / str(version)
            directory.mkdir()
            (directory / "config.json").write_text("{}")
            (directory / "model.safetensors").write_bytes(b"")
            models.register(db, "tiny", "ada", str(directory))
        self.moves(1)
        deployments.create(
            db,
            "chat",
            "ada",
            model="tiny",
            version=1,
            model_path=str(root / "1"),
            min_replicas=1,
            max_replicas=1,
            request={"engine_args": ["--x"], "safetensors_only": True},
            follows="tiny@prod",
            by="ada",
            why="served",
        )
        revisions.settle(db, "chat", 1, True, "good")

    def moves(self, version: int, **more: Any) -> None:
        aliases.move(self.db, "tiny", "prod", version, "bob", "better", **more)

    @property
    def now(self) -> Deployment:
        return deployments.get(self.db, "chat")

    def follows(self) -> str | None:
        return follow(self.db, self.now)


@pytest.fixture
def chat(registry: Database, tmp_path: Path) -> Chat:
    return Chat(registry, tmp_path)


def test_a_move_becomes_a_revision_once(chat: Chat) -> None:
    assert chat.follows() is None and chat.now.revision == 1
    chat.moves(2, canary=10)
    for _ in range(2):
        assert chat.follows() is None
    now = chat.now
    assert (now.revision, now.stable, now.version, now.canary) == (2, 1, 2, 10)
    assert (now.model_path, now.request["engine_args"]) == (str(chat.root / "2"), ["--x"])
    made = revisions.get(chat.db, "chat", 2)
    assert (made.created_by, made.why) == ("bob", "tiny@prod moved to version 2: better")


def test_a_move_while_another_is_on_trial_supersedes_it(chat: Chat) -> None:
    for version in (2, 3):
        chat.moves(version)
        chat.follows()
    assert (chat.now.revision, chat.now.version) == (3, 3)


def test_an_alias_that_goes_back_during_a_trial_ends_the_trial(chat: Chat) -> None:
    chat.moves(2)
    chat.follows()
    aliases.roll_back(chat.db, "tiny", "prod", "ada", "it sings")
    assert chat.follows() is None
    assert (chat.now.revision, chat.now.stable, chat.now.version) == (1, 1, 1)
    tried = revisions.get(chat.db, "chat", 2)
    assert (tried.state, tried.cause) == (RevisionState.BAD, "tiny@prod moved back to version 1: it sings")
    chat.moves(2)
    assert chat.follows() is None and (chat.now.revision, chat.now.version) == (3, 2)


def test_an_alias_that_goes_back_while_other_words_are_on_trial_is_a_revision_of_those(chat: Chat) -> None:
    chat.moves(2)
    chat.follows()
    other = {**chat.now.request, "engine_args": ["--y"]}
    roll = {"model": "tiny", "version": 2, "model_path": chat.now.model_path, "by": "ada", "why": ""}
    revisions.add(chat.db, "chat", request=other, **roll)
    chat.moves(1)
    assert chat.follows() is None
    assert (chat.now.revision, chat.now.stable, chat.now.version, chat.now.request) == (4, 1, 1, other)


def test_a_move_that_was_given_up_is_not_tried_again_until_the_alias_moves(chat: Chat) -> None:
    chat.moves(2)
    chat.follows()
    revisions.settle(chat.db, "chat", 2, False, "it fails")
    assert chat.follows() == "tiny@prod is version 2, which was given up: it fails"
    assert (chat.now.revision, chat.now.version) == (1, 1)
    chat.moves(1)
    assert chat.follows() is None and chat.now.revision == 1
    chat.moves(2)
    assert chat.follows() is None and (chat.now.revision, chat.now.version) == (3, 2)


def test_a_version_whose_weights_nobody_vouched_for_is_not_served(chat: Chat) -> None:
    (chat.root / "2" / "config.json").write_text('{"auto_map": {"AutoModel": "code.Model"}}')
    chat.moves(2)
    words = chat.follows()
    assert words is not None and words.startswith("tiny@prod is version 2, which it may not serve: ")
    shutil.rmtree(chat.root / "3")
    chat.moves(3)
    assert "model tiny@3 is gone" in (chat.follows() or "")
    assert chat.now.revision == 1


def test_what_is_paused_or_ends_or_follows_nothing_stays_as_it_is(chat: Chat) -> None:
    chat.moves(2)
    deployments.change(chat.db, "chat", paused=True)
    assert chat.follows() is None and chat.now.revision == 1
    deployments.change(chat.db, "chat", paused=False)
    deployments.follow(chat.db, "chat", None)
    assert chat.follows() is None and chat.now.revision == 1
    deployments.follow(chat.db, "chat", "tiny@prod")
    deployments.set_state(chat.db, "chat", DeploymentState.STOPPING)
    assert chat.follows() is None and chat.now.revision == 1


def test_an_alias_that_there_is_not_is_said(chat: Chat) -> None:
    deployments.follow(chat.db, "chat", "tiny@qa")
    assert chat.follows() == "it follows tiny@qa, which is no alias any more"


@pytest.fixture
def plans(chat: Chat, tmp_path: Path) -> Iterator[DeploymentPlans]:
    local = Scheduler(kind="local")
    made = DeploymentPlans(Site(name="test", state_dir=tmp_path, shared_dir=tmp_path, scheduler=local), chat.db, {})
    yield made
    made.close()


def wants(chat: Chat, name: str) -> Deployment:
    follow(chat.db, deployments.get(chat.db, name))
    return deployments.get(chat.db, name)


def alias_of(chat: Chat) -> tuple[int, str]:
    last = aliases.newest(chat.db, "tiny", "prod")
    assert last is not None
    return last.to_version, last.by


def another(chat: Chat, name: str, owner: str) -> None:
    deployments.create(
        chat.db,
        name,
        owner,
        model="tiny",
        version=1,
        model_path=str(chat.root / "1"),
        min_replicas=1,
        max_replicas=1,
        request={},
        follows="tiny@prod",
        by=owner,
        why="served",
    )
    revisions.settle(chat.db, name, 1, True, "good")


def test_two_bad_versions_in_a_row_take_the_alias_back_to_what_is_stable_and_end(
    chat: Chat, plans: DeploymentPlans
) -> None:
    for version in (2, 3):
        chat.moves(version)
        chat.follows()
    plans.note(Settle("chat", 3, False, "it fails"))
    assert alias_of(chat) == (1, aliases.HEADGATE)
    assert chat.follows() is None and (chat.now.revision, chat.now.version) == (1, 1)
    assert len(revisions.of(chat.db, "chat")) == 3


def test_a_revision_is_given_up_with_its_alias_or_not_at_all(
    chat: Chat, plans: DeploymentPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.moves(2)
    chat.follows()

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(aliases, "move", dies)
        plans.note(Settle("chat", 2, False, "it fails"))
    assert revisions.get(chat.db, "chat", 2).state is RevisionState.ROLLING
    plans.note(Settle("chat", 2, False, "it fails"))
    assert alias_of(chat) == (1, aliases.HEADGATE)


def test_whoever_follows_somebodys_alias_does_not_move_it(chat: Chat, plans: DeploymentPlans) -> None:
    another(chat, "hers", "mallory")
    chat.moves(2)
    assert wants(chat, "hers").version == 2
    plans.note(Settle("hers", 2, False, "3 of its 3 requests failed"))
    assert alias_of(chat) == (2, "bob")
    assert wants(chat, "hers").version == 1  # she has her own back
    assert chat.follows() is None and chat.now.version == 2


def test_an_alias_stays_where_another_deployment_found_its_version_good(chat: Chat, plans: DeploymentPlans) -> None:
    another(chat, "small", "ada")
    chat.moves(2)
    chat.follows()
    assert wants(chat, "small").version == 2
    revisions.settle(chat.db, "chat", 2, True, "good")
    plans.note(Settle("small", 2, False, "it has too little memory"))
    assert alias_of(chat) == (2, "bob") and chat.now.version == 2


def test_what_an_alias_goes_back_to_was_good_and_needs_no_canary(chat: Chat) -> None:
    chat.moves(2, canary=10)
    chat.follows()
    assert chat.now.canary == 10 and not revisions.is_proven(chat.db, chat.now)
    revisions.settle(chat.db, "chat", 2, True, "good")
    assert chat.now.canary is None
    aliases.roll_back(chat.db, "tiny", "prod", "bob", "it is broken")
    assert chat.follows() is None
    assert (chat.now.revision, chat.now.version, chat.now.canary) == (3, 1, None)
    assert revisions.is_proven(chat.db, chat.now)


def test_what_the_registry_refuses_of_a_move_is_said(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    chat.moves(2)

    def refuses(*_: object, **__: object) -> None:
        raise Conflict("legal is a deployment")

    monkeypatch.setattr(revisions, "add", refuses)
    assert chat.follows() == "tiny@prod is version 2, which it may not serve: legal is a deployment"


@pytest.mark.parametrize("error", [Conflict("it is taken"), OSError(errno.ESTALE, "Stale file handle")])
def test_what_nobody_expected_of_one_deployment_leaves_the_others_their_plans(
    chat: Chat, plans: DeploymentPlans, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(db: Database, deployment: Deployment) -> str | None:
        if deployment.name == "chat":
            raise error
        return None

    another(chat, "other", "ada")
    monkeypatch.setattr(following, "follow", fails)
    actions = plans.make(Cluster())
    assert plans.latest["chat"].why == (f"nothing is done for it now: {error}",)
    assert actions and list(actions) == list(plans.latest["other"].actions)


def test_a_deployment_whose_words_are_not_taken_any_more_is_not_scaled_by_rules_that_are_not_its_own(
    chat: Chat, plans: DeploymentPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise ValueError("'resources.gpu' is not known")

    monkeypatch.setattr(situations, "rules_of", refuses)
    deployments.change(chat.db, "chat", max_replicas=4)
    deployments.set_scale(chat.db, "chat", 3, None)
    actions = plans.make(Cluster())
    assert not any(isinstance(a, Scale) for a in actions)
    assert "wants 3 replicas" in plans.latest["chat"].why[0] and "resources.gpu" in plans.latest["chat"].why[-1]
