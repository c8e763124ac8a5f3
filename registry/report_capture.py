"""The capture check in a report: what the ledger has of each replica against what its engine counted."""

from __future__ import annotations

from collections.abc import Sequence

from registry.capture import Compared
from registry.report import Column, Section
from registry.report_columns import TOP, Row, ratio, row, top

EVENTS_SHOWN = 100


def difference(of: Compared) -> int:
    """Tokens that the engine counted and the ledger does not have."""
    return of.engine_prompt + of.engine_completion - of.ledger_prompt - of.ledger_completion


def worst(found: Sequence[Compared]) -> list[Compared]:
    """Those that differ, the most first."""
    return top([one for one in found if difference(one)], lambda one: (abs(difference(one)),))


def sections(found: Sequence[Compared], cut: Sequence[Compared], unread: int) -> tuple[Section, ...]:
    """`found`: of every replica that was asked something in the window, but for those `unread` whose engines' counters
    were never read. `cut`: of the worst, what was cut short."""
    if not found:
        return ()
    deployments: dict[str, list[Compared]] = {}
    for one in found:
        deployments.setdefault(one.deployment, []).append(one)
    agreeing = sum(not difference(one) for one in found)
    counts = (
        Column("ledger", "Ledger's tokens", "count"),
        Column("engine", "Engines' tokens", "count"),
        Column("ratio", "Captured", "percent"),
        Column("difference", "Difference", "count"),
    )
    captured = Section(
        "capture",
        "Captured: the ledger's tokens of the engines' own",
        (Column("deployment", "Deployment"), Column("replicas", "Replicas", "count"), *counts),
        tuple(row(deployment=name, replicas=len(some)) | _counted(some) for name, some in sorted(deployments.items())),
        row(deployment="total", replicas=len(found)) | _counted(found),
        notes=(
            f"{agreeing} of {len(found)} replicas agree to the token, over their whole lives. What is cut short is "
            "billed at the last count seen; the engine may have gone on for a moment.",
            *((f"Of {unread} more that were asked something, no engine's counters were read.",) if unread else ()),
        ),
    )
    if not cut:
        return (captured,)
    differing = Section(
        "capture_replicas",
        f"Replicas that differ most (at most {TOP})",
        (
            Column("deployment", "Deployment"),
            Column("replica", "Replica"),
            *counts,
            Column("cut", "Cut short", "count"),
        ),
        tuple(row(deployment=x.deployment, replica=x.replica, cut=len(x.cut)) | _counted([x]) for x in cut),
    )
    events = [(x.replica, event) for x in cut for event in x.cut]
    listed = Section(
        "capture_cut",
        "Requests of these that were cut short",
        (
            Column("replica", "Replica"),
            Column("event", "Event"),
            Column("tenant", "Tenant"),
            Column("outcome", "How"),
            Column("prompt_tokens", "Prompt tokens billed", "count"),
            Column("completion_tokens", "Completion tokens billed", "count"),
        ),
        tuple(
            row(
                replica=replica,
                event=event.event_id,
                tenant=event.tenant,
                outcome=event.outcome,
                prompt_tokens=event.prompt_tokens,
                completion_tokens=event.completion_tokens,
            )
            for replica, event in events[:EVENTS_SHOWN]
        ),
        notes=(f"{EVENTS_SHOWN} of {len(events)} are shown.",) if len(events) > EVENTS_SHOWN else (),
    )
    return captured, differing, listed


def _counted(some: Sequence[Compared]) -> Row:
    ledger = sum(one.ledger_prompt + one.ledger_completion for one in some)
    engine = sum(one.engine_prompt + one.engine_completion for one in some)
    return row(ledger=ledger, engine=engine, ratio=ratio(ledger, engine), difference=engine - ledger)
