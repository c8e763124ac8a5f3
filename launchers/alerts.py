"""The controller's loop that tells people when a limit is nearly used up: by log, webhook and mail.

What to tell is noted in the registry before anybody is told, so that nothing is lost when telling fails, or this
process ends: it is tried again at the next look, for a day. Somebody may then be told twice.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta

from launchers import account_limits
from launchers.control_cluster import known_subjects
from launchers.controller import Controller
from launchers.notify import Channel, NotTold, Refused
from launchers.slurm_scheduler import SlurmScheduler
from launchers.subjects import WHAT, Subject, subject_of
from registry import alerts, clock, endpoints, ledger, limits
from registry.alerts import Alert, Standing
from registry.db import RegistryError, open_reader
from registry.endpoints import Endpoint
from registry.limits import Limits
from slurm.errors import SlurmError
from slurm.model import Job

log = logging.getLogger(__name__)

GIVEN_UP = timedelta(days=1)  # how old an alert is that is not tried again
MOST_WAITING = 1000  # alerts; of more, the oldest are given up


class Alerting:
    def __init__(self, controller: Controller, channels: Mapping[str, Channel]) -> None:
        self._controller, self._channels = controller, channels
        self._failures: set[tuple[str, str]] = set()  # channels, and why they took none, so that it is said once

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._controller.site.alerts.every_s)
            try:
                await self.turn(datetime.now(UTC))
            except (RegistryError, sqlite3.Error, OSError) as e:
                log.error("limits cannot be looked at now, the next look tries again: %s", e)

    async def turn(self, now: datetime) -> None:
        """Look once, and tell what is due and what could not be told before."""
        controller = self._controller
        limited = await controller.write(limits.everything, controller.db)
        standing = await asyncio.to_thread(self._of_ledger, limited, now)
        standing += await self._of_slurm(now)
        for alert in await controller.write(self._note, standing, now):
            log.warning("%s", alert.message)
        await self._tell(now)

    def _of_ledger(self, limited: Mapping[tuple[limits.Subject, str], Limits], now: datetime) -> list[Standing]:
        path = self._controller.site.ledger_db
        if not path.exists():  # no gateway has ever run here
            return []
        with closing(open_reader(path)) as db:
            return alerts.standings(limited, ledger.totals(db, *alerts.windows(now)), now)

    async def _of_slurm(self, now: datetime) -> list[Standing]:
        controller = self._controller
        if not isinstance(controller.scheduler, SlurmScheduler):
            return []
        client, watch = controller.scheduler.client, controller.watch
        if watch is not None and watch.silence is not None:
            return []  # the watch says so in the log, and nobody else need wait for the same
        picture = watch.latest if watch is not None else None
        try:
            config = await asyncio.to_thread(client.config)
            associations = await asyncio.to_thread(client.associations)
            jobs = await asyncio.to_thread(client.jobs) if picture is None else picture.jobs
        except SlurmError as e:
            log.warning("the limits of Slurm's accounts cannot be looked at now: %s", e)
            return []
        if not config.enforce & {"limits", "safe"}:
            return []  # Slurm counts, and stops nobody
        subjects = await controller.write(known_subjects, controller.db)
        named = await controller.write(endpoints.everything, controller.db)
        return account_limits.standings(associations, jobs, serves(jobs, subjects, named), now)

    def _note(self, standing: list[Standing], now: datetime) -> list[Alert]:
        db = self._controller.db
        marks = alerts.marks(db)
        anew = alerts.begun_anew(standing, marks)
        known = {key: mark for key, mark in marks.items() if key not in anew}
        due = alerts.due(standing, known, self._controller.site.alerts.thresholds, now)
        if due or anew:
            alerts.note(db, due, anew, list(self._channels), now)
        return due

    async def _tell(self, now: datetime) -> None:
        controller = self._controller
        silent: set[str] = set()  # channels that are not tried again for this turn's other alerts
        waiting = await controller.write(alerts.waiting, controller.db)
        for younger, alert in zip(range(len(waiting) - 1, -1, -1), waiting, strict=True):
            still = [name for name in alert.waiting if not await self._through(name, alert, silent)]
            if still and (younger >= MOST_WAITING or now - clock.parse(alert.at) >= GIVEN_UP):
                log.error("an alert is given up, told by no %s: %s", " and no ".join(still), alert.document["message"])
                still = []
            if tuple(still) != alert.waiting:
                await controller.write(alerts.told, controller.db, alert, still)

    async def _through(self, name: str, alert: alerts.Stored, silent: set[str]) -> bool:
        """Whether this channel need not be tried again."""
        channel = self._channels.get(name)
        if channel is None:  # no longer configured
            return True
        if name in silent:
            return False
        try:
            await channel(alert.document)
        except NotTold as e:
            if (name, str(e)) not in self._failures:
                log.error("an alert is not told yet, and tried again: %s", e)
            self._failures.add((name, str(e)))
            if not isinstance(e, Refused):
                silent.add(name)
            return False
        self._failures = {failure for failure in self._failures if failure[0] != name}
        return True


def serves(jobs: Iterable[Job], subjects: Mapping[str, Subject], named: Iterable[Endpoint]) -> dict[str, str]:
    """What the jobs of replicas serve, by the job's id: their deployment, with the endpoint in front of it."""
    fronts: dict[str, list[str]] = {}
    for endpoint in named:
        for deployment, _ in endpoint.targets:
            fronts.setdefault(deployment, []).append(endpoint.name)
    found = {}
    for job in jobs:
        subject = subject_of(job, subjects)
        if subject is not None and subject.what == WHAT["serve"]:
            before = fronts.get(subject.of)
            words = f"endpoint {' and '.join(before)} (deployment {subject.of})" if before else None
            found[job.id] = words or f"deployment {subject.of}"
    return found
