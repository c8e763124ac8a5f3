"""Replicas: one running engine each. The only module that changes their states."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from registry import clock
from registry.db import Database, NotFound, fields, row, rows, transaction


class ReplicaState(enum.StrEnum):
    PENDING = "pending"  # its job waits in Slurm's queue
    STARTING = "starting"  # or its engine is being started again, in place
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"  # as it was asked to be: by us, by scancel, by its time limit
    FAILED = "failed"  # of its own making: its supervisor said why
    LOST = "lost"  # its job is gone without a word: node failure, preemption, a kill

    @property
    def ended(self) -> bool:
        return self in (ReplicaState.STOPPED, ReplicaState.FAILED, ReplicaState.LOST)


@dataclass(frozen=True, slots=True)
class Replica:
    id: str
    deployment: str
    owner: str
    state: ReplicaState
    folder: str
    host: str | None
    port: int | None
    upstream_key: str | None  # the engine's own API key; never shown
    context_tokens: int | None  # the longest prompt and completion together, where the engine says so
    cause: str | None
    created_at: str
    ready_at: str | None  # when it first was
    ended_at: str | None
    job_id: str | None = None  # its newest job's
    waiting_reason: str | None = None  # why that job is pending, in the scheduler's words
    expected_start_at: str | None = None  # and when the scheduler expects it to start
    ends_at: str | None = None  # when its time limit ends the job, once that runs
    certificate: str | None = None  # PEM: the only one that the engine may show; None: it speaks plain HTTP
    revision: int = 1
    reason: str | None = None  # why it was started, in words
    replaces: str | None = None  # the replica that it is to succeed
    overflow: bool = False  # preemptible, beyond what is guaranteed
    pack: str | None = None  # the subject of the job that it shares with others; None: it has one of its own
    nodes: str = ""  # of its job, with commas
    started_at: str | None = None  # its supervisor's beginning
    draining_at: str | None = None
    drain_why: str | None = None
    failure: str | None = None  # launchers.vllm.failures.Kind, where it failed of itself
    restarts: int = 0  # of its engine, in place
    adapters: tuple[str, ...] = ()  # LoRA adapters that it has loaded

    @property
    def job_subject(self) -> str:
        """What its job is known by in registry.accounting, and its idempotency key."""
        return self.pack or self.id


def add_replica(
    db: Database,
    replica_id: str,
    deployment: str,
    owner: str,
    folder: str,
    *,
    revision: int = 1,
    reason: str | None = None,
    replaces: str | None = None,
    overflow: bool = False,
    pack: str | None = None,
) -> None:
    """`reason`: why it is started, in words. Raises NotFound for a deployment that is not known."""
    with transaction(db) as c:
        found = row(db, "SELECT created_at FROM deployments WHERE name = ?", deployment)
        if found is None:
            raise NotFound(f"no deployment is called {deployment!r}")
        c.execute(
            """INSERT INTO replicas (id, deployment, owner, state, folder, created_at, revision, reason, replaces,
               overflow, pack) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (
                replica_id,
                deployment,
                owner,
                ReplicaState.PENDING,
                folder,
                # Never older than its deployment, even when the clock was set back: see deployments.is_current.
                max(clock.now(), found["created_at"]),
                revision,
                reason,
                replaces,
                overflow,
                pack,
            ),
        )


def replica_is_starting(db: Database, replica_id: str, at: str) -> None:
    """Its supervisor began at `at`, as registry.clock writes it; of several beginnings the first counts."""
    with transaction(db) as c:
        c.execute(
            "UPDATE replicas SET started_at = coalesce(started_at, ?) WHERE id = ? AND ended_at IS NULL",
            (at, replica_id),
        )
        c.execute(
            "UPDATE replicas SET state = ? WHERE id = ? AND state = ?",
            (ReplicaState.STARTING, replica_id, ReplicaState.PENDING),
        )


def replica_is_ready(
    db: Database,
    replica_id: str,
    host: str,
    port: int,
    upstream_key: str,
    context_tokens: int | None = None,
    certificate: str | None = None,
) -> None:
    """From pending or starting to ready; a replica that is draining or gone stays so.

    One that is ready again after its engine was restarted keeps the time at which it first was.
    """
    with transaction(db) as c:
        c.execute(
            """UPDATE replicas SET state = ?, host = ?, port = ?, upstream_key = ?, context_tokens = ?,
               certificate = ?, ready_at = coalesce(ready_at, ?), cause = NULL
               WHERE id = ? AND state IN (?, ?)""",
            (
                ReplicaState.READY,
                host,
                port,
                upstream_key,
                context_tokens,
                certificate,
                clock.now(),
                replica_id,
                ReplicaState.PENDING,
                ReplicaState.STARTING,
            ),
        )


def replica_is_restarting(db: Database, replica_id: str, cause: str, restarts: int) -> None:
    """Its engine crashed or hung, and is started again in place for the `restarts`-th time: from ready to starting.

    A replica that is draining goes on draining. The adapters that the engine had loaded are gone with it.
    """
    with transaction(db) as c:
        c.execute(
            """UPDATE replicas SET restarts = max(restarts, ?), cause = ?, adapters = '[]',
               state = CASE state WHEN ? THEN ? ELSE state END WHERE id = ? AND ended_at IS NULL""",
            (restarts, cause, ReplicaState.READY, ReplicaState.STARTING, replica_id),
        )


def drain_replica(db: Database, replica_id: str, why: str) -> bool:
    """From ready to draining: the gateway sends it nothing new. Whether it was ready."""
    with transaction(db) as c:
        return (
            c.execute(
                "UPDATE replicas SET state = ?, draining_at = ?, drain_why = ? WHERE id = ? AND state = ?",
                (ReplicaState.DRAINING, clock.now(), why, replica_id, ReplicaState.READY),
            ).rowcount
            == 1
        )


def set_replica_state(
    db: Database, replica_id: str, state: ReplicaState, cause: str | None = None, failure: str | None = None
) -> None:
    """Of one that has not ended. `failure`: launchers.vllm.failures.Kind."""
    now = clock.now()
    draining_at, ended_at = (now if state is ReplicaState.DRAINING else None), (now if state.ended else None)
    with transaction(db) as c:
        c.execute(
            """UPDATE replicas SET state = ?, cause = coalesce(?, cause), failure = coalesce(?, failure),
               draining_at = coalesce(draining_at, ?), ended_at = ? WHERE id = ? AND ended_at IS NULL""",
            (state, cause, failure, draining_at, ended_at, replica_id),
        )


def explain_end(db: Database, replica_id: str, cause: str) -> None:
    """Of one that has ended and did not say why, or took the signal before a preemption for its time limit's."""
    unknown = "(cause IS NULL OR cause = 'time limit')"
    with transaction(db) as c:
        c.execute(
            f"UPDATE replicas SET cause = ? WHERE id = ? AND ended_at IS NOT NULL AND {unknown}", (cause, replica_id)
        )


def note_job(
    db: Database,
    replica_id: str,
    *,
    job_id: str,
    waiting_reason: str | None = None,
    expected_start_at: str | None = None,
    ends_at: str | None = None,
    nodes: str = "",
) -> None:
    """What the scheduler says of a replica's job. Writes nothing when it says what it said before."""
    says = (job_id, waiting_reason, expected_start_at, ends_at, nodes)
    columns = "(job_id, waiting_reason, expected_start_at, ends_at, nodes)"
    if row(db, f"SELECT 1 FROM replicas WHERE id = ? AND {columns} IS NOT (?, ?, ?, ?, ?)", replica_id, *says):
        with transaction(db) as c:
            c.execute(f"UPDATE replicas SET {columns} = (?, ?, ?, ?, ?) WHERE id = ?", (*says, replica_id))


def note_adapters(db: Database, replica_id: str, names: Iterable[str]) -> None:
    """The LoRA adapters that its engine has loaded by now, by the names under which they are called."""
    loaded = json.dumps(sorted(set(names)))
    with transaction(db) as c:
        c.execute("UPDATE replicas SET adapters = ? WHERE id = ? AND ended_at IS NULL", (loaded, replica_id))


def move_replicas(db: Database, ids: Iterable[str], revision: int) -> None:
    """Their engines have by now what this revision of their deployment is made of."""
    with transaction(db) as c:
        c.executemany(
            "UPDATE replicas SET revision = ? WHERE id = ? AND ended_at IS NULL", [(revision, one) for one in ids]
        )


def replicas(db: Database, deployment: str | None = None) -> list[Replica]:
    """All that ever were, or that ever had this deployment's name; oldest first."""
    return _read(db, "deployment = ?", deployment) if deployment else _read(db, "true")


def shown_replicas(db: Database, deployment: str, since: str, ended: int) -> list[Replica]:
    """Of those made since, oldest first: the ones that have not ended, or whose job's accounts are not closed, and so
    many of those that ended last."""
    last = """SELECT id FROM replicas WHERE deployment = ? AND created_at >= ? AND ended_at IS NOT NULL
        ORDER BY ended_at DESC, id DESC LIMIT ?"""
    open_job = "SELECT 1 FROM jobs WHERE subject = coalesce(replicas.pack, replicas.id) AND settled = 0"
    where = f"""deployment = ? AND created_at >= ?
        AND (ended_at IS NULL OR id IN ({last}) OR EXISTS ({open_job}))"""
    return _read(db, where, deployment, since, deployment, since, ended)


def replicas_of_job(db: Database, subject: str) -> list[Replica]:
    """Those that share the job of this subject: mostly the one whose id it is."""
    return _read(db, "id = ? OR pack = ?", subject, subject)


def unended_replicas(db: Database) -> list[Replica]:
    return _read(db, "ended_at IS NULL")


def unended_of(db: Database, deployment: str) -> list[Replica]:
    return _read(db, "ended_at IS NULL AND deployment = ?", deployment)


def recent_replicas(db: Database, deployment: str, since: str) -> list[Replica]:
    """Of those that ever had this deployment's name, oldest first: the ones that have not ended (a former deployment's
    too, which are to be wound down), and of the present one's those that ended since and the last that was ever ready.

    `since`: as registry.clock writes it.
    """
    present = "created_at >= (SELECT created_at FROM deployments WHERE name = :name)"
    last_ready = f"""SELECT id FROM replicas WHERE deployment = :name AND ready_at IS NOT NULL AND {present}
        ORDER BY ready_at DESC, id DESC LIMIT 1"""
    where = (
        f"""deployment = :name AND (ended_at IS NULL OR ({present} AND (ended_at >= :since OR id = ({last_ready}))))"""
    )
    asked = f"SELECT * FROM replicas WHERE {where} ORDER BY created_at, id"
    return [_replica(r) for r in db.conn.execute(asked, {"name": deployment, "since": since})]


def _read(db: Database, where: str, *parameters: Any) -> list[Replica]:
    return [_replica(r) for r in rows(db, f"SELECT * FROM replicas WHERE {where} ORDER BY created_at, id", *parameters)]


def _replica(r: Any) -> Replica:
    parsed = {
        "state": ReplicaState(r["state"]),
        "overflow": bool(r["overflow"]),
        "adapters": tuple(json.loads(r["adapters"])),
    }
    return Replica(**{**fields(Replica, r), **parsed})
