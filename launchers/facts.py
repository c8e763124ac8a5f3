"""Announced facts become registry rows. Idempotent: each announcement is taken in once, by name."""

from __future__ import annotations

import dataclasses
import logging
import os
import pwd
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from launchers.announce import Announcement, AnnouncementError, names, read
from launchers.evaluation.results import believed
from launchers.restart import Action, Cause
from launchers.run_folder import RunFolder
from launchers.spec import ConvertSpec, EvaluateSpec, ServeSpec, SmokeSpec, Spec, TrainSpec, after_its_time
from launchers.untrusted import read_bytes
from launchers.vllm import adapters, certificate
from launchers.vllm.failures import Kind
from registry import accounting, aliases, attempts, checkpoints, clock, deployments, models, promotions, revisions, runs
from registry.db import Database, RegistryError, StorageError
from registry.deployments import ReplicaState
from registry.steps import PLATFORM, Attempt, Hold, Outcome, Step, UsageEvent

log = logging.getLogger(__name__)

MAX_KEY_BYTES = 4096
MAX_WORDS = 2000
MAX_RESTARTS = 10_000
MAX_TOKENS = 1 << 40
PROBE = "probe"  # the kind of what a starting replica was asked, and its user

Book = Callable[[Sequence[Step]], object]  # adds steps to the ledger; raises OSError, TooMuch


def owner_of(folder: RunFolder) -> tuple[str, int]:
    """The folder's owner by the file system, which a spec's text cannot forge: (user name, uid)."""
    uid = os.stat(folder.root, follow_symlinks=False).st_uid
    try:
        return pwd.getpwuid(uid).pw_name, uid
    except KeyError:
        return str(uid), uid


def ingest(db: Database, folder: RunFolder, spec: Spec, book: Book) -> int:
    """Take in what a run or replica has announced since last time. Returns how many new facts there were.

    What Headgate itself used of an engine goes to `book`, a second time if we die in between: its ids are the same.

    A file that cannot be believed is logged and set aside for good; the rest still counts. One that cannot be read, or
    a registry that cannot be written, loses nothing: the next look starts with it again. Raises StorageError, OSError.
    """
    owner, uid = owner_of(folder)
    seen = accounting.ingested(db, spec.id)
    new = 0
    for name in names(folder.announcements):
        if name in seen:
            continue
        try:
            _apply(db, folder, spec, owner, uid, read(folder.announcements / name, uid), book)
        except StorageError:
            raise
        except (AnnouncementError, RegistryError, KeyError, TypeError, ValueError, OverflowError) as e:
            log.warning("%s: set aside: %s: %s", folder.announcements / name, type(e).__name__, e)
        accounting.mark_ingested(db, spec.id, name)
        new += 1
    return new


def announced_jobs(folder: RunFolder) -> list[str]:
    """The ids of the jobs that the attempts of a run or replica say they are, oldest first."""
    try:
        _, uid = owner_of(folder)
    except FileNotFoundError:
        return []  # it was deleted
    found: list[str] = []
    for name in names(folder.announcements):
        if name.endswith("-attempt-started.json"):
            try:
                found.append(str(read(folder.announcements / name, uid).facts["job_id"]))
            except (AnnouncementError, KeyError):
                continue  # set aside by `ingest` too, or a supervisor without a job
    return found


def _apply(db: Database, folder: RunFolder, spec: Spec, owner: str, uid: int, said: Announcement, book: Book) -> None:
    facts = said.facts
    match said.kind:
        case "attempt-started":
            if isinstance(spec, ServeSpec):
                deployments.replica_is_starting(db, spec.id, clock.text(_moment(said)))
            else:
                runs.started(db, spec.id)
                _attempt_started(db, spec, said)
        case "replica-ready" if isinstance(spec, ServeSpec):
            key = _secret(folder, uid)
            announced = facts.get("certificate")  # none of an engine that speaks plain HTTP
            deployments.replica_is_ready(
                db,
                spec.id,
                str(facts["host"]),
                int(facts["port"]),
                key,
                _number(facts.get("context_tokens")),
                None if announced is None else certificate.checked(announced),
            )
            _proven(db, spec)
            if "probe" in facts:  # not in those of a Headgate that booked none
                book(probe_of(spec, said))
        case "replica-draining" if isinstance(spec, ServeSpec):
            deployments.drain_replica(db, spec.id, _words(facts["why"]))
        case "engine-restarting" if isinstance(spec, ServeSpec):
            Kind(facts["failure"])
            restarts = _count(facts["restarts"], MAX_RESTARTS)
            deployments.replica_is_restarting(db, spec.id, _words(facts["cause"]), restarts)
        case "probes" if isinstance(spec, ServeSpec):
            book(probe_of(spec, said))
        case "adapters-loaded" if isinstance(spec, ServeSpec):
            if problem := facts.get("problem"):
                log.warning("%s: %s", spec.id, _words(problem))
            deployments.note_adapters(db, spec.id, _adapters(folder, spec, facts["adapters"]))
        case "checkpoint":
            checkpoints.add(
                db,
                spec.id,
                owner,
                iteration=int(facts["iteration"]),
                path=str(_inside(folder, facts["path"])),
                size=int(facts["bytes"]),
                manifest_sha256=str(facts["manifest_sha256"]),
            )
        case "checkpoint-pruned":
            checkpoints.prune(db, spec.id, int(facts["iteration"]))
        case "model-converted" if isinstance(spec, ConvertSpec) and spec.model:
            version = models.register(
                db,
                spec.model,
                owner,
                str(_inside(folder, facts["path"])),
                checkpoint=spec.checkpoint_id,
                parameters=int(facts["parameters"]),
                size=int(facts["bytes"]),
                max_logit_difference=float(facts["max_logit_difference"]),
            )
            if spec.alias:
                aliases.move(db, spec.model, spec.alias, version.version, owner, f"published by {spec.id}")
        case "model-generated" if isinstance(spec, SmokeSpec):
            counts = ("prompts", "completion_tokens")
            promotions.heard(
                db, spec.id, {"start_s": float(facts["start_s"]), **{name: int(facts[name]) for name in counts}}
            )
        case "model-evaluated" if isinstance(spec, EvaluateSpec):
            promotions.heard(
                db,
                spec.id,
                {
                    "results": [dataclasses.asdict(result) for result in believed(facts["results"])],
                    "unmet": [str(why) for why in facts["unmet"]],
                    "tasks_sha256": str(facts["tasks_sha256"]),
                },
            )
        case "attempt-ended":
            if not facts.get("judged"):
                failure = facts.get("failure")
                _ended(db, spec, int(facts["exit_code"]), str(facts["cause"]), failure and Kind(failure))
            if not isinstance(spec, ServeSpec):
                _attempt_ended(db, spec, said)
        case "attempt-judged" if isinstance(spec, TrainSpec):
            _judged(db, spec, said)


def probe_of(spec: ServeSpec, said: Announcement) -> list[Step]:
    """What Headgate asked a replica for, before it was called ready and since: held and paid for by nobody.

    Each announcement's is another one: a replica whose engine is started again gets ready again.
    """
    used, at = said.facts["probe"], clock.text(_moment(said))
    event_id = f"{spec.id}.{said.name.partition('-')[0]}:1"
    attempt = Attempt(event_id, PLATFORM, "", spec.name, spec.id, PROBE, at, PROBE)
    prompt, completion, cached = (
        _count(used[f"{name}_tokens"], MAX_TOKENS) for name in ("prompt", "completion", "cached")
    )
    return [Hold(attempt, 0, 0), UsageEvent(attempt, prompt, completion, 0, Outcome.COMPLETED, at, cached)]


def _proven(db: Database, spec: ServeSpec) -> None:
    """An engine has loaded the model of its own revision, whatever its deployment wants by now."""
    deployment = deployments.get(db, spec.name)
    for replica in deployments.replicas(db, spec.name):
        if replica.id == spec.id and deployments.is_current(deployment, replica):
            loaded = revisions.get(db, spec.name, replica.revision)
            models.mark_servable(db, loaded.model, loaded.version)


def _attempt_started(db: Database, spec: Spec, said: Announcement) -> None:
    facts = said.facts
    attempt = str(facts.get("attempt"))
    job_id, nodes = str(facts.get("job_id")), str(facts.get("nodes") or facts.get("host") or "")
    attempts.started(db, spec.id, attempt, job_id=job_id, nodes=nodes, at=clock.text(_moment(said)))
    attempts.learn(db, spec.id, attempt, first_iteration=_number(facts.get("saved")))


def _attempt_ended(db: Database, spec: Spec, said: Announcement) -> None:
    facts = said.facts
    attempts.learn(
        db,
        spec.id,
        str(facts.get("attempt")),
        ended_at=clock.text(_moment(said)),
        cause=Cause(facts["end"]) if "end" in facts else None,
        detail=str(facts["cause"]),
        exit_code=int(facts["exit_code"]),
        last_iteration=_number(facts.get("iteration")),
    )


def _judged(db: Database, spec: TrainSpec, said: Announcement) -> None:
    """The batch script's word on why an attempt ended, which Slurm had a say in, and on what follows."""
    facts = said.facts
    cause, action, why = Cause(facts["cause"]), Action(facts["action"]), str(facts["why"])
    attempt = str(facts["attempt"])
    at = clock.text(_moment(said))
    # One whose step never came to its supervisor is heard of only now.
    attempts.started(db, spec.id, attempt, job_id=attempt.rpartition(".")[0], nodes="", at=at)
    known = {a.attempt: a for a in attempts.of_run(db, spec.id)}[attempt]
    attempts.learn(
        db,
        spec.id,
        attempt,
        ended_at=None if known.ended_at else at,
        cause=cause,
        saved_iteration=_number(facts.get("saved")),
        verdict=why,
    )
    if known.number < len(attempts.of_run(db, spec.id)):
        return  # by another host's clock a later attempt began before this was stated
    words = known.detail if known.detail and cause.failure else cause
    if cause is Cause.COMPLETED:
        runs.ended(db, spec.id, runs.RunState.COMPLETED, None)
    elif action is not Action.STOP:
        runs.waits(db, spec.id, f"{words}; {why}")
    elif cause is Cause.CANCELLED:
        runs.ended(db, spec.id, runs.RunState.STOPPED, None)
    else:
        runs.ended(db, spec.id, runs.RunState.FAILED, f"{words}; {why}")


def successor(folder: RunFolder) -> str | None:
    """The job that follows this run's last one, where that could not be requeued."""
    try:
        _, uid = owner_of(folder)
        told = ("-attempt-judged.json", "-attempt-started.json")
        newest = [n for n in names(folder.announcements) if n.endswith(told)]
        said = read(folder.announcements / newest[-1], uid) if newest else None
    except (FileNotFoundError, AnnouncementError):
        return None
    follows = said.facts.get("successor") if said is not None and said.kind == "attempt-judged" else None
    return None if follows is None else str(follows)


def _number(said: Any) -> int | None:
    return None if said is None else int(said)


def _count(said: Any, most: int) -> int:
    """A whole number that a job named. Raises ValueError."""
    if not isinstance(said, int) or isinstance(said, bool) or not 0 <= said <= most:
        raise ValueError(f"{said!r} is not a whole number 0 ... {most}")
    return said


def _words(said: Any) -> str:
    if not isinstance(said, str):
        raise ValueError(f"{said!r} is no text")
    return said[:MAX_WORDS]


def _adapters(folder: RunFolder, spec: ServeSpec, said: Any) -> list[str]:
    """The adapters that a replica says it has, of those that it was to have. Raises ValueError for others."""
    known = spec.adapters.keys() | (adapters.wanted(folder) or {}).keys()
    if not isinstance(said, list) or not all(isinstance(name, str) and name in known for name in said):
        raise ValueError(f"adapters {said!r} are not all among {', '.join(sorted(known)) or 'none'}")
    return said


def _moment(said: Announcement) -> datetime:
    return datetime.fromtimestamp(said.at, UTC)


def _ended(db: Database, spec: Spec, exit_code: int, cause: str, failure: Kind | None) -> None:
    limited = cause == "timeout"
    stopped = limited or cause == "cancelled"
    if isinstance(spec, ServeSpec):
        state = ReplicaState.STOPPED if stopped else ReplicaState.FAILED
        words = "time limit" if limited else None if stopped else cause
        deployments.set_replica_state(db, spec.id, state, words, failure)
    elif stopped:
        why = f"time limit; {after_its_time(spec)}" if limited else None
        runs.ended(db, spec.id, runs.RunState.STOPPED, why)
    elif exit_code == 0:
        runs.ended(db, spec.id, runs.RunState.COMPLETED, None)
    else:
        runs.ended(db, spec.id, runs.RunState.FAILED, cause)


def _inside(folder: RunFolder, relative: object) -> Path:
    """A path a job named, which must be relative and stay in its folder."""
    path = PurePosixPath(str(relative))
    if path.is_absolute() or ".." in path.parts:
        raise AnnouncementError(f"{relative!r} is not a path inside the run folder")
    return folder.root / path


def _secret(folder: RunFolder, uid: int) -> str:
    return read_bytes(folder.secret, MAX_KEY_BYTES, uid).decode("ascii").strip()
