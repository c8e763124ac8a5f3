"""What `headgate queue`, `nodes` and `usage` show, as plain data for JSON: the control API's answers. Pure.

Sentences hold their times as `slurm.amounts.moment` writes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from launchers.subjects import Subject, subject_of
from slurm import amounts, limits, room
from slurm.model import Association, Job, JobState
from slurm.reasons import Reasons, condition
from slurm.sight import Limits, Sight

if TYPE_CHECKING:
    from slurm.changes import Silence


def heading(at: datetime, now: datetime, seen: Sight, silence: Silence | None = None) -> dict[str, Any]:
    """How old an answer is, since when (and in which words) Slurm has not answered, and what it hides."""
    return {
        "at": amounts.moment(at),
        "age_s": round((now - at).total_seconds(), 1),
        "silent_since": amounts.moment(silence.since) if silence else None,
        "silence": silence.words if silence else None,
        "hidden": sorted(seen.hidden),
    }


# The queue.


def queue(seen: Sight, subjects: Mapping[str, Subject], user: str | None, now: datetime) -> list[dict[str, Any]]:
    """The jobs that have not ended of one user, or of everybody: those that run, then the others by priority.

    A replica is its deployment owner's too, although it runs as the service's user. Last come those of which is not
    known whether they ended.
    """

    def wanted(job: Job, subject: Subject | None) -> bool:
        return user is None or job.user == user or (subject is not None and subject.owner == user)

    reasons = Reasons(seen, now)
    rows = []
    for job in sorted(seen.picture.jobs, key=lambda j: (j.state.pending, -j.priority, j.raw_id, j.id)):
        subject = subject_of(job, subjects)
        if not job.state.ended and wanted(job, subject):
            rows.append(_job(job, subject, reasons.why(job) or _where(job), now))
    for lost in seen.lost:
        subject = subject_of(lost.job, subjects)
        if wanted(lost.job, subject):
            why = f"not in the queue any more; {lost.words}"
            rows.append(_job(lost.job, subject, why, lost.since) | {"state": "UNKNOWN"})
    return rows


def _job(job: Job, subject: Subject | None, why: str, now: datetime) -> dict[str, Any]:
    started = job.started_at
    return {
        "job": job.id,
        "what": subject.what if subject else "job",
        "of": subject.of if subject else None,
        "revision": subject.revision if subject else None,
        "reason": subject.reason if subject else None,
        "name": job.name,
        "user": job.user,
        "account": job.account,
        "qos": job.qos,
        "partition": job.partition,
        "state": job.state.value,
        "nodes": job.node_count,
        "cpus": job.tres.cpus,
        "gpus": {kind or "gpu": n for kind, n in job.tres.gpus_of_each_type.items()},
        "asks": _asks(job),
        "submitted_at": amounts.moment(job.submitted_at),
        "started_at": amounts.moment(started) if started else None,
        "expected_start_at": amounts.moment(job.expected_start_at) if job.expected_start_at else None,
        "used_s": max(0, int((now - started).total_seconds())) if started else None,
        "left_s": job.time_left_s if started else None,
        "time_limit_s": job.time_limit_s,
        "restarts": job.restarts,
        "why": why,
    }


def _asks(job: Job) -> str:
    gpus = [amounts.gpus(n, kind) for kind, n in job.tres.gpus_of_each_type.items() if n]
    what = amounts.several(gpus) or amounts.counted(job.tres.cpus, "CPU")
    return f"{what} on {job.node_count} nodes" if job.node_count > 1 else what


def _where(job: Job) -> str:
    where = f"on {amounts.several(job.nodes)}" if job.nodes else ""
    match job.state:
        case JobState.RUNNING:
            return where
        case JobState.COMPLETING:
            return f"is ending {where}".strip()
        case JobState.CONFIGURING | JobState.POWER_UP_NODE:
            return f"its nodes are being made ready: {amounts.several(job.nodes)}"
    return f"{job.state.value.lower()} {where}".strip()


# Nodes.


def nodes(seen: Sight, partition: str | None, now: datetime) -> dict[str, Any]:
    """What each partition has free, which nodes are out and why, and the maintenance that is planned.

    Raises ValueError for a partition that there is not.
    """
    picture = seen.picture
    names = [p.name for p in picture.partitions]
    if partition is not None and partition not in names and "partitions" not in seen.hidden:
        raise ValueError(f"no partition is called {partition!r}; there are: {', '.join(names) or 'none'}")
    shown = {p.name for p in picture.partitions if p.name == partition or (partition is None and not p.hidden)}
    members = [n for n in picture.nodes if set(n.partitions) & shown]
    member_names = {n.name for n in members}
    reservations = sorted((r for r in picture.reservations if r.ends_at > now), key=lambda r: r.starts_at)
    return {
        "partitions": [dataclasses.asdict(r) for r in room.rooms(picture) if r.partition in shown],
        "out": [
            {"node": n.name, "state": n.state.value, "flags": sorted(n.flags), "reason": n.reason, "text": condition(n)}
            for n in members
            if not n.available
        ],
        "reservations": [
            {
                "name": r.name,
                "maintenance": r.maintenance,
                "active": r.active,
                "whole": room.whole(r, picture),
                "starts_at": amounts.moment(r.starts_at),
                "ends_at": amounts.moment(r.ends_at),
                "nodes": [name for name in r.nodes if name in member_names],
                "users": list(r.users),
                "accounts": list(r.accounts),
            }
            for r in reservations
            if member_names & set(r.nodes)
        ],
    }


# Limits.


def usage(seen: Limits, user: str, account: str | None, hidden: Iterable[str] = ()) -> dict[str, Any]:
    """A user's associations (or those of one account), the accounts above them, and every QOS that limits something.

    Raises ValueError for an account that there is not.
    """
    accounts = sorted({a.account for a in seen.associations})
    if account is not None and account not in accounts:
        where = "you may see" if "usage" in hidden else "there are"
        raise ValueError(f"no account is called {account!r}; {where}: {', '.join(accounts) or 'none'}")
    mine = [a for a in seen.associations if a.user == user and account in (None, a.account)]
    chains = [limits.chain(seen, user, a.account, a.partition) for a in mine]
    if account is not None and not mine:
        chains = [limits.chain(seen, user, account, None)]
    every: dict[Association, None] = dict.fromkeys(a for chain in chains for a in chain)
    own_accounts = {a.account for a in every}
    rows = [row for a in every for row in limits.allowances(limits.whose(a), a.limits, user, own_accounts)]
    for qos in seen.qos:
        limited = [limit for limit in qos.limits if limit.allowed is not None]
        rows += limits.allowances(f"QOS {qos.name}", limited, user, own_accounts)
    return {
        "user": user,
        "limits": [{**dataclasses.asdict(row), "left": row.left} for row in rows],
        "fair_share": [
            {
                "of": limits.whose(a),
                "default": a.default,
                "shares": a.shares,
                "recent_billing_hours": None if a.usage_raw is None else round(a.usage_raw / 3600, 2),
                "fair_share": a.fair_share,
            }
            for a in every
        ],
    }
