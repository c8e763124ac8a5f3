"""Deployments: what is wanted. The only module that changes their states.

What they wanted before is in registry.revisions; their replicas, by which they are had, are found here too.
"""

from __future__ import annotations

import enum
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from registry import clock
from registry.db import Conflict, Database, NotFound, fields, row, rows, transaction
from registry.replicas import Replica as Replica
from registry.replicas import ReplicaState as ReplicaState
from registry.replicas import add_replica as add_replica
from registry.replicas import drain_replica as drain_replica
from registry.replicas import note_adapters as note_adapters
from registry.replicas import note_job as note_job
from registry.replicas import recent_replicas as recent_replicas
from registry.replicas import replica_is_ready as replica_is_ready
from registry.replicas import replica_is_restarting as replica_is_restarting
from registry.replicas import replica_is_starting as replica_is_starting
from registry.replicas import replicas as replicas
from registry.replicas import set_replica_state as set_replica_state
from registry.replicas import shown_replicas as shown_replicas
from registry.replicas import unended_replicas
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


# Whatever else is asked of a deployment does not happen: it was decided before somebody stopped it.
_AWAKE_OR_NOT = frozenset({DeploymentState.STARTING, DeploymentState.READY, DeploymentState.ASLEEP})
BECOMES = {
    **{state: _AWAKE_OR_NOT - {state} | {DeploymentState.STOPPING, DeploymentState.FAILED} for state in _AWAKE_OR_NOT},
    DeploymentState.STOPPING: frozenset({DeploymentState.STOPPED}),
    DeploymentState.STOPPED: frozenset[DeploymentState](),
    DeploymentState.FAILED: frozenset[DeploymentState](),
}


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
    # Percent of the calls that a revision on trial gets, as its rollout or else `request` says; None: its share.
    canary: int | None = None
    rollout_at: str | None = None  # when this revision was asked for; None: when it was created
    desired: int | None = None  # replicas wanted now; None: nobody has decided, the least
    scaled_at: str | None = None  # when that last changed
    low_since: str | None = None  # since when the load has asked for fewer

    @property
    def routing(self) -> str:
        """One of ROUTING."""
        return str(self.request.get("routing") or ROUTING[0])


def create(
    db: Database,
    name: str,
    owner: str,
    *,
    model: str,
    version: int,
    model_path: str,
    min_replicas: int,
    max_replicas: int,
    request: dict[str, Any],
    follows: str | None = None,
    by: str,
    why: str,
) -> Deployment:
    """A deployment that ended is replaced by one of the same name, whose revisions are counted on.

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
        refuse_adapters(db, request, name)
        if (old is None or old["owner"] != owner) and (sender := _sent_by(db, name, owner)):
            raise Conflict(f"endpoint {sender} sends calls to {name}, and is not {owner}'s; choose another name")
        last = row(db, "SELECT max(revision) AS n FROM revisions WHERE deployment = ?", name)
        revision = 1 + ((last and last["n"]) or 0)
        now = max(clock.now(), _after_all(db, name))
        wanted = (model, version, model_path, json.dumps(request))
        columns = (
            "owner, state, model, version, model_path, request, min_replicas, max_replicas, follows, revision, "
            "rollout_at, created_at, ended_at, cause, paused, stable, canary, desired, scaled_at, low_since"
        )
        c.execute(
            f"""INSERT INTO deployments (name, {columns})
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, 0, NULL, ?, NULL, NULL, NULL)
               ON CONFLICT (name) DO UPDATE SET
               ({columns}) = ({", ".join(f"excluded.{column}" for column in columns.split(", "))})""",
            (
                *(name, owner, DeploymentState.STARTING, *wanted),
                *(min_replicas, max_replicas, follows, revision, now, now, request.get("canary")),
            ),
        )
        c.execute(  # on trial as every new one is: registry.revisions.RevisionState
            "INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, 'rolling', NULL, ?, ?, ?, NULL)",
            (name, revision, *wanted, now, by, why),
        )
    return get(db, name)


def adapters(request: Mapping[str, Any]) -> list[str]:
    """The LoRA adapters that a deployment's engines load, by the names under which they answer.

    Those that it names itself, then those in its engine's arguments, as vLLM reads `--lora-modules`: NAME=PATH or a
    JSON object each; of a repeated option the last counts. Adapters among the site's engine arguments answer under no
    name here.
    """
    own = [str(name) for name in request.get("adapters") or ()]
    words = [str(word) for word in request.get("engine_args") or ()]
    given = [n for n, word in enumerate(words) if word.partition("=")[0].replace("_", "-") == "--lora-modules"]
    if not given:
        return own
    _, joined, first = words[given[-1]].partition("=")
    apart = itertools.takewhile(lambda word: not word.startswith("-"), words[given[-1] + 1 :])
    return own + [name for word in ([first] if joined else apart) if (name := _adapter(word))]


def refuse_adapters_name(db: Database, name: str, what: str, but: str | None = None) -> None:
    """Raises Conflict when a live deployment's (not `but`'s) LoRA adapter has this name, which `what` is to have."""
    for other in everything(db):
        if not other.state.ended and other.name != but and name in adapters(other.request):
            raise Conflict(f"{name} is a LoRA adapter of deployment {other.name}; the {what} needs a name of its own")


def refuse_adapters(db: Database, request: Mapping[str, Any], deployment: str) -> None:
    """Raises Conflict when clients who call an adapter of this request could mean something else."""
    for adapter in adapters(request):
        if row(db, "SELECT 1 FROM endpoints WHERE name = ?", adapter):
            raise Conflict(f"{adapter} is an endpoint; the LoRA adapter needs a name of its own")
        if adapter == deployment or any(d.name == adapter and not d.state.ended for d in everything(db)):
            raise Conflict(f"{adapter} is a deployment; the LoRA adapter needs a name of its own")
        refuse_adapters_name(db, adapter, "LoRA adapter", deployment)


def get(db: Database, name: str) -> Deployment:
    found = row(db, "SELECT * FROM deployments WHERE name = ?", name)
    if found is None:
        known = ", ".join(d.name for d in everything(db)) or "none yet"
        raise NotFound(f"no deployment is called {name!r}; there are: {known}")
    return _deployment(found)


def everything(db: Database) -> list[Deployment]:
    return [_deployment(r) for r in rows(db, "SELECT * FROM deployments ORDER BY name")]


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


def set_scale(db: Database, name: str, desired: int, low_since: str | None) -> None:
    """How many replicas are wanted now, and since when the load has asked for fewer (as registry.clock writes it)."""
    with transaction(db) as c:
        scaled_at = clock.now() if get(db, name).desired != desired else None
        c.execute(
            "UPDATE deployments SET desired = ?, low_since = ?, scaled_at = coalesce(?, scaled_at) WHERE name = ?",
            (desired, low_since, scaled_at, name),
        )


def change(
    db: Database,
    name: str,
    *,
    min_replicas: int | None = None,
    max_replicas: int | None = None,
    paused: bool | None = None,
) -> Deployment:
    """What needs no new revision; None leaves it as it is. Raises ValueError; Conflict for what ends or has ended."""
    with transaction(db) as c:
        old = require_wanted(db, name)
        least = old.min_replicas if min_replicas is None else min_replicas
        most = old.max_replicas if max_replicas is None else max_replicas
        if not 0 <= least <= most or most < 1:
            raise ValueError(f"'min' must be 0 ... 'max', and 'max' at least 1, not {least} and {most}")
        pack = int(old.request.get("pack") or 1)
        if max_replicas is not None and most < pack:
            raise ValueError(f"'max' must be at least 'pack' ({pack}), not {most}: so many share one job")
        c.execute(
            "UPDATE deployments SET min_replicas = ?, max_replicas = ?, paused = ? WHERE name = ?",
            (least, most, old.paused if paused is None else paused, name),
        )
    return get(db, name)


def follow(db: Database, name: str, follows: str | None) -> None:
    """Whose moves become revisions from now on: NAME@ALIAS; None: nobody's."""
    with transaction(db) as c:
        c.execute("UPDATE deployments SET follows = ? WHERE name = ?", (follows, name))


def require_wanted(db: Database, name: str) -> Deployment:
    """Raises Conflict when it has ended, or somebody stopped it."""
    found = get(db, name)
    if found.state is DeploymentState.STOPPING:
        raise Conflict(f"deployment {name} is being stopped; serve it again once it is")
    if found.state.ended:
        raise Conflict(f"deployment {name} is {found.state}; serve it again first")
    return found


def is_current(deployment: Deployment, replica: Replica) -> bool:
    """Whether it was started for this deployment; one that is older was a former deployment's of the same name."""
    return replica.deployment == deployment.name and replica.created_at >= deployment.created_at


def live_replicas(db: Database) -> dict[str, list[Replica]]:
    """Each live deployment's name -> its own replicas that have not ended (perhaps none), ready or not."""
    live = {d.name: d for d in everything(db) if not d.state.ended}
    found: dict[str, list[Replica]] = {name: [] for name in live}
    for replica in unended_replicas(db):
        deployment = live.get(replica.deployment)
        if deployment and is_current(deployment, replica):
            found[deployment.name].append(replica)
    return found


def _after_all(db: Database, name: str) -> str:
    """Later than all that ever had this deployment's name, even when the clock was set back: see `is_current`."""
    seen = row(
        db,
        """SELECT max(at) AS at FROM (SELECT created_at AS at FROM replicas WHERE deployment = ?
           UNION ALL SELECT created_at FROM revisions WHERE deployment = ?)""",
        name,
        name,
    )
    if seen is None or seen["at"] is None:
        return ""
    return clock.text(clock.parse(seen["at"]) + timedelta(microseconds=1))


def _adapter(word: str) -> str | None:
    """The name in a NAME=PATH or a JSON object; None of what is neither, which the engine refuses."""
    if not word.startswith("{"):
        return word.partition("=")[0] if "=" in word else None
    try:
        name = json.loads(word).get("name")
    except json.JSONDecodeError:
        return None
    return name if isinstance(name, str) else None


def _sent_by(db: Database, name: str, owner: str) -> str | None:
    """Another owner's endpoint that refers to the deployment of this name, which has ended."""
    for r in rows(db, "SELECT * FROM endpoints WHERE owner != ? ORDER BY name", owner):
        behind = {deployment for deployment, _ in (*json.loads(r["targets"]), *json.loads(r["shadow"]))}
        if name in behind or name in json.loads(r["fallbacks"]):
            return str(r["name"])
    return None


def _deployment(r: Any) -> Deployment:
    parsed = {"state": DeploymentState(r["state"]), "request": json.loads(r["request"]), "paused": bool(r["paused"])}
    return Deployment(**{**fields(Deployment, r), **parsed})
