"""What jobs used between two instants, from the books: every attempt once, clipped, in TRES-seconds that add up.

Counted as slurmdbd's rollup does it (as_mysql_rollup.c), so that over whole hours the totals are sreport's, to the
second. An attempt holds what it was allocated from its start to its end; while it is suspended it gives its CPUs back,
and nothing else (when that was, is sometimes an estimate: `Usage.estimated`). Three things differ from sreport: it
also charges the idle time of a reservation to the accounts that may use it; it counts an account together with the
accounts below it, where a total here is of that account alone; and of a job that was resized it counts the time before
the resize twice, once with the new size.

Pure, but for `usage`, which asks a client.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal, get_args

from slurm.client import SlurmClient
from slurm.model import TRES, AccountingConfig, JobUsage

By = Literal["cluster", "account", "user", "qos", "partition", "month"]
_NOTHING = TRES()


@dataclass(frozen=True, slots=True)
class Total:
    """What some attempts used. Integers, so that parts add up to the whole."""

    attempts: int = 0  # one that goes on over several months counts in the first
    elapsed_s: int = 0  # as sacct has it: without the time they were suspended
    tres_s: TRES = (
        _NOTHING  # TRES-seconds: `cpus` are CPU-seconds, `memory_bytes` byte-seconds, `gpus` GPU-seconds, ...
    )

    def __add__(self, other: Total) -> Total:
        return Total(self.attempts + other.attempts, self.elapsed_s + other.elapsed_s, _sum(self.tres_s, other.tres_s))


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used in [start, end). Running attempts are counted up to `at`."""

    start: datetime
    end: datetime
    at: datetime
    attempts: tuple[JobUsage, ...]  # those that used something then; each once, whole, oldest first
    partial: str | None  # why this may not be all of it, in words: rows are hidden from us, purged, or never kept

    @property
    def total(self) -> Total:
        return self.totals().get((), Total())

    def totals(self, *by: By, zone: tzinfo = UTC) -> dict[tuple[str, ...], Total]:
        """Totals by any of cluster, account, user, qos, partition and (calendar, in this zone: "2026-11") month.

        Whatever they are split by, they add up to `total`. The keys are sorted and in the order of `by`; what nothing
        was used of has no key. Raises ValueError for another word.
        """
        if unknown := set(by) - set(get_args(By)):
            raise ValueError(f"totals are by {', '.join(get_args(By))}, not by {', '.join(sorted(unknown))}")
        pieces = list(_months(self.start, self.end, zone)) if "month" in by else [("", _s(self.start), _s(self.end))]
        found: dict[tuple[str, ...], Total] = {}
        for attempt in self.attempts:
            counted = 0
            for month, first, last in pieces:
                held, suspended = clip(attempt, first, last, _s(self.at))
                if not held:
                    continue
                key = tuple(month if one == "month" else getattr(attempt, one) for one in by)
                used = Total(1 - counted, held - suspended, tres_seconds(attempt.allocated, held, suspended))
                found[key] = found.get(key, Total()) + used
                counted = 1
        return dict(sorted(found.items()))

    @property
    def estimated(self) -> tuple[JobUsage, ...]:
        """Attempts that were suspended and reach beyond the window: their CPU-seconds within it are an estimate.

        The books say how long an attempt was suspended, not when: that is spread evenly over its life. So are the parts
        of one that goes on over several months.
        """
        start, end = _s(self.start), _s(self.end)
        return tuple(
            a for a in self.attempts if a.suspended_s and not start <= _began(a) <= _over(a, _s(self.at)) <= end
        )


def usage(
    client: SlurmClient,
    start: datetime,
    end: datetime,
    *,
    user: str | None = None,
    account: str | None = None,
    now: datetime | None = None,
) -> Usage:
    """What everybody, one user (a name or a uid) or one account used in [start, end).

    Raises ValueError for a window that is none, and SlurmUnavailable when Slurm does not answer. What the caller may
    not see is never a zero: `Usage.partial` says so.
    """
    if start.tzinfo is None or end.tzinfo is None or not start < end:
        raise ValueError(f"a window is from one instant, with its time zone, to a later one, not {start} to {end}")
    now = datetime.now(UTC) if now is None else now
    books = client.accounting_between(start, end, user=user, account=account)
    return count(books, start, end, now, _partial(client, start, now, user, account))


def count(
    books: Iterable[JobUsage], start: datetime, end: datetime, now: datetime, partial: str | None = None
) -> Usage:
    """The attempts that used something in [start, end), each once however often the books were asked."""
    once = {(a.cluster, a.raw_id, a.submitted_at): a for a in books}
    first, last, at = _s(start), _s(end), _s(now)
    used = [a for a in once.values() if clip(a, first, last, at)[0]]
    used.sort(key=lambda a: (a.submitted_at, a.raw_id))
    return Usage(start, end, now, tuple(used), partial)


def clip(attempt: JobUsage, start: int, end: int, now: int) -> tuple[int, int]:
    """For how many seconds of [start, end) an attempt had its allocation, and for how many of these it was suspended.

    Instants are seconds since the epoch. Suspended time is spread evenly over the attempt's life, and so rounded that
    the parts of a window add up to the window.
    """
    first, last = span(attempt, start, end, now)
    if last == first:
        return 0, 0
    began = _began(attempt)
    life = _over(attempt, now) - began
    suspended = min(attempt.suspended_s, life)
    return last - first, suspended * (last - began) // life - suspended * (first - began) // life


def span(attempt: JobUsage, start: int, end: int, now: int) -> tuple[int, int]:
    """From when until when an attempt had its allocation within [start, end); twice the same instant: never."""
    if attempt.started_at is None:
        return start, start
    first, last = max(_began(attempt), start), min(_over(attempt, now), end)
    return (first, last) if last > first else (start, start)


def tres_seconds(allocated: TRES, held_s: int, suspended_s: int = 0) -> TRES:
    """An allocation times the seconds it was held; CPUs without those for which the job was suspended."""
    return TRES(
        cpus=allocated.cpus * (held_s - suspended_s),
        memory_bytes=allocated.memory_bytes * held_s,
        nodes=allocated.nodes * held_s,
        billing=allocated.billing * held_s,
        gpus=allocated.gpus * held_s,
        gpus_by_type=tuple((kind, n * held_s) for kind, n in allocated.gpus_by_type),
        # Energy is what the whole job took already, in joules.
        others=tuple((name, n * held_s) for name, n in allocated.others if name != "energy"),
    )


# -- which rows there are not ---------------------------------------------------------------------------------------


def _partial(client: SlurmClient, start: datetime, now: datetime, user: str | None, account: str | None) -> str | None:
    config = client.accounting_config()
    if config is None:
        return "this cluster keeps no books: it has no slurmdbd"
    reasons = []
    # PrivateData=usage hides associations' rolled-up use (sreport, sshare), not jobs.
    if "jobs" in config.private_data and not _ourselves(user) and not client.privileged():
        ours = client.coordinated()
        if account is None or account not in ours:
            also = f", and those in accounts that you coordinate ({', '.join(sorted(ours))})" if ours else ""
            reasons.append(f"slurmdbd has PrivateData=jobs and shows you only your own jobs{also}")
    kept = kept_since(config, now)
    if kept is not None and start < kept:
        after = config.settings["PurgeJobAfter"].rstrip("*")
        reasons.append(f"slurmdbd has PurgeJobAfter={after}: jobs that ended before {kept:%Y-%m-%d %H:%M} may be gone")
    return "; ".join(reasons) or None


def _ourselves(user: str | None) -> bool:
    uid = os.getuid()
    if user is None or user == str(uid):
        return user is not None
    try:
        return user == pwd.getpwuid(uid).pw_name
    except KeyError:
        return False


def kept_since(config: AccountingConfig, now: datetime) -> datetime | None:
    """Jobs that ended since then are still in the books; None: slurmdbd purges none (PurgeJobAfter).

    It purges whole hours, days or months of its time zone, which is taken to be ours.
    """
    match = re.match(r"(\d+) ?(hour|day|month)", config.settings.get("PurgeJobAfter", "NONE"))
    if match is None:
        return None
    units, unit = int(match[1]), match[2]
    hour = now.astimezone().replace(minute=0, second=0, microsecond=0)
    if unit == "hour":
        return hour - timedelta(hours=units)
    if unit == "day":
        return hour.replace(hour=0) - timedelta(days=units)
    months = hour.year * 12 + hour.month - 1 - units
    return hour.replace(year=months // 12, month=months % 12 + 1, day=1, hour=0)


# -- arithmetic -----------------------------------------------------------------------------------------------------


def _s(moment: datetime) -> int:
    """Whole seconds since the epoch, as Slurm has them."""
    return int(moment.timestamp())


def _began(attempt: JobUsage) -> int:
    """A job that was resized goes on under another record, whose submission is the resize, and whose start is still the
    job's: what it held until then is on the earlier record."""
    assert attempt.started_at is not None
    return max(_s(attempt.started_at), _s(attempt.submitted_at))


def _over(attempt: JobUsage, now: int) -> int:
    return now if attempt.ended_at is None else _s(attempt.ended_at)


def _months(start: datetime, end: datetime, zone: tzinfo) -> Iterator[tuple[str, int, int]]:
    """The window's calendar months: name, first second, the second after the last."""
    first, last = _s(start), _s(end)
    while first < last:
        local = datetime.fromtimestamp(first, zone)
        next_month = datetime(local.year + local.month // 12, local.month % 12 + 1, 1, tzinfo=zone)
        until = min(_s(next_month), last)
        yield f"{local:%Y-%m}", first, until
        first = until


def _sum(a: TRES, b: TRES) -> TRES:
    return TRES(
        cpus=a.cpus + b.cpus,
        memory_bytes=a.memory_bytes + b.memory_bytes,
        nodes=a.nodes + b.nodes,
        billing=a.billing + b.billing,
        gpus=a.gpus + b.gpus,
        gpus_by_type=_merged(a.gpus_by_type, b.gpus_by_type),
        others=_merged(a.others, b.others),
    )


def _merged(a: tuple[tuple[str, int], ...], b: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    if not (a and b):
        return a or b
    amounts = dict(a)
    for name, amount in b:
        amounts[name] = amounts.get(name, 0) + amount
    return tuple(sorted(amounts.items()))
