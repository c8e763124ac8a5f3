"""What the controller's registry says right now: keys, deployments, ready replicas. Read-only, kept in memory.

The file is looked at every POLL_S, and at once when something asked for is missing: a key works the moment it was
created. A look that fails changes nothing: what was known stays in force.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from gateway.relay import Address, address_of
from gateway.trial import Trial, on_trial
from registry import clock, deployments, endpoints, keys, limits, prices, tenants
from registry.db import Database, StorageError, data_version, open_reader, snapshot
from registry.deployments import Deployment, Replica, ReplicaState
from registry.deployments import adapters as adapters
from registry.endpoints import Endpoint
from registry.keys import LiveKey
from registry.limits import Limits, Subject
from registry.prices import Version

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class View:
    keys: Mapping[str, LiveKey] = field(default_factory=dict)  # by the key's hash
    tenants: frozenset[str] = frozenset()
    limits: Mapping[tuple[Subject, str], Limits] = field(default_factory=dict)
    prices: Sequence[Version] = ()
    deployments: Mapping[str, Deployment] = field(default_factory=dict)  # live ones, by name
    ended: Mapping[str, Deployment] = field(default_factory=dict)  # the others
    live: Mapping[str, list[Replica]] = field(default_factory=dict)  # replicas that have not ended, by deployment
    replicas: Mapping[str, list[Replica]] = field(default_factory=dict)  # of these, the ready ones
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)  # a LoRA adapter's name -> the deployment that has it
    trials: Mapping[str, Trial] = field(default_factory=dict)  # of deployments of which two revisions are ready


class Catalog:
    """`key_secret`: the file with what the hashes of keys are keyed with. `now`: Unix seconds; keys expire."""

    def __init__(self, path: Path, key_secret: Path, now: Callable[[], float] = time.time) -> None:
        self.secret = b""  # until the registry was read
        self.now = now
        self.view = View()
        self.failure: str | None = "not read yet"  # why the registry could not be read at the last look
        self._path, self._key_secret = path, key_secret
        self._db: Database | None = None
        self._version: int | None = None
        self._addresses: dict[str, Address] = {}
        self.on_change: list[Callable[[View], None]] = []  # told of each new view
        self.on_gone: list[Callable[[set[str]], None]] = []  # told which replicas are ready no more

    def ready(self, deployment: str) -> Sequence[Replica]:
        """Its ready replicas; the registry is read again when there seem to be none."""
        return self.view.replicas.get(deployment) or self.find(lambda view: view.replicas.get(deployment)) or ()

    def deployment(self, name: str) -> Deployment | None:
        """One that has ended, too."""
        return self.view.deployments.get(name) or self.view.ended.get(name)

    def every_ready(self) -> list[Replica]:
        return [replica for ready in self.view.replicas.values() for replica in ready]

    def address(self, replica: Replica) -> Address:
        found = self._addresses.get(replica.id)
        if found is None:
            found = self._addresses[replica.id] = address_of(replica)
        return found

    def context(self, deployment: str) -> int | None:
        """The longest sequence that every ready replica takes; None where no engine says."""
        known = [r.context_tokens for r in self.ready(deployment) if r.context_tokens is not None]
        return min(known, default=None)

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
                self.failure = None
                return False
            secret = self.secret or keys.read_secret(self._key_secret)
            keys.check_secret(self._db, secret, self._key_secret)
            view = _read(self._db)
        except (StorageError, sqlite3.Error, ValueError, TypeError, LookupError) as e:
            # Not there yet (the controller creates it), unreadable for now, or as a newer controller has it.
            if self.failure is None:
                log.warning("the registry cannot be read, going on with what is known: %s", e)
            self.failure = str(e)
            return False
        self.failure = None
        before = {r.id for r in self.every_ready()}
        self.view, self._version, self.secret = view, version, secret
        if gone := before - {r.id for r in self.every_ready()}:
            for told in self.on_gone:
                told(gone)
        self._addresses.clear()
        for changed in self.on_change:
            changed(view)
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
        known = deployments.everything(db)
        wanted = {d.name: d for d in known if not d.state.ended}
        live = deployments.live_replicas(db)
        replicas = {name: [r for r in found if r.state is ReplicaState.READY] for name, found in live.items()}
        return View(
            keys=keys.live(db),
            tenants=frozenset(t.name for t in tenants.everyone(db)),
            limits=limits.everything(db),
            prices=prices.everything(db),
            deployments=wanted,
            ended={d.name: d for d in known if d.state.ended},
            live=live,
            replicas=replicas,
            endpoints={e.name: e for e in endpoints.everything(db)},
            adapters={name: d.name for d in wanted.values() for name in adapters(d.request)},
            trials={d.name: found for d in wanted.values() if (found := on_trial(d, replicas[d.name]))},
        )


def created(deployment: Deployment) -> int:
    """Unix seconds."""
    return int(clock.parse(deployment.created_at).timestamp())
