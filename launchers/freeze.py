"""What surrounded a submission: the repository that its code stands in, and the environment as far as it may be told.

git is started before the job is submitted and read after it, so that nobody waits for it on top of Slurm.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

PATIENCE_S = 2.0  # for git, from its start: a repository may be large, and its disk far away
MAX_DIFF_BYTES = 4 << 20
MAX_UNTRACKED_BYTES = 64 << 10

_ALLOWED = re.compile(
    r"(SLURM|SBATCH|CONDA|CUDA|NCCL|OMP)_.*|PATH|LD_LIBRARY_PATH|PYTHONPATH|VIRTUAL_ENV|LOADEDMODULES|_LMFILES_"
    r"|HOSTNAME|LANG|SHELL"
)
_EXPORTED = re.compile(r"""(?:[^,"']|"[^"]*(?:"|$)|'[^']*(?:'|$))+""")  # a value in quotes may hold commas
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|KEY|JWT|CREDENTIAL", re.IGNORECASE)


def allowed_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of an environment says how a program ran, and nothing that could be a secret."""
    told = {k: v for k, v in sorted(environ.items()) if _ALLOWED.fullmatch(k) and not _SECRET.search(k)}
    return told | {k: names_only(told[k]) for k in ("SBATCH_EXPORT", "SLURM_EXPORT_ENV") if k in told}


def names_only(export: str) -> str:
    """What --export takes, without the values that it gives."""
    return ",".join(word.partition("=")[0] for word in _EXPORTED.findall(export))


def note_environment(path: Path, environ: Mapping[str, str]) -> None:
    path.write_text(json.dumps(allowed_environment(environ), indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Code:
    """Where a file's code came from. `diff` is what `git diff HEAD` printed."""

    repository: str | None = None  # None: it stands in none, or `problem` says why nothing is known
    commit: str | None = None
    branch: str | None = None  # None: no branch was checked out
    diff: bytes = b""
    diff_whole: bool = True  # False: it was cut at MAX_DIFF_BYTES
    untracked: tuple[str, ...] = ()
    problem: str | None = None

    def save(self, folder: Path) -> None:
        """git.json and, where something was changed, changes.diff. Makes the folder."""
        folder.mkdir(mode=0o700, exist_ok=True)  # whoever can read the repository is not everybody
        if self.diff:
            (folder / "changes.diff").write_bytes(self.diff)
        facts = {
            "repository": self.repository,
            "commit": self.commit,
            "branch": self.branch,
            "changed": bool(self.diff),
            "diff_whole": self.diff_whole,
            "untracked": list(self.untracked),
            "problem": self.problem,
        }
        (folder / "git.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


class Git:
    """Asks git about the repository that a directory stands in. Starts at once; `code` waits, PATIENCE_S at most."""

    def __init__(self, directory: Path, patience_s: float = PATIENCE_S) -> None:
        self._patience_s, self._deadline = patience_s, time.monotonic() + patience_s
        self._directory = directory
        self._head = self._ask("rev-parse", "--show-toplevel", "HEAD", "--symbolic-full-name", "HEAD")
        self._diff = self._ask("diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
        self._untracked = self._ask("ls-files", "--others", "--exclude-standard", "--full-name", "-z", ":/")

    def __enter__(self) -> Git:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        for process in (self._head, self._diff, self._untracked):
            if process is not None:
                process.kill()
                process.communicate()

    def _ask(self, *words: str) -> subprocess.Popen[bytes] | None:
        # Nothing that the repository's own configuration could make it run, and no lock that a person might meet.
        argv = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotepath=false", *words]
        try:
            return subprocess.Popen(
                argv,
                cwd=self._directory,
                env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            return None

    def code(self) -> Code:
        """What git said. Never raises for git's sake: what is not known is said in `problem`."""
        try:
            head = self._read(self._head, 1 << 16)[0].decode(errors="replace").splitlines()
            if len(head) < 3:
                return Code()  # no repository, or one without a commit, or no git
            diff, diff_whole = self._read(self._diff, MAX_DIFF_BYTES)
            untracked = self._read(self._untracked, MAX_UNTRACKED_BYTES)[0].rpartition(b"\0")[0]
        except TimeoutError:
            return Code(problem=f"git took more than {self._patience_s:g} s")
        branch = head[2].removeprefix("refs/heads/") if head[2].startswith("refs/heads/") else None
        names = tuple(name.decode(errors="replace") for name in untracked.split(b"\0") if name)
        return Code(head[0], head[1], branch, diff, diff_whole, names)

    def _read(self, process: subprocess.Popen[bytes] | None, most: int) -> tuple[bytes, bool]:
        """(what it prints, at most so many bytes of it; whether that is all). Raises TimeoutError."""
        text = b""
        if process is None:
            return text, True
        assert process.stdout is not None
        while len(text) <= most:
            if not select.select([process.stdout], [], [], max(0.0, self._deadline - time.monotonic()))[0]:
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                break
            text += piece
        return text[:most], len(text) <= most
