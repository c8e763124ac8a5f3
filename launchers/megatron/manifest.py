"""A directory is complete when its manifest says so: every file with its size and sha256, written last.

Checkpoints, prepared datasets and converted models all end with one. Standard library only; the control plane reads
manifests that jobs wrote, so they are untrusted: bounded in size, relative paths, no links followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

SCHEMA = 1
NAME = "manifest.json"
MAX_BYTES = 64 * 1024 * 1024
MOST_BYTES = 1 << 53  # of one file: 8 PiB
_BLOCK = 4 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ITERATION = re.compile(r"iter_(\d{7,})")


class CheckpointError(ValueError):
    """Something incomplete or damaged; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class File:
    path: str  # relative to the manifest's directory, with forward slashes
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    kind: str  # checkpoint | dataset | model
    created_at: str  # ISO 8601, UTC
    files: tuple[File, ...]
    facts: dict[str, Any]  # a checkpoint's: iteration, run, parallel layout, ...

    @property
    def bytes(self) -> int:
        return sum(f.size for f in self.files)


def write(directory: Path, kind: str, *, sealed: Iterable[File] = (), **facts: Any) -> Manifest:
    """Make every file in `directory` durable, then say so. Everything must be in place when this is called.

    `sealed`: files whose writers have done that already, with `seal`; they are not read again.
    """
    done = {file.path: file for file in sealed}
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / NAME)
    left = [p for p in paths if p.relative_to(directory).as_posix() not in done]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter's lock
        done |= {file.path: file for file in pool.map(lambda p: seal(directory, p), left)}
    files = tuple(done[path] for path in sorted(done))
    for folder in [p for p in directory.rglob("*") if p.is_dir()]:
        _sync_directory(folder)
    manifest = Manifest(kind, datetime.now(UTC).isoformat(timespec="seconds"), files, facts)
    body = {
        "schema": SCHEMA, "kind": kind, "created_at": manifest.created_at, **facts, "bytes": manifest.bytes,
        "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in files],
    }  # fmt: skip
    temporary = directory / f".{NAME}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as f:
        json.dump(body, f, indent=1)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    os.rename(temporary, directory / NAME)
    _sync_directory(directory)
    return manifest


def read(directory: Path) -> Manifest:
    """The manifest of a directory. Raises CheckpointError when there is none, or none that can be believed."""
    path = directory / NAME
    try:
        with _open_regular(path) as f:
            raw = f.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: not complete, it has no {NAME}") from None
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror}") from e
    if len(raw) > MAX_BYTES:
        raise CheckpointError(f"{path}: more than {MAX_BYTES} bytes")
    try:
        data = json.loads(raw)
        schema, kind, created_at = data.pop("schema"), str(data.pop("kind")), str(data.pop("created_at"))
        listed = [File(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in data.pop("files")]
        data.pop("bytes", None)  # for people; the sizes are what counts
        instant = datetime.fromisoformat(created_at)
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError) as e:
        raise CheckpointError(f"{path}: not a manifest: {type(e).__name__}: {e}") from e
    if schema != SCHEMA:
        raise CheckpointError(f"{path}: schema {schema!r} is not known here; this Headgate reads schema {SCHEMA}")
    if instant.tzinfo is None:
        raise CheckpointError(f"{path}: created_at {created_at!r} says no time zone")
    for f in listed:
        if not _is_inside(f.path) or not _SHA256.fullmatch(f.sha256) or not 0 <= f.size < MOST_BYTES:
            raise CheckpointError(f"{path}: the entry {f.path!r} is not a relative path with a size and a sha256")
    return Manifest(kind, created_at, tuple(listed), data)


def verify(directory: Path, *, hashes: bool = True) -> Manifest:
    """Compare a directory with its manifest: sizes, and contents unless `hashes` is off.

    Raises CheckpointError, naming the first file that is missing, short or damaged.
    """
    manifest = read(directory)
    for f in manifest.files:
        try:
            status = os.lstat(directory / f.path)
        except FileNotFoundError:
            raise CheckpointError(f"{directory / f.path}: missing (the manifest promises {f.size} bytes)") from None
        except OSError as e:
            raise CheckpointError(f"{directory / f.path}: {e.strerror}") from e
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{directory / f.path}: not a regular file")
        if status.st_size != f.size:
            raise CheckpointError(f"{directory / f.path}: {status.st_size} bytes, the manifest promises {f.size}")
    if hashes:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = list(pool.map(lambda f: sha256(directory / f.path), manifest.files))
        for f, digest in zip(manifest.files, found, strict=True):
            if digest != f.sha256:
                raise CheckpointError(
                    f"{directory / f.path}: damaged, its sha256 is {digest[:12]}…, the manifest says {f.sha256[:12]}…"
                )
    return manifest


def name_of(iteration: int) -> str:
    """What the directory of the checkpoint after so many iterations is called."""
    return f"iter_{iteration:07d}"


def directories(checkpoints: Path) -> dict[int, Path]:
    """The checkpoints' directories, complete or not, by iteration."""
    return {int(m[1]): p for p in checkpoints.glob("iter_*") if (m := _ITERATION.fullmatch(p.name))}


def newest_complete(
    checkpoints: Path, *, hashes: bool = True, report: Callable[[CheckpointError], None] = lambda problem: None
) -> Path | None:
    """The newest `iter_*` directory that verifies, or None. What is passed over is reported, newest first."""
    for _iteration, path in sorted(directories(checkpoints).items(), reverse=True):
        try:
            verify(path, hashes=hashes)
        except CheckpointError as problem:
            report(problem)
        else:
            return path
    return None


def sha256(path: Path) -> str:
    """The digest of a regular file, not followed through a link. Raises CheckpointError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with _open_regular(path) as f:
            while block := f.read(_BLOCK):
                digest.update(block)
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror}") from e
    return digest.hexdigest()


def seal(directory: Path, path: Path) -> File:
    """Make one file of a directory durable, and say what it is. Raises CheckpointError when it cannot be read."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return File(path.relative_to(directory).as_posix(), path.stat().st_size, sha256(path))


def _is_inside(path: str) -> bool:
    """Whether it names a file below the manifest's directory, as a file system can name one."""
    pure = PurePosixPath(path)
    named = "\0" not in path and not any("\ud800" <= c <= "\udfff" for c in path)  # half a surrogate pair: no text
    return bool(path) and named and not pure.is_absolute() and ".." not in pure.parts


def _open_regular(path: Path) -> Any:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError(f"{path}: not a regular file")
    return os.fdopen(fd, "rb")


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
