"""The throw-away cluster's own command."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CLUSTER, PrivateCluster


def cluster(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CLUSTER / "cluster", *words], text=True, capture_output=True, check=False)


def daemons_of(root: Path) -> list[str]:
    names = ("munged ", "mariadbd ", "slurmdbd ", "slurmctld ", "slurmd ")
    return sorted(command for command in processes_of(root) if command.startswith(names))


def processes_of(root: Path) -> list[str]:
    """The command lines of every live process that was started for the cluster in this directory."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if f"HEADGATE_CLUSTER={root}".encode() in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                found.append(Path(f"/proc/{entry}/cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return found


@pytest.fixture
def short_path() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="headgate-slurm-"))
    yield root
    cluster("stop", "--dir", str(root))
    shutil.rmtree(root)


@pytest.mark.slurm
def test_starting_a_running_cluster_changes_nothing(slurm_cluster: PrivateCluster) -> None:
    before = daemons_of(slurm_cluster.root)
    assert len(before) == 8  # four of them slurmd
    again = cluster("start", "--dir", str(slurm_cluster.root))
    assert (again.returncode, "already running" in again.stderr) == (0, True)
    assert daemons_of(slurm_cluster.root) == before


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("words", "said"), [(("start", "--paper-nodes", "5"), "0 paper nodes; stop it"), (("fill", "1"), "no paper nodes")]
)
def test_a_cluster_that_runs_without_paper_nodes_gets_none_and_no_jobs_for_them(
    slurm_cluster: PrivateCluster, words: tuple[str, ...], said: str
) -> None:
    done = cluster(*words, "--dir", str(slurm_cluster.root))
    assert (done.returncode, said in done.stderr) == (1, True)


@pytest.mark.slurm
def test_env_is_for_a_shells_eval_and_status_says_what_runs(slurm_cluster: PrivateCluster) -> None:
    printed = cluster("env", "--dir", str(slurm_cluster.root)).stdout
    done = subprocess.run(
        ["bash", "-c", f"{printed}\nsinfo -h -N -o %N | sort -u | xargs"], text=True, capture_output=True, check=True
    )
    assert done.stdout.split() == ["c1", "c2", "g1", "g2"]
    assert cluster("status", "--dir", str(slurm_cluster.root)).returncode == 0


@pytest.mark.slurm
def test_a_daemon_that_does_not_start_is_named_with_its_last_words_and_nothing_is_left(
    slurm_cluster: PrivateCluster, short_path: Path
) -> None:
    with socket.socket() as taken:
        for port in range(21000, 31000, 7):  # the second of the ports is slurmdbd's
            try:
                taken.bind(("", port + 1))
                break
            except OSError:
                continue
        taken.listen()
        done = cluster("start", "--dir", str(short_path), "--port", str(port))
    assert done.returncode == 1
    assert "cluster: slurmdbd ended at once" in done.stderr
    assert "Address already in use" in done.stderr
    assert processes_of(short_path) == []


@pytest.mark.slurm
def test_a_directory_too_deep_for_unix_sockets_is_refused_before_anything_starts(
    slurm_cluster: PrivateCluster, tmp_path: Path
) -> None:
    deep = tmp_path / ("x" * 80)
    done = cluster("start", "--dir", str(deep))
    assert (done.returncode, "name another --dir" in done.stderr) == (1, True)
    assert not deep.exists()


def test_status_of_a_cluster_that_was_never_started(tmp_path: Path) -> None:
    done = cluster("status", "--dir", str(tmp_path))
    assert (done.returncode, "not running" in done.stderr) == (1, True)
