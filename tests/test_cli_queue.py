"""`headgate queue`, `nodes` and `usage`: what is printed, on a real Slurm, on a laptop, and when asked wrongly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from conftest import ROOT, PrivateCluster
from platform_fixtures import Platform, platform
from waiting import wait_for

from cli import moments, nodes, queue, usage
from launchers.subjects import user_name

ME = user_name(os.getuid())
HEAVY = ("aiohttp", "litellm", "sqlite_utils", "submitit", "rich", "openai", "torch", "slurm.watch")
PROGRAMS = "environments.engine.python=/bin/sh", "environments.training.python=/bin/sh"


@pytest.fixture(scope="module")
def laptop() -> Iterator[Platform]:
    with platform("laptop.toml", *PROGRAMS) as made:
        yield made


@pytest.fixture(scope="module")
def cluster(slurm_cluster: PrivateCluster) -> Iterator[Platform]:
    conf = f"scheduler.slurm_conf={slurm_cluster.env['SLURM_CONF']}"
    with platform("private-cluster.toml", conf, *PROGRAMS, env=slurm_cluster.env) as made:
        yield made


@pytest.fixture
def waiting(slurm_cluster: PrivateCluster) -> Iterator[str]:
    """A job that waits for GPUs."""
    submit = ("sbatch", "--parsable", "-o", "/dev/null", "-p", "gpu", "-t", "20", "--wrap", "sleep 300")
    first = slurm_cluster.run(*submit, "-N2", "--gpus-per-node=h100:6").strip()
    wait_for(lambda: "RUNNING" in slurm_cluster.run("squeue", "-h", "-j", first, "-o", "%T"))
    second = slurm_cluster.run(*submit, "-N2", "--gpus-per-node=h100:6").strip()
    wait_for(lambda: "Resources" in slurm_cluster.run("squeue", "-h", "-j", second, "-o", "%r"))
    yield second
    slurm_cluster.run("scancel", second, first)
    wait_for(lambda: not slurm_cluster.run("squeue", "-h", "-t", "PD,R,CG", "-j", f"{first},{second}"))


def line_of(printed: str, job_id: str) -> str:
    (line,) = [line for line in printed.splitlines() if line.startswith(f"{job_id} ")]
    return line


def test_asking_imports_nothing_heavy(laptop: Platform) -> None:
    """Where a controller answers, and where Slurm is asked directly; its commands are missing here."""
    for site in ("laptop.toml", "private-cluster.toml"):
        words = [*laptop.argv[3:], "queue"]
        words[1] = str(ROOT / "site-configs" / site)
        program = (
            f"import sys, click.testing, cli.main as m; r = click.testing.CliRunner().invoke(m.main, {words!r}); "
            f"print(r.exit_code, [h for h in {HEAVY!r} if h in sys.modules])"
        )
        env = {"PATH": "/nowhere"}
        said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, text=True, capture_output=True)
        assert said.stdout.strip() == f"{int(site != 'laptop.toml')} []", said.stdout + said.stderr


# -- on a real Slurm --------------------------------------------------------------------------------------------------


def test_a_waiting_job_says_what_it_waits_for_by_sinfos_own_count(
    cluster: Platform, slurm_cluster: PrivateCluster, waiting: str
) -> None:
    printed = cluster.ok("queue")
    text = slurm_cluster.run("sinfo", "-h", "-N", "-p", "gpu", "-O", "Gres:40,GresUsed:40")
    has, used = (
        sum(int(n) for line in text.splitlines() for n in re.findall(r"h100:(\d+)", line.split()[column]))
        for column in (0, 1)
    )
    line = line_of(printed, waiting)
    assert f"waiting for {12 - (has - used)} more H100 in gpu; " in line
    assert "12 H100 on 2 nodes" in line and "PENDING" in line
    assert printed.rstrip().endswith("as of now, asked of Slurm directly")
    (row,) = [r for r in cluster.json("queue")["jobs"] if r["job"] == waiting]
    assert (row["gpus"], row["user"], row["partition"]) == ({"h100": 12}, ME, "gpu")


def test_the_controllers_poll_is_shown_with_its_age(cluster: Platform, waiting: str) -> None:
    cluster.ok("up")
    try:
        printed = wait_for(lambda: said if re.search(r"^as of \d+s ago$", said := cluster.ok("queue"), re.M) else None)
        assert "more H100 in gpu" in line_of(printed, waiting)
        assert cluster.json("queue")["asked"] == "controller"
        assert line_of(cluster.ok("queue", "--all"), waiting).split()[3] == ME
        assert re.search(r"^gpu +H100 +\d+ +16 ", cluster.ok("nodes", "-p", "gpu"), re.M)
        assert f"{ME} in account research" in cluster.ok("usage")
    finally:
        cluster.ok("down")


def test_nodes_and_limits_are_printed_without_a_controller_too(cluster: Platform) -> None:
    printed = cluster.ok("nodes")
    assert re.search(r"^gpu +H100 +\d+ +16 ", printed, re.M) and re.search(r"^cpu +- +- +- ", printed, re.M)
    printed = cluster.ok("usage", "--account", "research")
    assert "account research" in printed and "Fair-share" in printed


def test_what_was_used_is_split_as_asked_and_adds_up(
    cluster: Platform, slurm_cluster: PrivateCluster, waiting: str
) -> None:
    ask = ("usage", "--since", "1d", "--by", "account", "--by", "partition")
    said = wait_for(lambda: found if (found := cluster.json(*ask))["totals"] else None)  # the books run behind
    assert said["partial"] is None and said["of"] == ME
    for kind in ("attempts", "elapsed_s", "cpu_s", "gpu_s"):
        assert sum(row[kind] for row in said["totals"]) == said["total"][kind]
    assert {"account", "partition"} <= set(said["totals"][0])
    printed = cluster.ok("usage", "--since", "1d", "--by", "month", "--all")
    assert printed.startswith("everybody, ") and re.search(r"^total +[1-9]\d* ", printed, re.M)


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        (("queue", "--all", "--user", "x"), 2, "--all and --user exclude each other"),
        (("queue", "--user", "no-such-user"), 1, "no user is called 'no-such-user' on this machine"),
        (("nodes", "-p", "gpus"), 1, "no partition is called 'gpus'; there are: gpu, cpu"),
        (("usage", "-A", "reserch"), 1, "no account is called 'reserch'; there are: "),
        (("usage", "-A", "reserch", "--since", "1d"), 1, "no account is called 'reserch'; you may see: "),
        (("usage", "--since", "yesterday"), 2, "'yesterday' is no time; allowed: 2026-11, "),
        (("usage", "--since", "1d", "--until", "2d"), 1, "a window is from one instant, "),
        (("usage", "--since", "1d", "--by", "colour"), 2, "'colour' is not one of 'cluster', 'account', "),
        (("usage", "--by", "month"), 2, "say --since as well"),
    ],
)
def test_what_is_asked_wrongly_gets_one_clear_message(
    cluster: Platform, words: tuple[str, ...], status: int, expected: str
) -> None:
    done = cluster.run(*words)
    assert (done.returncode, expected in done.stderr) == (status, True), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_slurm_that_cannot_be_asked_is_an_error_with_its_words(laptop: Platform) -> None:
    argv = [*laptop.argv, "queue"]
    argv[argv.index("--site") + 1] = str(ROOT / "site-configs" / "private-cluster.toml")
    done = subprocess.run(argv, cwd=ROOT, env={"PATH": "/nowhere"}, text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "Error: Slurm did not answer: squeue cannot be run: No such file or directory\n"


# -- on a laptop ------------------------------------------------------------------------------------------------------


def test_a_laptop_is_one_partition_without_limits(laptop: Platform) -> None:
    assert laptop.ok("queue") == f"no job of {ME} waits or runs\nas of now\n"
    assert re.search(rf"^local +- .* {os.cpu_count()}$", laptop.ok("nodes"), re.M)
    assert laptop.ok("usage") == f"nothing limits {ME} here\nas of now\n"
    done = laptop.run("usage", "--since", "1d")
    assert done.returncode == 1 and "`headgate report gpu` has those of this machine" in done.stderr


# -- what is printed --------------------------------------------------------------------------------------------------

HEADING: dict[str, Any] = {
    "asked": "controller", "age_s": 4.2, "silent_since": None, "silence": None, "hidden": [], "user": "ada",
}  # fmt: skip


def test_silence_is_told_with_its_beginning_and_its_words() -> None:
    at = datetime.now().astimezone().replace(hour=14, minute=2, second=0, microsecond=0)
    since = at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")  # noqa: UP017  # beside other zones
    silent = {**HEADING, "age_s": 190, "silent_since": since, "silence": "squeue did not answer within 20 s"}
    assert queue.render({**silent, "jobs": []}, "ada") == (
        "no job of ada waits or runs\n"
        "as of 3m ago: Slurm has not answered since 14:02: squeue did not answer within 20 s"
    )


def test_slurm_asked_directly_does_not_tell_whose_replicas_are_and_that_is_said() -> None:
    """They run as the service's user, whose jobs they are to Slurm."""
    note = "replicas run as their service's user: only a controller tells which are ada's"
    said = {**HEADING, "asked": "slurm", "jobs": []}
    assert queue.render(said, "ada").splitlines()[1:] == [note, "as of now, asked of Slurm directly"]
    for other in (said | {"asked": "controller"}, said | {"asked": "local"}):
        assert note not in queue.render(other, "ada")
    assert "replicas" not in queue.render(said, None)  # whose they are is not what was asked


def test_what_is_hidden_is_said_where_it_matters() -> None:
    said = {**HEADING, "hidden": ["jobs", "nodes", "usage"]}
    assert "Slurm hides jobs from you (PrivateData)" in queue.render({**said, "jobs": []}, None)
    empty: dict[str, Any] = {"partitions": [], "out": [], "reservations": []}
    assert nodes.render({**said, **empty}) == "Slurm hides nodes from you (PrivateData)\nas of 4s ago"
    limits = usage.render({**said, "limits": [], "fair_share": []})
    assert limits == "nothing limits ada here\nSlurm hides other people's use from you (PrivateData)\nas of 4s ago"


NOW = datetime(2026, 11, 24, 14, 20, 30, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", NOW),
        ("today", datetime(2026, 11, 24).astimezone()),
        ("90m", NOW - timedelta(minutes=90)),
        ("2w", NOW - timedelta(days=14)),
        ("2026-11-24T10:00:00+00:00", datetime.fromisoformat("2026-11-24T10:00:00+00:00")),
        ("2026-11", datetime(2026, 11, 1).astimezone()),
        ("2026-11-24", datetime(2026, 11, 24).astimezone()),
        ("2026-13", None),
        ("999999w", None),
        ("7", None),
        ("", None),
    ],
)
def test_times_are_read_as_people_type_them(text: str, moment: datetime | None) -> None:
    assert moments.parse(text, NOW) == moment


def test_today_begins_before_the_clocks_were_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        noon = datetime(2026, 10, 25, 12).astimezone()
        assert moments.parse("today", noon) == moments.parse("2026-10-25", noon)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_months_follow_the_zones_summer_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    zone = moments.local_zone()
    offsets = [datetime(2026, month, 1, tzinfo=zone).utcoffset() for month in (1, 7)]
    assert offsets == [timedelta(hours=1), timedelta(hours=2)]
    monkeypatch.setenv("TZ", "No/Where")
    assert datetime(2026, 1, 1, tzinfo=moments.local_zone()).utcoffset() is not None


def test_json_is_what_was_said(laptop: Platform) -> None:
    said = json.loads(laptop.ok("queue", "--json"))
    assert (said["asked"], said["jobs"], said["hidden"]) == ("local", [], [])
    assert "`headgate up` starts one" in said["not_the_controller"]
