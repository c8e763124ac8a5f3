"""The control API's handlers for reports: who may read what, what the scheduler says, and the making on a thread."""

from __future__ import annotations

import asyncio
from contextlib import closing
from datetime import UTC, datetime, timedelta

from aiohttp import web

from launchers.account_limits import LIMIT, above
from launchers.control_cluster import CLUSTER, Cluster, query_of
from launchers.control_http import CONTROLLER, PRINCIPAL, answer, reading
from launchers.controller import Controller
from launchers.scheduler import SchedulerError
from registry import reports
from registry.access import Object, Verb, require
from registry.attribution import Allocation, Books
from registry.db import open_reader
from registry.report import Report, to_json
from registry.report_quota import RATE_DAYS, AccountLimit, per_day
from registry.reports import Asked, Sources, Told
from slurm import amounts
from slurm.sight import Limits

BOOKS_WAIT_S = 20.0  # how long a report waits for the scheduler


def routes() -> list[web.RouteDef]:
    return [web.get("/v1/report/{kind}", get_report)]


async def get_report(request: web.Request) -> web.Response:
    """`by` are columns, with commas between them. Members get their own tenants', administrators everybody's."""
    controller = request.app[CONTROLLER]
    said = query_of(request, "month", "since", "until", "by", "tenant")
    now = datetime.now(UTC)
    of = reports.asked(
        request.match_info["kind"],
        now,
        month=said.get("month"),
        since=said.get("since"),
        until=said.get("until"),
        by=[word.strip() for word in said.get("by", "").split(",") if word.strip()],
        of=_whose(request, said.get("tenant")),
    )
    told = await _told(controller, request.app[CLUSTER], of, now)

    def make() -> Report:
        """On a thread and over connections of its own: adding up a long ledger keeps nobody waiting."""
        site = controller.site
        with closing(open_reader(site.registry_db)) as registry, closing(open_reader(site.ledger_db)) as ledger:
            return reports.make(of, Sources(site, registry, ledger, told, now))

    return answer(to_json(await asyncio.to_thread(make)))


def _whose(request: web.Request, tenant: str | None) -> frozenset[str] | None:
    """The tenants that a report is of; None: all. Raises Forbidden for another's."""
    principal = request[PRINCIPAL]
    if tenant is not None:
        require(principal, Verb.READ, Object("report", "", tenant))
        return frozenset({tenant})
    if principal.admin and request.match_info["kind"] != "mine":
        reading(request, "report")
        return None
    for name in principal.tenants or [None]:
        require(principal, Verb.READ, Object("report", "", name))
    return principal.tenants


async def _told(controller: Controller, cluster: Cluster, of: Asked, now: datetime) -> Told:
    """What the scheduler says within BOOKS_WAIT_S; what it does not say in time is missing, with the reason."""
    kind = reports.of_kind(of.kind)
    books: list[Books] = []
    limits: tuple[AccountLimit, ...] = ()
    silence = None
    try:
        async with asyncio.timeout(BOOKS_WAIT_S):
            for window in (of.window, of.window.before)[: kind.books]:
                books.append(await _books(controller, window.start, min(window.end, now)))
            if kind.limits:
                limits = await _limits(controller, cluster, now)
    except SchedulerError as e:
        silence = str(e)
    except TimeoutError:
        silence = f"no answer within {BOOKS_WAIT_S:g} s"
    this, before = (*books, None, None)[:2]
    return Told(this, before, limits, silence)


async def _books(controller: Controller, start: datetime, end: datetime) -> Books:
    return await asyncio.to_thread(controller.scheduler.books, start, end)


async def _limits(controller: Controller, cluster: Cluster, now: datetime) -> tuple[AccountLimit, ...]:
    """Slurm's own limits of accounts, with what they used a day lately, where the books say."""
    limited = await cluster.limits()
    if not any(limit.kind == LIMIT for a in limited.associations for limit in a.limits):
        return ()
    first = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=RATE_DAYS - 1)
    try:
        latest = await _books(controller, first, now)
    except SchedulerError:
        latest = None  # the limits are worth showing without a forecast
    return account_limits(limited, latest, now)


def account_limits(limited: Limits, latest: Books | None, now: datetime) -> tuple[AccountLimit, ...]:
    """GrpTRESMins of accounts, which count the accounts below them too. `latest`: of the last RATE_DAYS days."""
    accounts = {a.account: a for a in limited.associations if a.user is None}
    counted_in = {a.account: above(a.account, accounts) for a in latest.allocations} if latest is not None else {}
    found = []
    for account, association in sorted(accounts.items()):
        for limit in association.limits:
            if limit.kind != LIMIT or limit.tres is None or limit.allowed is None:
                continue
            rate = None
            if latest is not None and _counted(limit.tres):
                seconds = sum(_used_s(a, limit.tres) for a in latest.allocations if account in counted_in[a.account])
                rate = per_day(seconds / 3600, now)
            found.append(
                AccountLimit(
                    account,
                    amounts.hours_of(limit.tres),
                    amounts.hours(limit.tres, limit.allowed),
                    amounts.hours(limit.tres, limit.used or 0),
                    rate,
                )
            )
    return tuple(found)


def _counted(tres: str) -> bool:
    """Whether the books have it: GPUs and CPUs."""
    return tres in ("cpu", "gres/gpu") or tres.startswith("gres/gpu:")


def _used_s(a: Allocation, tres: str) -> float:
    if tres == "cpu":
        return a.cpu_s
    if tres == "gres/gpu":
        return a.gpu_s
    gpus = sum(n for _, n in a.gpus_by_type)
    return a.gpu_s * dict(a.gpus_by_type).get(tres.removeprefix("gres/gpu:"), 0) / gpus if gpus else 0
