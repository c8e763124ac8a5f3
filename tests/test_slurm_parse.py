"""Text as Slurm 22.05 printed it (with SLURM_TIME_FORMAT=%s, fields separated by the unit separator)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from slurm import parse
from slurm.model import TRES, JobState

AT = 1795403626


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def line(*fields: str) -> str:
    return parse.SEPARATOR.join(fields) + "\n"


RUNNING = line(
    "1", 'a|b "c" %d', "key-1", "RUNNING", "None", str(AT), str(AT), str(AT + 600), "g[1-2]",
    "gpu", "research", "root", "10:00",
)  # fmt: skip
PENDING = line(
    "2", "train", "(null)", "PENDING", "BeginTime", str(AT), "N/A", "N/A", "", "cpu", "research", "root", "UNLIMITED"
)
BOOKED = line(
    "1", "a|b `c` %d", "", "sbatch --comment=key-1 /tmp/pro be/job.sh",
    "CANCELLED by 1000", "CANCELLED by 1000", "0:15",
    str(AT), str(AT), str(AT + 2), "g[1-2]", "gpu", "research", "root",
    "billing=2,cpu=2,gres/gpu:h100=4,gres/gpu=4,mem=200M,node=2", "2",
)  # fmt: skip


def test_a_running_job_whose_name_holds_every_separator_one_might_choose() -> None:
    (job,) = parse.jobs(RUNNING)
    assert (job.id, job.name, job.comment, job.state, job.reason) == (
        "1", 'a|b "c" %d', "key-1", JobState.RUNNING, None,
    )  # fmt: skip
    assert (job.submitted_at, job.ended_at) == (at(AT), at(AT + 600))
    assert (job.nodes, job.time_limit_s) == (("g1", "g2"), 600)


def test_a_pending_job_has_no_nodes_no_times_and_maybe_no_limit() -> None:
    (job,) = parse.jobs(PENDING)
    assert (job.state, job.reason, job.comment) == (JobState.PENDING, "BeginTime", "")
    assert (job.nodes, job.started_at, job.ended_at, job.time_limit_s) == ((), None, None, None)


def test_a_name_with_a_line_break_is_one_record() -> None:
    broken = RUNNING.replace("a|b", "a\nb")
    assert [job.id for job in parse.jobs(PENDING + broken + PENDING)] == ["2", "1", "2"]
    assert parse.jobs(broken)[0].name == 'a\nb "c" %d'


def test_nothing_printed_is_no_jobs() -> None:
    assert parse.jobs("") == []
    assert parse.accounting("") == []


def test_half_a_record_is_refused() -> None:
    with pytest.raises(ValueError, match="13 fields"):
        parse.jobs(RUNNING + "2\x1ftra")


def test_a_field_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ValueError, match="%T: 'HIBERNATING'"):
        parse.jobs(RUNNING.replace("RUNNING", "HIBERNATING"))


def test_accounting_says_who_cancelled_and_what_was_allocated() -> None:
    (attempt,) = parse.accounting(BOOKED)
    assert (attempt.state, attempt.state_text, attempt.exit_code) == (
        JobState.CANCELLED, "CANCELLED by 1000", "0:15",
    )  # fmt: skip
    assert attempt.allocated == TRES(cpus=2, memory_mb=200, nodes=2, billing=2, gpus=4, gpus_by_type=(("h100", 4),))
    assert (attempt.elapsed_s, attempt.submit_line) == (2, "sbatch --comment=key-1 /tmp/pro be/job.sh")


@pytest.mark.parametrize(
    ("text", "gpus", "by_type"),
    [
        ("cpu=1,gres/gpu=2,gres/gpu:h100=2", 2, (("h100", 2),)),
        ("gres/gpu:h100=2,gres/gpu=2", 2, (("h100", 2),)),
        ("gres/gpu:a100=1,gres/gpu:h100=2", 3, (("a100", 1), ("h100", 2))),  # a cluster that tracks only the types
        ("gres/gpu=3,gres/gpu:h100=2", 3, (("h100", 2),)),  # and one that does not track every type
        ("cpu=1,mem=1G", 0, ()),
        ("", 0, ()),
    ],
)
def test_a_gpu_is_counted_once(text: str, gpus: int, by_type: tuple[tuple[str, int], ...]) -> None:
    assert (parse.tres(text).gpus, parse.tres(text).gpus_by_type) == (gpus, by_type)


@pytest.mark.parametrize(("text", "mb"), [("200M", 200), ("1.50G", 1536), ("2T", 2 * 1024**2), ("512K", 0), ("7", 7)])
def test_memory_comes_in_units(text: str, mb: int) -> None:
    assert parse.tres(f"cpu=1,mem={text}").memory_mb == mb


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7-00:00:00", 7 * 86400),
        ("1-02:03:04", 93784),
        ("1:00:00", 3600),
        ("10:00", 600),
        ("0:07", 7),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("Partition_Limit", None),
    ],
)
def test_durations(text: str, seconds: int | None) -> None:
    assert parse.duration_s(text) == seconds


def test_what_is_no_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="soon"):
        parse.duration_s("soon")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("g1", ("g1",)),
        ("g[1-3,7]", ("g1", "g2", "g3", "g7")),
        ("g[08-11]", ("g08", "g09", "g10", "g11")),
        ("g[1-2],c1,d[5,7]", ("g1", "g2", "c1", "d5", "d7")),
        ("rack[1-2]n[1-2]-ib", ("rack1n1-ib", "rack1n2-ib", "rack2n1-ib", "rack2n2-ib")),
        ("None assigned", ()),
        ("(null)", ()),
        ("", ()),
    ],
)
def test_node_lists(text: str, names: tuple[str, ...]) -> None:
    assert parse.nodes(text) == names


def test_an_unbalanced_node_list_is_refused() -> None:
    with pytest.raises(ValueError):
        parse.nodes("g[1-2")


def test_times_know_their_zone() -> None:
    assert parse.time(str(AT)) == at(AT)
    local = parse.time("2026-11-23T03:00:00")
    assert local == datetime(2026, 11, 23, 3, 0, 0).astimezone() and local.utcoffset() is not None
    assert [parse.time(t) for t in ("Unknown", "N/A", "None", "")] == [None] * 4
