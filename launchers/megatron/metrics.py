"""What a run says about itself: JSON lines for programs, the same as a sentence for the person reading the log."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Metrics:
    """Appends to `metrics.jsonl` on the one rank that writes; silent on every other."""

    def __init__(self, path: Path, writes: bool) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if writes else None
        if self._fd is not None and not _ends_with_newline(path):
            os.write(self._fd, b"\n")  # an earlier attempt was killed in the middle of a line

    def emit(self, sentence: str, **facts: Any) -> None:
        if self._fd is None:
            return
        line = json.dumps({**facts, "at": round(time.time(), 3)})
        os.write(self._fd, line.encode() + b"\n")  # one write, so a reader never sees two lines mixed
        print(sentence, flush=True)


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as f:
        if f.seek(0, os.SEEK_END) == 0:
            return True
        f.seek(-1, os.SEEK_END)
        return f.read(1) == b"\n"
