"""What this program asks of Slurm, whoever answers: the commands today, pyslurm where it fits the cluster.

SlurmError              Slurm refused; the message is what it said
  SlurmUnavailable      Slurm did not answer, or not in time: nothing is known, and nothing may be concluded
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from slurm.model import Job, JobUsage


class SlurmError(RuntimeError):
    """Slurm refused a request. The message is what it said."""


class SlurmUnavailable(SlurmError):
    """Slurm did not answer. For `submit` that means that the job may exist: look for it by its comment."""


class SlurmClient(Protocol):
    def cluster(self) -> str:
        """The cluster's name."""

    def jobs(self, ids: Iterable[str]) -> list[Job]:
        """Those of these jobs that the controller still remembers: active, or ended less than MinJobAge ago."""

    def jobs_with_comment(self, comment: str) -> list[Job]:
        """Our own uid's jobs with exactly this comment that the controller still remembers."""

    def accounting(self, ids: Iterable[str]) -> list[JobUsage]:
        """Every attempt ever recorded under these ids, oldest first; job ids are recycled. Runs behind by seconds."""

    def accounting_with_comment(self, comment: str, days: int) -> list[JobUsage]:
        """Our own uid's attempts of the last days that were submitted with exactly this comment, oldest first."""

    def submit(self, script: Path, comment: str) -> str:
        """Submit a batch script as our uid, from the current directory; the job id."""

    def terminate(self, job_id: str) -> None:
        """SIGTERM to every task of the job's steps, once, and nothing more; the batch script is left alone."""

    def cancel(self, job_id: str) -> None:
        """scancel: SIGTERM to every task, SIGKILL after KillWait. A job that has ended is not an error."""


def connect(environment: Mapping[str, str] | None = None, timeout_s: float = 30.0) -> SlurmClient:
    """A client for the cluster that this environment (default: the process's own) points at. Asks nothing yet."""
    from slurm.commands import CommandClient  # here, because the back ends import this module

    return CommandClient(environment=environment, timeout_s=timeout_s)
