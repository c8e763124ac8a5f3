"""What the controller's registry says right now: keys, deployments, ready replicas. Read-only, kept in memory.

The file is looked at every POLL_S, and at once when something asked for is missing: a key works the moment it was
created. A look that fails changes nothing: what was known stays in force.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from registry import clock, deployments, tenants
from registry.db import Database, StorageError, data_version, open_reader, snapshot
from registry.deployments import Deployment, Replica
from registry.tenants import LiveKey

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class View:
    keys: Mapping[str, LiveKey] = field(default_factory=dict)  # by the key's sha256
    deployments: Mapping[str, Deployment] = field(default_factory=dict)  # live ones, by name
    replicas: Mapping[str, list[Replica]] = field(default_factory=dict)  # ready ones, by deployment


class Catalog:
    def __init__(self, path: Path) -> None:
        self.view = View()
        self.failure: str | None = "not read yet"
        self._path = path
        self._db: Database | None = None
        self._version: int | None = None

    def find(self, look: Callable[[View], T | None]) -> T | None:
        """What `look` finds; when that is nothing (None or empty), the registry is read again first."""
        return look(self.view) or (look(self.view) if self.refresh() else None)

    def refresh(self) -> bool:
        """Read the registry if it changed since; whether it had."""
        try:
            if self._db is None:
                self._db = open_reader(self._path)
            version = data_version(self._db)
            if version == self._version:
                return False
            self.view, self._version = _read(self._db), version
        except (StorageError, sqlite3.Error) as e:
            # Not there yet (the controller creates it), or unreadable for now.
            if self.failure is None:
                log.warning("the registry cannot be read, going on with what is known: %s", e)
            self.failure = str(e)
            return False
        self.failure = None
        return True

    async def watch(self) -> None:
        """Runs until cancelled."""
        while True:
            self.refresh()
            await asyncio.sleep(POLL_S)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()


def _read(db: Database) -> View:
    with snapshot(db):
        return View(
            tenants.live_keys(db),
            {d.name: d for d in deployments.everything(db) if not d.state.ended},
            deployments.ready_replicas(db),
        )


def created(deployment: Deployment) -> int:
    """Unix seconds."""
    return int(clock.parse(deployment.created_at).timestamp())
