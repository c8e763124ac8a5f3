"""What a deployment's users are to know: told once, by the channels of alerts."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from registry import clock
from registry.db import Database, StorageError, open_reader, row, rows, transaction

log = logging.getLogger(__name__)

USERS = timedelta(days=7)  # who called it within so long is told


def tell(db: Database, ledger_db: Path, deployment: str, words: str, channels: Sequence[str]) -> bool:
    """Whether it was news. Which tenants called it is in the ledger; no ledger, or a silent one: nobody did."""
    message = f"deployment {deployment}: {words}"
    with transaction(db) as c:
        if row(db, "SELECT 1 FROM alerts WHERE json_extract(document, '$.message') = ?", message):
            return False
        at = clock.now()
        document = {
            "at": at,
            "kind": "notice",
            "subject": "deployment",
            "name": deployment,
            "tenants": tenants_of(db, ledger_db, deployment),
            "message": message,
        }
        c.execute(
            "INSERT INTO alerts (at, document, waiting) VALUES (?, ?, ?)",
            (at, json.dumps(document), json.dumps(list(channels))),
        )
    log.warning("%s", message)
    return True


def tenants_of(db: Database, ledger_db: Path, deployment: str) -> list[str]:
    """Those that called a deployment lately, by name."""
    if not ledger_db.exists():
        return []
    since = clock.text(clock.parse(clock.now()) - USERS)[:10]
    theirs = [r["id"] for r in rows(db, "SELECT id FROM replicas WHERE deployment = ?", deployment)]
    asked = "SELECT DISTINCT tenant FROM daily WHERE day >= ? AND replica IN (SELECT value FROM json_each(?))"
    try:
        with closing(open_reader(ledger_db)) as ledger:
            return sorted(t for (t,) in rows(ledger, asked, since, json.dumps(theirs)) if not t.startswith("("))
    except StorageError as e:
        log.warning("whom to tell of %s cannot be read now: %s", deployment, e)
        return []
