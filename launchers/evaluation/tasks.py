"""An evaluation's tasks, as they were when it was asked for: what it measures is decided then, not in its job."""

from __future__ import annotations

import hashlib
from pathlib import Path


class Changed(RuntimeError):
    """The tasks are not those that were asked for."""


def digest(directory: Path) -> str:
    """sha256 of every file of the tasks, with its name: what the results are results of. Raises OSError."""
    whole = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        with open(path, "rb") as f:
            one = hashlib.file_digest(f, "sha256").hexdigest()
        whole.update(f"{path.relative_to(directory).as_posix()}\0{one}\n".encode())
    return whole.hexdigest()


def require_unchanged(directory: Path, sha256: str) -> None:
    """Raises Changed, OSError."""
    if digest(directory) != sha256:
        raise Changed(f"{directory} is not what it was when the evaluation was asked for; ask for it again")
