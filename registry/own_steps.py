"""Steps that a process other than a gateway adds to the ledger: in a journal of their own, which is closed at once.

The journal counts as a dead process's, so a gateway takes all of it in, once, within a second; where none runs, the
next that starts does. Which ids are in the ledger already is the ledger's to say: a step written twice counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from registry import journal
from registry.db import NotFound, open_reader, row
from registry.steps import Step, encode_all, fields

JOURNALS = "journal"  # the directory, beside the ledger


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that the ledger has seen. `refused` says why it changed nothing; None: it is in the books."""

    refused: str | None


def add(ledger_db: Path, steps: Sequence[Step]) -> str:
    """Journal steps, safe from power loss when this returns; the journal's name.

    Raises TooMuch, and OSError when the disk does not take them: then none of them counts.
    """
    body = encode_all([fields(step) for step in steps])
    lost: list[OSError] = []
    own = journal.Journal(ledger_db.parent / JOURNALS, lost.append)
    try:
        own.write([journal.line(body)])
    finally:
        own.close()
    if lost:
        raise lost[0]
    return own.name


def require_event(ledger_db: Path, event_id: str) -> None:
    """Raises NotFound unless the ledger has this event, StorageError when there is no ledger that can be read."""
    db = open_reader(ledger_db)
    try:
        if row(db, "SELECT 1 FROM usage_events WHERE event_id = ?", event_id) is None:
            raise NotFound(f"event {event_id}: is not in the ledger, or was rolled up with its month")
    finally:
        db.close()


def reversal(ledger_db: Path, name: str, event_id: str) -> Taken | None:
    """What became of the reversal `event_id`, which was added in the journal `name`; None while it is not taken in.

    Raises StorageError when there is no ledger that can be read.
    """
    db = open_reader(ledger_db)
    try:
        if row(db, "SELECT 1 FROM reversals WHERE event_id = ?", event_id) is not None:
            return Taken(None)
        refused = row(db, "SELECT why FROM conflicts WHERE journal = ?", name)
        return None if refused is None else Taken(str(refused["why"]))
    finally:
        db.close()
