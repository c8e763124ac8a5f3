"""What planning decided and only the registry has to know, as rows. On its writer's thread; each can be done again."""

from __future__ import annotations

import logging
from contextlib import closing
from datetime import UTC, datetime, timedelta

from launchers import following, notify
from launchers.planning.facts import Drain, Scale, SetState, Settle, Warn
from launchers.steady_clock import SteadyClock
from registry import alerts, clock, deployments, ledger, revisions
from registry.db import Database, open_reader, transaction
from registry.site import Site

log = logging.getLogger(__name__)

CALLED_LATELY = timedelta(days=7)  # tenants that are told what becomes of a deployment


def note(site: Site, db: Database, steady: SteadyClock, decision: Drain | Scale | Settle | SetState | Warn) -> None:
    """Raises StorageError."""
    match decision:
        case Drain(replica, why):
            deployments.drain_replica(db, replica, why)
        case Scale(name, desired, low_since):
            deployments.set_scale(db, name, desired, None if low_since is None else _text(steady.written(low_since)))
        case Settle(name, revision, good, why):
            with transaction(db):
                revisions.settle(db, name, revision, good, why)
                if not good:
                    following.take_back(db, name, revision, why)
        case SetState(name, state, cause):
            deployments.set_state(db, name, state, cause)
        case Warn(name, words):
            _warn(site, db, name, words)


def _warn(site: Site, db: Database, name: str, words: str) -> None:
    now, tenants = datetime.now(UTC), list[str]()
    if site.ledger_db.exists():
        with closing(open_reader(site.ledger_db)) as ledger_db:
            tenants = ledger.tenants_of(ledger_db, name, clock.text(now - CALLED_LATELY)[:10])
    if alerts.notice(db, name, tenants, words, list(notify.channels(site.alerts, site.name)), now):
        log.warning("%s", words)


def _text(at: float) -> str:
    return clock.text(datetime.fromtimestamp(at, UTC))
