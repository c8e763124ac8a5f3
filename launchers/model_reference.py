"""Which model a person means: NAME, NAME@VERSION, NAME@ALIAS, a checkpoint that was published, or a directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launchers.untrusted import read_by_service
from registry import checkpoints, models
from registry.access import Object, Principal, Verb, require
from registry.db import Database, NotFound
from registry.models import ModelVersion


@dataclass(frozen=True, slots=True)
class Meant:
    model: ModelVersion
    follows: str | None  # NAME@ALIAS, whose moves are followed

    @property
    def words(self) -> str:
        """As a spec names it once it is known."""
        return self.follows or f"{self.model.name}@{self.model.version}"


def meant(db: Database, principal: Principal, ref: str, name: str | None) -> Meant:
    """A directory becomes a version of the model `name` on the way.

    It is for administrators: the engine reads it with the service's eyes, not its owner's.
    Raises NotFound, naming what there is; ValueError; Forbidden; Conflict.
    """
    if ref.startswith("/"):
        require(principal, Verb.ADMINISTER, Object("model directory", principal.name))
        directory = Path(ref)
        if not is_model(directory):
            raise NotFound(f"{ref}: no model directory (there is no config.json in it)")
        if name is None:
            raise ValueError("a model directory needs a name to be served under (--name)")
        return Meant(models.register(db, name, principal.name, str(directory.resolve())), None)
    model = _registered(db, ref)
    if not is_model(Path(model.path)):
        raise NotFound(f"model {model.name}@{model.version} is gone: {model.path} has no config.json")
    which = ref.partition("@")[2]
    return Meant(model, f"{model.name}@{which}" if which and not which.isdigit() else None)


def is_model(directory: Path) -> bool:
    """Raises ValueError where the service cannot look."""
    with read_by_service(directory):
        return (directory / "config.json").is_file()


def _registered(db: Database, ref: str) -> ModelVersion:
    try:
        return models.resolve(db, ref)
    except NotFound as unknown:
        try:
            checkpoint = checkpoints.get(db, ref)
        except NotFound:
            raise unknown from None
    made = [m for m in models.of_run(db, checkpoint.run) if m.checkpoint == checkpoint.id]
    if not made:
        raise NotFound(
            f"no model was made of checkpoint {checkpoint.id} yet: `headgate publish {checkpoint.id}` makes one, "
            "`headgate promote` tests it too"
        )
    return max(made, key=lambda m: (m.created_at, m.version))
