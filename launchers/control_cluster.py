"""The control API's handlers for the cluster itself: the queue, the nodes, the limits, as far as the caller may see."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web

from launchers import views
from launchers.control_http import PRINCIPAL, answer, reading
from launchers.controller import Controller
from launchers.kept import Kept
from launchers.scheduler import SchedulerUnavailable
from launchers.schedulers import local_spool
from launchers.slurm_scheduler import SlurmScheduler
from launchers.subjects import WHAT, Subject, subject_of, user_name
from launchers.this_machine import picture as picture_of_this_machine
from registry import accounting, deployments, runs
from registry.access import Principal
from registry.db import Database
from slurm import limits
from slurm.changes import Silence
from slurm.client import SlurmClient
from slurm.errors import SlurmError
from slurm.model import Job
from slurm.picture import Picture
from slurm.room import up_to_date
from slurm.sight import Limits, Sight, Viewer, sight

LIMITS_S = 30.0  # how old limits and their use may be; they are asked for when somebody wants to know
PRIVILEGE_S = 300.0  # the same of whether Slurm hides anything from us
FIRST_PICTURE_S = 15.0  # less than a caller waits


class Misdirected(Exception):
    """Slurm hides from this controller what the caller may see: they must ask Slurm themselves."""


class _Asked:
    """What the watch does not ask."""

    def __init__(self, client: SlurmClient, silence: Callable[[], Silence | None]) -> None:
        def limits() -> Limits:
            now = datetime.now(UTC)
            return Limits(now, tuple(client.associations()), tuple(client.qos()))

        self.config = Kept(client.config, PRIVILEGE_S, silence)
        self.privileged = Kept(client.privileged, PRIVILEGE_S, silence)
        self.limits = Kept(limits, LIMITS_S, silence)


class Cluster:
    """What the handlers know of the cluster: the watch's picture, and what it lacks, asked rarely and for everyone."""

    def __init__(self, controller: Controller) -> None:
        self._controller, self._watch = controller, controller.watch
        scheduler = controller.scheduler
        self._slurm = _Asked(scheduler.client, self._silence) if isinstance(scheduler, SlurmScheduler) else None

    async def seen_by(
        self,
        principal: Principal,
        subjects: dict[str, Subject],
        *,
        with_limits: Callable[[Picture], bool],
        or_without: bool = False,
    ) -> tuple[Sight, Silence | None]:
        """What this principal may see, and since when Slurm is silent. Raises SchedulerUnavailable, Misdirected.

        `or_without`: the limits may be lacking, where Slurm has not told them.
        """
        picture = await self._picture()
        private, privileged = await self._private_data()
        if privileged or "jobs" not in private:
            picture = up_to_date(picture)  # all that hold something are in it
        if private and not privileged and principal.uid != os.getuid():
            raise Misdirected(f"Slurm hides your part from this controller (PrivateData={','.join(sorted(private))})")
        try:
            wanted = await self.limits() if with_limits(picture) else None
        except SchedulerUnavailable:
            if not or_without:
                raise
            wanted = None

        def theirs(job: Job) -> bool:
            subject = subject_of(job, subjects)
            return subject is not None and subject.owner == principal.name

        viewer = Viewer(principal.name, principal.admin and privileged)
        lost = () if self._watch is None else self._watch.unaccounted
        return sight(picture, wanted, private, viewer, theirs, lost), self._silence()

    async def _picture(self) -> Picture:
        """The latest, however old: its age is told."""
        if self._watch is None:
            spool = local_spool(self._controller.site)
            return await asyncio.to_thread(picture_of_this_machine, spool, datetime.now(UTC))
        if self._watch.latest is not None:
            return self._watch.latest
        try:
            async with asyncio.timeout(FIRST_PICTURE_S):
                return await self._watch.look()
        except SlurmError as e:
            raise SchedulerUnavailable(str(e)) from e
        except TimeoutError as e:
            raise SchedulerUnavailable(f"Slurm has not answered within {FIRST_PICTURE_S:g} s") from e

    async def _private_data(self) -> tuple[frozenset[str], bool]:
        """What slurmctld hides from ordinary users, and whether we are none of them."""
        if self._slurm is None:
            return frozenset(), True
        config = self._watch.config if self._watch else None
        if config is None:
            config = await self._slurm.config.answer()
        if not config.private_data:
            return frozenset(), True
        return config.private_data, await self._slurm.privileged.answer()

    async def limits(self) -> Limits:
        """Raises SchedulerUnavailable."""
        return Limits(datetime.now(UTC), (), ()) if self._slurm is None else await self._slurm.limits.answer()

    def _silence(self) -> Silence | None:
        return None if self._watch is None else self._watch.silence


CLUSTER = web.AppKey("cluster", Cluster)


def known_subjects(db: Database) -> dict[str, Subject]:
    """Every run and replica that may still have a job, by id. Only we submit replicas."""
    unsettled = {job.subject for job in accounting.unsettled(db)}
    found = {
        run.id: Subject(run.id, WHAT[run.kind], run.name, run.owner, run.owner)
        for run in runs.everything(db)
        if not run.state.ended or run.id in unsettled
    }
    service = user_name(os.getuid())
    for replica in deployments.replicas(db):
        subject = replica.job_subject
        if not replica.state.ended or subject in unsettled:
            found[subject] = Subject(
                subject, WHAT["serve"], replica.deployment, replica.owner, service, replica.revision, replica.reason
            )
    return found


async def queue(request: web.Request) -> web.Response:
    controller, principal = reading(request, "job"), request[PRINCIPAL]
    asked = query_of(request, "user", "all")
    user = None if asked.get("all") else asked.get("user", principal.name)
    subjects = await controller.write(known_subjects, controller.db)
    seen, silence = await request.app[CLUSTER].seen_by(
        principal, subjects, with_limits=lambda picture: any(map(limits.meets_one, picture.jobs)), or_without=True
    )
    now = datetime.now(UTC)
    rows = await asyncio.to_thread(views.queue, seen, subjects, user, now)  # a long queue takes a while
    return answer(views.heading(seen.picture.at, now, seen, silence) | {"jobs": rows})


async def nodes(request: web.Request) -> web.Response:
    reading(request, "node")
    asked = query_of(request, "partition")
    seen, silence = await request.app[CLUSTER].seen_by(request[PRINCIPAL], {}, with_limits=lambda _: False)
    now = datetime.now(UTC)
    at = seen.picture.cluster_at
    if at is None:
        raise SchedulerUnavailable("Slurm has told of its jobs, but not yet of its nodes")
    return answer(views.heading(at, now, seen, silence) | views.nodes(seen, asked.get("partition"), now))


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
