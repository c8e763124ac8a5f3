"""Aliases: they move between a model's versions, and every move is kept."""

from __future__ import annotations

import pytest

from registry import aliases, models
from registry.db import Conflict, Database, NotFound, RegistryError


@pytest.fixture
def tiny(registry: Database) -> Database:
    for version in (1, 2, 3):
        models.register(registry, "tiny", "ada", f"/m/{version}")
    return registry


def test_an_alias_moves_between_versions(tiny: Database) -> None:
    aliases.move(tiny, "tiny", "prod", 1, "ada", "the first")
    assert models.resolve(tiny, "tiny@prod").aliases == ("prod",)
    aliases.move(tiny, "tiny", "prod", 2, "ada", "better")
    assert models.resolve(tiny, "tiny@prod").version == 2
    assert [m.aliases for m in models.everything(tiny)] == [(), ("prod",), ()]


def test_every_move_is_kept_with_who_from_where_to_where_and_why(tiny: Database) -> None:
    aliases.move(tiny, "tiny", "prod", 1, "ada", "the first")
    moved = aliases.move(tiny, "tiny", "prod", 2, "bob", "better", canary=10)
    aliases.move(tiny, "tiny", "qa", 3, "ada", "to look at")
    told = [(m.alias, m.from_version, m.to_version, m.by, m.why, m.canary) for m in aliases.moves(tiny)]
    assert told == [
        ("qa", None, 3, "ada", "to look at", None),
        ("prod", 1, 2, "bob", "better", 10),
        ("prod", None, 1, "ada", "the first", None),
    ]
    assert aliases.newest(tiny, "tiny", "prod") == moved
    assert [m.to_version for m in aliases.moves(tiny, "tiny", "prod")] == [2, 1]
    assert aliases.moves(tiny, "big") == [] and aliases.newest(tiny, "tiny", "dev") is None
    assert [(a.alias, a.version, a.owner) for a in aliases.everything(tiny)] == [("prod", 2, "bob"), ("qa", 3, "ada")]


def test_a_move_to_where_it_is_is_none(tiny: Database) -> None:
    aliases.move(tiny, "tiny", "prod", 1, "ada", "the first")
    assert aliases.move(tiny, "tiny", "prod", 1, "bob", "again") is None
    assert len(aliases.moves(tiny)) == 1 and aliases.everything(tiny)[0].owner == "ada"


def test_it_rolls_back_to_where_it_was(tiny: Database) -> None:
    aliases.move(tiny, "tiny", "prod", 1, "ada", "the first")
    aliases.move(tiny, "tiny", "prod", 3, "ada", "better", canary=10)
    back = aliases.roll_back(tiny, "tiny", "prod", "bob", "it was worse")
    assert (back.from_version, back.to_version, back.by, back.why, back.canary) == (3, 1, "bob", "it was worse", None)
    assert models.resolve(tiny, "tiny@prod").version == 1


def test_it_never_rolls_back_to_what_it_was_rolled_back_from(tiny: Database) -> None:
    for version in (1, 2, 3):
        aliases.move(tiny, "tiny", "prod", version, "ada", "better")
    assert aliases.roll_back(tiny, "tiny", "prod", "bob", "worse").to_version == 2
    assert aliases.roll_back(tiny, "tiny", "prod", "bob", "worse, too").to_version == 1
    with pytest.raises(Conflict, match="is at version 1, the first of those that it was not taken back from"):
        aliases.roll_back(tiny, "tiny", "prod", "bob", "")
    aliases.move(tiny, "tiny", "prod", 2, "ada", "it is mended")
    assert aliases.roll_back(tiny, "tiny", "prod", "bob", "it is not").to_version == 1


def test_a_move_back_by_whomever_counts_as_one(tiny: Database) -> None:
    for version in (1, 2, 3):
        aliases.move(tiny, "tiny", "prod", version, "ada", "better")
    aliases.move(tiny, "tiny", "prod", 1, aliases.HEADGATE, "version 3 was given up")
    with pytest.raises(Conflict, match="is at version 1"):
        aliases.roll_back(tiny, "tiny", "prod", "bob", "")
    assert models.resolve(tiny, "tiny@prod").version == 1


def test_what_was_never_elsewhere_cannot_be_rolled_back(tiny: Database) -> None:
    with pytest.raises(NotFound, match="model tiny has no alias 'prod'"):
        aliases.roll_back(tiny, "tiny", "prod", "ada", "")
    aliases.move(tiny, "tiny", "prod", 1, "ada", "the first")
    with pytest.raises(Conflict, match="alias tiny@prod was never anywhere but at version 1"):
        aliases.roll_back(tiny, "tiny", "prod", "ada", "")


@pytest.mark.parametrize("alias", ["1", "42", "Prod", "a b", ""])
def test_an_alias_that_could_be_a_version_or_is_not_safe_is_refused(tiny: Database, alias: str) -> None:
    with pytest.raises(RegistryError, match="is not allowed"):
        aliases.move(tiny, "tiny", alias, 1, "ada", "")
    assert aliases.everything(tiny) == []


@pytest.mark.parametrize("version", [4, 1 << 63, -(1 << 64)])
def test_an_alias_of_a_version_that_does_not_exist_is_refused(tiny: Database, version: int) -> None:
    with pytest.raises(NotFound, match=f"model tiny has no version {version}"):
        aliases.move(tiny, "tiny", "prod", version, "ada", "")
    assert aliases.moves(tiny) == []
