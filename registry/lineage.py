"""What became of a run: its checkpoints, the models made of them, and who uses those. One view over registry rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from registry import attempts, checkpoints, models, revisions, runs
from registry.attempts import Attempt
from registry.checkpoints import Checkpoint
from registry.db import Database
from registry.models import ModelVersion


@dataclass(frozen=True, slots=True)
class Descendant:
    """A model that was made of a checkpoint."""

    model: str  # NAME@VERSION
    state: str  # registry.models.ModelState
    path: str
    aliases: tuple[str, ...]
    deployments: tuple[str, ...]  # registry.revisions.users_of


@dataclass(frozen=True, slots=True)
class Branch:
    """A checkpoint, and what stems from it."""

    checkpoint: Checkpoint
    models: tuple[Descendant, ...] = ()
    users: tuple[str, ...] = ()  # "alias demo@latest", "deployment demo": who keeps it from being pruned


@dataclass(frozen=True, slots=True)
class Lineage:
    attempts: tuple[Attempt, ...]  # oldest first
    checkpoints: tuple[Branch, ...]  # by iteration


def of_run(db: Database, run: str) -> Lineage:
    """Raises NotFound for a run that is not known."""
    run = runs.get(db, run).id
    made = models.of_run(db, run)
    users = {(m.name, m.version): revisions.users_of(db, m.name, m.version) for m in made}
    stems = branches(checkpoints.of_run(db, run), made, users)
    return Lineage(tuple(attempts.of_run(db, run)), stems)


def branches(
    of: Iterable[Checkpoint], known_models: Iterable[ModelVersion], users: Mapping[tuple[str, int], Sequence[str]]
) -> tuple[Branch, ...]:
    """Pure. A checkpoint is used where a model made of it carries an alias, or where a deployment needs one.

    `users`: the names of these deployments, by the model's name and version.
    """
    made: dict[str, list[Descendant]] = {}
    for m in known_models:
        if m.checkpoint is not None:
            theirs = tuple(users.get((m.name, m.version), ()))
            found = Descendant(f"{m.name}@{m.version}", m.state, m.path, m.aliases, theirs)
            made.setdefault(m.checkpoint, []).append(found)
    stems = []
    for checkpoint in sorted(of, key=lambda c: c.iteration):
        descendants = tuple(made.get(checkpoint.id, ()))
        aliases = [f"alias {d.model.partition('@')[0]}@{alias}" for d in descendants for alias in d.aliases]
        serving = [f"deployment {name}" for d in descendants for name in d.deployments]
        stems.append(Branch(checkpoint, descendants, (*aliases, *serving)))
    return tuple(stems)
