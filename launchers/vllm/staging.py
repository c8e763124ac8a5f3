"""Weights on a node's own disk: copied there once, by whoever comes first, and shared by the replicas of the node.

A copy's name is the digest of what it is a copy of (path, names, sizes, times), so a model that changes is another.
It appears whole or not at all. Whoever uses it holds a shared lock on `NAME.lock`; whoever makes or removes copies
holds `.making` alone, and to remove one, its lock alone. Locks end with their process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launchers.spec import ServeSpec

BLOCK = 16 << 20
LOOK_S = 0.2  # between two looks whether a lock is free, so that a stop request is heard meanwhile
RESERVE = 1 << 30  # bytes that are left to whoever else writes to that disk
MAKING = ".making"
HALF_DONE = ".copy-"
_NAME = re.compile(r"[A-Za-z0-9_-]*-[0-9a-f]{32}")  # what `name_of` makes


class NotStaged(Exception):
    """There is no copy to be had; the message says why. The original serves as well."""


@dataclass(frozen=True, slots=True)
class File:
    name: str  # relative
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Edges:
    """What staging asks of the world outside."""

    log: Callable[[str], None]
    give_up: Callable[[], bool]  # asked now and then while it waits or copies
    free: Callable[[Path], int]  # bytes


def free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def staged(
    spec: ServeSpec,
    log: Callable[[str], None],
    give_up: Callable[[], bool] = lambda: False,
    free: Callable[[Path], int] = free_bytes,
) -> Iterator[str]:
    """The path to load the weights from, which stays while the context is entered.

    The original one where the spec asks for no staging, and where there can be none: `log` is told why.
    """
    if spec.stage_dir is None:
        yield spec.model_path
        return
    with contextlib.ExitStack() as held:
        path = spec.model_path
        try:
            path = str(_hold(Path(path), directory(spec.stage_dir, os.environ), held, Edges(log, give_up, free)))
        except (NotStaged, OSError) as e:
            log(f"the weights are not staged in {spec.stage_dir}, and are read from {path}: {e}")
        yield path


def directory(stage_dir: str, environ: Iterable[str]) -> Path:
    """Where copies are kept on this node: `$NAME`s are the job's own variables. Raises NotStaged."""
    missing = [name for name in re.findall(r"\$\{?(\w+)", stage_dir) if name not in environ]
    if missing:
        raise NotStaged(f"${missing[0]} is not set in this job")
    path = Path(os.path.expandvars(stage_dir))
    if not path.is_absolute():
        raise NotStaged(f"{path} is not an absolute path")
    return path


def files_of(model: Path) -> tuple[File, ...]:
    """Its files, those that links lead to included, but for hidden ones. Raises NotStaged, OSError."""
    found = []
    for root, directories, names in os.walk(model, onerror=_raise):
        directories[:] = sorted(d for d in directories if not d.startswith("."))
        for name in sorted(n for n in names if not n.startswith(".")):
            path = Path(root) / name
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise NotStaged(f"{path} is not a regular file")
            found.append(File(str(path.relative_to(model)), status.st_size, status.st_mtime_ns))
    if not found:
        raise NotStaged(f"there are no files in {model}")
    return tuple(found)


def name_of(model: Path, files: Sequence[File]) -> str:
    """What a copy of these files is called: a word for people, and the digest that it is known by."""
    told = json.dumps([str(model.resolve()), [(f.name, f.size, f.mtime_ns) for f in files]])
    word = re.sub(r"[^A-Za-z0-9_-]", "-", model.name)[:40]
    return f"{word}-{hashlib.sha256(told.encode()).hexdigest()[:32]}"


def _hold(model: Path, stage_dir: Path, held: contextlib.ExitStack, edges: Edges) -> Path:
    """A whole copy that nobody removes while `held` is open."""
    _make_private(stage_dir)
    files = files_of(model)
    copy = stage_dir / name_of(model, files)
    lock = held.enter_context(_lock_file(copy))
    if not _taken(lock, copy, files):
        with _opened(stage_dir / MAKING) as making:
            while not _locked(making):
                if edges.give_up():
                    raise NotStaged("it was told to end while another one copied")
                time.sleep(LOOK_S)
            if not _taken(lock, copy, files):  # nobody made it while we waited
                _clear(copy)
                _make_room(stage_dir, sum(f.size for f in files), edges)
                _make(model, copy, files, edges)
                fcntl.flock(lock, fcntl.LOCK_SH)  # still alone: removing it takes `.making`, too
    os.utime(lock)  # when it was last taken into use: the oldest goes first
    return copy


def _taken(lock: int, copy: Path, files: Iterable[File]) -> bool:
    """Whether the copy is whole; it is then locked for use. Waits only for one that is being removed: a rename."""
    fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        if all((copy / file.name).stat().st_size == file.size for file in files):
            return True
    except (FileNotFoundError, NotADirectoryError):
        pass
    fcntl.flock(lock, fcntl.LOCK_UN)
    return False


def _clear(copy: Path) -> None:
    """Remove what is in the new copy's way: what killed processes left half done, and a damaged copy."""
    for left in copy.parent.glob(f"{HALF_DONE}*"):
        shutil.rmtree(left, ignore_errors=True)
    if copy.exists():
        with _lock_file(copy) as lock:
            if not _locked(lock):
                raise NotStaged(f"{copy} is damaged, and in use")
            doomed = _set_aside(copy)
        shutil.rmtree(doomed)


def _make_room(stage_dir: Path, size: int, edges: Edges) -> None:
    """Remove copies that nobody uses, the least recently used first; none, where that would not be enough."""
    lacking = size + RESERVE - edges.free(stage_dir)
    if lacking <= 0:
        return
    with contextlib.ExitStack() as held:
        unused = []
        for copy in filter(_is_copy, stage_dir.iterdir()):
            lock = held.enter_context(_lock_file(copy))
            if _locked(lock):
                held_size = sum(p.lstat().st_size for p in copy.rglob("*") if p.is_file())
                unused.append((os.fstat(lock).st_mtime_ns, copy, held_size))
        if sum(held_size for _, _, held_size in unused) < lacking:
            raise NotStaged(f"it takes {size} bytes, {lacking} more than can be freed there")
        doomed = []
        for _, copy, held_size in sorted(unused):
            if lacking <= 0:
                break
            doomed.append((copy, _set_aside(copy)))
            lacking -= held_size
    for copy, aside in doomed:
        shutil.rmtree(aside)
        edges.log(f"removed {copy}, which nobody uses, to make room")


def _is_copy(path: Path) -> bool:
    """One of ours: the directory may hold more than copies."""
    return bool(_NAME.fullmatch(path.name)) and path.is_dir() and path.with_name(f"{path.name}.lock").exists()


def _make(model: Path, copy: Path, files: Iterable[File], edges: Edges) -> None:
    began, size = time.monotonic(), 0
    temporary = copy.with_name(f"{HALF_DONE}{copy.name}")
    temporary.mkdir(mode=0o700)
    try:
        for file in files:
            (temporary / file.name).parent.mkdir(parents=True, exist_ok=True)
            size += _copied(model / file.name, temporary / file.name, edges)
        if files_of(model) != tuple(files):
            raise NotStaged("the model changed while it was copied")
        for made in (*(d for d in temporary.rglob("*") if d.is_dir()), temporary):
            _sync(made)
        os.rename(temporary, copy)
        _sync(copy.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    edges.log(f"the weights are staged at {copy}: {size} bytes in {time.monotonic() - began:.1f} s")


def _copied(source: Path, target: Path, edges: Edges) -> int:
    """How many bytes were copied; on disk when this returns."""
    with open(source, "rb") as reader, open(target, "xb") as writer:
        while block := reader.read(BLOCK):
            if edges.give_up():
                raise NotStaged("it was told to end while it copied")
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
        return writer.tell()


def _make_private(stage_dir: Path) -> None:
    """Nobody else may put weights there for us to load. Raises NotStaged."""
    stage_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = stage_dir.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise NotStaged(f"{stage_dir} is not a directory that only uid {os.getuid()} may write")


def _set_aside(copy: Path) -> Path:
    doomed = copy.with_name(f"{HALF_DONE}{copy.name}")
    os.rename(copy, doomed)
    return doomed


def _lock_file(copy: Path) -> contextlib.AbstractContextManager[int]:
    """Never removed: somebody may have opened it, and would hold the lock of a file that is gone."""
    return _opened(copy.with_name(f"{copy.name}.lock"))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Not for children, which would keep its locks."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _locked(lock: int) -> bool:
    """Whether it is ours alone now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _raise(error: OSError) -> None:
    raise error
