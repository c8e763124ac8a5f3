"""What Headgate asks of Slurm, whoever answers: Slurm's commands, or pyslurm where it fits the cluster.

Every call blocks, for a bounded time; several threads may ask at once. A question that got no answer, half of one, or
one that cannot be read raises SlurmUnavailable: nothing may be concluded from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Protocol

from slurm.model import (
    QOS,
    AccountingConfig,
    Association,
    ClusterConfig,
    Job,
    JobStep,
    JobUsage,
    Node,
    Partition,
    Reservation,
)


class SlurmClient(Protocol):
    # The cluster.

    def config(self) -> ClusterConfig:
        """slurmctld's configuration, as it runs."""

    def accounting_config(self) -> AccountingConfig | None:
        """slurmdbd's; None for a cluster without one."""

    def privileged(self) -> bool:
        """Whether PrivateData hides nothing from us: root, SlurmUser, or an operator or administrator of Slurm's."""

    def coordinated(self) -> frozenset[str]:
        """The accounts whose jobs we see in the books in spite of PrivateData: we coordinate them, or one above."""

    def nodes(self) -> list[Node]: ...

    def partitions(self) -> list[Partition]: ...

    def reservations(self) -> list[Reservation]: ...

    def associations(self) -> list[Association]:
        """With limits and live use, as slurmctld enforces them; nothing on a cluster without accounting."""

    def qos(self) -> list[QOS]:
        """With limits and live use; nothing on a cluster without accounting."""

    # Jobs in the queue.

    def jobs(self, ids: Iterable[str] | None = None, *, user: str | None = None) -> list[Job]:
        """All, these, or one user's (a name or a uid), as far as slurmctld still remembers them.

        That is: active, or ended less than MinJobAge ago. Ids that it does not know are left out.
        """

    # Jobs in the books, which run behind the queue by seconds.

    def accounting(self, ids: Iterable[str]) -> list[JobUsage]:
        """Every attempt ever recorded under these ids, oldest first; job ids are recycled."""

    def accounting_between(
        self, start: datetime, end: datetime, *, user: str | None = None, account: str | None = None
    ) -> list[JobUsage]:
        """Every attempt that existed between two instants, oldest first, whole: `slurm.accounting` clips them."""

    def steps(self, ids: Iterable[str]) -> list[JobStep]:
        """The steps of these jobs, of every attempt."""

    # What changes something. Raises SlurmError with Slurm's own words when it refuses.

    def submit(self, script: Path, comment: str, *, dependency: str | None = None) -> str:
        """Submit a batch script as our uid, from the current directory; the job id. `dependency`: "afterany:12"."""

    def cancel(self, job_id: str) -> None:
        """SIGTERM to every task, SIGKILL after KillWait. A job that has ended is not an error."""

    def signal(self, job_id: str, name: str) -> None:
        """One signal ("TERM", "USR1") to every task of the job's steps, once; the batch script is left alone.

        A job that has ended is not an error.
        """

    def hold(self, job_id: str) -> None:
        """Keep a pending job from starting."""

    def release(self, job_id: str) -> None:
        """Let a held job start."""

    def requeue(self, job_id: str) -> None:
        """End this attempt; the job waits again, under the same id and a new submit time."""

    def update(
        self,
        job_id: str,
        *,
        time_limit_s: int | None = None,
        comment: str | None = None,
        starts_in_s: int | None = None,
    ) -> None:
        """Change what is given. Slurm counts time limits in minutes: seconds are rounded up.

        `starts_in_s`: not before so many seconds from now. A requeued job otherwise waits for two minutes.
        """
