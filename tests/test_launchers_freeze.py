from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from launchers import freeze
from launchers.freeze import Code, Git, allowed_environment, names_only


def git(repository: Path, *words: str) -> str:
    argv = ["git", "-c", "user.name=ada", "-c", "user.email=ada@example.org", *words]
    return subprocess.run(argv, cwd=repository, text=True, check=True, capture_output=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With one commit on a branch, a subdirectory, a change that is not committed and a file that git does not know."""
    root = tmp_path / "repository"
    (root / "sub").mkdir(parents=True)
    git(tmp_path, "init", "-q", "-b", "topic", str(root))
    (root / "train.py").write_text("rate = 1\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    (root / "train.py").write_text("rate = 2\n")
    (root / "new é.py").touch()
    return root


def test_commit_branch_changes_and_unknown_files_are_told(repository: Path, tmp_path: Path) -> None:
    with Git(repository / "sub") as asked:
        code = asked.code()
    assert (code.repository, code.commit, code.branch) == (
        str(repository),
        git(repository, "rev-parse", "HEAD"),
        "topic",
    )
    assert b"-rate = 1\n+rate = 2\n" in code.diff
    assert (code.diff_whole, code.untracked, code.problem) == (True, ("new é.py",), None)
    code.save(tmp_path / "code")
    facts = json.loads((tmp_path / "code" / "git.json").read_text())
    assert (facts["commit"], facts["changed"], facts["untracked"]) == (code.commit, True, ["new é.py"])
    assert (tmp_path / "code" / "changes.diff").read_bytes() == code.diff


def test_without_a_repository_nothing_is_told(tmp_path: Path) -> None:
    with Git(tmp_path) as asked:
        assert asked.code() == Code()


def test_without_a_branch_the_commit_is_told(repository: Path) -> None:
    git(repository, "checkout", "-q", "--detach")
    with Git(repository) as asked:
        code = asked.code()
    assert code.commit and code.branch is None


def test_a_large_change_is_cut_and_says_so(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze, "MAX_DIFF_BYTES", 1000)
    (repository / "train.py").write_text("x = 1\n" * 100_000)  # more than a pipe holds
    with Git(repository) as asked:
        code = asked.code()
    assert (len(code.diff), code.diff_whole) == (1000, False)


def test_a_git_that_takes_too_long_is_not_waited_for(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent), prepend=":")
    with Git(repository, patience_s=0.1) as asked:
        code = asked.code()
    assert code.commit is None and code.problem is not None and "git took more than" in code.problem


def test_the_environment_is_told_as_far_as_it_says_how_a_program_ran() -> None:
    environ = {"PATH": "/bin", "NCCL_DEBUG": "INFO", "SLURM_JOB_ID": "1", "HOME": "/h", "API_KEY": "x"}
    secrets = {"SLURM_JWT": "x", "CONDA_TOKEN": "x", "CUDA_SECRET": "x", "OMP_PASSWORD": "x"}
    assert allowed_environment({**environ, **secrets}) == {"NCCL_DEBUG": "INFO", "PATH": "/bin", "SLURM_JOB_ID": "1"}


@pytest.mark.parametrize(
    ("export", "names"),
    [
        ("ALL,DEBUG=1", "ALL,DEBUG"),
        ("NONE", "NONE"),
        ("A=s3cret", "A"),
        ("ALL,A='x,s3cret,y',B=1", "ALL,A,B"),
        ('A="x,s3cret",B', "A,B"),
        ("A='x,s3cret", "A"),
    ],
)
def test_of_what_is_exported_the_names_are_told_and_no_value(export: str, names: str) -> None:
    assert names_only(export) == names
    assert allowed_environment({"SBATCH_EXPORT": export})["SBATCH_EXPORT"] == names
