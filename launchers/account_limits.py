"""Slurm's GrpTRESMins of accounts: how much is used, and when it is used up at the rate of what runs now. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from registry.alerts import Key, Standing, forecast
from registry.ledger_sums import ALL
from slurm import amounts
from slurm.model import TRES, Association, Job, JobState

LIMIT = "GrpTRESMins"


def standings(
    associations: Iterable[Association], jobs: Iterable[Job], serves: Mapping[str, str], now: datetime
) -> list[Standing]:
    """Of every account that has such a limit. `serves`: what a job of this id serves, in words.

    An account's limit counts what the accounts below it use, too. A QOS's UsageFactor and the decay of what was used
    are left out of the forecast.
    """
    accounts = {a.account: a for a in associations if a.user is None}
    running = [(job, above(job.account, accounts)) for job in jobs if job.state is JobState.RUNNING]
    found = []
    for account, association in accounts.items():
        theirs = [job for job, counted_in in running if account in counted_in]
        stops = tuple(sorted({serves[job.id] for job in theirs if job.id in serves}))
        for limit in association.limits:
            if limit.kind != LIMIT or not limit.allowed or limit.tres is None:
                continue
            used, per_second = limit.used or 0, sum(_count(job.tres, limit.tres) for job in theirs)
            whole = f"{amounts.hours(limit.tres, used):,g} of {amounts.tres_hours(limit.tres, limit.allowed)}"
            found.append(
                Standing(
                    Key("account", account, f"{LIMIT}={limit.tres}", ALL, limit.allowed),
                    used,
                    whole,
                    forecast(used, limit.allowed, per_second, now),
                    stops,
                )
            )
    return found


def above(account: str, accounts: Mapping[str, Association]) -> set[str]:
    """An account, and those above it: whose limits count what it uses."""
    found: set[str] = set()
    name: str | None = account
    while name is not None and name not in found:
        found.add(name)
        name = accounts[name].parent if name in accounts else None
    return found


def _count(tres: TRES, name: str) -> int:
    """How much of a TRES, by Slurm's name for it, a job has."""
    kind, _, gpu_type = name.partition(":")
    if kind == "gres/gpu":
        return tres.gpus_of_each_type.get(gpu_type, 0) if gpu_type else tres.gpus
    known = {"cpu": tres.cpus, "mem": tres.memory_bytes, "node": tres.nodes, "billing": tres.billing}
    return known.get(name, dict(tres.others).get(name, 0))
