"""Deployments that follow an alias: its moves become revisions. On the registry's writer's thread."""

from __future__ import annotations

from pathlib import Path

from launchers.vllm import weights
from registry import aliases, clock, models, revisions
from registry.db import Database
from registry.deployments import Deployment, DeploymentState
from registry.revisions import RevisionState


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
        if not (Path(model.path) / "config.json").is_file():
            return f"model {name}@{model.version} is gone: {model.path} has no config.json"
        # Whoever moves the alias is not asked what a deployment of somebody else's may load.
        if deployment.request.get("safetensors_only"):
            weights.check(Path(model.path))
        revisions.add(
            db,
            deployment.name,
            model=name,
            version=model.version,
            model_path=model.path,
            request=deployment.request,
            by=move.by,
            why=f"{deployment.follows} moved to version {model.version}{f': {move.why}' if move.why else ''}",
            canary=deployment.canary if move.canary is None else move.canary,
        )
    except ValueError as e:
        return f"{deployment.follows} is version {move.to_version}, which it may not serve: {e}"
    return None
