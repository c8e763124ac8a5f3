"""Deployments that follow an alias: each of its moves becomes a revision, once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from launchers.following import follow
from registry import aliases, deployments, models, revisions
from registry.db import Database
from registry.deployments import Deployment, DeploymentState


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
