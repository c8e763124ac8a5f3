"""What one person may see of a cluster: Slurm's PrivateData, applied to what a privileged poll saw. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from slurm.model import QOS, Association, Job, Limit
from slurm.picture import Picture

if TYPE_CHECKING:
    from slurm.watch import Unaccounted

HIDES = frozenset({"jobs", "nodes", "partitions", "reservations"})
USE = frozenset({"usage", "users", "accounts"})  # each of them hides other people's associations


@dataclass(frozen=True, slots=True)
class Limits:
    """Associations and QOS with their limits and live use, as slurmctld had them at one moment."""

    at: datetime
    associations: tuple[Association, ...]
    qos: tuple[QOS, ...]


@dataclass(frozen=True, slots=True)
class Sight:
    """A picture, and the limits where they were asked for, as far as one person may see them."""

    picture: Picture
    limits: Limits | None = None
    hidden: frozenset[str] = frozenset()  # in PrivateData's words: jobs, nodes, partitions, reservations, usage
    lost: tuple[Unaccounted, ...] = ()  # jobs that the picture does not show, though they may run


@dataclass(frozen=True, slots=True)
class Viewer:
    user: str
    privileged: bool  # PrivateData hides nothing from them


def nobodys(job: Job) -> bool:
    return False


def sight(
    picture: Picture,
    limits: Limits | None,
    private_data: frozenset[str],
    viewer: Viewer,
    theirs: Callable[[Job], bool] = nobodys,
    lost: tuple[Unaccounted, ...] = (),
) -> Sight:
    """What PrivateData leaves to the viewer. `theirs`: whether a job is, though another user runs it."""
    if viewer.privileged or not private_data:
        return Sight(picture, limits, lost=lost)
    hidden = private_data & HIDES

    def shown(job: Job) -> bool:
        return "jobs" not in hidden or job.user == viewer.user or theirs(job)

    seen = dataclasses.replace(
        picture,
        jobs=tuple(filter(shown, picture.jobs)),
        nodes=() if "nodes" in hidden else picture.nodes,
        partitions=() if "partitions" in hidden else picture.partitions,
        reservations=() if "reservations" in hidden else picture.reservations,
    )
    lost = tuple(x for x in lost if shown(x.job))
    if not private_data & USE:
        return Sight(seen, limits, hidden, lost)
    return Sight(seen, None if limits is None else _own_limits(limits, viewer), hidden | {"usage"}, lost)


def _own_limits(limits: Limits, viewer: Viewer) -> Limits:
    """Their own associations; of each QOS what is used in all, which Slurm shows anybody, and their own part of it."""
    return Limits(
        limits.at,
        tuple(a for a in limits.associations if a.user == viewer.user),
        tuple(dataclasses.replace(q, limits=tuple(x for x in q.limits if _shown(x, viewer))) for q in limits.qos),
    )


def _shown(limit: Limit, viewer: Viewer) -> bool:
    return limit.holder is None or (limit.holder == viewer.user and limit.kind.endswith("PU"))
