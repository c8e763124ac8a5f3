"""What reports there are, what each is asked, and the reading behind them. Read-only.

Only sums are read of the ledger (registry.usage_rows), never single events, whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from registry import (
    accounting,
    attempts,
    capture,
    clock,
    deployments,
    keys,
    limits,
    prices,
    replica_work,
    report_capture,
    tenants,
)
from registry import report_efficiency as efficiency
from registry import report_gpu as gpu
from registry import report_models as models
from registry import report_quota as quota
from registry import report_statement as statement
from registry import report_usage as usage
from registry import usage_rows as ledger_sums
from registry.attribution import Books, Payers
from registry.db import Database, RegistryError, snapshot
from registry.ledger_sums import ALL
from registry.limits import UNLIMITED, Limits, Subject
from registry.report import Check, Report, Section
from registry.report_columns import regrouped
from registry.report_gpu import GpuTime
from registry.report_prices import in_force
from registry.report_quota import AccountLimit
from registry.site import Site
from registry.usage_rows import Counts, together
from registry.window import Window, unfinished, window_of
from registry.window import text as window_text


@dataclass(frozen=True, slots=True)
class Asked:
    kind: str
    window: Window
    by: tuple[str, ...]
    tenants: frozenset[str] | None = None  # of these alone; None: of everybody, which is for administrators


@dataclass(frozen=True, slots=True)
class Told:
    """What the scheduler told for a report. `before` are the books of the window before."""

    books: Books | None = None
    before: Books | None = None
    limits: tuple[AccountLimit, ...] = ()
    silence: str | None = None  # why any of these may be missing, in words


@dataclass(frozen=True, slots=True)
class Sources:
    site: Site
    registry: Database
    ledger: Database
    told: Told
    now: datetime


@dataclass(frozen=True, slots=True)
class Parts:
    sections: tuple[Section, ...]
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    title: str
    allowed: tuple[str, ...]  # what it may be by
    default: tuple[str, ...]
    make: Callable[[Asked, Sources], Parts]
    books: int = 0  # of how many windows it wants the scheduler's books: none, this one, the one before too
    limits: bool = False  # whether it wants Slurm's own limits


def asked(
    kind: str,
    now: datetime,
    *,
    month: str | None = None,
    since: str | None = None,
    until: str | None = None,
    by: Sequence[str] = (),
    of: frozenset[str] | None = None,
) -> Asked:
    """Raises RegistryError, naming what is allowed, for what this report cannot be asked."""
    wanted = of_kind(kind)
    for one in by:
        if one not in wanted.allowed:
            raise RegistryError(
                f"report {kind}: cannot be by {one!r}; allowed: {', '.join(wanted.allowed) or 'nothing'}"
            )
    window = window_of(month, since, until, now)
    if kind in ("quota", "statement") and window.month is None:
        raise RegistryError(f"report {kind} is of a month, not of {window}")
    return Asked(kind, window, tuple(dict.fromkeys(by)) or wanted.default, of)


def of_kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise RegistryError(f"no report is called {kind!r}; there are: {', '.join(KINDS)}")
    return KINDS[kind]


def make(of: Asked, sources: Sources) -> Report:
    """Raises NotFound for a tenant that there is not."""
    kind = of_kind(of.kind)
    for name in of.tenants or ():
        tenants.get(sources.registry, name)
    with snapshot(sources.ledger), snapshot(sources.registry):
        parts = kind.make(of, sources)
    start, end = window_text(of.window)
    silence = sources.told.silence
    notes = () if silence is None else (f"The scheduler did not tell everything: {silence}",)
    return Report(
        of.kind,
        kind.title,
        sources.site.name,
        "all tenants" if of.tenants is None else f"tenant {', '.join(sorted(of.tenants)) or 'none'}",
        start,
        end,
        clock.text(sources.now),
        parts.sections,
        parts.checks,
        (*notes, *parts.notes),
    )


# Quota.


def _quota(of: Asked, s: Sources) -> Parts:
    limited = _limits(of, s)
    month = of.window.month
    assert month is not None
    today = s.now.date()
    now, use = s.now, {}
    if current := of.window == window_of(None, None, None, s.now):
        latest = [str(today - timedelta(days=n)) for n in range(quota.RATE_DAYS)]
        for subject in Subject:
            use[subject] = quota.Use(
                day=ledger_sums.totals(s.ledger, subject, str(today)),
                month=ledger_sums.totals(s.ledger, subject, month),
                ever=ledger_sums.totals(s.ledger, subject, ALL),
                latest=ledger_sums.totals(s.ledger, subject, *latest),
            )
        notes: tuple[str, ...] = (
            f"A limit runs out on the day named if use goes on as in the last {quota.RATE_DAYS} days.",
        )
    else:
        now = of.window.end - timedelta(seconds=1)
        use = {subject: quota.Use(month=ledger_sums.totals(s.ledger, subject, month)) for subject in Subject}
        limited = {
            who: Limits(tokens_per_month=one.tokens_per_month, credits_per_month=one.credits_per_month)
            for who, one in limited.items()
        }
        notes = ("Of a month that is past: monthly limits only, as they are set now, and not Slurm's own.",)
    accounts = _accounts(s, of.tenants)
    slurm = [one for one in s.told.limits if current and one.account in accounts]
    return Parts(quota.sections(limited, use, slurm, accounts, now), notes=notes)


def _limits(of: Asked, s: Sources) -> dict[tuple[Subject, str], Limits]:
    """Of all that are to be shown: every tenant, and of the others those that have a limit."""
    if of.tenants is not None and not {*of.by} <= {Subject.TENANT.value, Subject.KEY.value}:
        raise RegistryError(
            "limits of users and models count for all tenants together: by tenant or key, for one tenant"
        )
    known = limits.everything(s.registry)
    of_key = {key.id: key.tenant for key in keys.everything(s.registry)} if "key" in of.by else {}
    found: dict[tuple[Subject, str], Limits] = {}
    for subject in map(Subject, of.by):
        if subject is Subject.TENANT:
            shown = [t.name for t in tenants.everyone(s.registry)]
            found |= {(subject, n): known.get((subject, n), UNLIMITED) for n in shown if _is_shown(of, n)}
        else:
            found |= {
                who: one
                for who, one in known.items()
                if who[0] is subject and (of.tenants is None or of_key.get(who[1]) in of.tenants)
            }
    return found


def _is_shown(of: Asked, tenant: str) -> bool:
    return of.tenants is None or tenant in of.tenants


def _accounts(s: Sources, names: Collection[str] | None = None) -> dict[str, str]:
    """Slurm's accounts -> the tenant that stands for each."""
    known = tenants.everyone(s.registry)
    return {t.account: t.name for t in known if t.account and (names is None or t.name in names)}


# Usage.


def _usage(of: Asked, s: Sources) -> Parts:
    window, before = of.window, of.window.before
    used = _by(of, s, window)
    by_day = ledger_sums.used(s.ledger, window, "day", tenants=of.tenants)
    whole = together(by_day.values())
    limited = None
    if window.month is not None:
        totals = ledger_sums.totals(s.ledger, Subject.TENANT, window.month)
        counted = [amounts for name, amounts in totals.items() if _is_shown(of, name)]
        limited = sum(tokens for tokens, _ in counted), sum(paid for _, paid in counted)
    return Parts(
        (
            usage.by_columns(used, _by(of, s, before), of.by),
            usage.top_users(ledger_sums.used(s.ledger, window, "tenant", "user", tenants=of.tenants)),
            usage.compared(whole, together(ledger_sums.used(s.ledger, before, tenants=of.tenants).values()), window),
            usage.daily(by_day, window),
        ),
        usage.checks(ledger_sums.consumed(s.ledger, of.tenants), whole, limited),
        unfinished(window, s.now),
    )


def _by(of: Asked, s: Sources, window: Window) -> dict[tuple[str, ...], Counts]:
    """Usage by the columns asked for. The ledger knows tenants; Slurm's account is the tenant's."""
    if "account" not in of.by:
        return ledger_sums.used(s.ledger, window, *of.by, tenants=of.tenants)
    account = {t.name: t.account or "none" for t in tenants.everyone(s.registry)}
    read = ["tenant" if one == "account" else one for one in of.by]
    found = ledger_sums.used(s.ledger, window, *read, tenants=of.tenants)
    return regrouped(
        found,
        lambda key: tuple(
            account.get(value, "none") if one == "account" else value for one, value in zip(of.by, key, strict=True)
        ),
    )


# GPU time, and what is made of it.


def _gpu(of: Asked, s: Sources) -> Parts:
    if s.told.books is None:
        return Parts(())
    time, priced = _time(of, s, of.window, s.told.books)
    return Parts(
        (gpu.by_columns(time, of.by, priced), gpu.what_for(gpu.by_what(time.lines, priced))), time.checks, time.notes
    )


def _models(of: Asked, s: Sources) -> Parts:
    time, priced = _time(of, s, of.window, s.told.books)
    used = ledger_sums.used(s.ledger, of.window, "model", tenants=of.tenants)
    section = models.by_model(
        {model: counts for (model,), counts in used.items()},
        _served(of, s, of.window, time),
        None if s.told.books is None else time.lines,
        priced,
    )
    captured = _captured(of, s) if of.tenants is None else ()  # what an engine counts is everybody's
    return Parts((section, *captured), time.checks, time.notes)


def _captured(of: Asked, s: Sources) -> tuple[Section, ...]:
    asked_something = {replica for (replica,) in ledger_sums.used(s.ledger, of.window, "replica")}
    born = {r.id: r.created_at[:10] for r in deployments.replicas(s.registry) if r.id in asked_something}
    if not born:
        return ()
    since = min(born.values())
    found = capture.tokens(s.ledger, born.keys(), since)
    differing = {one.replica for one in report_capture.worst(found)}
    cut = capture.compare(s.ledger, differing, since) if differing else ()
    return report_capture.sections(found, cut, len(born) - len(found))


def _efficiency(of: Asked, s: Sources) -> Parts:
    now, time = _month(of, s, of.window, s.told.books)
    before, _ = _month(of, s, of.window.before, s.told.before)
    sections = [efficiency.compared(now, before, of.window)]
    if now.times is not None:
        sections += [efficiency.wasted(now.times, now.lost), efficiency.waits(time.allocations, of.by)]
        sections.append(efficiency.restarts(now.lost))
    return Parts(tuple(sections), time.checks, (*time.notes, *unfinished(of.window, s.now)))


def _month(of: Asked, s: Sources, window: Window, books: Books | None) -> tuple[efficiency.Month, GpuTime]:
    time, priced = _time(of, s, window, books)
    counts = together(ledger_sums.used(s.ledger, window, tenants=of.tenants).values())
    start, end = window_text(window)
    runs = {a.subject for a in time.allocations if a.subject}
    jobs = {f"{j.subject}/{j.job_id}": j for j in accounting.everything(s.registry) if j.subject in runs}
    ended = [a for a in attempts.ended_between(s.registry, start, end) if a.run in runs]
    times = None if books is None else gpu.by_what(time.lines, priced)
    served = _served(of, s, window, time)
    tokens = None if served is None else sum(served.values())
    return efficiency.Month(counts, tokens, times, efficiency.lost(ended, jobs)), time


def _served(of: Asked, s: Sources, window: Window, time: GpuTime) -> dict[str, int] | None:
    """Tokens by model, of the replicas that held GPUs. None for a tenant, which pays for other GPU time."""
    if of.tenants is not None:
        return None
    jobs = {line.subject for line in time.lines if line.what in models.SERVED and line.gpu_s}
    held = {replica.id for replica in deployments.replicas(s.registry) if replica.job_subject in jobs}
    return ledger_sums.tokens_of(s.ledger, window, held)


def _time(of: Asked, s: Sources, window: Window, books: Books | None) -> tuple[GpuTime, gpu.Priced]:
    """What may be seen of the window's GPU time, and what it costs. Nothing where the books could not be had."""
    if books is None:
        return GpuTime((), (), (), ()), lambda line: 0
    end = min(window.end, s.now)
    by_user = of.kind == "gpu" and "user" in of.by
    found = replica_work.attributed(s.registry, s.ledger, books, window.start, end, s.site.attribution, by_user=by_user)
    time = gpu.seen(found, of.tenants, _payers(s).of)
    return time, gpu.prices_of(prices.PriceBook(prices.everything(s.registry), s.site.prices, s.site.gpu_prices))


def _payers(s: Sources) -> Payers:
    return replica_work.payers(tenants.everyone(s.registry), tenants.members(s.registry))


# Statements.


def _statement(of: Asked, s: Sources) -> Parts:
    known = [t.name for t in tenants.everyone(s.registry) if _is_shown(of, t.name)]
    time, priced = _time(of, s, of.window, s.told.books)
    times = gpu.summed(time.lines, priced, lambda line: line.tenant)
    gpu_types: dict[str | None, set[str]] = {}
    for line in time.lines:
        if line.gpu_s:
            gpu_types.setdefault(line.tenant, set()).add(line.gpu_type)
    by_model = ledger_sums.used(s.ledger, of.window, "tenant", "model", tenants=known)
    by_user = ledger_sums.used(s.ledger, of.window, "tenant", "user", tenants=known)
    before = ledger_sums.used_before(s.ledger, of.window.first, known)
    corrections = ledger_sums.corrections(s.ledger, of.window, known)
    served_by = {
        adapter: d.name for d in deployments.everything(s.registry) for adapter in deployments.adapters(d.request)
    }
    sections: list[Section] = []
    for name in known:
        used = _of_tenant(by_model, name)
        account = statement.Account(
            name,
            limits.of(s.registry, Subject.TENANT, name),
            before.get(name, Counts()),
            used,
            _of_tenant(by_user, name),
            [c for c in corrections if c.tenant == name],
            None if s.told.books is None else times.get(name, {}),
            in_force(
                prices.everything(s.registry),
                s.site.prices,
                s.site.gpu_prices,
                {model: served_by.get(model, model) for model in used},
                gpu_types.get(name, set()),
                of.window,
            ),
        )
        sections += statement.sections(account, of.window)
    return Parts(tuple(sections), time.checks, time.notes)


def _of_tenant(used: Mapping[tuple[str, ...], Counts], tenant: str) -> dict[str, Counts]:
    return {name: counts for (of, name), counts in used.items() if of == tenant}


def _mine(of: Asked, s: Sources) -> Parts:
    """What a member wants to know of his tenants: what they used this month, and what is left."""
    used = ledger_sums.used(s.ledger, of.window, "tenant", tenants=of.tenants)
    before = ledger_sums.used(s.ledger, of.window.before, "tenant", tenants=of.tenants)
    left = _quota(of, s)
    return Parts(
        (usage.by_columns(used, before, of.by), *left.sections), notes=(*left.notes, *unfinished(of.window, s.now))
    )


KINDS = {
    "quota": Kind("Quota", quota.ALLOWED, quota.DEFAULT, _quota, limits=True),
    "usage": Kind("Usage", usage.ALLOWED, usage.DEFAULT, _usage),
    "gpu": Kind("GPU time", gpu.ALLOWED, gpu.DEFAULT, _gpu, books=1),
    "models": Kind("Models", models.ALLOWED, models.DEFAULT, _models, books=1),
    "efficiency": Kind("Efficiency", efficiency.ALLOWED, efficiency.DEFAULT, _efficiency, books=2),
    "statement": Kind("Statement", (), (), _statement, books=1),
    "mine": Kind("My tenants", ("tenant",), ("tenant",), _mine),
}
