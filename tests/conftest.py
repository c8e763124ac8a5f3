"""Fixtures that more than one test file needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from megatron_fixtures import bench, trained  # noqa: F401 - here, so that all files share what was trained

if TYPE_CHECKING:
    from engine import Engine

    from registry.db import Database

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = Path(__file__).with_name("cluster")


@dataclass(frozen=True)
class PrivateCluster:
    """A running throw-away Slurm. `env`: a whole environment in which Slurm's commands speak to it."""

    root: Path
    env: dict[str, str]

    def run(self, *argv: str) -> str:
        """What a Slurm command printed."""
        return subprocess.run(argv, env=self.env, text=True, check=True, capture_output=True).stdout


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the cluster carries the marker, so that `-m "not slurm"` leaves just that out."""
    for item in items:
        if "slurm_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("slurm")


@contextmanager
def private_cluster(*options: str) -> Iterator[PrivateCluster]:
    """`cluster start` with these options; stopped at the end. Skips where Slurm is missing and may not be installed."""
    installed = subprocess.run([CLUSTER / "install"], text=True, check=False, capture_output=True)
    if installed.returncode == 3:
        pytest.skip(f"no private Slurm: {installed.stderr.strip()}")
    assert installed.returncode == 0, installed.stderr
    # Not pytest's own temporary directory: its path is long, and Unix sockets' are not.
    root = Path(tempfile.mkdtemp(prefix="headgate-slurm-"))
    command = [str(CLUSTER / "cluster"), "--dir", str(root)]
    try:
        started = subprocess.run([*command, "start", *options], text=True, check=False, capture_output=True)
        assert started.returncode == 0, started.stderr
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        yield PrivateCluster(root, {**outside, "SLURM_CONF": str(root / "etc" / "slurm.conf")})
    finally:
        stopped = subprocess.run([*command, "stop"], text=True, check=False, capture_output=True)
        shutil.rmtree(root, ignore_errors=True)
        assert stopped.returncode == 0, stopped.stderr


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[PrivateCluster]:
    """Started once per session, stopped at its end."""
    with private_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def training_python() -> str:
    """The training environment's interpreter: torch and megatron-core live there, not where the tests run."""
    python = Path(os.environ.get("HEADGATE_TRAINING_PYTHON", ROOT / ".venvs" / "training" / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"no training environment at {python}")
    return str(python)


@pytest.fixture(scope="session")
def vllm(training_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A real vLLM for all tests that ask for it: what it counts is not theirs alone."""
    from vllm_fixtures import tiny_engine  # not above: where only slurm/ is tested there is no aiohttp

    with tiny_engine(training_python, tmp_path_factory.mktemp("vllm")) as running:
        yield running


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Database]:
    """An empty registry.db, opened as its writer."""
    from registry.db import open_writer  # here: where only slurm/ is tested, there is no sqlite-utils
    from registry.migrations import MIGRATIONS

    db = open_writer(tmp_path / "registry.db", MIGRATIONS)
    yield db
    db.close()
