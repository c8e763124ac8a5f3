"""The capture check: the tokens that the ledger has of a replica, against those that its engine counted itself.

A gateway writes down what the engines' own counters say (gateway.capture, which tells what is comparable); reports
read it, also of replicas that are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from registry.db import Database, rows, transaction

CUT_SHOWN = 1000  # of a replica, the newest


@dataclass(frozen=True, slots=True)
class Counters:
    """Of an engine, since it was started, as its page said `at`."""

    replica: str
    deployment: str
    prompt_tokens: int
    completion_tokens: int
    at: str


@dataclass(frozen=True, slots=True)
class Cut:
    """An event that did not end normally, with what was billed of it. The engine may have counted more."""

    event_id: str
    tenant: str
    model: str
    outcome: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Compared:
    """Of one replica. The engine's prompt tokens are without those that it read again for further choices."""

    replica: str
    deployment: str
    ledger_prompt: int
    engine_prompt: int
    ledger_completion: int
    engine_completion: int
    cut: tuple[Cut, ...] = ()  # at most CUT_SHOWN


def note_counters(db: Database, read: Iterable[Counters], repeated: Mapping[str, int]) -> None:
    """The ledger's writer only. `repeated`: prompt tokens, by replica, that were read again since the last time.

    A counter that fell is that of an engine which was started again: what the one before had counted is kept. What is
    older than what is there is left out. Raises StorageError.
    """
    with transaction(db) as c:
        c.executemany(
            """INSERT INTO engine_counters (replica, deployment, prompt_tokens, completion_tokens, at)
               VALUES (?, ?, ?, ?, ?) ON CONFLICT (replica) DO UPDATE SET
               earlier_prompt_tokens = earlier_prompt_tokens + CASE WHEN excluded.prompt_tokens < prompt_tokens
                   OR excluded.completion_tokens < completion_tokens THEN prompt_tokens ELSE 0 END,
               earlier_completion_tokens = earlier_completion_tokens + CASE WHEN excluded.prompt_tokens < prompt_tokens
                   OR excluded.completion_tokens < completion_tokens THEN completion_tokens ELSE 0 END,
               prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens, at = excluded.at
               WHERE excluded.at > at""",
            [(r.replica, r.deployment, r.prompt_tokens, r.completion_tokens, r.at) for r in read],
        )
        c.executemany(
            "UPDATE engine_counters SET repeated_prompt_tokens = repeated_prompt_tokens + ? WHERE replica = ?",
            [(tokens, replica) for replica, tokens in repeated.items()],
        )


def compare(db: Database, replicas: Collection[str] | None = None, since: str = "") -> list[Compared]:
    """tokens(), with what was cut short."""
    return [replace(found, cut=_cut(db, found.replica)) for found in tokens(db, replicas, since)]


def tokens(db: Database, replicas: Collection[str] | None = None, since: str = "") -> list[Compared]:
    """Of these replicas (None: all), without what was cut short.

    `since`: a day ("2026-11-28") before which none of them had ended a request, so that fewer are added up.
    """
    billed = {
        r[0]: (r[1], r[2])
        for r in rows(
            db,
            "SELECT replica, sum(prompt_tokens), sum(completion_tokens) FROM daily WHERE day >= ? GROUP BY replica",
            since,
        )
    }
    # A correction takes a charge back, and not the engine's work.
    corrected = {
        r[0]: (r[1], r[2])
        for r in rows(
            db,
            "SELECT replica, sum(prompt_tokens), sum(completion_tokens) FROM reversals WHERE at >= ? GROUP BY replica",
            since,
        )
    }
    found = []
    for replica, deployment, prompt, completion in rows(
        db,
        """SELECT replica, deployment, prompt_tokens + earlier_prompt_tokens - repeated_prompt_tokens,
           completion_tokens + earlier_completion_tokens FROM engine_counters ORDER BY deployment, replica""",
    ):
        if replicas is None or replica in replicas:
            ledger, back = billed.get(replica, (0, 0)), corrected.get(replica, (0, 0))
            found.append(Compared(replica, deployment, ledger[0] + back[0], prompt, ledger[1] + back[1], completion))
    return found


def _cut(db: Database, replica: str) -> tuple[Cut, ...]:
    # The condition on what did not complete is that of the index, too.
    return tuple(
        Cut(*r)
        for r in rows(
            db,
            """SELECT event_id, tenant, model, outcome, prompt_tokens, completion_tokens FROM usage_events
               WHERE replica = ? AND outcome != 'completed' AND outcome != 'reversed'
               ORDER BY event_id DESC LIMIT ?""",
            replica,
            CUT_SHOWN,
        )
    )
