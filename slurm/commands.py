"""The Slurm client over squeue, sacct, sinfo, scontrol, sacctmgr, sshare, scancel and sbatch."""

from __future__ import annotations

import itertools
import math
import os
import pwd
import re
import secrets
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from slurm import assoc_mgr, parse, scontrol, tables, versions
from slurm.errors import SlurmError, SlurmUnavailable
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
from slurm.process import Completed, Runner, clean_environment, run_process

TIMEOUT_S = 30.0
T = TypeVar("T")
IDS_PER_CALL = 1000  # one argument may hold 128 KiB

# Words of a command that could not reach its daemon, as opposed to a daemon that said no.
_NO_ANSWER = re.compile(
    r"Unable to contact|timed out|Connection refused|Zero Bytes were transmitted|Communication connection failure"
    r"|configuration (file|source)|Problem talking to the database|Unable to connect to database",
    re.IGNORECASE,
)
# Words of a daemon that understood the question and will not answer it, however often it is asked.
_REFUSED = re.compile(r"Access/permission denied|Invalid user id|Too wide of a date range", re.IGNORECASE)
_NO_ACCOUNTING = (
    r"accounting storage is disabled|only supported with slurmdbd|not running a supported accounting_storage"
)


class CommandClient:
    """A SlurmClient. `environment` defaults to the process's own at each call; `timeout_s` bounds each command."""

    def __init__(
        self,
        run: Runner = run_process,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
        separator: str | None = None,
    ) -> None:
        self._runner = run
        self._environment = environment
        self._timeout_s = timeout_s
        # Between two fields. Drawn by lot: whatever stands in a job's name, it is not this.
        self._separator = "\x1f" + secrets.token_urlsafe(3) if separator is None else separator

    # The cluster.

    def config(self) -> ClusterConfig:
        return _understood("scontrol", scontrol.config, self._ask("scontrol", "show", "config"))

    def accounting_config(self) -> AccountingConfig | None:
        # Of slurmdbd alone: the books can be read while slurmctld is down.
        text = self._ask("sacctmgr", "show", "config", nothing=_NO_ACCOUNTING)
        if "accounting_storage/slurmdbd" not in text:
            return None
        if "SlurmDBD configuration" not in text:  # it exits with 0 all the same
            raise SlurmUnavailable("slurmdbd did not answer: sacctmgr show config has only Slurm's own configuration")
        return _understood("sacctmgr", scontrol.accounting_config, text)

    def privileged(self) -> bool:
        uid, user = os.getuid(), _our_name()
        if uid == 0:
            return True
        if user is None:
            return False  # Slurm knows its administrators by name
        text = self._assoc_mgr(f"users={user}", "flags=users")
        level = assoc_mgr.admin_levels(text).get(user, "None")
        return level in ("Operator", "Administrator") or self.config().settings["SlurmUser"] == f"{user}({uid})"

    def coordinated(self) -> frozenset[str]:
        if (user := _our_name()) is None:
            return frozenset()
        argv = ["sacctmgr", "-n", "-P", "show", "user", user, "withcoord", "format=coordinators"]
        return parse.flags(self._ask(*argv, nothing=_NO_ACCOUNTING).strip())

    def nodes(self) -> list[Node]:
        text = self._ask("sinfo", "-h", "-a", "-N", "-O", self._format(tables.SINFO))
        return _understood("sinfo", tables.nodes, text, self._separator)

    def partitions(self) -> list[Partition]:
        return _understood("scontrol", scontrol.partitions, self._ask("scontrol", "-a", "-o", "show", "partition"))

    def reservations(self) -> list[Reservation]:
        return _understood("scontrol", scontrol.reservations, self._ask("scontrol", "-o", "show", "reservation"))

    def associations(self) -> list[Association]:
        columns = ",".join(column for _, column, _ in tables.SSHARE)
        argv = ["sshare", "-n", "-P", "-a", "-o", columns]
        text = self._ask(*argv, nothing=_NO_ACCOUNTING)
        shares = _understood("sshare", tables.fair_shares, text, "|")
        return _understood("scontrol", assoc_mgr.associations, self._assoc_mgr("flags=assoc"), shares)

    def qos(self) -> list[QOS]:
        argv = [
            "sacctmgr",
            "-n",
            "-P",
            "show",
            "qos",
            f"format={','.join(column for _, column, _ in tables.QOS_TABLE)}",
        ]
        rows = self._ask(*argv, nothing=_NO_ACCOUNTING)
        limits = _understood("scontrol", assoc_mgr.qos_limits, self._assoc_mgr("flags=users,qos"))
        return _understood("sacctmgr", tables.qos, rows, "|", limits)

    def _assoc_mgr(self, *selection: str) -> str:
        return self._ask("scontrol", "-o", "show", "assoc_mgr", *selection, nothing=versions.UNKNOWN_TO_SLURM)

    # Jobs in the queue.

    def jobs(self, ids: Iterable[str] | None = None, *, user: str | None = None) -> list[Job]:
        whose = [] if user is None else ["-u", user]
        if ids is None:
            return self._squeue(*whose)
        return [job for some in _chunks(ids) for job in self._squeue(*whose, "-j", ",".join(some))]

    def _squeue(self, *selection: str) -> list[Job]:
        argv = ["squeue", "-h", "-a", "-t", "all", *selection, "-O", self._format(tables.SQUEUE)]
        # Asked for one job alone, squeue fails when it does not know it; among several it leaves it out.
        text = self._ask(*argv, nothing="Invalid job id specified")
        return _understood("squeue", tables.jobs, text, self._separator)

    def _format(self, columns: tables.Columns) -> str:
        """-O's own syntax: no width after the colon, so nothing is cut or padded, then what follows each field."""
        return ",".join(f"{column}:{self._separator}" for _, column, _ in columns)

    # Jobs in the books.

    def accounting(self, ids: Iterable[str]) -> list[JobUsage]:
        # With -j the window starts at the epoch.
        return _oldest_first(a for some in _chunks(ids) for a in self._sacct("-j", ",".join(some)))

    def accounting_between(
        self, start: datetime, end: datetime, *, user: str | None = None, account: str | None = None
    ) -> list[JobUsage]:
        # Seconds since the epoch, because what else sacct takes is local time.
        selection = ["-S", f"uts{math.floor(start.timestamp())}", "-E", f"uts{math.ceil(end.timestamp())}"]
        selection += ["-a"] if user is None else ["-u", user]
        selection += [] if account is None else ["-A", account]
        return _oldest_first(self._sacct(*selection))

    def steps(self, ids: Iterable[str]) -> list[JobStep]:
        found = []
        for some in _chunks(ids):
            text = self._ask(*self._sacct_words(tables.SACCT_STEPS), "-j", ",".join(some), nothing=_NO_ACCOUNTING)
            found += _understood("sacct", tables.steps, text, self._separator)
        return found

    def _sacct(self, *selection: str) -> list[JobUsage]:
        text = self._ask(*self._sacct_words(tables.SACCT), "-X", *selection, nothing=_NO_ACCOUNTING)
        # A step's start can reach the books before its job's: for a moment the record says PENDING, or already
        # CANCELLED, with one of the nodes and no partition. That is no record yet.
        return [a for a in _understood("sacct", tables.accounting, text, self._separator) if a.partition]

    def _sacct_words(self, columns: tables.Columns) -> list[str]:
        form = ",".join(column for _, column, _ in columns)
        return ["sacct", "-n", "-P", "-D", "--noconvert", f"--delimiter={self._separator}", "-o", form]

    # What changes something.

    def submit(self, script: Path, comment: str, *, dependency: str | None = None) -> str:
        # The comment goes on the command line although the script has it too: without job_comment in the cluster's
        # AccountingStoreFlags, sacct forgets comments, but it keeps the submit line.
        after = [] if dependency is None else [f"--dependency={dependency}"]
        done = self._do("sbatch", "--parsable", f"--comment={comment}", *after, str(script))
        return done.stdout.strip().split(";")[0]  # "id" or "id;cluster"

    def cancel(self, job_id: str) -> None:
        self._do("scancel", job_id, harmless=r"already completing|Invalid job id")

    def signal(self, job_id: str, name: str) -> None:
        self._do("scancel", f"--signal={name}", job_id, harmless=r"already completing|Invalid job id")

    def hold(self, job_id: str) -> None:
        self._do("scontrol", "hold", job_id)

    def release(self, job_id: str) -> None:
        self._do("scontrol", "release", job_id)

    def requeue(self, job_id: str) -> None:
        self._do("scontrol", "requeue", job_id)

    def update(
        self,
        job_id: str,
        *,
        time_limit_s: int | None = None,
        comment: str | None = None,
        starts_in_s: int | None = None,
    ) -> None:
        changes = [] if time_limit_s is None else [f"TimeLimit={math.ceil(time_limit_s / 60)}"]
        changes += [] if comment is None else [f"Comment={comment}"]
        changes += [] if starts_in_s is None else [f"StartTime=now+{starts_in_s}"]
        if changes:
            self._do("scontrol", "update", f"JobId={job_id}", *changes)

    # How commands are run.

    def _do(self, *argv: str, harmless: str | None = None) -> Completed:
        """Run a command that changes something. Raises SlurmError when it fails, unless its words are harmless."""
        done = self._run(argv, {})
        if done.returncode != 0 and not (harmless and re.search(harmless, done.stderr)):
            words = _words(argv[0], done)
            raise SlurmUnavailable(words) if _NO_ANSWER.search(words) else SlurmError(words)
        return done

    def _ask(self, *argv: str, nothing: str | None = None) -> str:
        """What a command that only reads printed. Times come as seconds since the epoch, so no zone is guessed.

        A command that failed with words like `nothing` says that there is nothing. Any other failure is no answer, but
        for the few that say no.
        """
        done = self._run(argv, {"SLURM_TIME_FORMAT": "%s"})
        if done.returncode == 0:
            return done.stdout
        if nothing is not None and re.search(nothing, done.stderr):
            return ""
        words = _words(argv[0], done)
        raise SlurmError(words) if _REFUSED.search(words) else SlurmUnavailable(words)

    def _run(self, argv: Sequence[str], settings: Mapping[str, str]) -> Completed:
        base = os.environ if self._environment is None else self._environment
        try:
            return self._runner(argv, {**clean_environment(base), **settings}, self._timeout_s)
        except TimeoutError as e:
            raise SlurmUnavailable(f"{shlex.join(argv[:1])} did not answer within {self._timeout_s:g} s") from e
        except OSError as e:
            raise SlurmUnavailable(f"{argv[0]} cannot be run: {e.strerror}") from e


def _our_name() -> str | None:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return None


def _words(program: str, done: Completed) -> str:
    return done.stderr.strip() or f"{program} exited with status {done.returncode} and said nothing"


def _understood(program: str, parser: Callable[..., T], text: str, *also: object) -> T:
    """Text that cannot be read is no answer: half of it must not pass for the whole."""
    try:
        return parser(text, *also)
    except KeyError as e:
        raise SlurmUnavailable(f"{program} printed what cannot be read here: it says nothing of {e}") from e
    except ValueError as e:
        raise SlurmUnavailable(f"{program} printed what cannot be read here: {e}") from e


def _oldest_first(attempts: Iterable[JobUsage]) -> list[JobUsage]:
    return sorted(attempts, key=lambda a: a.submitted_at)


def _chunks(ids: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """No ids, no call: an empty -j would ask for every job."""
    remaining = iter(dict.fromkeys(ids))
    while some := tuple(itertools.islice(remaining, IDS_PER_CALL)):
        yield some
