"""The daemons of a private cluster, to be stopped, frozen and started again by tests of what happens then."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM, Signals

from conftest import PrivateCluster
from waiting import wait_for


class Daemon:
    """slurmctld, slurmdbd or a node's slurmd (`Daemon(cluster, "slurmd", "-N", "g1")`), as the cluster started it."""

    def __init__(self, cluster: PrivateCluster, name: str, *words: str) -> None:
        self.cluster, self.name, self.words = cluster, name, words
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
                and set(self.words) <= set(Path(f"/proc/{pid}/cmdline").read_text().split("\0"))
            )
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            return False

    def signal(self, signum: Signals) -> None:
        pid = self.pid
        assert pid is not None, f"{self.name} does not run"
        os.kill(pid, signum)

    def stop(self, how: Signals = SIGTERM) -> None:
        self.signal(how)
        wait_for(lambda: self.pid is None, 60)

    def start(self) -> None:
        with open(self.cluster.root / "log" / f"{self.name}.again", "ab") as log:
            subprocess.run([self.name, *self.words], env=self._environ, stdout=log, stderr=log, check=True)

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
        self.signal(SIGSTOP)
        try:
            yield
        finally:
            self.signal(SIGCONT)
