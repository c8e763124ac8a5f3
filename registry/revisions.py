"""Revisions: what a deployment served, or was to serve, one after the other. The only module that changes their states.

One is wanted; it replaces the stable one, the newest that proved itself, or is given up for it.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from registry import clock, deployments
from registry.db import Conflict, Database, NotFound, row, rows, transaction
from registry.deployments import Deployment


class RevisionState(enum.StrEnum):
    ROLLING = "rolling"  # wanted, and not proven yet
    GOOD = "good"  # its replicas got ready, and its canary was no worse
    BAD = "bad"  # it was rolled back; its cause says why
    SUPERSEDED = "superseded"  # another one was wanted before it was proven


@dataclass(frozen=True, slots=True)
class Revision:
    deployment: str
    revision: int
    model: str
    version: int
    model_path: str
    request: dict[str, Any]  # launchers.deployment_spec.DeploymentSpec, less what has a column of its own
    state: RevisionState
    cause: str | None
    created_at: str
    created_by: str
    why: str
    decided_at: str | None  # when it was found good or bad, or superseded


class _Made(NamedTuple):
    """What a revision serves."""

    model: str
    version: int
    model_path: str
    request: dict[str, Any]


def add(
    db: Database,
    name: str,
    *,
    model: str,
    version: int,
    model_path: str,
    request: dict[str, Any],
    by: str,
    why: str,
    canary: int | None = None,
) -> Deployment:
    """A new revision, which is wanted from now on. One that was on trial is superseded.

    `canary`: percent of the calls that it gets while it is on trial; None: what `request` says of it, or where that
    says nothing, or it needs no trial (`is_proven`), its share of the replicas. Raises Conflict when the deployment
    ends or has ended, or one of its adapters' names is taken.
    """
    with transaction(db) as c:
        old = deployments.require_wanted(db, name)
        deployments.refuse_adapters(db, request, name)
        last = row(db, "SELECT max(revision) AS n FROM revisions WHERE deployment = ?", name)
        revision = 1 + ((last and last["n"]) or 0)
        now = max(clock.now(), old.created_at)  # never of the deployment that had this name before: see `of`
        c.execute(
            "UPDATE revisions SET state = ?, decided_at = ? WHERE deployment = ? AND state = ?",
            (RevisionState.SUPERSEDED, now, name, RevisionState.ROLLING),
        )
        wanted = (model, version, model_path, json.dumps(request))
        c.execute(
            "INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, ?, NULL)",
            (name, revision, *wanted, RevisionState.ROLLING, now, by, why),
        )
        if canary is None and not _is_proven(db, old, _Made(model, version, model_path, request)):
            canary = request.get("canary")
        _want(db, name, revision, wanted, now, canary)
    return deployments.get(db, name)


def amend(db: Database, name: str, request: Mapping[str, Any]) -> Deployment:
    """Words of a request that need no new replicas: they count at once for the wanted revision and the good ones."""
    with transaction(db) as c:
        deployment = deployments.require_wanted(db, name)
        for r in of(db, name):
            if r.revision == deployment.revision or r.state is RevisionState.GOOD:
                theirs = (json.dumps({**r.request, **request}), name, r.revision)
                c.execute("UPDATE revisions SET request = ? WHERE deployment = ? AND revision = ?", theirs)
        told = {**deployment.request, **request}
        changed = told.get("canary") != deployment.request.get("canary")
        canary = told.get("canary") if changed else deployment.canary
        c.execute("UPDATE deployments SET request = ?, canary = ? WHERE name = ?", (json.dumps(told), canary, name))
    return deployments.get(db, name)


def settle(db: Database, name: str, revision: int, good: bool, cause: str) -> None:
    """The wanted revision has proven itself; or it has not, and the stable one is wanted again, where there is one.

    Nothing happens to a revision that was decided on, or is not wanted any more. Raises NotFound.
    """
    with transaction(db) as c:
        found, deployment = get(db, name, revision), deployments.get(db, name)
        if found.state is not RevisionState.ROLLING or deployment.revision != revision:
            return
        now = clock.now()
        c.execute(
            "UPDATE revisions SET state = ?, cause = ?, decided_at = ? WHERE deployment = ? AND revision = ?",
            (RevisionState.GOOD if good else RevisionState.BAD, cause, now, name, revision),
        )
        if good:
            usual = found.request.get("canary")  # what this rollout was asked for is not the next one's
            c.execute("UPDATE deployments SET stable = ?, canary = ? WHERE name = ?", (revision, usual, name))
        elif deployment.stable is not None:
            old = get(db, name, deployment.stable)
            wanted = (old.model, old.version, old.model_path, json.dumps(old.request))
            _want(db, name, old.revision, wanted, now, old.request.get("canary"))


def end_trial(db: Database, name: str, revision: int) -> None:
    """The revision on trial takes over: the calls that come to it are no longer its canary's percentage. Nothing
    happens where another one is wanted by now."""
    with transaction(db) as c:
        c.execute("UPDATE deployments SET canary = NULL WHERE name = ? AND revision = ?", (name, revision))


def is_proven(db: Database, deployment: Deployment) -> bool:
    """Whether what is wanted was found good before, and given up for what is stable now: it needs no trial.

    What is stable, started once more, does: nothing was wrong that it would have to put right.
    """
    wanted = _Made(deployment.model, deployment.version, deployment.model_path, deployment.request)
    return _is_proven(db, deployment, wanted)


def of(db: Database, name: str) -> list[Revision]:
    """A deployment's, oldest first; not those of a former deployment of the same name."""
    created_at = deployments.get(db, name).created_at
    asked = "SELECT * FROM revisions WHERE deployment = ? AND created_at >= ? ORDER BY revision"
    return [_revision(r) for r in rows(db, asked, name, created_at)]


def get(db: Database, name: str, revision: int) -> Revision:
    found = row(db, "SELECT * FROM revisions WHERE deployment = ? AND revision = ?", name, revision)
    if found is None:
        known = ", ".join(str(r.revision) for r in of(db, name))
        raise NotFound(f"deployment {name} has no revision {revision}; it has: {known}")
    return _revision(found)


def users_of(db: Database, model: str, version: int) -> list[str]:
    """The deployments that cannot do without a model's version, by name: they want it, would give way to it, or have a
    replica that still serves it."""
    asked = """SELECT d.name FROM deployments d JOIN revisions r ON r.deployment = d.name
        WHERE d.ended_at IS NULL AND r.revision IN (d.revision, d.stable) AND r.model = ? AND r.version = ?
        UNION SELECT p.deployment FROM replicas p JOIN revisions r USING (deployment, revision)
        WHERE p.ended_at IS NULL AND r.model = ? AND r.version = ? ORDER BY 1"""
    return [name for (name,) in rows(db, asked, model, version, model, version)]


def last_good(db: Database, name: str) -> Revision:
    """The last one that proved itself before the wanted one. Raises Conflict when there is none."""
    wanted = deployments.get(db, name)
    good = [r for r in of(db, name) if r.state is RevisionState.GOOD and r.revision < wanted.revision]
    if not good:
        raise Conflict(f"deployment {name} has no good revision before {wanted.revision} to go back to")
    return good[-1]


def _is_proven(db: Database, deployment: Deployment, wanted: _Made) -> bool:
    theirs = of(db, deployment.name)
    good = [_made(r) for r in theirs if r.state is RevisionState.GOOD and r.revision != deployment.stable]
    return wanted in good and wanted not in [_made(r) for r in theirs if r.revision == deployment.stable]


def _made(r: Revision) -> _Made:
    return _Made(r.model, r.version, r.model_path, r.request)


def _want(
    db: Database, name: str, revision: int, wanted: tuple[str, int, str, str], now: str, canary: int | None
) -> None:
    db.conn.execute(
        """UPDATE deployments SET revision = ?, model = ?, version = ?, model_path = ?, request = ?, rollout_at = ?,
           canary = ? WHERE name = ?""",
        (revision, *wanted, now, canary, name),
    )


def _revision(r: Any) -> Revision:
    return Revision(**{**dict(r), "state": RevisionState(r["state"]), "request": json.loads(r["request"])})
