"""The daemons of a private cluster, to be stopped, frozen and started again by tests of what happens then."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import PrivateCluster
from waiting import wait_for


class Daemon:
    """slurmctld or slurmdbd, as the cluster started it."""

    def __init__(self, cluster: PrivateCluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        pid = self.pid
        assert pid is not None, f"{name} does not run"
        environ = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        self._environ = dict(entry.split("=", 1) for entry in environ if entry)

    @property
    def pid(self) -> int | None:
        return next((pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is(pid)), None)

    def _is(self, pid: int) -> bool:
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return (
                f"HEADGATE_CLUSTER={self.cluster.root}".encode() in environ
                and Path(f"/proc/{pid}/comm").read_text().strip() == self.name
            )
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            return False

    def signal(self, signum: signal.Signals) -> None:
        pid = self.pid
        assert pid is not None, f"{self.name} does not run"
        os.kill(pid, signum)

    def stop(self) -> None:
        self.signal(signal.SIGTERM)
        wait_for(lambda: self.pid is None, 60)

    def start(self) -> None:
        with open(self.cluster.root / "log" / f"{self.name}.again", "ab") as log:
            subprocess.run([self.name], env=self._environ, stdout=log, stderr=log, check=True)

    @contextmanager
    def down(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Its socket takes connections, and nobody answers."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)
