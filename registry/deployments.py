"""Deployments (what is wanted) and replicas (one running engine each). The only module that changes their states."""

from __future__ import annotations

import enum
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from registry import clock
from registry.db import Conflict, Database, NotFound, row, rows, transaction
from registry.tenants import checked_name


class DeploymentState(enum.StrEnum):
    STARTING = "starting"  # wanted; no replica is ready yet
    READY = "ready"
    ASLEEP = "asleep"  # wanted with no replica at all until somebody calls it
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (DeploymentState.STOPPED, DeploymentState.FAILED)


class ReplicaState(enum.StrEnum):
    PENDING = "pending"  # its job waits in Slurm's queue
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"  # as it was asked to be: by us, by scancel, by its time limit
    FAILED = "failed"  # of its own making: its supervisor said why
    LOST = "lost"  # its job is gone without a word: node failure, preemption, a kill

    @property
    def ended(self) -> bool:
        return self in (ReplicaState.STOPPED, ReplicaState.FAILED, ReplicaState.LOST)


# Whatever else is asked of a deployment does not happen: it was decided before somebody stopped it.
_AWAKE_OR_NOT = frozenset({DeploymentState.STARTING, DeploymentState.READY, DeploymentState.ASLEEP})
BECOMES = {
    **{state: _AWAKE_OR_NOT - {state} | {DeploymentState.STOPPING, DeploymentState.FAILED} for state in _AWAKE_OR_NOT},
    DeploymentState.STOPPING: frozenset({DeploymentState.STOPPED}),
    DeploymentState.STOPPED: frozenset[DeploymentState](),
    DeploymentState.FAILED: frozenset[DeploymentState](),
}


class RevisionState(enum.StrEnum):
    ROLLING = "rolling"  # wanted, and not proven yet
    GOOD = "good"  # its replicas got ready, and its canary was no worse
    BAD = "bad"  # it was rolled back; its cause says why
    SUPERSEDED = "superseded"  # another one was wanted before it was proven


ROUTING = ("least-work", "least-outstanding", "round-robin")  # how the gateway may choose a replica; the default first


@dataclass(frozen=True, slots=True)
class Deployment:
    name: str
    owner: str
    state: DeploymentState
    model: str
    version: int
    model_path: str
    min_replicas: int  # with 0 it sleeps while nobody calls it
    request: dict[str, Any]  # launchers.deployment_spec.DeploymentSpec, less what has a column here; of this revision
    cause: str | None
    created_at: str
    ended_at: str | None
    max_replicas: int = 1
    follows: str | None = None  # NAME@ALIAS, whose moves become revisions
    paused: bool = False  # nothing is rolled out or scaled; what ends is replaced all the same
    revision: int = 1  # the one that is wanted
    stable: int | None = None  # the newest one that proved itself
    canary: int | None = None  # percent of the calls that a revision on trial gets; None: its share of the replicas
    rollout_at: str | None = None  # when this revision was asked for; None: when it was created
    desired: int | None = None  # replicas wanted now; None: nobody has decided, the least
    scaled_at: str | None = None  # when that last changed
    low_since: str | None = None  # since when the load has asked for fewer

    @property
    def routing(self) -> str:
        """One of ROUTING."""
        return str(self.request.get("routing") or ROUTING[0])


@dataclass(frozen=True, slots=True)
class Revision:
    """What a deployment served, or was to serve, from some time on."""

    deployment: str
    revision: int
    model: str
    version: int
    model_path: str
    request: dict[str, Any]
    state: RevisionState
    cause: str | None
    created_at: str
    created_by: str
    why: str
    decided_at: str | None  # when it was found good or bad


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
    ready_at: str | None
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


def create(
    db: Database,
    name: str,
    owner: str,
    *,
    model: str,
    version: int,
    model_path: str,
    replicas: int,
    request: dict[str, Any],
) -> Deployment:
    """A deployment that ended is replaced by one of the same name.

    Raises Conflict when an endpoint, a deployment still wanted, or such a one's LoRA adapter has this name or that of
    an adapter in `request`; and when calls would come to it that were meant for somebody else's (see _sent_by).
    """
    checked_name("deployment", name)
    with transaction(db) as c:
        if row(db, "SELECT 1 FROM endpoints WHERE name = ?", name):
            raise Conflict(f"{name} is an endpoint; a deployment needs a name of its own")
        old = row(db, "SELECT state, owner FROM deployments WHERE name = ?", name)
        if old and not DeploymentState(old["state"]).ended:
            raise Conflict(f"deployment {name} exists already and is {old['state']}; stop it first")
        refuse_adapters_name(db, name, "deployment")
        for adapter in adapters(request):
            _refuse_adapter(db, adapter, name)
        if (old is None or old["owner"] != owner) and (sender := _sent_by(db, name, owner)):
            raise Conflict(f"endpoint {sender} sends calls to {name}, and is not {owner}'s; choose another name")
        c.execute(
            """INSERT INTO deployments VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, NULL)
               ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, state = excluded.state, model = excluded.model,
               version = excluded.version, model_path = excluded.model_path, replicas = excluded.replicas,
               request = excluded.request, cause = NULL, created_at = excluded.created_at, ended_at = NULL""",
            (
                name,
                owner,
                DeploymentState.STARTING,
                model,
                version,
                model_path,
                replicas,
                json.dumps(request),
                clock.now(),
            ),
        )
    return get(db, name)


def adapters(request: Mapping[str, Any]) -> list[str]:
    """The LoRA adapters that a deployment's engines load, by the names under which they answer.

    As vLLM reads `--lora-modules`: NAME=PATH or a JSON object each; of a repeated option the last counts. Only what the
    deployment itself was asked for is seen: adapters among the site's engine arguments answer under no name here.
    """
    words = [str(word) for word in request.get("engine_args") or ()]
    given = [n for n, word in enumerate(words) if word.partition("=")[0].replace("_", "-") == "--lora-modules"]
    if not given:
        return []
    _, joined, first = words[given[-1]].partition("=")
    apart = itertools.takewhile(lambda word: not word.startswith("-"), words[given[-1] + 1 :])
    return [name for word in ([first] if joined else apart) if (name := _adapter(word))]


def refuse_adapters_name(db: Database, name: str, what: str) -> None:
    """Raises Conflict when a live deployment's LoRA adapter has this name, which `what` is to have."""
    for other in everything(db):
        if not other.state.ended and name in adapters(other.request):
            raise Conflict(f"{name} is a LoRA adapter of deployment {other.name}; the {what} needs a name of its own")


def get(db: Database, name: str) -> Deployment:
    found = row(db, "SELECT * FROM deployments WHERE name = ?", name)
    if found is None:
        known = ", ".join(d.name for d in everything(db)) or "none yet"
        raise NotFound(f"no deployment is called {name!r}; there are: {known}")
    return _deployment(found)


def everything(db: Database) -> list[Deployment]:
    return [_deployment(r) for r in rows(db, "SELECT * FROM deployments ORDER BY name")]


def of_models(db: Database, served: Iterable[tuple[str, int]]) -> list[Deployment]:
    """Those of any of these models (name, version), the ended ones too."""
    asked = "SELECT * FROM deployments WHERE model = ? AND version = ? ORDER BY name"
    return [_deployment(r) for model in sorted(served) for r in rows(db, asked, *model)]


def set_state(db: Database, name: str, state: DeploymentState, cause: str | None = None) -> bool:
    """Whether the deployment took the state: only a move that BECOMES allows is made."""
    with transaction(db) as c:
        if state not in BECOMES[get(db, name).state]:
            return False
        c.execute(
            "UPDATE deployments SET state = ?, cause = ?, ended_at = ? WHERE name = ?",
            (state, cause, clock.now() if state.ended else None, name),
        )
        return True


def add_replica(db: Database, replica_id: str, deployment: str, owner: str, folder: str) -> None:
    with transaction(db) as c:
        # Never older than its deployment, even when the clock was set back: see `is_current`.
        created_at = max(clock.now(), get(db, deployment).created_at)
        c.execute(
            "INSERT INTO replicas (id, deployment, owner, state, folder, created_at) VALUES (?, ?, ?, ?, ?, ?)",
            (replica_id, deployment, owner, ReplicaState.PENDING, folder, created_at),
        )


def is_current(deployment: Deployment, replica: Replica) -> bool:
    """Whether it was started for this deployment; one that is older was a former deployment's of the same name."""
    return replica.deployment == deployment.name and replica.created_at >= deployment.created_at


def set_replica_state(db: Database, replica_id: str, state: ReplicaState, cause: str | None = None) -> None:
    with transaction(db) as c:
        c.execute(
            "UPDATE replicas SET state = ?, cause = coalesce(?, cause), ended_at = ? WHERE id = ? AND ended_at IS NULL",
            (state, cause, clock.now() if state.ended else None, replica_id),
        )


def note_job(
    db: Database,
    replica_id: str,
    *,
    job_id: str,
    waiting_reason: str | None = None,
    expected_start_at: str | None = None,
    ends_at: str | None = None,
) -> None:
    """What the scheduler says of a replica's job. Writes nothing when it says what it said before."""
    says = (job_id, waiting_reason, expected_start_at, ends_at)
    columns = "(job_id, waiting_reason, expected_start_at, ends_at)"
    if row(db, f"SELECT 1 FROM replicas WHERE id = ? AND {columns} IS NOT (?, ?, ?, ?)", replica_id, *says):
        with transaction(db) as c:
            c.execute(f"UPDATE replicas SET {columns} = (?, ?, ?, ?) WHERE id = ?", (*says, replica_id))


def replica_is_starting(db: Database, replica_id: str) -> None:
    with transaction(db) as c:
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
    """From pending or starting to ready; a replica that is draining or gone stays so."""
    with transaction(db) as c:
        c.execute(
            """UPDATE replicas SET state = ?, host = ?, port = ?, upstream_key = ?, context_tokens = ?,
               certificate = ?, ready_at = ?
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


def replicas(db: Database, deployment: str | None = None) -> list[Replica]:
    where, args = ("WHERE deployment = ?", (deployment,)) if deployment else ("", ())
    return [_replica(r) for r in rows(db, f"SELECT * FROM replicas {where} ORDER BY created_at, id", *args)]


def live_replicas(db: Database) -> dict[str, list[Replica]]:
    """Each live deployment's name -> its own replicas that have not ended (perhaps none), ready or not."""
    live = {d.name: d for d in everything(db) if not d.state.ended}
    found: dict[str, list[Replica]] = {name: [] for name in live}
    for r in rows(db, "SELECT * FROM replicas WHERE ended_at IS NULL ORDER BY created_at, id"):
        deployment = live.get(r["deployment"])
        if deployment and is_current(deployment, replica := _replica(r)):
            found[deployment.name].append(replica)
    return found


def ready_replicas(db: Database) -> dict[str, list[Replica]]:
    """What the gateway routes to: each live deployment's name -> its ready replicas (perhaps none)."""
    return {name: [r for r in found if r.state is ReplicaState.READY] for name, found in live_replicas(db).items()}


def _adapter(word: str) -> str | None:
    """The name in a NAME=PATH or a JSON object; None of what is neither, which the engine refuses."""
    if not word.startswith("{"):
        return word.partition("=")[0] if "=" in word else None
    try:
        name = json.loads(word).get("name")
    except json.JSONDecodeError:
        return None
    return name if isinstance(name, str) else None


def _refuse_adapter(db: Database, adapter: str, deployment: str) -> None:
    """Raises Conflict when clients who call `adapter` could mean something else."""
    if row(db, "SELECT 1 FROM endpoints WHERE name = ?", adapter):
        raise Conflict(f"{adapter} is an endpoint; the LoRA adapter needs a name of its own")
    if adapter == deployment or any(d.name == adapter and not d.state.ended for d in everything(db)):
        raise Conflict(f"{adapter} is a deployment; the LoRA adapter needs a name of its own")
    refuse_adapters_name(db, adapter, "LoRA adapter")


def _sent_by(db: Database, name: str, owner: str) -> str | None:
    """Another owner's endpoint that refers to the deployment of this name, which has ended."""
    for r in rows(db, "SELECT * FROM endpoints WHERE owner != ? ORDER BY name", owner):
        behind = {deployment for deployment, _ in (*json.loads(r["targets"]), *json.loads(r["shadow"]))}
        if name in behind or name in json.loads(r["fallbacks"]):
            return str(r["name"])
    return None


def _deployment(r: Any) -> Deployment:
    parsed = {"state": DeploymentState(r["state"]), "request": json.loads(r["request"]), "paused": bool(r["paused"])}
    return Deployment(**{**dict(r), **parsed})


def _replica(r: Any) -> Replica:
    parsed = {
        "state": ReplicaState(r["state"]),
        "overflow": bool(r["overflow"]),
        "adapters": tuple(json.loads(r["adapters"])),
    }
    return Replica(**{**dict(r), **parsed})
