"""What people ask of deployments, done to the registry: serve, apply, roll out, roll back. On its writer's thread.

Each is done whole or not at all. Raises ValueError and RegistryError with words for whoever asked; Forbidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launchers import deployment_changes
from launchers.deployment_checks import check
from launchers.deployment_spec import DeploymentSpec, from_document, spec_of, to_request
from launchers.model_reference import Meant, is_model, meant
from registry import deployments, models, revisions
from registry.access import Object, Principal, Verb, require
from registry.db import Conflict, Database, NotFound, transaction
from registry.deployments import Deployment
from registry.revisions import Revision, RevisionState
from registry.site import Site

UNNAMED = "unnamed"  # until its model is known


def serve(site: Site, db: Database, principal: Principal, document: Mapping[str, Any]) -> Deployment:
    """A new deployment out of a DeploymentSpec's document; without a name it has its model's."""
    with transaction(db):
        named = document.get("name") is not None
        spec = from_document(document if named else {**document, "name": UNNAMED})
        found = meant(db, principal, spec.model, spec.name if named else None)
        if not named:
            spec = dataclasses.replace(spec, name=found.model.name)
        return _create(site, db, principal, spec, found, "served")


def apply(
    site: Site,
    db: Database,
    principal: Principal,
    name: str,
    document: Mapping[str, Any],
    *,
    why: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Make it so. {"done": "created" | "changed" (a new revision) | "scaled" (in place) | "unchanged", "changes": ...}.

    A deployment that has ended counts as none. A dry run is the real one, undone.
    """
    if document.get("name", name) != name:
        raise ValueError(f"name: the spec's is {document['name']!r}, and the request is about {name!r}")
    spec = from_document({**document, "name": name})
    try:
        with transaction(db):
            told = _apply(site, db, principal, spec, why)
            if dry_run:
                raise _Undone
    except _Undone:
        pass
    return told


class _Undone(Exception):
    """Rolls a dry run's transaction back."""


def _apply(site: Site, db: Database, principal: Principal, spec: DeploymentSpec, why: str | None) -> dict[str, Any]:
    found = meant(db, principal, spec.model, spec.name)
    spec = dataclasses.replace(spec, model=found.words)
    old = _there(db, spec.name)
    if old is None:
        _create(site, db, principal, spec, found, why or "applied")
        return {"done": "created", "changes": deployment_changes.between(None, spec)}
    _require_change(db, principal, spec.name)
    changes = deployment_changes.between(spec_of(old), spec)
    fields = [change["field"] for change in changes]
    # Who else moves the version is no change to what is served.
    served = [c for c in changes if c["field"] != "model" or not _is_served(old, found)]
    if deployment_changes.takes_new_replicas(served):
        check(site, db, principal, spec, found.model.path)
        reason = why or f"applied: {', '.join(fields)}"
        request = to_request(spec) | _trust(principal, found, old)
        _add(db, principal, old, found, request, reason, None)
        done = "changed"
    else:
        if deployment_changes.in_place(spec) != deployment_changes.in_place(spec_of(old)):
            revisions.amend(db, spec.name, deployment_changes.in_place(spec))
        done = "scaled" if changes else "unchanged"
    deployments.follow(db, spec.name, found.follows)
    deployments.change(db, spec.name, min_replicas=spec.min, max_replicas=spec.most)
    return {"done": done, "changes": changes}


def roll_out(
    site: Site,
    db: Database,
    principal: Principal,
    name: str,
    *,
    model: str | None = None,
    canary: int | None = None,
    restart: bool = False,
    why: str | None = None,
) -> Deployment:
    """A new revision: of another model (without one: of where the alias is that it follows), else as it is.

    `restart`: also where that is what is wanted already. `canary`: percent; None: as the deployment has it.
    """
    with transaction(db):
        old = _require_change(db, principal, name)
        ref = model or old.follows
        if ref is None and not restart:
            raise ValueError(f"'model' is missing: {name} follows no alias; or say 'restart' for the same model again")
        if model is None and (restart or ref is None):
            found = Meant(models.get(db, old.model, old.version), old.follows)
        else:
            assert ref is not None
            found = meant(db, principal, ref, name)
        deployments.follow(db, name, found.follows)
        if _is_served(old, found) and not restart:
            return deployments.get(db, name)
        spec = dataclasses.replace(spec_of(old), model=found.words)
        check(site, db, principal, spec, found.model.path)
        reason = why or ("restarted" if restart and model is None else f"{found.words} was asked for")
        request = old.request | _trust(principal, found, old)
        return _add(db, principal, old, found, request, reason, canary)


def roll_back(
    db: Database, principal: Principal, name: str, *, revision: int | None = None, why: str | None = None
) -> Deployment:
    """To a revision that proved itself, the last one before the wanted one if none is named; no alias is followed then.

    While a rollout goes on, that gives way to the stable revision, whose replicas are there; any other revision comes
    back as a new one, with the model and the words of then.
    """
    with transaction(db):
        old = _require_change(db, principal, name)
        target = _good(db, old, revision)
        if not is_model(Path(target.model_path)):
            raise NotFound(
                f"model {target.model}@{target.version} of revision {target.revision} is gone: "
                f"{target.model_path} has no config.json"
            )
        deployments.follow(db, name, None)
        reason = why or f"back to revision {target.revision}"
        on_trial = revisions.get(db, name, old.revision).state is RevisionState.ROLLING
        if on_trial and target.revision == old.stable:
            revisions.settle(db, name, old.revision, False, f"{principal.name} rolled it back: {reason}")
            return deployments.get(db, name)
        return revisions.add(
            db,
            name,
            model=target.model,
            version=target.version,
            model_path=target.model_path,
            request=target.request,
            by=principal.name,
            why=reason,
        )


def _good(db: Database, deployment: Deployment, revision: int | None) -> Revision:
    if revision is None:
        return revisions.last_good(db, deployment.name)
    found = {r.revision: r for r in revisions.of(db, deployment.name)}
    good = [r.revision for r in found.values() if r.state is RevisionState.GOOD and r.revision != deployment.revision]
    if revision not in good:
        state = f"is {found[revision].state}" if revision in found else "is not one of its own"
        raise Conflict(
            f"deployment {deployment.name} cannot go back to revision {revision}, which {state}"
            f"{' and wanted already' if revision == deployment.revision else ''}; "
            f"it can to: {', '.join(map(str, good)) or 'none'}"
        )
    return found[revision]


def _create(site: Site, db: Database, principal: Principal, spec: DeploymentSpec, found: Meant, why: str) -> Deployment:
    require(principal, Verb.CREATE, Object("deployment", principal.name))
    try:
        former = deployments.get(db, spec.name)
    except NotFound:
        pass
    else:
        require(principal, Verb.CHANGE, Object("deployment", former.owner))
    check(site, db, principal, spec, found.model.path)
    deployments.create(
        db,
        spec.name,
        principal.name,
        model=found.model.name,
        version=found.model.version,
        model_path=found.model.path,
        min_replicas=spec.min,
        max_replicas=spec.most,
        request=to_request(spec) | _trust(principal, found, None),
        follows=found.follows,
        by=principal.name,
        why=why,
    )
    return deployments.get(db, spec.name)


def _add(
    db: Database,
    principal: Principal,
    old: Deployment,
    found: Meant,
    request: dict[str, Any],
    why: str,
    canary: int | None,
) -> Deployment:
    return revisions.add(
        db,
        old.name,
        model=found.model.name,
        version=found.model.version,
        model_path=found.model.path,
        request=request,
        by=principal.name,
        why=why,
        canary=canary,
    )


def _trust(principal: Principal, found: Meant, old: Deployment | None) -> dict[str, Any]:
    """Whether its engines are told to load safetensors alone, which no administrator has vouched for: what stands in
    a directory changes, and so does the version that an alias is at."""
    vouched = principal.admin and found.follows is None
    return {"safetensors_only": not vouched or (old is not None and bool(old.request.get("safetensors_only")))}


def _is_served(deployment: Deployment, found: Meant) -> bool:
    model = found.model
    return (deployment.model, deployment.version, deployment.model_path) == (model.name, model.version, model.path)


def _there(db: Database, name: str) -> Deployment | None:
    try:
        found = deployments.get(db, name)
    except NotFound:
        return None
    return None if found.state.ended else found


def _require_change(db: Database, principal: Principal, name: str) -> Deployment:
    """One that is wanted, and that the principal may change."""
    found = deployments.get(db, name)
    require(principal, Verb.CHANGE, Object("deployment", found.owner))
    return deployments.require_wanted(db, name)
