"""Facts a job states: small JSON files in its run folder, written once and never changed.

A file is written under a temporary name, flushed, fsynced, renamed, and the directory fsynced, so a reader sees a
whole fact or none. The reader treats them as untrusted input: no links followed, bounded in size, owned by the user
the folder belongs to, schema checked. Standard library only: training and engine environments import this too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers.untrusted import Unbelievable, read_object

SCHEMA = 1
NAME = re.compile(r"[0-9]{20}-[a-z-]+\.json")
MAX_BYTES = 256 * 1024
LATEST = 1 << 32  # seconds since the epoch: a clock that says more is wrong, and a calendar ends
KINDS = (
    "attempt-started",  # attempt, job_id, host, pid, tasks, nodes
    "replica-ready",  # host, port, served_name, start_s, context_tokens, certificate (PEM, or none), probe (its tokens)
    "replica-draining",  # why: it was told to end, and takes no new requests
    "engine-restarting",  # failure (launchers.vllm.failures.Kind), cause, restarts (how many by now): it is not ready
    "probes",  # probe: the tokens that a ready engine was asked for since the last time, to see that it lives; count
    "adapters-loaded",  # adapters (the names that answer now), problem (words, or none)
    "checkpoint",  # iteration, path (relative), bytes, manifest_sha256
    "checkpoint-pruned",  # iteration, path (relative): it was not wanted any more
    "model-converted",  # path (relative), max_logit_difference, parameters, bytes
    "model-generated",  # start_s, prompts, completion_tokens: an engine served the model
    "model-evaluated",  # results (launchers.evaluation.results.Result, each), unmet (words, each), tasks_sha256
    "attempt-ended",  # attempt, exit_code, cause (words), end (launchers.restart.Cause), failed_task, tail, ...
    # of an engine's also failure (launchers.vllm.failures.Kind)
    "attempt-judged",  # attempt, cause (launchers.restart.Cause), saved, action, why, successor: by the batch script
)


class AnnouncementError(ValueError):
    """An announcement that cannot be believed; the message names the file and why."""


@dataclass(frozen=True, slots=True)
class Announcement:
    name: str  # the file's name: its identity, for idempotent ingestion
    kind: str
    at: float  # seconds since the epoch, by the job's clock
    facts: dict[str, Any]


def announce(directory: Path, kind: str, **facts: Any) -> Path:
    """State a fact. Durable when this returns. Names sort in the order in which one job stated them."""
    return announce_later(directory, time.time_ns(), kind, facts)


def announce_later(directory: Path, now: int, kind: str, facts: Mapping[str, Any]) -> Path:
    """State a fact of an earlier instant (ns since the epoch). Raises OSError; it may then be stated once more."""
    assert kind in KINDS, kind
    final = directory / f"{now:020d}-{kind}.json"
    text = json.dumps({"schema": SCHEMA, "kind": kind, "at": now / 1e9, **facts})
    temporary = directory / f".{final.name}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.rename(temporary, final)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return final


def read(path: Path, owner_uid: int) -> Announcement:
    """Read one announcement. Raises AnnouncementError when it cannot be believed, OSError when not read now."""
    try:
        data = read_object(path, MAX_BYTES, owner_uid)
        schema, kind, at = data.pop("schema"), data.pop("kind"), float(data.pop("at"))
    except (Unbelievable, KeyError, TypeError, ValueError, OverflowError) as e:
        what = f"{e} is missing" if isinstance(e, KeyError) else e
        raise AnnouncementError(f"{path}: not an announcement: {what}") from e
    if schema != SCHEMA:
        raise AnnouncementError(f"{path}: schema {schema!r} is not known here; this Headgate reads schema {SCHEMA}")
    if kind not in KINDS:
        raise AnnouncementError(f"{path}: kind {kind!r} is none of {', '.join(KINDS)}")
    if not 0 <= at < LATEST:  # NaN is no instant either
        raise AnnouncementError(f"{path}: at {at!r} is no instant: seconds since the epoch, below {LATEST}")
    return Announcement(path.name, kind, at, data)


def names(directory: Path) -> Iterator[str]:
    """The announcements in a directory, oldest first; a file that `announce` would not have named so is none."""
    try:
        entries = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    yield from (n for n in entries if NAME.fullmatch(n))
