"""The Slurm client over squeue, sacct, scontrol, scancel and sbatch."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from slurm import parse
from slurm.client import SlurmError, SlurmUnavailable
from slurm.model import Job, JobUsage

TIMEOUT_S = 30.0
T = TypeVar("T")
IDS_PER_CALL = 1000  # one argument may hold 128 KiB

# Words of a command that could not reach its daemon, as opposed to a daemon that said no.
_NO_ANSWER = re.compile(
    r"Unable to contact|timed out|Connection refused|Zero Bytes were transmitted|Communication connection failure"
    r"|configuration (file|source)|Problem talking to the database|Unable to connect to database",
    re.IGNORECASE,
)
# SQUEUE_FORMAT, SACCT_FORMAT, SLURM_TIME_FORMAT, SLURM_CLUSTERS, SBATCH_PARTITION (which beats the script's own
# #SBATCH line), and everything that a job we might be running in was told about itself.
_SETTINGS = ("SLURM_", "SLURMD_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SRUN_", "SALLOC_", "SUBMITIT_")
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})


@dataclass(frozen=True, slots=True)
class Completed:
    returncode: int
    stdout: str
    stderr: str


# argv, environment, time-out in seconds. Raises TimeoutError when it is over, OSError when the program cannot start.
Runner = Callable[[Sequence[str], Mapping[str, str], float], Completed]


def run_process(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
    try:
        done = subprocess.run(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise TimeoutError from e
    return Completed(done.returncode, done.stdout, done.stderr)


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the settings that change what Slurm's commands print or ask for."""
    return {k: v for k, v in environment.items() if k in _KEPT or not k.startswith(_SETTINGS)}


class CommandClient:
    """A SlurmClient. `environment` defaults to the process's own at each call; `timeout_s` bounds each command."""

    def __init__(
        self,
        run: Runner = run_process,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._runner = run
        self._environment = environment
        self._timeout_s = timeout_s

    def cluster(self) -> str:
        text = self._ask("scontrol", "show", "config")
        match = re.search(r"^ClusterName\s*=\s*(\S+)", text, re.MULTILINE)
        if match is None:
            raise SlurmError("scontrol show config names no cluster")
        return match[1]

    def jobs(self, ids: Iterable[str]) -> list[Job]:
        found: list[Job] = []
        for some in _chunks(ids):
            found += self._squeue("-j", ",".join(some))
        return found

    def jobs_with_comment(self, comment: str) -> list[Job]:
        return [j for j in self._squeue("-u", str(os.getuid())) if j.comment == comment]

    def accounting(self, ids: Iterable[str]) -> list[JobUsage]:
        found: list[JobUsage] = []
        for some in _chunks(ids):
            found += self._sacct("-j", ",".join(some))  # with -j the window starts at the epoch
        return sorted(found, key=lambda a: a.submitted_at)

    def accounting_with_comment(self, comment: str, days: int) -> list[JobUsage]:
        """By the comment where the cluster stores it, otherwise by the submit line, which it always does."""
        attempts = self._sacct("-u", str(os.getuid()), "-S", f"now-{days}days")
        option = f" --comment={comment} "
        mine = [a for a in attempts if a.comment == comment or option in f"{a.submit_line} "]
        return sorted(mine, key=lambda a: a.submitted_at)

    def submit(self, script: Path, comment: str) -> str:
        # The comment goes on the command line although the script has it too: without job_comment in the cluster's
        # AccountingStoreFlags, sacct forgets comments, but it keeps the submit line.
        done = self._run(["sbatch", "--parsable", f"--comment={comment}", str(script)], {})
        if done.returncode != 0:
            raise _refused("sbatch", done)
        return done.stdout.strip().split(";")[0]  # "id" or "id;cluster"

    def terminate(self, job_id: str) -> None:
        self._scancel("--signal=TERM", job_id)

    def cancel(self, job_id: str) -> None:
        self._scancel(job_id)

    def _scancel(self, *words: str) -> None:
        done = self._run(["scancel", *words], {})
        if done.returncode != 0 and not re.search(r"already completing|Invalid job id", done.stderr):
            raise _refused("scancel", done)

    def _squeue(self, *selection: str) -> list[Job]:
        form = parse.SEPARATOR.join(column for _, column, _ in parse.SQUEUE)
        # Asked for one job alone, squeue fails when it does not know it; among several it leaves it out.
        text = self._ask("squeue", "-h", "-t", "all", *selection, "-o", form, nothing="Invalid job id specified")
        return _understood("squeue", parse.jobs, text)

    def _sacct(self, *selection: str) -> list[JobUsage]:
        form = ",".join(column for _, column, _ in parse.SACCT)
        argv = ["sacct", "-n", "-P", "-X", "-D", f"--delimiter={parse.SEPARATOR}", *selection, "-o", form]
        text = self._ask(*argv, nothing="accounting storage is disabled")
        # A step's start can reach the books before its job's: for a moment the record says PENDING, or already
        # CANCELLED, with one of the nodes and no partition. That is no record yet.
        return [attempt for attempt in _understood("sacct", parse.accounting, text) if attempt.partition]

    def _ask(self, *argv: str, nothing: str | None = None) -> str:
        """What a command that only reads printed. Times come as seconds since the epoch, so no zone is guessed.

        A command that failed with the words `nothing` says that there is nothing; any other failure is no answer.
        """
        done = self._run(argv, {"SLURM_TIME_FORMAT": "%s"})
        if done.returncode == 0:
            return done.stdout
        if nothing is not None and nothing in done.stderr:
            return ""
        raise SlurmUnavailable(_words(argv[0], done))

    def _run(self, argv: Sequence[str], settings: Mapping[str, str]) -> Completed:
        base = os.environ if self._environment is None else self._environment
        try:
            return self._runner(argv, {**clean_environment(base), **settings}, self._timeout_s)
        except TimeoutError as e:
            raise SlurmUnavailable(f"{shlex.join(argv[:1])} did not answer within {self._timeout_s:g} s") from e
        except OSError as e:
            raise SlurmUnavailable(f"{argv[0]} cannot be run: {e.strerror}") from e


def _refused(program: str, done: Completed) -> SlurmError:
    words = _words(program, done)
    return SlurmUnavailable(words) if _NO_ANSWER.search(words) else SlurmError(words)


def _words(program: str, done: Completed) -> str:
    return done.stderr.strip() or f"{program} exited with status {done.returncode} and said nothing"


def _understood(program: str, parser: Callable[[str], T], text: str) -> T:
    """Text that cannot be read is no answer: half of it must not pass for the whole."""
    try:
        return parser(text)
    except ValueError as e:
        raise SlurmUnavailable(f"{program} printed what cannot be read here: {e}") from e


def _chunks(ids: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """No ids, no call: an empty -j would ask for every job."""
    remaining = iter(dict.fromkeys(ids))
    while some := tuple(itertools.islice(remaining, IDS_PER_CALL)):
        yield some
