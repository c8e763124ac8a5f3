"""What is summed up of the ledger's steps as they are written: balances, totals, days, busy seconds.

A Sums gathers what a transaction's steps add, and writes it with few statements at the end, in the same transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from registry.limits import user_name
from registry.steps import Outcome

ALL = "all"  # the period of a total that never ends
SUMS = "requests, cut, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, microcredits"  # of `daily`
COUNTED = (  # what an event adds to each of them, in SQL
    f"CASE outcome WHEN '{Outcome.REVERSED}' THEN -1 ELSE 1 END",
    f"outcome NOT IN ('{Outcome.REVERSED}', '{Outcome.COMPLETED}')",
    *SUMS.split(", ")[2:],
)
TAKEN_BACK = ("tenant", "user", "key_id", "model", "replica", "kind", *SUMS.split(", ")[2:])  # what a reversal keeps
_HOUR_BYTES = 450  # a bit for each second

_Day = tuple[str, str, str, str, str, str, str]


class Sums:
    """For one transaction. An event is its row: the fields of registry.steps.UsageEvent, the attempt's in line."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}  # by tenant
        self._days: dict[_Day, list[int]] = {}
        self._spans: set[tuple[str, str, str]] = set()  # (replica, first second, last second) of attempts

    def held(self, tenant: str, microcredits: int) -> None:
        """So much more is held, or less."""
        self._held[tenant] = self._held.get(tenant, 0) + microcredits

    def ended(self, events: Iterable[Sequence[Any]]) -> None:
        days, spans = self._days, self._spans
        completed, reversed_, orphaned = Outcome.COMPLETED.value, Outcome.REVERSED.value, Outcome.ORPHANED.value
        for event in events:
            _, tenant, key, model, replica, kind, began, user, prompt, answer, paid, how, at, cached, thought = event
            day = (at[:10], tenant, user, key, model, replica, kind)
            sums = days.get(day)
            if sums is None:
                sums = days[day] = [0, 0, 0, 0, 0, 0, 0]
            if how == completed:
                sums[0] += 1
                spans.add((replica, began[:19], at[:19]))
            elif how == reversed_:
                sums[0] -= 1
            else:
                sums[0] += 1
                sums[1] += 1
                if how != orphaned:  # settled later, it may be days, and nobody knows when it ended
                    spans.add((replica, began[:19], at[:19]))
            sums[2] += prompt
            sums[3] += cached
            sums[4] += answer
            sums[5] += thought
            sums[6] += paid

    def write(self, c: sqlite3.Connection) -> None:
        paid: dict[str, int] = {}
        for (_, tenant, *_), sums in self._days.items():
            paid[tenant] = paid.get(tenant, 0) + sums[6]
        balances = [(t, self._held.get(t, 0), paid.get(t, 0)) for t in sorted({*self._held, *paid})]
        c.executemany(
            """INSERT INTO balances VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET
               available = available + excluded.available, held = held + excluded.held,
               consumed = consumed + excluded.consumed""",
            [(tenant, -held - consumed, held, consumed) for tenant, held, consumed in balances if held or consumed],
        )
        c.executemany(
            """INSERT INTO daily VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
               requests = requests + excluded.requests, cut = cut + excluded.cut,
               prompt_tokens = prompt_tokens + excluded.prompt_tokens,
               cached_tokens = cached_tokens + excluded.cached_tokens,
               completion_tokens = completion_tokens + excluded.completion_tokens,
               reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens,
               microcredits = microcredits + excluded.microcredits""",
            [(*day, *sums) for day, sums in self._days.items()],
        )
        c.executemany(
            """INSERT INTO usage_totals VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
               tokens = tokens + excluded.tokens, microcredits = microcredits + excluded.microcredits""",
            [(*who, *amounts) for who, amounts in self._totals().items()],
        )
        for (replica, hour), seconds in _by_hour(self._spans).items():
            found = c.execute("SELECT seconds FROM busy WHERE replica = ? AND hour = ?", (replica, hour)).fetchone()
            seconds |= int.from_bytes(found[0], "little") if found else 0
            c.execute(
                "INSERT OR REPLACE INTO busy VALUES (?, ?, ?)", (replica, hour, seconds.to_bytes(_HOUR_BYTES, "little"))
            )

    def _totals(self) -> dict[tuple[str, str, str], list[int]]:
        """(period, subject, name) -> tokens, micro-credits."""
        found: dict[tuple[str, str, str], list[int]] = {}
        for (day, tenant, user, key_id, model, _, _), sums in self._days.items():
            who = user_name(tenant, user)
            for subject, name in (("key", key_id), ("user", who), ("tenant", tenant), ("model", model)):
                for period in (ALL, day[:7], day) if name else ():
                    total = found.setdefault((period, subject, name), [0, 0])
                    total[0] += sums[2] + sums[4]
                    total[1] += sums[6]
        return found


def _by_hour(spans: set[tuple[str, str, str]]) -> dict[tuple[str, str], int]:
    """(replica, hour) -> a bit for each second in which an attempt ran, from the first to the last of each span."""
    found: dict[tuple[str, str], int] = {}
    for replica, first, last in spans:
        if not first:  # it does not say when it began
            continue
        hour = first[:13]
        offset = int(first[14:16]) * 60 + int(first[17:19])
        while hour <= last[:13]:
            end = int(last[14:16]) * 60 + int(last[17:19]) if hour == last[:13] else 3599
            if end >= offset:  # else a clock went back
                bits = ((1 << (end - offset + 1)) - 1) << offset
                found[replica, hour] = found.get((replica, hour), 0) | bits
            hour = (datetime.fromisoformat(f"{hour}:00") + timedelta(hours=1)).strftime("%Y-%m-%dT%H")
            offset = 0
    return found
