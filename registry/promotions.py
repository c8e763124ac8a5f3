"""Promotions: a checkpoint's way to a model's alias, in steps that are runs of its owner's.

The only module that changes a promotion's state. Its steps are submitted all at once, while nothing of ours may be
running; what becomes of it follows from what is known of its runs whenever somebody looks (`advance`).
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from registry import aliases, clock, models, runs
from registry import canary as percent
from registry.aliases import AliasMove
from registry.db import Conflict, Database, NotFound, RegistryError, StorageError, row, rows, transaction
from registry.models import ModelState
from registry.runs import Run, RunState
from registry.tenants import checked_name


class PromotionState(enum.StrEnum):
    CONVERTING = "converting"
    SMOKING = "smoking"  # an engine tries the model
    EVALUATING = "evaluating"
    PROMOTED = "promoted"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (PromotionState.PROMOTED, PromotionState.FAILED, PromotionState.CANCELLED)


# What a promotion is at while this step of it has not completed.
STEPS = (PromotionState.CONVERTING, PromotionState.SMOKING, PromotionState.EVALUATING)
_WORDS = {
    PromotionState.CONVERTING: "the conversion",
    PromotionState.SMOKING: "the smoke test",
    PromotionState.EVALUATING: "the evaluation",
}


@dataclass(frozen=True, slots=True)
class Step:
    run: str
    state: RunState | None  # None: nobody has heard of it yet
    cause: str | None
    said: dict[str, Any]  # the facts that it announced of the model


@dataclass(frozen=True, slots=True)
class Promotion:
    id: str
    owner: str
    source: str  # the checkpoint's id: RUN/ITERATION
    model: str
    alias: str
    canary: int | None  # percent
    state: PromotionState
    cause: str | None
    version: int | None  # of the model, once it is converted
    created_at: str
    ended_at: str | None
    steps: tuple[Step, ...]  # in their order


def adopt(
    db: Database,
    promotion_id: str,
    *,
    owner: str,
    source: str,
    model: str,
    alias: str,
    canary: int | None,
    steps: Sequence[str],
    run: str,
    created_at: str,
) -> None:
    """Take up one of a promotion's runs, which says what the whole is. Idempotent.

    Raises Conflict where the promotion is another's or its words differ, RegistryError for names that are none.
    """
    checked_name("model", model)
    checked_name("alias", alias)
    if alias.isdigit():
        raise RegistryError(f"alias {alias!r} is not allowed: a number after '@' names a version")
    if run not in steps or len(set(steps)) != len(steps) or not 2 <= len(steps) <= len(STEPS):
        raise RegistryError(f"promotion {promotion_id}: {', '.join(steps)} are no steps with {run} among them")
    try:
        percent.checked(canary)
    except ValueError as e:
        raise RegistryError(f"promotion {promotion_id}: {e}") from e
    words = (owner, source, model, alias, canary, json.dumps(list(steps)))
    with transaction(db) as c:
        old = row(db, "SELECT * FROM promotions WHERE id = ?", promotion_id)
        if old is None:
            c.execute(
                "INSERT INTO promotions (id, owner, source, model, alias, canary, steps, state, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (promotion_id, *words, PromotionState.CONVERTING, created_at),
            )
        elif tuple(old[k] for k in ("owner", "source", "model", "alias", "canary", "steps")) != words:
            raise Conflict(f"run {run} says it is a step of promotion {promotion_id}, which says otherwise")
        c.execute(
            "INSERT INTO promotion_steps (promotion, run) VALUES (?, ?) ON CONFLICT DO NOTHING", (promotion_id, run)
        )


def heard(db: Database, run: str, said: dict[str, Any]) -> None:
    """What one of its runs found out about the model."""
    with transaction(db) as c:
        c.execute("UPDATE promotion_steps SET said = ? WHERE run = ?", (json.dumps(said), run))


def advance(db: Database) -> list[Promotion]:
    """Bring every promotion that goes on up to what is known of its runs. Returns those that ended.

    When all have completed, the alias moves, in the name of the owner, who must be the model's. Raises StorageError.
    """
    ended = []
    for r in rows(db, "SELECT id FROM promotions WHERE ended_at IS NULL ORDER BY created_at"):
        try:
            with transaction(db):
                _advance(db, get(db, r["id"]))
        except StorageError:
            raise
        except RegistryError as e:  # what one cannot do must not keep the others, and everything else, from going on
            with transaction(db):
                _set_state(db, r["id"], PromotionState.FAILED, str(e))
        promotion = get(db, r["id"])
        if promotion.state.ended:
            ended.append(promotion)
    return ended


def explain_end(db: Database, run: str, cause: str) -> None:
    """As registry.runs does; and a promotion that has ended for what its run seemed to say ended for this instead."""
    with transaction(db):
        step = row(db, "SELECT promotion FROM promotion_steps WHERE run = ?", run)
        before = get(db, step["promotion"]) if step else None
        runs.explain_end(db, run, cause)
        if before is not None and before.state.ended and (before.state, before.cause) == standing(before.steps):
            state, why = standing(get(db, before.id).steps)
            if why != before.cause:
                _set_state(db, before.id, state, why)


def _advance(db: Database, promotion: Promotion) -> None:
    version, cause = _model(db, promotion)
    state, why = (PromotionState.FAILED, cause) if cause else standing(promotion.steps)
    if version is not None and version != promotion.version:
        db.conn.execute("UPDATE promotions SET version = ? WHERE id = ?", (version, promotion.id))
    tried = _completed(promotion.steps, PromotionState.SMOKING)
    # Each write wakes the gateway, so it is written once.
    if version is not None and tried and models.get(db, promotion.model, version).state is not ModelState.SERVABLE:
        models.mark_servable(db, promotion.model, version)
    if state is PromotionState.PROMOTED:
        assert version is not None, "a conversion that completed has a version, or a cause"
        if (later := _moved_since(db, promotion)) is not None:
            named = f"{later.model}@{later.alias}"
            state = PromotionState.FAILED
            why = (
                f"{named} was moved to version {later.to_version} by {later.by} at {later.at}, after this was asked "
                f"for, and stays there; `headgate alias set {named} {version}` moves it"
            )
        else:
            reason = _reason(promotion.source, promotion.id)
            aliases.move(db, promotion.model, promotion.alias, version, promotion.owner, reason, promotion.canary)
    if state is not promotion.state:
        _set_state(db, promotion.id, state, why)


def _moved_since(db: Database, promotion: Promotion) -> AliasMove | None:
    """The last move of the alias that somebody asked for after this promotion was: whoever asked last is right.

    What an earlier promotion moves, which took longer, and what Headgate takes back, nobody has asked for since.
    """
    asked = "SELECT id, source FROM promotions WHERE model = ? AND alias = ? AND created_at <= ?"
    earlier = rows(db, asked, promotion.model, promotion.alias, promotion.created_at)
    reasons = {_reason(r["source"], r["id"]) for r in earlier}
    for move in aliases.moves(db, promotion.model, promotion.alias):
        if clock.parse(move.at) <= clock.parse(promotion.created_at):
            return None
        if move.by != aliases.HEADGATE and move.why not in reasons:
            return move
    return None


def _reason(source: str, promotion_id: str) -> str:
    """Why an alias moved, in its history."""
    return f"promoted from {source} by {promotion_id}"


def _set_state(db: Database, promotion_id: str, state: PromotionState, cause: str | None) -> None:
    ended_at = clock.now() if state.ended else None
    db.conn.execute(
        "UPDATE promotions SET state = ?, cause = ?, ended_at = ? WHERE id = ?", (state, cause, ended_at, promotion_id)
    )


def standing(steps: Sequence[Step]) -> tuple[PromotionState, str | None]:
    """Where a promotion is by its steps' runs, and why it ended without success. Pure.

    The first that has not completed decides: those after it are not started, or are cancelled with it.
    """
    for at, step in zip(STEPS, steps, strict=False):
        match step.state:
            case RunState.COMPLETED:
                continue
            case RunState.FAILED:
                return PromotionState.FAILED, f"{_WORDS[at]}: {step.cause}"
            case RunState.STOPPED if step.cause:
                return PromotionState.FAILED, f"{_WORDS[at]} was stopped: {step.cause}"
            case RunState.STOPPED:
                return PromotionState.CANCELLED, f"{_WORDS[at]} was cancelled"
        return at, None
    return PromotionState.PROMOTED, None


def get(db: Database, promotion_id: str) -> Promotion:
    found = row(db, "SELECT * FROM promotions WHERE id = ?", promotion_id)
    if found is None:
        raise NotFound(f"there is no promotion {promotion_id!r}; `headgate promotions` lists them")
    return _promotion(db, found)


def everything(db: Database) -> list[Promotion]:
    """Oldest first."""
    return [_promotion(db, r) for r in rows(db, "SELECT * FROM promotions ORDER BY created_at")]


def _completed(steps: Sequence[Step], at: PromotionState) -> bool:
    return all(step.state is RunState.COMPLETED for step in steps[: STEPS.index(at) + 1])


def _model(db: Database, promotion: Promotion) -> tuple[int | None, str | None]:
    """The version that its conversion made; or why there is none, though it has completed."""
    if not _completed(promotion.steps, PromotionState.CONVERTING):
        return None, None
    path = f"{runs.get(db, promotion.steps[0].run).folder}/model"
    found = row(db, "SELECT version, owner FROM models WHERE name = ? AND path = ?", promotion.model, path)
    if found is not None and found["owner"] == promotion.owner:
        return found["version"], None
    other = row(db, "SELECT owner FROM models WHERE name = ? AND owner != ?", promotion.model, promotion.owner)
    if other is not None:
        return None, f"model {promotion.model} belongs to {other['owner']}; promote to a model of your own"
    return None, f"what the conversion made is not registered: {path}"


def _promotion(db: Database, r: Any) -> Promotion:
    known = {
        s["run"]: s["said"] for s in rows(db, "SELECT run, said FROM promotion_steps WHERE promotion = ?", r["id"])
    }
    steps = []
    for run_id in json.loads(r["steps"]):
        run = _run(db, run_id) if run_id in known else None
        said = json.loads(known[run_id]) if run and known[run_id] else {}
        steps.append(Step(run_id, run.state if run else None, run.cause if run else None, said))
    values = {**dict(r), "state": PromotionState(r["state"]), "steps": tuple(steps)}
    return Promotion(**values)


def _run(db: Database, run_id: str) -> Run | None:
    try:
        return runs.get(db, run_id)
    except NotFound:
        return None
