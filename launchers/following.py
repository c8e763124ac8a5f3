"""Deployments that follow an alias: its moves become revisions. On the registry's writer's thread."""

from __future__ import annotations

from pathlib import Path

from launchers.model_reference import is_model
from launchers.untrusted import read_by_service
from launchers.vllm import weights
from registry import aliases, clock, deployments, models, revisions
from registry.db import Conflict, Database, NotFound
from registry.deployments import Deployment, DeploymentState
from registry.models import ModelVersion
from registry.revisions import Revision, RevisionState


def follow(db: Database, deployment: Deployment) -> str | None:
    """Want the version at which its alias is now. Returns what keeps it from that, in words; None where nothing does.

    A move whose version was tried and given up is not tried again: whoever moves the alias once more asks for it.
    Raises StorageError.
    """
    over = deployment.state.ended or deployment.state is DeploymentState.STOPPING
    if deployment.follows is None or over or deployment.paused:
        return None
    name, _, alias = deployment.follows.partition("@")
    move = aliases.newest(db, name, alias)
    if move is None:
        return f"it follows {deployment.follows}, which is no alias any more"
    if (name, move.to_version) == (deployment.model, deployment.version):
        return None
    for tried in revisions.of(db, deployment.name):
        same = (tried.model, tried.version) == (name, move.to_version)
        if same and tried.state is RevisionState.BAD and clock.parse(tried.created_at) >= clock.parse(move.at):
            return f"{deployment.follows} is version {move.to_version}, which was given up: {tried.cause}"
    try:
        model = models.get(db, name, move.to_version)
        if not is_model(Path(model.path)):
            return f"model {name}@{model.version} is gone: {model.path} has no config.json"
        # Whoever moves the alias is not asked what a deployment of somebody else's may load.
        if deployment.request.get("safetensors_only"):
            with read_by_service(Path(model.path)):
                weights.check(Path(model.path))
        because = f": {move.why}" if move.why else ""
        if _is_stable(db, deployment, model):
            words = f"{deployment.follows} moved back to version {model.version}{because}"
            revisions.settle(db, deployment.name, deployment.revision, False, words)
            return None
        revisions.add(
            db,
            deployment.name,
            model=name,
            version=model.version,
            model_path=model.path,
            request=deployment.request,
            by=move.by,
            why=f"{deployment.follows} moved to version {model.version}{because}",
            canary=move.canary,
        )
    except (ValueError, NotFound, Conflict) as e:
        return f"{deployment.follows} is version {move.to_version}, which it may not serve: {e}"
    return None


def _is_stable(db: Database, deployment: Deployment, model: ModelVersion) -> bool:
    """Whether to end a trial is enough: the stable revision is this version, asked for in the same words."""
    if deployment.stable is None:
        return False
    wanted, stable = (revisions.get(db, deployment.name, n) for n in (deployment.revision, deployment.stable))
    same = (stable.model, stable.version, stable.request) == (model.name, model.version, wanted.request)
    return same and wanted.state is RevisionState.ROLLING


def take_back(db: Database, deployment: Deployment, tried: Revision) -> None:
    """Move the alias back that asked for what was given up: to what the deployment serves, never to what is untried.

    Only for the model's owner or whoever moved the alias there, so that nobody else's deployment has a say in it; and
    not while another one that follows it found the version good. Raises StorageError.
    """
    if deployment.follows is None or deployment.stable is None:
        return
    model, _, alias = deployment.follows.partition("@")
    last, stable = aliases.newest(db, model, alias), revisions.get(db, deployment.name, deployment.stable)
    if last is None or (model, last.to_version) != (tried.model, tried.version) or stable.model != model:
        return
    if deployment.owner in (models.owner_of(db, model), last.by) and not _is_good_elsewhere(db, deployment, tried):
        words = f"deployment {deployment.name} gave version {tried.version} up: {tried.cause}"
        aliases.move(db, model, alias, stable.version, aliases.HEADGATE, words)


def _is_good_elsewhere(db: Database, deployment: Deployment, tried: Revision) -> bool:
    others = [
        d.name
        for d in deployments.everything(db)
        if d.follows == deployment.follows and d.name != deployment.name and not d.state.ended
    ]
    return any(
        (r.model, r.version, r.state) == (tried.model, tried.version, RevisionState.GOOD)
        for name in others
        for r in revisions.of(db, name)
    )
