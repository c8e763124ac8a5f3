"""The site's two directories: where each stands, how much room is left, and whose clock stamps its files."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from registry.db import MIN_FREE_BYTES, file_system, remote, remote_mounts
from registry.site import Site
from slurm.checkup import GOOD_SKEW_S
from slurm.findings import Finding, ok, problem, warning

LITTLE_STATE_BYTES = 1 << 30
LITTLE_SHARED_BYTES = 20 << 30  # one checkpoint of a model with a billion parameters is some 14 GB
MOST_MOUNTS = 8  # to show: a host may have hundreds, by automount
FLEETING = frozenset({"tmpfs", "ramfs"})
OWN_PYTHON = Path(sys.executable)
OWN_DISK = "set state_dir to a directory on this host's own disk"


@dataclass(frozen=True, slots=True)
class Directory:
    """What was seen of a directory, or of the nearest one above it that is there."""

    path: Path
    there: bool
    kind: str  # the file system's type, as /proc/self/mounts spells it
    point: str
    free_bytes: int
    refusal: str | None  # why nothing can be written there
    owner: str | None = None  # whose it is, if not ours
    ahead_s: float | None = None  # the stamp of a file written just now, before our clock; None: not written


def mounts() -> str:
    try:
        return Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # not Linux: every type is unknown


def look(path: Path, mounted: str) -> Directory:
    """Writes, and removes, one empty file where the directory is there. Raises OSError when it cannot be looked at."""
    kind, point = file_system(path, mounted)
    nearest = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(nearest).free
    if nearest != path:
        refusal = None if os.access(nearest, os.W_OK | os.X_OK) else f"cannot be made in {nearest}: permission denied"
        return Directory(path, False, kind, point, free, refusal)
    try:
        before = time.time()
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=path) as probe:
            stamp = os.stat(probe.name).st_mtime
        after = time.time()
    except OSError as e:
        return Directory(path, True, kind, point, free, f"cannot be written: {e.strerror}", _owner(path))
    ahead_s = max(0.0, stamp - after) or min(0.0, stamp - before)
    return Directory(path, True, kind, point, free, None, _owner(path), ahead_s)


def _owner(path: Path) -> str | None:
    if path.stat().st_uid == os.getuid():
        return None
    try:
        return path.owner()
    except KeyError:
        return f"uid {path.stat().st_uid}"


def judge_state(seen: Directory) -> Iterator[Finding]:
    """`state_dir`, which holds SQLite files in WAL mode."""
    if remote(seen.kind):
        says = f"{seen.path}: stands on {seen.kind} (mounted at {seen.point}), where the registry is not safe"
        yield problem("state_dir", says, OWN_DISK)
        return
    if seen.refusal and seen.owner:
        yield ok("state_dir", f"{seen.path}: belongs to {seen.owner}, under whose account the services run")
        return
    if seen.refusal:
        yield problem("state_dir", f"{seen.path}: {seen.refusal}", "give this account the right, or set state_dir")
        return
    yield from _room("state_dir", seen, MIN_FREE_BYTES, LITTLE_STATE_BYTES)
    if seen.kind in FLEETING:
        says = f"{seen.path}: stands on {seen.kind}: the registry and the ledger are gone after a reboot"
        yield warning("state_dir", says, OWN_DISK)


def judge_shared(seen: Directory, spread: bool) -> Iterator[Finding]:
    """`runs/` in `shared_dir`, where whoever submits must be able to write; `spread`: jobs run on other hosts."""
    if seen.refusal:
        yield problem("shared_dir", f"{seen.path}: {seen.refusal}", "give this account the right, or set shared_dir")
        return
    yield from _room("shared_dir", seen, MIN_FREE_BYTES, LITTLE_SHARED_BYTES)
    if spread and not remote(seen.kind):
        says = f"stands on {seen.kind} (mounted at {seen.point}), which the nodes do not see unless it is exported"
        yield warning("shared_dir", says, "set shared_dir to a directory of the parallel file system")
    elif not spread and seen.kind in FLEETING:
        yield warning("shared_dir", f"stands on {seen.kind}: gone after a reboot", "set shared_dir to one on a disk")
    if seen.ahead_s is not None and abs(seen.ahead_s) > GOOD_SKEW_S:
        says = f"a file written now is stamped {seen.ahead_s:+.0f} s by our clock: its server's clock differs"
        yield warning("shared_dir", says, "synchronise the clocks (chrony) of this host and the file server")


def _room(name: str, seen: Directory, least: int, little: int) -> Iterator[Finding]:
    if seen.free_bytes < least:
        says = f"{seen.path}: {seen.free_bytes >> 20:,} MiB left: nothing starts there"
        yield problem(name, says, f"free some, or set {name} to another file system")
        return
    room = f"{seen.free_bytes / (1 << 30):,.1f} GiB left"
    if seen.free_bytes < little:
        yield warning(name, f"{seen.path}: {room}", f"free some, or set {name} to another file system")
        return
    there = "" if seen.there else ", not made yet"
    yield ok(name, f"{seen.path}: {seen.kind}, {room}{there}")


def network(mounted: str) -> Finding:
    """Which of this host's file systems may hold shared files, and never the registry."""
    found = [f"{point} ({kind})" for kind, point in remote_mounts(mounted)]
    if not found:
        return ok("network disks", "none on this host")
    shown = ", ".join(found[:MOST_MOUNTS]) + (f" and {len(found) - MOST_MOUNTS} more" if found[MOST_MOUNTS:] else "")
    return ok("network disks", f"may hold shared_dir, never state_dir: {shown}")


def judge_interpreters(site: Site, mounted: str, spread: bool) -> list[Finding]:
    """What jobs start must be where they run. A program's folder is judged: the file itself may link to /usr/bin."""
    pythons = {"control": OWN_PYTHON}  # the supervisor in each job runs on it
    for name, environment in (("training", site.environments.training), ("engine", site.environments.engine)):
        if environment is not None and environment.kind == "venv":
            pythons[name] = Path(shutil.which(environment.python) or environment.python)
    findings = []
    for name, python in pythons.items():
        kind, point = file_system(python.parent, mounted)
        if spread and not remote(kind):
            says = f"{python} stands on {kind} of this host (mounted at {point}): jobs on other nodes may not find it"
            remedy = "install it on the parallel file system, or at the same path on every node"
            findings.append(warning(f"{name} Python", says, remedy))
    return findings or [ok("control Python", f"{OWN_PYTHON}: the supervisor in each job runs on it")]
