"""The run folders of a promotion's steps, as the controller finds them, become a promotion in the registry."""

from __future__ import annotations

import logging

from launchers.spec import Spec, promotion_of
from registry import promotions
from registry.db import Database, RegistryError, StorageError

log = logging.getLogger(__name__)


def take_up(db: Database, spec: Spec, owner: str) -> None:
    """What a run says that it is a step of. `owner`: its folder's, whom a promotion's steps must have in common.

    A run that says what cannot be is no step: that is logged. Raises StorageError.
    """
    if (whole := promotion_of(spec)) is None:
        return
    try:
        promotions.adopt(
            db,
            whole.id,
            owner=owner,
            source=whole.source,
            model=whole.model,
            alias=whole.alias,
            canary=whole.canary,
            steps=whole.steps,
            run=spec.id,
            created_at=spec.created_at,
        )
    except StorageError:
        raise
    except RegistryError as e:
        log.warning("run %s is no step of a promotion: %s", spec.id, e)
