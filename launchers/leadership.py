"""One controller leads: what runs on a shared directory is one registry's.

On one host the registry's writer's lock keeps a second controller out. Another host's, with a registry of its own on
the same shared directory, is told by a lease there, which the leader renews each turn. All times are the file system's.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from launchers.launch import write_whole
from launchers.untrusted import read_object

LEASE = "controller-lease.json"
STALE_S = 60.0  # without being renewed, a lease is anybody's
MAX_BYTES = 4096


class Lease:
    def __init__(self, shared_dir: Path, registry_db: Path) -> None:
        self._path = shared_dir / LEASE
        self._me = f"{socket.gethostname()}:{registry_db}"
        self._held = False

    def other(self) -> str | None:
        """Who leads instead of us, in words; None: we do. Renews what we hold, and takes what nobody has.

        One that was just taken is ours from the next call on: two may have taken it at a time. While the disk does not
        say, all stays as it is: nobody else can take it either.
        """
        try:
            holder, age_s = self._look()
            if holder not in (None, self._me) and age_s < STALE_S:
                self._held = False
                return (
                    f"the controller of {holder} leads on {self._path.parent}, so this one does nothing; "
                    "each registry needs a shared_dir of its own"
                )
            write_whole(self._path, json.dumps({"controller": self._me, "pid": os.getpid()}) + "\n")
        except OSError as e:
            words = f"{self._path}: {e.strerror}, so whether another controller leads is not known"
            return None if self._held else words
        fresh = holder is None or holder == self._me
        if not self._held and not fresh:
            self._held = True
            return f"taking over from the controller of {holder}, which has been silent for {age_s:.0f} s"
        self._held = True
        return None

    def _look(self) -> tuple[str | None, float]:
        """Whose lease it is, and for how many seconds it has not been renewed."""
        clock = self._path.with_name(f".{LEASE}.now")
        try:
            renewed = os.stat(self._path).st_mtime
            holder = read_object(self._path, MAX_BYTES).get("controller")
        except FileNotFoundError:
            return None, 0.0
        except ValueError:
            return None, 0.0  # nobody's that can be told
        clock.touch()
        return (holder if isinstance(holder, str) else None), os.stat(clock).st_mtime - renewed
