"""A platform of its own for a test: a site file over a fresh state, driven through the `headgate` command."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Platform:
    """`headgate` on a site of its own. `root` is short, because a Unix socket's path must be."""

    root: Path
    site_file: Path
    port: int
    settings: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def argv(self) -> list[str]:
        ours = (f"state_dir={self.root}/state", f"shared_dir={self.root}/shared", f"gateway.port={self.port}")
        flags = [word for setting in (*ours, *self.settings) for word in ("--set", setting)]
        return [sys.executable, "-m", "cli.main", "--site", str(self.site_file), *flags]

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.argv, *words], cwd=ROOT, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, *words: str, timeout: float = 570) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.argv, *words], cwd=ROOT, env=self.env, text=True, capture_output=True, timeout=timeout, check=False
        )

    def ok(self, *words: str, timeout: float = 570) -> str:
        """What a command printed; it must succeed."""
        done = self.run(*words, timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "--json"))

    def report(self, *words: str) -> Any:
        return json.loads(self.ok("report", *words, "--format", "json"))

    def service(self, name: str) -> psutil.Process:
        """As it noted itself: for a moment a child that it has just forked has its command line, too."""
        noted = json.loads((self.root / "state" / "services" / f"{name}.json").read_text())
        return psutil.Process(int(noted["pid"]))

    def processes(self) -> list[str]:
        """The command lines of every process of this platform that is still alive."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or ())
            if f"{self.root}/" in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(line)
        return found


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def platform(site: str, *settings: str, env: dict[str, str] | None = None) -> Iterator[Platform]:
    """A platform on one of the site files that come along; stopped, and its files removed, whatever the test did."""
    root = Path(tempfile.mkdtemp(prefix="headgate-"))
    environment = {k: v for k, v in (env or dict(os.environ)).items() if k != "PYTHONDONTWRITEBYTECODE"}
    made = Platform(root, ROOT / "site-configs" / site, free_port(), settings, environment)
    try:
        yield made
    finally:
        made.run("down", "--stop-deployments", timeout=120)
        shutil.rmtree(root, ignore_errors=True)
