"""An evaluation's tasks, as they were when it was asked for: what it measures is decided then, not in its job."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path


class Changed(RuntimeError):
    """The tasks are not those that were asked for."""


def digest(directory: Path) -> str:
    """sha256 of every file of the tasks, with its name: what the results are results of. Raises OSError."""
    whole = hashlib.sha256()
    for path in _files(directory):
        with open(path, "rb") as f:
            one = hashlib.file_digest(f, "sha256").hexdigest()
        whole.update(f"{path.relative_to(directory).as_posix()}\0{one}\n".encode())
    return whole.hexdigest()


def _files(directory: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The tasks and what they link to; not what git, an editor or Python keeps beside them, which changes by itself."""
    here = directory.resolve()
    if here in above:
        return  # a link that leads back
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from _files(path, (*above, here))
        elif path.is_file():
            yield path


def require_unchanged(directory: Path, sha256: str) -> None:
    """Raises Changed, OSError."""
    if digest(directory) != sha256:
        raise Changed(f"{directory} is not what it was when the evaluation was asked for; ask for it again")
