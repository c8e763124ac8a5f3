"""The cluster asked as the person at the keyboard, where no controller answers: Slurm itself applies PrivateData.

Only what an answer needs is asked for: other people's jobs when somebody waits behind them, limits when one is met.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from launchers import subjects, views
from slurm import limits
from slurm.client import SlurmClient
from slurm.model import JobState
from slurm.picture import Picture
from slurm.sight import HIDES, USE, Limits, Sight


class Source(Protocol):
    """What can be seen of a cluster by whoever asks."""

    def queue(self, user: str | None) -> Sight:
        """The jobs of one user, or of everybody, and what explains why they wait."""

    def cluster(self) -> Sight:
        """Nodes, partitions, reservations."""

    def limits(self) -> Sight: ...


def now() -> datetime:
    return datetime.now(UTC)


class DirectSlurm:
    """A Source. Raises SlurmUnavailable, also where only half of the questions were answered."""

    def __init__(self, client: SlurmClient, clock: Callable[[], datetime] = now) -> None:
        self._client, self._now = client, clock

    def queue(self, user: str | None) -> Sight:
        at = self._now()
        jobs = self._client.jobs(user=user)
        waiting = [j for j in jobs if j.state is JobState.PENDING]
        if not waiting:
            hidden = frozenset[str]() if user == subjects.user_name(os.getuid()) else self._hidden
            return Sight(Picture(at, tuple(jobs), at, (), (), ()), None, hidden)
        if user is not None and any(j.reason == "Priority" for j in waiting):
            jobs = self._client.jobs()
        seen = replace(self.cluster(), limits=self._limits() if any(map(limits.meets_one, waiting)) else None)
        return replace(seen, picture=replace(seen.picture, at=at, jobs=tuple(jobs)))

    def cluster(self) -> Sight:
        at = self._now()
        # What is hidden is not left out of an answer: the question is refused.
        nodes = () if "nodes" in self._hidden else tuple(self._client.nodes())
        partitions = () if "partitions" in self._hidden else tuple(self._client.partitions())
        return Sight(Picture(at, (), at, nodes, partitions, tuple(self._client.reservations())), None, self._hidden)

    def limits(self) -> Sight:
        at = self._now()
        return Sight(Picture(at, (), at, (), (), ()), self._limits(), self._hidden)

    def _limits(self) -> Limits:
        return Limits(self._now(), tuple(self._client.associations()), tuple(self._client.qos()))

    @cached_property
    def _hidden(self) -> frozenset[str]:
        private = self._client.config().private_data
        if not private or self._client.privileged():
            return frozenset()
        nodes = {"nodes"} if "partitions" in private else set()  # sinfo, which tells of nodes, wants both
        return private & HIDES | nodes | ({"usage"} if private & USE else set())


def queue(source: Source, runs_dir: Path, user: str | None) -> dict[str, Any]:
    """As /v1/queue answers."""
    seen, at = source.queue(user), now()
    ours = subjects.from_folders(runs_dir, {j.comment for j in seen.picture.jobs if user in (None, j.user)})
    return views.heading(seen.picture.at, at, seen) | {"jobs": views.queue(seen, ours, user, at)}


def nodes(source: Source, partition: str | None) -> dict[str, Any]:
    """As /v1/nodes answers. Raises ValueError for a partition that there is not."""
    seen, at = source.cluster(), now()
    return views.heading(seen.picture.at, at, seen) | views.nodes(seen, partition, at)


def usage(source: Source, account: str | None) -> dict[str, Any]:
    """As /v1/limits answers. Raises ValueError for an account that there is not."""
    seen, at = source.limits(), now()
    assert seen.limits is not None
    me = subjects.user_name(os.getuid())
    return views.heading(seen.limits.at, at, seen) | views.usage(seen.limits, me, account, seen.hidden)
