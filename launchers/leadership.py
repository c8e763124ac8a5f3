"""One controller acts on a shared directory: a lease there, which its holder renews in every turn.

The registry's writer's lock keeps two controllers of one state directory apart. This keeps apart two that have
registries of their own and the same run folders, as after a failover to another host.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from launchers.untrusted import Unbelievable, read_object

log = logging.getLogger(__name__)

NAME = "controller.lease"
STALE_S = 60.0  # without a sign of life; by our own clock, since hosts' clocks differ
MAX_BYTES = 4096


class Lease:
    def __init__(self, shared_dir: Path, registry: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = shared_dir / NAME
        self._who = {"host": socket.gethostname(), "registry": str(registry.resolve())}
        self._monotonic = monotonic
        self._count = 0
        self._seen: tuple[dict[str, object], float] | None = None  # another's last word, and when that was new
        self._held: bool | None = None  # None: nobody knows yet
        self.leader: str | None = None  # who leads, in words, where it is somebody else

    def hold(self) -> bool:
        """Whether this controller may act now. Renews the lease where it may.

        While the directory can be neither read nor written all stays as it was.
        """
        try:
            self._held = self._renew()
        except OSError as e:
            log.warning("%s: the lease cannot be renewed now: %s", self._path, e.strerror)
        return self._held is not False

    def release(self) -> None:
        """Another one need not wait for it to go stale."""
        try:
            if self._held and self._ours(self._read()):
                self._path.unlink()
        except OSError as e:
            log.warning("%s: not released: %s", self._path, e.strerror)

    def _renew(self) -> bool:
        said = self._read()
        if said is not None and not self._ours(said):
            if self._seen is None or self._seen[0] != said:
                self._seen = (said, self._monotonic())
            if self._monotonic() - self._seen[1] < STALE_S:
                if self.leader is None:
                    log.warning("%s leads here, and this controller does nothing", _words(said))
                self.leader = _words(said)
                return False
            log.warning("%s has not renewed its lease for %.0f s: this controller leads", _words(said), STALE_S)
        try:
            self._write(only_if_absent=said is None)
        except FileExistsError:  # somebody else began in the same moment; the next turn tells who
            return False
        self.leader, self._seen = None, None
        return True

    def _ours(self, said: dict[str, object] | None) -> bool:
        return said is not None and {key: said.get(key) for key in self._who} == self._who

    def _read(self) -> dict[str, object] | None:
        try:
            return read_object(self._path, MAX_BYTES)
        except FileNotFoundError:
            return None
        except Unbelievable as e:
            log.warning("%s: not a lease, and replaced: %s", self._path, e)
            self._path.unlink(missing_ok=True)
            return None

    def _write(self, *, only_if_absent: bool) -> None:
        self._count += 1
        temporary = self._path.with_name(f".{NAME}.{self._who['host']}.{os.getpid()}")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**self._who, "pid": os.getpid(), "renewed": self._count}), encoding="utf-8")
        if not only_if_absent:
            os.rename(temporary, self._path)
            return
        try:
            os.link(temporary, self._path)  # of two that begin together, one is refused
        finally:
            temporary.unlink()


def _words(said: dict[str, object]) -> str:
    return f"the controller on {said.get('host')} (process {said.get('pid')}, {said.get('registry')})"
