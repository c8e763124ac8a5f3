"""What replicas did in a window, out of the ledger's sums; and the window's GPU time attributed by it. Read-only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from registry import accounting, clock, replicas, tenants
from registry.accounting import Job
from registry.attribution import Allocation, Attributed, Books, Busy, Payers, ReplicaWork, Share, attribute
from registry.db import Database, rows
from registry.replicas import Replica
from registry.settings import Attribution


def attributed(
    registry: Database,
    ledger: Database,
    books: Books,
    start: datetime,
    end: datetime,
    policy: Attribution,
    *,
    by_user: bool = True,
) -> Attributed:
    """GPU time of the window [start, end), whose books these are, line by line.

    Not `by_user`: what a tenant's users were served is one line, of which a large site has far fewer.
    """
    return attribute(
        named(books, accounting.everything(registry)),
        read(registry, ledger, start, end, by_user=by_user),
        payers(tenants.everyone(registry), tenants.members(registry)),
        policy,
    )


def read(
    registry: Database, ledger: Database, start: datetime, end: datetime, *, by_user: bool = True
) -> dict[str, ReplicaWork]:
    """The work of each job of replicas by its subject: of those that share one, together.

    Tokens are known by the day on which their request ended: of each day that the window touches, all count.
    """
    busy: dict[str, dict[int, int]] = {}
    for r in rows(ledger, "SELECT * FROM busy WHERE hour >= ? AND hour <= ?", _hour(start), _hour(end)):
        hour = int(datetime.fromisoformat(f"{r['hour']}:00:00+00:00").timestamp())
        busy.setdefault(r["replica"], {})[hour] = int.from_bytes(r["seconds"], "little")
    shares: dict[str, list[Share]] = {}
    days = clock.text(start)[:10], clock.text(end - timedelta(microseconds=1))[:10]
    user = "user" if by_user else "''"
    tokens = "prompt_tokens, cached_tokens, completion_tokens"
    # A correction takes a charge back, and not the engine's work: of its day, what it took back counts still.
    summed = f"""SELECT replica, tenant, {user}, model, sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens)
        FROM (SELECT replica, tenant, user, model, {tokens} FROM daily WHERE day BETWEEN ? AND ?
              UNION ALL SELECT replica, tenant, user, model, {tokens} FROM reversals
              WHERE substr(at, 1, 10) BETWEEN ? AND ?) GROUP BY 1, 2, 3, 4"""
    for replica, *share in rows(ledger, summed, *days, *days):
        shares.setdefault(replica, []).append(Share(*share))
    jobs: dict[str, list[Replica]] = {}
    for replica in replicas.replicas(registry):
        jobs.setdefault(replica.job_subject, []).append(replica)
    return {
        subject: ReplicaWork(
            members[0].deployment,
            min((int(clock.parse(r.ready_at).timestamp()) for r in members if r.ready_at), default=None),
            _together(busy.get(r.id, {}) for r in members),
            tuple(share for r in members for share in shares.get(r.id, ())),
        )
        for subject, members in jobs.items()
    }


def _together(members: Iterable[Mapping[int, int]]) -> Busy:
    """The seconds in which any of them had a request: the GPUs are the job's, and its members share them."""
    hours: dict[int, int] = {}
    for member in members:
        for hour, seconds in member.items():
            hours[hour] = hours.get(hour, 0) | seconds
    return Busy(hours)


def payers(everyone: Iterable[tenants.Tenant], members: Iterable[tenants.Member]) -> Payers:
    homes: dict[str, set[str]] = {}
    for member in members:
        homes.setdefault(member.user, set()).add(member.tenant)
    return Payers(
        {tenant.account: tenant.name for tenant in everyone if tenant.account},
        {user: next(iter(theirs)) for user, theirs in homes.items() if len(theirs) == 1},
    )


def named(books: Books, jobs: Iterable[Job]) -> Books:
    """The books with what each of Headgate's own jobs is for, and whose: the job itself may be the service's."""
    by_id: dict[tuple[str, str], list[Job]] = {}
    for job in sorted(jobs, key=lambda job: job.submitted_at, reverse=True):
        by_id.setdefault((job.cluster, job.job_id), []).append(job)

    def name(allocation: Allocation) -> Allocation:
        for job in by_id.get((allocation.cluster, allocation.job), ()):
            # A requeued job's attempts have later submit times, but none after its end. A recycled id's have.
            if job.submitted_at <= allocation.submitted_at and (
                job.submitted_at == allocation.submitted_at
                or job.ended_at is None
                or allocation.submitted_at < job.ended_at
            ):
                return dataclasses.replace(allocation, purpose=job.purpose, subject=job.subject, user=job.owner)
        return allocation

    return dataclasses.replace(books, allocations=tuple(map(name, books.allocations)))


def _hour(at: datetime) -> str:
    return clock.text(at)[:13]
