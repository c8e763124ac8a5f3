"""The control API's handlers for the cluster itself: the queue, the nodes, the limits, as far as the caller may see."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from aiohttp import web

from launchers import views
from launchers.control_http import PRINCIPAL, answer, reading
from launchers.controller import Controller
from launchers.scheduler import SchedulerUnavailable
from launchers.schedulers import local_spool
from launchers.slurm_scheduler import SlurmScheduler
from launchers.subjects import WHAT, Subject
from launchers.this_machine import picture as picture_of_this_machine
from registry import accounting, deployments, runs
from registry.access import Principal
from registry.db import Database
from slurm import limits
from slurm.client import SlurmClient
from slurm.errors import SlurmError
from slurm.picture import Picture
from slurm.sight import Limits, Sight, Viewer, sight

T = TypeVar("T")

LIMITS_S = 30.0  # how old limits and their use may be; they are asked for when somebody wants to know
PRIVATE_DATA_S = 300.0  # the same of slurm.conf's PrivateData


class Misdirected(Exception):
    """Slurm hides from this controller what the caller may see: they must ask Slurm themselves."""


class Cluster:
    """What the handlers know of the cluster. However many callers ask, Slurm is asked once in a while."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        scheduler = controller.scheduler
        self._client: SlurmClient | None = scheduler.client if isinstance(scheduler, SlurmScheduler) else None
        self._kept: dict[str, tuple[float, Any]] = {}
        self._asking = asyncio.Lock()

    async def seen_by(
        self, principal: Principal, subjects: dict[str, Subject], *, with_limits: Callable[[Picture], bool]
    ) -> tuple[Sight, tuple[datetime, str] | None]:
        """What this principal may see, and since when Slurm is silent. Raises SchedulerUnavailable, Misdirected."""
        picture, silence = await self._picture()
        private, privileged = await self._private_data()
        if private and not privileged and principal.uid != os.getuid():
            raise Misdirected(f"PrivateData={','.join(sorted(private))} hides your jobs from this controller")
        wanted = await self._limits() if with_limits(picture) else None
        own = {job for s in subjects.values() if s.owner == principal.name for job in s.jobs}
        viewer = Viewer(principal.name, principal.admin and privileged)
        return sight(picture, wanted, private, viewer, own), silence

    async def _picture(self) -> tuple[Picture, tuple[datetime, str] | None]:
        if self._client is None:
            spool = local_spool(self._controller.site)
            return await asyncio.to_thread(picture_of_this_machine, spool, datetime.now(UTC)), None
        client = self._client

        def ask() -> Picture:
            now = datetime.now(UTC)
            jobs, nodes = tuple(client.jobs()), tuple(client.nodes())
            return Picture(now, jobs, now, nodes, tuple(client.partitions()), tuple(client.reservations()))

        return await self._once("picture", 5.0, ask), None

    async def _private_data(self) -> tuple[frozenset[str], bool]:
        """What slurmctld hides from ordinary users, and whether we are none of them."""
        if self._client is None:
            return frozenset(), True
        client = self._client
        return await self._once("private", PRIVATE_DATA_S, lambda: (client.config().private_data, client.privileged()))

    async def _limits(self) -> Limits:
        if self._client is None:
            return Limits(datetime.now(UTC), (), ())
        client = self._client
        return await self._once(
            "limits", LIMITS_S, lambda: Limits(datetime.now(UTC), tuple(client.associations()), tuple(client.qos()))
        )

    async def _once(self, what: str, most_s: float, ask: Callable[[], T]) -> T:
        """The answer as it was last given, unless that is too long ago."""
        async with self._asking:
            at, kept = self._kept.get(what, (0.0, None))
            if what in self._kept and time.monotonic() - at < most_s:
                return kept  # type: ignore[no-any-return]  # each name has one type
            try:
                found = await asyncio.to_thread(ask)
            except SlurmError as e:
                raise SchedulerUnavailable(str(e)) from e
            self._kept[what] = time.monotonic(), found
            return found


CLUSTER = web.AppKey("cluster", Cluster)


def known_subjects(db: Database) -> dict[str, Subject]:
    """Every run and replica that may still have a job, by id."""
    jobs: dict[str, set[str]] = {}
    users: dict[str, str] = {}
    for job in accounting.unsettled(db):
        jobs.setdefault(job.subject, set()).add(job.job_id)
        users[job.subject] = job.owner
    found = {}
    for run in runs.everything(db):
        if not run.state.ended or run.id in jobs:
            found[run.id] = Subject(
                run.id, WHAT[run.kind], run.name, run.owner, run.owner, frozenset(jobs.get(run.id, ()))
            )
    for replica in deployments.replicas(db):
        if not replica.state.ended or replica.id in jobs:
            user = users.get(replica.id, "")
            found[replica.id] = Subject(
                replica.id, WHAT["serve"], replica.deployment, replica.owner, user, frozenset(jobs.get(replica.id, ()))
            )
    return found


async def queue(request: web.Request) -> web.Response:
    controller, principal = reading(request, "job"), request[PRINCIPAL]
    asked = query_of(request, "user", "all")
    user = None if asked.get("all") else asked.get("user", principal.name)
    subjects = await controller.write(known_subjects, controller.db)
    seen, silence = await request.app[CLUSTER].seen_by(
        principal, subjects, with_limits=lambda picture: any(map(limits.meets_one, picture.jobs))
    )
    now = datetime.now(UTC)
    rows = await asyncio.to_thread(views.queue, seen, subjects, user, now)  # a long queue takes a while
    return answer(views.heading(seen.picture.at, now, seen, silence) | {"jobs": rows})


async def nodes(request: web.Request) -> web.Response:
    reading(request, "node")
    asked = query_of(request, "partition")
    seen, silence = await request.app[CLUSTER].seen_by(request[PRINCIPAL], {}, with_limits=lambda _: False)
    now = datetime.now(UTC)
    heading = views.heading(seen.picture.cluster_at, now, seen, silence)
    return answer(heading | views.nodes(seen, asked.get("partition"), now))


async def usage(request: web.Request) -> web.Response:
    reading(request, "limit")
    asked, principal = query_of(request, "account"), request[PRINCIPAL]
    seen, silence = await request.app[CLUSTER].seen_by(principal, {}, with_limits=lambda _: True)
    assert seen.limits is not None
    heading = views.heading(seen.limits.at, datetime.now(UTC), seen, silence)
    return answer(heading | views.usage(seen.limits, principal.name, asked.get("account"), seen.hidden))


def query_of(request: web.Request, *allowed: str) -> dict[str, str]:
    """The request's parameters. Raises ValueError for one that is unknown."""
    for key in request.query:
        if key not in allowed:
            raise ValueError(f"parameter {key!r} is unknown; allowed: {', '.join(allowed)}")
    return dict(request.query)
