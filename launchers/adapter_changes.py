"""A revision that differs from the stable one only in its LoRA adapters: the engines that run load them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launchers.deployment_changes import IN_PLACE
from registry.replicas import Replica, ReplicaState
from registry.revisions import Revision, RevisionState

CHANGE_S = 120.0  # for how long engines may take; then the revision is rolled out as any other


@dataclass(frozen=True, slots=True)
class Change:
    asked: tuple[str, ...]  # replicas that are to have the wanted revision's adapters; none: new ones are needed
    done: bool  # those that are ready have them
    words: str


def change(stable: Revision, wanted: Revision, live: Sequence[Replica], waited_s: float) -> Change | None:
    """How the wanted revision comes about in the replicas there are; None: it is no such revision.

    `live`: the deployment's own that have not ended and do not drain; `waited_s`: since the revision was asked for.
    """
    theirs = [r for r in live if r.revision == stable.revision]
    if wanted.state is not RevisionState.ROLLING or not theirs or not _differ_in_adapters(stable, wanted):
        return None
    of = f"revision {wanted.revision} differs from revision {stable.revision} only in its LoRA adapters"
    if waited_s > CHANGE_S:
        return Change(
            (), False, f"{of}, which engines that run did not load within {CHANGE_S:.0f} s: others are started"
        )
    names = tuple(sorted(adapters_of(wanted)))
    ready = [r for r in theirs if r.state is ReplicaState.READY]
    have = sum(r.adapters == names for r in ready)
    words = f"{of}: the engines that run load them, and {have} of {len(ready)} that are ready have them"
    return Change(tuple(r.id for r in theirs), 0 < have == len(ready), words)


def adapters_of(revision: Revision) -> dict[str, str]:
    """Name -> directory."""
    return dict(revision.request.get("adapters") or {})


def _differ_in_adapters(one: Revision, other: Revision) -> bool:
    """Both have some, or their engines could not load any; and none moved, as a replica tells only names."""
    before, after = adapters_of(one), adapters_of(other)
    if not before or not after or before == after:
        return False
    return (
        all(before[name] == after[name] for name in before.keys() & after.keys())
        and (one.model, one.version, one.model_path) == (other.model, other.version, other.model_path)
        and _rest(one.request) == _rest(other.request)
    )


def _rest(request: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine would have to be started anew for."""
    return {k: v for k, v in request.items() if k != "adapters" and k not in IN_PLACE and v is not None}
