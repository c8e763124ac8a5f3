"""Read a file that somebody else may have written: no links followed, no pipe waited for, bounded in size.

Standard library only: jobs import this too.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# What no second look changes. Any other failure to open is the file system's, and passes.
_REFUSALS = (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENOTDIR)


class Unbelievable(ValueError):
    """The file is not what it should be, and will not become so; the message says why, without the file's name."""


@contextmanager
def read_by_service(directory: Path) -> Iterator[None]:
    """Whoever asked for somebody's directory is told what keeps the service from reading it: raises ValueError."""
    try:
        yield
    except OSError as e:
        raise ValueError(f"{directory} cannot be read by the service: {e.strerror}") from e


def open_regular(path: Path, owner_uid: int | None = None) -> BinaryIO:
    """A regular file, opened for reading. Raises Unbelievable, or OSError where a second look may succeed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        if e.errno in _REFUSALS:
            raise Unbelievable(e.strerror) from e
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise Unbelievable("not a regular file")
    if owner_uid is not None and status.st_uid != owner_uid:
        os.close(fd)
        raise Unbelievable(f"owned by uid {status.st_uid}, the run belongs to uid {owner_uid}")
    return open(fd, "rb")


def read_bytes(path: Path, max_bytes: int, owner_uid: int | None = None) -> bytes:
    """What a regular file holds. Raises as `open_regular` does, and Unbelievable for one that is larger."""
    with open_regular(path, owner_uid) as f:
        raw = f.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise Unbelievable(f"more than {max_bytes} bytes")
    return raw


def read_object(path: Path, max_bytes: int, owner_uid: int | None = None) -> dict[str, Any]:
    """The JSON object in a regular file. Raises as `read_bytes` does."""
    raw = read_bytes(path, max_bytes, owner_uid)
    try:
        data = json.loads(raw)
        json.dumps(data, ensure_ascii=False).encode()  # half of a surrogate pair is no text: nothing could store it
    except (ValueError, RecursionError) as e:
        raise Unbelievable(f"not JSON: {e}") from e
    if not isinstance(data, dict):
        raise Unbelievable("not a JSON object")
    return data
