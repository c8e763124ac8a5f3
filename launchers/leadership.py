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
NOBODY = ""  # that can be told


class Lease:
    def __init__(self, shared_dir: Path, registry_db: Path) -> None:
        self._path = shared_dir / LEASE
        self._me = f"{socket.gethostname()}:{registry_db}"
        self._held = False

    def other(self) -> str | None:
        """Who leads instead of us, in words; None: we do. Renews what we hold, and takes what nobody has.

        Where there is none, one of those that would have it makes it. One that was taken from somebody is ours from the
        next call on: two may have taken it at a time. While the disk does not say, all stays as it is: nobody else can
        take it either.
        """
        told = json.dumps({"controller": self._me, "pid": os.getpid()}) + "\n"
        try:
            holder, age_s = self._look()
            if holder is None:
                with self._path.open("x", encoding="utf-8") as new:
                    new.write(told)
                self._held = True
                return None
            if holder not in (NOBODY, self._me) and age_s < STALE_S:
                self._held = False
                return (
                    f"the controller of {holder} leads on {self._path.parent}, so this one does nothing; "
                    "each registry needs a shared_dir of its own"
                )
            write_whole(self._path, told)
        except OSError as e:
            words = f"{self._path}: {e.strerror}, so whether another controller leads is not known"
            return None if self._held else words
        taken = not self._held and holder != self._me
        self._held = True
        if not taken:
            return None
        return f"taking over from the controller of {holder or 'nobody'}, which has been silent for {age_s:.0f} s"

    def _look(self) -> tuple[str | None, float]:
        """Whose lease it is (None: there is none), and for how many seconds it has not been renewed."""
        clock = self._path.with_name(f".{LEASE}.now")
        try:
            renewed = os.stat(self._path).st_mtime
            holder = read_object(self._path, MAX_BYTES).get("controller")
        except FileNotFoundError:
            return None, 0.0
        except ValueError:
            return NOBODY, 0.0
        clock.touch()
        return (holder if isinstance(holder, str) else NOBODY), os.stat(clock).st_mtime - renewed
