"""A promotion follows from what is known of its runs; the alias moves once, for the model's owner, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from registry import aliases, clock, models, promotions, runs
from registry.db import Conflict, Database, NotFound, RegistryError
from registry.models import ModelState
from registry.promotions import Promotion, PromotionState, Step, standing
from registry.runs import RunState

AT = "2026-01-01T00:00:00.000000Z"
RUNS = ("convert-1", "smoke-1", "evaluate-1")
WORDS: dict[str, Any] = {
    "owner": "ada",
    "source": "train-1/20",
    "model": "chat",
    "alias": "prod",
    "canary": 10,
    "steps": RUNS,
    "created_at": AT,
}


def adopt(db: Database, *run_ids: str, **changed: Any) -> None:
    words = {**WORDS, **changed}
    for run in run_ids:
        kind = run.partition("-")[0]
        folder = f"/runs/{run}"
        runs.adopt(db, run, kind=kind, name=kind, owner=words["owner"], folder=folder, created_at=AT)
        promotions.adopt(db, "chat-prod-1", run=run, **words)


def another(db: Database, created_at: str) -> None:
    """Another promotion to the same alias, at whose end it moves."""
    for kind in ("convert", "smoke"):
        runs.adopt(db, f"{kind}-2", kind=kind, name=kind, owner="ada", folder=f"/runs/{kind}-2", created_at=created_at)
        changed = {"steps": ("convert-2", "smoke-2"), "created_at": created_at, "source": "train-1/40"}
        promotions.adopt(db, "chat-prod-2", run=f"{kind}-2", **{**WORDS, **changed})
    models.register(db, "chat", "ada", "/runs/convert-2/model")
    complete(db, "convert-2", "smoke-2")
    promotions.advance(db)
    assert promotions.get(db, "chat-prod-2").state is PromotionState.PROMOTED


def complete(db: Database, *run_ids: str) -> None:
    for run in run_ids:
        runs.ended(db, run, RunState.COMPLETED, None)


def convert(db: Database, owner: str = "ada") -> int:
    """What a conversion leaves in the registry; the version."""
    version = models.register(db, "chat", owner, "/runs/convert-1/model").version
    complete(db, "convert-1")
    return version


def now(db: Database) -> Promotion:
    promotions.advance(db)
    return promotions.get(db, "chat-prod-1")


def where(db: Database) -> int | None:
    """The version that the alias is at."""
    move = aliases.newest(db, "chat", "prod")
    return move.to_version if move else None


def test_the_alias_moves_when_every_step_has_completed_and_not_before(registry: Database) -> None:
    adopt(registry, *RUNS)
    assert now(registry).state is PromotionState.CONVERTING
    version = convert(registry)
    assert (now(registry).state, now(registry).version) == (PromotionState.SMOKING, version)
    assert models.get(registry, "chat", version).state is ModelState.CONVERTED
    complete(registry, "smoke-1")
    assert now(registry).state is PromotionState.EVALUATING
    assert models.get(registry, "chat", version).state is ModelState.SERVABLE
    assert where(registry) is None
    complete(registry, "evaluate-1")
    assert [p.id for p in promotions.advance(registry)] == ["chat-prod-1"]
    (move,) = aliases.moves(registry, "chat", "prod")
    assert (move.to_version, move.by, move.canary) == (version, "ada", 10)
    assert move.why == "promoted from train-1/20 by chat-prod-1"
    assert promotions.get(registry, "chat-prod-1").state is PromotionState.PROMOTED


def test_an_alias_that_was_rolled_back_afterwards_stays_back(registry: Database) -> None:
    first = models.register(registry, "chat", "ada", "/runs/older/model").version
    aliases.move(registry, "chat", "prod", first, "ada", "first")
    adopt(registry, *RUNS, created_at=clock.now())
    convert(registry)
    complete(registry, *RUNS)
    promotions.advance(registry)
    aliases.roll_back(registry, "chat", "prod", "ada", "it is worse")
    assert promotions.advance(registry) == []
    assert where(registry) == first


def test_one_that_ends_after_a_later_one_leaves_the_alias_where_that_moved_it(registry: Database) -> None:
    adopt(registry, *RUNS)
    version = convert(registry)
    another(registry, "2026-01-02T00:00:00.000000Z")
    later = where(registry)
    complete(registry, *RUNS)
    found = now(registry)
    assert found.state is PromotionState.FAILED and (found.version, where(registry)) == (version, later)
    assert found.cause is not None and found.cause.startswith(f"chat@prod was moved to version {later} by ada at ")
    assert f"`headgate alias set chat@prod {version}`" in found.cause


def test_one_that_was_asked_for_after_another_may_end_after_it(registry: Database) -> None:
    adopt(registry, *RUNS)
    version = convert(registry)
    another(registry, "2025-12-31T00:00:00.000000Z")
    complete(registry, *RUNS)
    assert now(registry).state is PromotionState.PROMOTED
    assert where(registry) == version


@pytest.mark.parametrize(("by", "moves"), [("bob", False), (aliases.HEADGATE, True)])
def test_what_a_person_moved_meanwhile_stays_and_what_was_taken_back_for_a_canary_does_not_count(
    registry: Database, monkeypatch: pytest.MonkeyPatch, by: str, moves: bool
) -> None:
    first, second = (models.register(registry, "chat", "ada", f"/runs/{n}/model").version for n in ("old", "older"))
    with monkeypatch.context() as before:
        before.setattr(clock, "now", lambda: "2025-12-01T00:00:00.000000Z")
        aliases.move(registry, "chat", "prod", first, "ada", "first")
        aliases.move(registry, "chat", "prod", second, "ada", "better")
    adopt(registry, *RUNS)
    version = convert(registry)
    aliases.move(registry, "chat", "prod", first, by, "it is worse")
    complete(registry, *RUNS)
    assert now(registry).state is (PromotionState.PROMOTED if moves else PromotionState.FAILED)
    assert where(registry) == (version if moves else first)


@pytest.mark.parametrize("canary", [0, 100])
def test_a_canary_that_no_deployment_could_have_is_refused(registry: Database, canary: int) -> None:
    with pytest.raises(RegistryError, match=f"canary: must be 1 ... 99 .percent of the calls., not {canary}"):
        adopt(registry, RUNS[0], canary=canary)
    with pytest.raises(NotFound):
        promotions.get(registry, "chat-prod-1")


def test_without_tasks_the_smoke_test_is_the_last_step(registry: Database) -> None:
    adopt(registry, *RUNS[:2], steps=RUNS[:2])
    version = convert(registry)
    complete(registry, "smoke-1")
    assert now(registry).state is PromotionState.PROMOTED
    assert where(registry) == version


@pytest.mark.parametrize(
    ("failed", "words"),
    [
        ("convert-1", "the conversion: no disk"),
        ("smoke-1", "the smoke test: no disk"),
        ("evaluate-1", "the evaluation: no disk"),
    ],
)
def test_a_step_that_fails_fails_the_promotion_by_name_and_the_alias_stays(
    registry: Database, failed: str, words: str
) -> None:
    old = models.register(registry, "chat", "ada", "/runs/older/model").version
    aliases.move(registry, "chat", "prod", old, "ada", "first")
    adopt(registry, *RUNS)
    if failed != "convert-1":
        convert(registry)
    if failed == "evaluate-1":
        complete(registry, "smoke-1")
    runs.ended(registry, failed, RunState.FAILED, "no disk")
    for later in RUNS[RUNS.index(failed) + 1 :]:
        runs.ended(registry, later, RunState.STOPPED, None)  # Slurm cancelled it: its dependency cannot hold
    found = now(registry)
    assert (found.state, found.cause, where(registry)) == (PromotionState.FAILED, words, old)
    assert found.ended_at is not None
    complete(registry, *RUNS)
    assert now(registry).state is PromotionState.FAILED


def test_what_slurm_cancelled_in_advance_does_not_hide_that_the_step_before_goes_on(registry: Database) -> None:
    adopt(registry, *RUNS)
    runs.started(registry, "convert-1")
    runs.ended(registry, "smoke-1", RunState.STOPPED, None)
    assert now(registry).state is PromotionState.CONVERTING


@pytest.mark.parametrize(
    ("cause", "state", "words"),
    [
        (None, PromotionState.CANCELLED, "the smoke test was cancelled"),
        ("time limit", PromotionState.FAILED, "the smoke test was stopped: time limit"),
    ],
)
def test_a_step_that_was_stopped_cancels_unless_it_ran_out_of_time(
    cause: str | None, state: PromotionState, words: str
) -> None:
    steps = [Step("c", RunState.COMPLETED, None, {}), Step("s", RunState.STOPPED, cause, {}), Step("e", None, None, {})]
    assert standing(steps) == (state, words)


def test_a_model_of_somebody_elses_is_not_promoted_to(registry: Database) -> None:
    models.register(registry, "chat", "grace", "/runs/theirs/model")
    adopt(registry, *RUNS)
    complete(registry, *RUNS)
    found = now(registry)
    assert found.state is PromotionState.FAILED
    assert found.cause == "model chat belongs to grace; promote to a model of your own"
    assert where(registry) is None


def test_a_promotion_that_cannot_be_carried_out_fails_alone(
    registry: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt(registry, *RUNS)
    convert(registry)
    complete(registry, *RUNS)

    def refuse(*_: object) -> None:
        raise Conflict("no")

    monkeypatch.setattr(aliases, "move", refuse)
    found = now(registry)
    assert (found.state, found.cause) == (PromotionState.FAILED, "no")
    assert promotions.advance(registry) == []


def test_a_run_of_another_owners_is_no_step(registry: Database) -> None:
    adopt(registry, *RUNS[:2])
    runs.adopt(registry, "evaluate-1", kind="evaluate", name="e", owner="eve", folder="/runs/e", created_at=AT)
    with pytest.raises(Conflict, match="which says otherwise"):
        promotions.adopt(registry, "chat-prod-1", run="evaluate-1", **{**WORDS, "owner": "eve"})
    convert(registry)
    complete(registry, "smoke-1", "evaluate-1")
    assert now(registry).state is PromotionState.EVALUATING
    assert where(registry) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "chat/../x"},
        {"alias": "7"},
        {"canary": 0},
        {"canary": 101},
        {"steps": ("smoke-1",)},
        {"steps": ("convert-1", "convert-1")},
        {"steps": (*RUNS, "more-1")},
    ],
)
def test_what_no_promotion_can_be_is_refused(registry: Database, changed: dict[str, Any]) -> None:
    run = "smoke-1" if changed.get("steps") == ("smoke-1",) else "convert-1"
    with pytest.raises(RegistryError):
        adopt(registry, run, **changed)
    with pytest.raises(NotFound):
        promotions.get(registry, "chat-prod-1")


def test_a_promotion_that_waits_writes_nothing(registry: Database) -> None:
    adopt(registry, *RUNS)
    convert(registry)
    complete(registry, "smoke-1")
    now(registry)
    before = registry.conn.total_changes
    promotions.advance(registry)
    assert registry.conn.total_changes == before


def test_a_run_found_again_changes_nothing_and_what_it_heard_stays(registry: Database) -> None:
    adopt(registry, *RUNS)
    promotions.heard(registry, "smoke-1", {"prompts": 3})
    adopt(registry, *RUNS)
    assert [step.said for step in now(registry).steps] == [{}, {"prompts": 3}, {}]


def test_a_bare_name_is_never_a_version_whose_promotion_goes_on_or_failed(registry: Database) -> None:
    models.register(registry, "chat", "ada", "/m/1")
    adopt(registry, *RUNS)
    tried = models.register(registry, "chat", "ada", "/runs/convert-1/model").version  # and its run has not ended
    assert models.resolve(registry, "chat").version == 1
    complete(registry, "convert-1")
    runs.ended(registry, "smoke-1", RunState.FAILED, "no tokens")
    assert now(registry).state is PromotionState.FAILED
    assert models.resolve(registry, "chat").version == 1
    assert models.resolve(registry, f"chat@{tried}").version == tried


def test_a_bare_name_is_the_newest_version_once_that_is_promoted(registry: Database) -> None:
    models.register(registry, "chat", "ada", "/m/1")
    adopt(registry, *RUNS)
    version = convert(registry)
    complete(registry, *RUNS[1:])
    assert now(registry).state is PromotionState.PROMOTED
    assert models.resolve(registry, "chat").version == version


def test_a_model_with_nothing_but_a_failed_promotion_has_an_owner_and_no_bare_name(registry: Database) -> None:
    adopt(registry, *RUNS)
    version = convert(registry)
    with pytest.raises(NotFound, match="no version of model chat has been promoted; name one: chat@VERSION"):
        models.resolve(registry, "chat")
    assert models.resolve(registry, f"chat@{version}").version == version
    assert models.owner_of(registry, "chat") == "ada"
