"""A munged of a test's own, and a slurm.conf that names it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from waiting import wait_for

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # daemons are not in a user's PATH


@dataclass(frozen=True)
class Munged:
    root: Path
    socket: str
    slurm_conf: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": PATH, "SLURM_CONF": str(self.slurm_conf)}

    def make(self, payload: str, *options: str) -> str:
        """A credential, with munge's own options."""
        argv = ["munge", f"--socket={self.socket}", f"--string={payload}", *options]
        return subprocess.run(argv, env=self.environment, text=True, check=True, capture_output=True).stdout.strip()


@contextmanager
def munged() -> Iterator[Munged]:
    """Running, with a key of its own; ended afterwards. Skips where munge is not installed."""
    program = shutil.which("munged", path=PATH)
    if program is None:
        pytest.skip("no munged: apt-get install munge")
    root = Path(tempfile.mkdtemp(prefix="headgate-munge-"))
    root.chmod(0o755)
    key, socket, conf = root / "key", root / "socket", root / "slurm.conf"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    conf.write_text(f"ClusterName=test\nAuthInfo=socket={socket}\n")
    files = [f"--{name}-file={root / name}" for name in ("log", "pid", "seed")]
    # --force: munged wants every directory above its socket to be root's.
    argv = [program, "--foreground", "--force", f"--socket={socket}", f"--key-file={key}", *files]
    with open(root / "said", "wb") as said:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        wait_for(lambda: socket.exists() or process.poll() is not None)
        assert process.poll() is None, (root / "said").read_text()
        yield Munged(root, str(socket), conf)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(root)
