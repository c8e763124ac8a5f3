"""Usage of jobs: the arithmetic on data; totals against sreport after a rollup, and PrivateData, on a real Slurm."""

from __future__ import annotations

import itertools
import json
import os
import pwd
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import pytest
from conftest import PrivateCluster, private_cluster
from waiting import wait_for

from slurm import parse
from slurm.accounting import By, Total, Usage, count, kept_since, usage
from slurm.commands import CommandClient
from slurm.model import AccountingConfig, Job, JobState, JobUsage
from slurm.process import Completed

T = TypeVar("T")
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
MiB = 2**20
ALL: tuple[By, ...] = ("cluster", "account", "user", "qos", "partition", "month")


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def attempt(raw_id: int, start: float | None, end: float | None, **fields: Any) -> JobUsage:
    """An attempt submitted a minute before it starts; instants are seconds after noon."""
    submitted = fields.pop("submitted", (0 if start is None else start) - 60)
    allocated = parse.tres(fields.pop("allocated", "billing=8,cpu=4,gres/gpu:h100=2,gres/gpu=2,mem=100M,node=1"))
    record = JobUsage(
        id=str(raw_id), raw_id=raw_id, cluster="c", name="job", user="ada", account="research", partition="gpu",
        qos="normal", state=JobState.COMPLETED, state_text="COMPLETED", exit_code="0:0", comment="", submit_line="",
        submitted_at=at(submitted), started_at=None if start is None else at(start),
        ended_at=None if end is None else at(end), elapsed_s=0, suspended_s=0, nodes=(), allocated=allocated,
    )  # fmt: skip
    return replace(record, **fields)


def counted(*books: JobUsage, start: float = 0, end: float = 3600, now: float = 10**6) -> Usage:
    return count(books, at(start), at(end), at(now))


def cpu_s(used: Usage) -> int:
    return used.total.tres_s.cpus


# -- arithmetic -----------------------------------------------------------------------------------------------------


def test_an_attempt_counts_for_its_time_within_the_window() -> None:
    for start, end, seconds in [(10, 30, 20), (-50, 30, 30), (3500, 4000, 100), (-50, 4000, 3600)]:
        assert cpu_s(counted(attempt(1, start, end))) == 4 * seconds
    for start, end in [(-50, -10), (-50, 0), (3600, 4000), (5, 5)]:
        assert counted(attempt(1, start, end)).attempts == ()


def test_a_running_attempt_counts_up_to_now_and_no_further_than_the_window() -> None:
    running = attempt(1, 100, None, state=JobState.RUNNING)
    assert cpu_s(counted(running, now=150)) == 4 * 50
    assert cpu_s(counted(running, now=9000)) == 4 * 3500
    assert cpu_s(counted(running, now=50)) == 0


def test_an_attempt_that_never_started_used_nothing() -> None:
    assert counted(attempt(1, None, 500, state=JobState.CANCELLED, allocated="")).total == Total()


def test_every_tres_is_counted_and_gpus_once() -> None:
    allocated = "billing=9,cpu=4,energy=77,gres/gpu:a100=1,gres/gpu:h100=2,gres/gpu=4,license/x=3,mem=1.50G,node=2"
    used = counted(attempt(1, 0, 10, allocated=allocated)).total.tres_s
    assert (used.cpus, used.nodes, used.billing, used.gpus) == (40, 20, 90, 40)
    assert used.memory_bytes == 10 * 1536 * MiB
    assert used.gpus_of_each_type == {"a100": 10, "h100": 20, "": 10}
    assert used.others == (("license/x", 30),)  # energy is a sum already, which no window cuts


def test_a_suspended_attempt_gives_back_its_cpus_and_nothing_else() -> None:
    used = counted(attempt(1, 0, 100, suspended_s=30))
    assert (used.total.elapsed_s, used.total.tres_s.cpus, used.total.tres_s.gpus) == (70, 4 * 70, 2 * 100)
    assert used.total.tres_s.billing == 8 * 100
    assert used.estimated == ()


def test_when_an_attempt_across_the_edge_was_suspended_is_estimated_and_adds_up() -> None:
    suspended = attempt(1, -77, 100, suspended_s=31)
    parts = [counted(suspended, start=a, end=b) for a, b in itertools.pairwise([-100, 0, 1, 2, 13, 3600])]
    assert sum(map(cpu_s, parts)) == 4 * (177 - 31)
    assert all(part.estimated == (suspended,) for part in parts)


def test_every_requeued_attempt_counts_and_a_recycled_id_is_another_job() -> None:
    first = attempt(7, 0, 100, state=JobState.REQUEUED, submitted=-60)
    again = attempt(7, 200, 250, submitted=100)
    recycled = attempt(7, 1000, 1007, submitted=900, user="bob", account="teaching")
    used = counted(recycled, first, again)
    assert [a.submitted_at for a in used.attempts] == [at(-60), at(100), at(900)]
    assert {key: total.elapsed_s for key, total in used.totals("user").items()} == {("ada",): 150, ("bob",): 7}


def test_an_attempt_read_twice_counts_once() -> None:
    one = attempt(7, 0, 100)
    assert counted(one, one).total == counted(one).total
    elsewhere = attempt(7, 0, 100, cluster="d")
    assert counted(one, elsewhere).total.attempts == 2


def test_array_tasks_and_the_parts_of_a_heterogeneous_job_count_by_themselves() -> None:
    tasks = [attempt(10 + i, 0, 50, id=f"10_{i}", submitted=-5) for i in range(3)]
    parts = [attempt(20 + i, 0, 50, id=f"20+{i}", submitted=-5) for i in range(2)]
    assert counted(*tasks, *parts).total.elapsed_s == 5 * 50


def test_months_are_those_of_the_given_time_zone_and_an_attempt_over_several_counts_in_the_first() -> None:
    berlin, begin = ZoneInfo("Europe/Berlin"), datetime(2026, 10, 31, 22, 30, tzinfo=UTC)  # 23:30 in Berlin
    record = replace(attempt(1, 0, 0), submitted_at=begin, started_at=begin, ended_at=begin + timedelta(days=31))
    used = count([record], begin - timedelta(days=9), begin + timedelta(days=60), begin + timedelta(days=90))

    def hours(months: dict[tuple[str, ...], Total]) -> dict[str, tuple[int, float]]:
        return {month: (total.attempts, total.elapsed_s / 3600) for (month,), total in months.items()}

    assert hours(used.totals("month")) == {"2026-10": (1, 1.5), "2026-11": (0, 720), "2026-12": (0, 22.5)}
    assert hours(used.totals("month", zone=berlin)) == {"2026-10": (1, 0.5), "2026-11": (0, 720), "2026-12": (0, 23.5)}


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns", "Asia/Kathmandu", "America/Asuncion"])
def test_parts_add_up_to_the_whole_however_it_is_split(zone: str) -> None:
    lot = random.Random(zone)
    books = []
    for raw_id in range(200):
        start, life = lot.randrange(-90 * 86400, 90 * 86400), lot.randrange(40 * 86400)
        books.append(
            attempt(
                raw_id,
                start,
                lot.choice([start + life, start + life, None]),
                suspended_s=lot.choice([0, 0, lot.randrange(life + 1)]),
                account=lot.choice("ab"),
                user=lot.choice("uvw"),
                qos=lot.choice("xy"),
                partition=lot.choice("pq"),
                allocated=f"cpu={lot.randrange(9)},mem=7M,billing=3",
            )
        )
    used = counted(*books, start=-80 * 86400, end=80 * 86400, now=60 * 86400)
    assert len(used.attempts) > 100
    for by in [(), *((one,) for one in ALL), ("account", "month"), ALL]:
        assert sum(used.totals(*by, zone=ZoneInfo(zone)).values(), Total()) == used.total
    halves = [counted(*books, start=a, end=b, now=60 * 86400) for a, b in [(-80 * 86400, 12345), (12345, 80 * 86400)]]
    assert sum(half.total.tres_s.cpus for half in halves) == cpu_s(used)


def test_totals_by_another_word_are_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="cluster, account, user, qos, partition, month, not by week"):
        counted().totals("account", "week")  # type: ignore[arg-type]


@pytest.mark.parametrize("start,end", [(NOON, NOON), (NOON, at(-1)), (NOON.replace(tzinfo=None), at(9))])
def test_a_window_that_is_none_is_refused_before_slurm_is_asked(start: datetime, end: datetime) -> None:
    with pytest.raises(ValueError, match="a window is from one instant"):
        usage(CommandClient(environment={"PATH": "/nonexistent"}), start, end)


# -- what there is not ----------------------------------------------------------------------------------------------


def test_books_that_slurmdbd_purges_are_whole_since_then() -> None:
    def since(after: str) -> str | None:
        kept = kept_since(AccountingConfig("22.05.8", frozenset(), {"PurgeJobAfter": after}), NOON.astimezone())
        return None if kept is None else f"{kept:%Y-%m-%d %H:%M}"

    hour = NOON.astimezone()
    assert since("NONE") is None
    assert since("36 hours") == f"{hour - timedelta(hours=36):%Y-%m-%d %H:%M}"
    assert since("10 days*") == f"{hour - timedelta(days=10):%Y-%m-%d} 00:00"
    assert since("1 months") == "2026-10-01 00:00"
    assert since("12 months*") == "2025-11-01 00:00"


def test_a_cluster_without_slurmdbd_has_no_books_and_no_zero() -> None:
    recorded = json.loads((Path(__file__).parent / "recordings" / "slurm-22.05.json").read_text())["said"]
    config = next(one["stdout"] for one in recorded if one["argv"] == ["scontrol", "show", "config"])
    config = config.replace("accounting_storage/slurmdbd", "accounting_storage/none")

    def run(argv: Sequence[str], *_: object) -> Completed:
        return Completed(0, config, "") if argv[0] == "scontrol" else Completed(1, "", "accounting storage is disabled")

    used = usage(CommandClient(run, environment={}), NOON, at(9))
    assert used.partial == "this cluster keeps no books: it has no slurmdbd"


# -- against sreport ------------------------------------------------------------------------------------------------

TRES = ("cpu", "mem", "node", "billing", "gres/gpu", "gres/gpu:h100")
ROOT = os.getuid() == 0
US = pwd.getpwuid(os.getuid()).pw_name


class Books:
    """Jobs on a cluster of our own, whose books are moved into the past so that slurmdbd rolls them up."""

    def __init__(self, cluster: PrivateCluster) -> None:
        self.cluster, self.client = cluster, CommandClient(environment=cluster.env)

    def submit(self, *options: str) -> str:
        words = self.cluster.run("sbatch", "--parsable", "--output=/dev/null", "--chdir=/", *options)
        return words.strip().partition(";")[0]

    def sleep(self, seconds: int, *options: str) -> str:
        return self.submit(*options, f"--wrap=sleep {seconds}")

    def wait(self, job_id: str, until: Callable[[Job], bool]) -> None:
        wait_for(lambda: (jobs := self.client.jobs([job_id])) and all(map(until, jobs)), every=0.2)

    def settled(self, *running: str) -> bool:
        """Whether the books, which run behind the queue, have all of its jobs, and the end of all but these."""
        queue = {(job.id, job.submitted_at) for job in self.client.jobs()}
        attempts = self.client.accounting(job_id for job_id, _ in queue)
        ended = {(a.id, a.submitted_at) for a in attempts if a.ended_at}
        return {job_id for job_id, _ in queue - ended} == set(running) == {a.id for a in attempts if not a.ended_at}

    def sql(self, query: str) -> None:
        socket = self.cluster.root / "run" / "mysql.sock"
        argv = ["mariadb", "--no-defaults", "-u", "root", "-S", str(socket), "slurm_acct_db", "-e", query]
        subprocess.run(argv, check=True, capture_output=True)

    def move(self, seconds: int) -> None:
        """Every instant in the books, this much earlier; the cluster itself has been there for a day more."""
        times = {
            "job": ("time_submit", "time_eligible", "time_start", "time_end"),
            "step": ("time_start", "time_end"),
            "suspend": ("time_start", "time_end"),
            "event": ("time_start", "time_end"),
        }
        for table, columns in times.items():
            for column in columns:
                by = seconds + 86400 * (table == "event")
                self.sql(f"update `headgate-test_{table}_table` set {column} = {column} - {by} where {column} > 0")

    def sreport(self, *report: str, start: datetime, end: datetime) -> list[list[str]]:
        form = "%Y-%m-%dT%H:%M:%S"  # local time
        window = [f"start={start.astimezone():{form}}", f"end={end.astimezone():{form}}"]
        text = self.cluster.run("sreport", "-n", "-P", "-t", "seconds", *report, *window)
        return [line.split("|") for line in text.splitlines()]


@dataclass(frozen=True)
class Rollup:
    books: Books
    month: datetime  # the first instant of a month, at which several of the jobs ran
    next_month: datetime
    never: str  # cancelled while it waited
    brief: str  # over at once: within a second, or in the next
    requeued: str
    resized: str  # in an account of its own, because sreport counts it otherwise


@pytest.fixture(scope="module")
def rollup() -> Iterator[Rollup]:
    with private_cluster() as cluster:
        cluster.root.chmod(0o755)  # another user's jobs run in it
        yield scene(Books(cluster))


def scene(books: Books) -> Rollup:
    """Jobs of every kind, in two accounts, three QOS and two partitions; one still runs."""
    client, run, go = books.client, books.cluster.run, books.cluster.root / "go"
    lasts = f"--wrap=until [ -e {go} ]; do sleep 0.2; done; sleep 4"  # as long as it is needed, on any machine
    run("sacctmgr", "-i", "-Q", "add", "account", "shrinking")
    run("sacctmgr", "-i", "-Q", "add", "user", US, "account=shrinking")
    cancelled = books.sleep(1, "--begin=now+1hour")
    client.cancel(cancelled)
    failed = books.submit("-p", "cpu", "--wrap=exit 3")
    requeued = books.submit("-p", "gpu", "--gpus=1", "--requeue", "-A", "teaching", "-q", "preemptible", lasts)
    resized = books.submit("-p", "cpu", "-N2", "--mem=300M", "-A", "shrinking", lasts)
    suspended = books.submit("-p", "gpu", "-N2", "-n4", "--gpus-per-node=2", "--mem=1500M", lasts)
    running = books.sleep(600, "-p", "cpu", "-n3", "--mem-per-cpu=70M")
    middle = books.submit("-p", "gpu", "--gpus=3", "-q", "high", lasts)
    others = [
        books.sleep(5, "-p", "cpu", "-a", "0-2", "-A", "teaching"),
        books.sleep(6, "-p", "cpu", "-n2", ":", "-p", "gpu", "--gpus=1"),
    ]
    if ROOT:
        run("sacctmgr", "-i", "-Q", "add", "user", "mail", "account=teaching")
        others.append(books.sleep(5, "-p", "cpu", "--uid=mail", "-n2"))
    for job_id in (requeued, resized, suspended, running, middle):
        books.wait(job_id, lambda job: job.state is JobState.RUNNING)
    run("scontrol", "suspend", suspended)
    later = datetime.now(UTC) + timedelta(seconds=2)
    wait_for(lambda: datetime.now(UTC) > later)
    run("scontrol", "update", f"JobId={resized}", "NumNodes=1")
    client.requeue(requeued)
    books.wait(requeued, lambda job: job.restarts == 1 and job.state.pending)
    run("scontrol", "update", f"JobId={requeued}", "StartTime=now")  # instead of in two minutes
    run("scontrol", "resume", suspended)
    go.touch()
    for job_id in (failed, requeued, resized, suspended, middle, *others):
        books.wait(job_id, lambda job: job.state.ended)
    wait_for(lambda: books.settled(running), every=0.2)

    today = datetime.now().astimezone()
    months = [datetime(n // 12, n % 12 + 1, 1).astimezone() for n in range(today.year * 12 + today.month)[-2:]]
    (began,) = (a.started_at for a in client.accounting([middle]) if a.started_at)
    books.move(int((began + timedelta(seconds=3) - months[0]).total_seconds()))
    window = [f"{moment:%Y-%m-%dT%H:%M:%S}" for moment in (months[0] - timedelta(hours=3), months[1])]
    run("sacctmgr", "-i", "roll", *window)
    return Rollup(books, months[0], months[1], cancelled, failed, requeued, resized)


def window(rollup: Rollup, name: str) -> tuple[datetime, datetime]:
    month, hour = rollup.month, timedelta(hours=1)
    return {
        "the hour before the month": (month - hour, month),
        "its first hour": (month, month + hour),
        "both": (month - hour, month + hour),
        "a quiet hour": (month + hour, month + 2 * hour),
        "the month": (month, rollup.next_month),
    }[name]


def in_slurms_words(total: Total) -> dict[str, int]:
    used = total.tres_s
    return {
        "cpu": used.cpus,
        "mem": used.memory_bytes // MiB,
        "node": used.nodes,
        "billing": used.billing,
        "gres/gpu": used.gpus,
        "gres/gpu:h100": used.gpus_of_each_type.get("h100", 0),
    }


@pytest.mark.slurm
@pytest.mark.parametrize(
    "report,account,user", [("AccountUtilizationByUser", 1, 2), ("UserUtilizationByAccount", 3, 1)]
)
@pytest.mark.parametrize("name", ["the hour before the month", "its first hour", "both", "a quiet hour", "the month"])
def test_totals_per_account_and_user_are_sreports_to_the_second(
    rollup: Rollup, name: str, report: str, account: int, user: int
) -> None:
    start, end = window(rollup, name)
    used = usage(rollup.books.client, start, end)
    ours = {key: in_slurms_words(total) for key, total in used.totals("account", "user").items()}
    ours.pop(("shrinking", US), None)
    theirs: dict[tuple[str, ...], dict[str, int]] = {}
    for row in rollup.books.sreport("cluster", report, "-T", ",".join(TRES), start=start, end=end):
        if row[user] and row[account] != "shrinking":  # no user: it is an account's, with those below it
            theirs.setdefault((row[account], row[user]), {})[row[4]] = int(row[5])
    if not used.estimated:
        assert ours == theirs
    else:  # when the suspended job gave its CPUs back is not in the books; that it did, is
        assert len(used.estimated) == 1
        assert (
            abs(ours["research", US].pop("cpu") - theirs["research", US].pop("cpu"))
            <= 4 * used.estimated[0].suspended_s
        )
        assert ours == theirs


@pytest.mark.slurm
def test_totals_per_partition_are_sreports_and_per_qos_those_of_sacct_truncated(rollup: Rollup) -> None:
    start, end = window(rollup, "both")
    used = usage(rollup.books.client, start, end)
    for partition in ("gpu", "cpu"):
        report = ("job", "SizesByAccount", "FlatView", "Grouping=1000", f"Partitions={partition}", "-T", "cpu")
        theirs = {row[1]: int(row[2]) for row in rollup.books.sreport(*report, start=start, end=end)}
        ours = used.totals("partition", "account")
        theirs.pop("shrinking", None)
        assert theirs == {
            account: t.tres_s.cpus for (p, account), t in ours.items() if p == partition and account != "shrinking"
        }
    first, last = (f"uts{int(moment.timestamp())}" for moment in (start, end))
    truncated = ("sacct", "-a", "-X", "-D", "-T", "-P", "-n", "-A", "research", "-o", "QOS,CPUTimeRAW")
    rows = [row.split("|") for row in rollup.books.cluster.run(*truncated, "-S", first, "-E", last).splitlines()]
    for (account, qos), total in used.totals("account", "qos").items():
        if account == "research":
            assert total.tres_s.cpus == sum(int(cpu_s) for name, cpu_s in rows if name == qos)
    assert set(used.totals("qos")) == {("high",), ("normal",), ("preemptible",)}


@pytest.mark.slurm
def test_the_parts_of_a_window_that_begins_in_one_month_and_ends_in_the_next(rollup: Rollup) -> None:
    zone = rollup.month.tzinfo
    assert zone
    both = usage(rollup.books.client, *window(rollup, "both")).totals("month", zone=zone)
    halves = [
        usage(rollup.books.client, *window(rollup, half)) for half in ("the hour before the month", "its first hour")
    ]
    assert [total.tres_s for total in both.values()] == [half.total.tres_s for half in halves]
    assert all(total.tres_s.gpus for total in both.values())


@pytest.mark.slurm
def test_what_was_requeued_counts_with_both_attempts_and_what_used_no_second_not_at_all(rollup: Rollup) -> None:
    ids = [a.id for a in usage(rollup.books.client, *window(rollup, "both")).attempts]
    assert ids.count(rollup.requeued) == 2
    assert rollup.never not in ids
    (brief,) = rollup.books.client.accounting([rollup.brief])
    assert (rollup.brief in ids) == (brief.elapsed_s > 0)


@pytest.mark.slurm
def test_a_job_that_gave_a_node_back_counts_with_each_size_for_its_time(rollup: Rollup) -> None:
    large, small = rollup.books.client.accounting([rollup.resized])
    # Slurm 22.05 says of the second, too, that it started with the job; 26.05, that it started when it shrank.
    assert small.started_at in (large.started_at, large.ended_at) and large.ended_at == small.submitted_at
    assert large.started_at and large.ended_at and small.ended_at
    before, after = (
        (b - a).total_seconds() for a, b in itertools.pairwise([large.started_at, large.ended_at, small.ended_at])
    )
    used = usage(rollup.books.client, *window(rollup, "both"), account="shrinking").total
    assert (used.tres_s.nodes, used.elapsed_s) == (2 * before + after, before + after)
    assert before >= 2


# -- PrivateData ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def discreet() -> Iterator[PrivateCluster]:
    """A cluster that hides what it can; mail and root have each run a job, daemon coordinates research."""
    if not ROOT:
        pytest.skip("asks as several users: needs root")
    hidden = (
        "--slurmdbd-conf",
        "PrivateData=jobs,usage,users,accounts",
        "--slurm-conf",
        "PrivateData=jobs,usage,users",
    )
    with private_cluster(*hidden) as cluster:
        cluster.root.chmod(0o755)
        for words in (
            "add user mail account=teaching",
            "add user daemon account=teaching",
            "add coordinator account=research user=daemon",
            "add user games account=teaching adminlevel=operator",
        ):
            cluster.run("sacctmgr", "-i", "-Q", *words.split())
        books = Books(cluster)
        ids = [books.sleep(1, "-p", "cpu", "--uid", user) for user in ("root", "mail")]
        for job_id in ids:
            books.wait(job_id, lambda job: job.state.ended)
        wait_for(books.settled, every=0.2)
        yield cluster


def become(user: str) -> None:
    os.chdir("/")
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def as_user(who: str, ask: Callable[..., T], *arguments: object, **named: object) -> T:
    with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=become, initargs=(who,)) as process:
        return process.submit(ask, *arguments, **named).result(timeout=60)


def used_today(env: dict[str, str], **whose: str) -> Usage:
    now = datetime.now(UTC)
    return usage(CommandClient(environment=env), now - timedelta(hours=1), now, **whose)


def privileged(env: dict[str, str]) -> bool:
    return CommandClient(environment=env).privileged()


@pytest.mark.slurm
def test_rows_that_private_data_hides_are_partial_and_not_zero(discreet: PrivateCluster) -> None:
    everything = as_user("mail", used_today, discreet.env)
    assert everything.totals("user").keys() == {("mail",)}
    assert everything.partial == "slurmdbd has PrivateData=jobs and shows you only your own jobs"
    roots = as_user("mail", used_today, discreet.env, user="root")
    assert (roots.total, roots.partial) == (Total(), everything.partial)
    assert as_user("mail", used_today, discreet.env, account="teaching").partial == everything.partial


@pytest.mark.slurm
@pytest.mark.parametrize("name", ["mail", str(pwd.getpwnam("mail").pw_uid)])
def test_our_own_rows_are_whole(discreet: PrivateCluster, name: str) -> None:
    own = as_user("mail", used_today, discreet.env, user=name)
    assert (own.totals("user").keys(), own.partial) == ({("mail",)}, None)


@pytest.mark.slurm
def test_an_account_is_whole_to_who_coordinates_it(discreet: PrivateCluster) -> None:
    research = as_user("daemon", used_today, discreet.env, account="research")
    assert (research.totals("user").keys(), research.partial) == ({("root",)}, None)
    everything = as_user("daemon", used_today, discreet.env)
    assert everything.totals("user").keys() == {("root",)}
    assert everything.partial and everything.partial.endswith("accounts that you coordinate (research)")


@pytest.mark.slurm
@pytest.mark.parametrize("user", ["root", "games"])
def test_root_and_operators_see_all(discreet: PrivateCluster, user: str) -> None:
    everything = as_user(user, used_today, discreet.env)
    assert (everything.totals("user").keys(), everything.partial) == ({("mail",), ("root",)}, None)


@pytest.mark.slurm
@pytest.mark.parametrize(
    "user,expected",
    [("root", True), ("games", True), ("daemon", False), ("mail", False), ("bin", False)],
    ids=["root", "operator", "coordinator", "user", "somebody-unknown-to-slurm"],
)
def test_who_is_privileged(discreet: PrivateCluster, user: str, expected: bool) -> None:
    assert as_user(user, privileged, discreet.env) is expected
