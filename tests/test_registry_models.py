"""Models: versions by path, aliases that move, names that stay with their owner."""

from __future__ import annotations

import pytest

from registry import aliases, checkpoints, models, runs
from registry.db import Conflict, Database, NotFound, RegistryError
from registry.models import ModelState


def test_a_new_path_is_a_new_version_and_the_same_path_the_same_one(registry: Database) -> None:
    first = models.register(registry, "tiny", "ada", "/m/1", parameters=10, size=20, max_logit_difference=1e-6)
    second = models.register(registry, "tiny", "ada", "/m/2")
    again = models.register(registry, "tiny", "ada", "/m/1")
    assert (first.version, second.version, again) == (1, 2, first)
    assert (first.parameters, first.bytes, first.max_logit_difference) == (10, 20, 1e-6)
    assert [(m.name, m.version) for m in models.everything(registry)] == [("tiny", 1), ("tiny", 2)]


def test_a_version_is_servable_only_once_somebody_says_so(registry: Database) -> None:
    made = models.register(registry, "tiny", "ada", "/m/1")
    models.register(registry, "tiny", "ada", "/m/2")
    assert made.state is ModelState.CONVERTED
    models.mark_servable(registry, "tiny", 1)
    assert [m.state for m in models.everything(registry)] == [ModelState.SERVABLE, ModelState.CONVERTED]
    assert models.register(registry, "tiny", "ada", "/m/1").state is ModelState.SERVABLE


def test_another_owners_name_is_a_conflict_that_names_the_owner(registry: Database) -> None:
    models.register(registry, "tiny", "ada", "/m/1")
    with pytest.raises(Conflict, match="model tiny belongs to ada; publish under another name"):
        models.register(registry, "tiny", "bob", "/m/2")
    assert len(models.everything(registry)) == 1


def test_a_name_that_is_not_safe_is_refused(registry: Database) -> None:
    with pytest.raises(RegistryError, match="model name 'Tiny' is not allowed"):
        models.register(registry, "Tiny", "ada", "/m/1")


def test_a_bare_name_means_latest_by_alias_and_else_the_newest(registry: Database) -> None:
    for path in ("/m/1", "/m/2"):
        models.register(registry, "tiny", "ada", path)
    assert models.resolve(registry, "tiny").version == 2
    aliases.move(registry, "tiny", "latest", 1, "ada", "")
    assert models.resolve(registry, "tiny").version == models.resolve(registry, "tiny@").version == 1
    assert models.resolve(registry, "tiny@2").version == 2


@pytest.mark.parametrize(
    ("ref", "problem"),
    [
        ("big", "no model is called 'big'; there are: tiny"),
        ("big@prod", "no model is called 'big'; there are: tiny"),
        ("tiny@3", "model tiny has no version 3"),
        ("tiny@99999999999999999999", "model tiny has no version 99999999999999999999"),
        ("tiny@²", "model tiny has no alias '²'; it has: prod"),
        ("tiny@qa", "model tiny has no alias 'qa'; it has: prod"),
    ],
)
def test_what_cannot_be_resolved_is_answered_with_what_there_is(registry: Database, ref: str, problem: str) -> None:
    models.register(registry, "tiny", "ada", "/m/1")
    aliases.move(registry, "tiny", "prod", 1, "ada", "")
    with pytest.raises(NotFound, match=problem):
        models.resolve(registry, ref)


def test_a_model_remembers_a_checkpoint_that_nobody_has_recorded_yet(registry: Database) -> None:
    assert models.register(registry, "chat", "ada", "/m/1", checkpoint="run-9/100").checkpoint == "run-9/100"


def test_a_checkpoint_is_found_by_its_id_and_by_its_run_the_newest(registry: Database) -> None:
    for run_id, at in (("r-1", "2026-01-01"), ("r-2", "2026-01-02")):
        runs.adopt(registry, run_id, kind="train", name="r", owner="ada", folder=f"/runs/{run_id}", created_at=at)
        for iteration in (10, 20):
            path = f"/runs/{run_id}/{iteration}"
            checkpoints.add(registry, run_id, "ada", iteration=iteration, path=path, size=1, manifest_sha256="x")
    assert checkpoints.get(registry, "r-1/10").iteration == 10
    assert checkpoints.get(registry, "r-1").id == "r-1/20"
    assert checkpoints.get(registry, "r").id == "r-2/20"
    checkpoints.prune(registry, "r-2", 10)
    assert checkpoints.get(registry, "r/20").id == "r-2/20"
    assert checkpoints.get(registry, "r/10").id == "r-1/10"  # the newest run that has it
    with pytest.raises(NotFound, match="no complete checkpoint is called 'r-1/30'"):
        checkpoints.get(registry, "r-1/30")
    with pytest.raises(NotFound, match="no complete checkpoint is called 'r/1'"):
        checkpoints.get(registry, "r/1")


def test_a_checkpoint_written_once_more_replaces_its_facts(registry: Database) -> None:
    runs.adopt(registry, "r-1", kind="train", name="r", owner="ada", folder="/runs/r-1", created_at="2026-01-01")
    for size in (1, 2):
        checkpoints.add(registry, "r-1", "ada", iteration=10, path="/c", size=size, manifest_sha256=f"sha-{size}")
    (only,) = checkpoints.everything(registry)
    assert (only.bytes, only.manifest_sha256) == (2, "sha-2")
