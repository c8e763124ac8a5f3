"""Slurm's texts, one field and one record at a time (whole answers: test_slurm_recordings.py)."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest
from slurm_records import node

from slurm import assoc_mgr, parse, tables, versions
from slurm.model import TRES, JobState, Limit, Node, NodeState

AT = 1795403626
SEPARATOR = "\x1fk3Qz"


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def queued(name: str = "train", state: str = "RUNNING", job_id: str = "1") -> str:
    fields = [
        job_id, "1", name, "root", "research", "gpu", "normal", state, "None", "key-1", str(AT), str(AT), str(AT + 600),
        "10:00", "9:59", "g[1-2]", "2", "cpu=2,mem=200M,node=2", "100", "0", "(null)", "(null)",
    ]  # fmt: skip
    return "".join(field + SEPARATOR for field in fields) + "\n"


@pytest.mark.parametrize(
    "name", ['a|b "c" %d', "a\nb", "\n\n", "trailing\n", "\x1f", "a\x1fb\x1f\n", "(null)", " two  blanks ", "k3Qz"]
)
def test_a_jobs_name_may_hold_anything(name: str) -> None:
    text = queued(job_id="2") + queued(name) + queued(job_id="3")
    assert [(job.id, job.name) for job in tables.jobs(text, SEPARATOR)] == [("2", "train"), ("1", name), ("3", "train")]


def test_nothing_printed_is_no_jobs() -> None:
    assert tables.jobs("", SEPARATOR) == []
    assert tables.accounting("", SEPARATOR) == []
    assert tables.nodes("", SEPARATOR) == []


def test_half_a_record_is_refused() -> None:
    with pytest.raises(ValueError, match="ends within a record"):
        tables.jobs(queued() + "2" + SEPARATOR + "tra", SEPARATOR)
    with pytest.raises(ValueError, match="22 fields"):
        tables.jobs(queued() + "2" + SEPARATOR + "\n", SEPARATOR)


def test_a_field_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ValueError, match=r"JobID: .*'one'"):
        tables.jobs(queued().replace(f"{SEPARATOR}1{SEPARATOR}", f"{SEPARATOR}one{SEPARATOR}"), SEPARATOR)


def test_a_state_of_a_newer_release_is_one_job_of_which_nothing_is_concluded() -> None:
    (job,) = tables.jobs(queued(state="HIBERNATING"), SEPARATOR)
    assert (job.state, job.state.pending, job.state.ended) == (JobState.UNRECOGNISED, False, False)


def test_who_cancelled_a_job_is_no_part_of_its_state() -> None:
    assert parse.state("CANCELLED by 1000") is JobState.CANCELLED


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


@pytest.mark.parametrize(
    ("text", "kib"), [("200M", 200 << 10), ("1.50G", 1536 << 10), ("2T", 2 << 30), ("512K", 512), ("7", 7 << 10)]
)
def test_memory_comes_in_units_and_a_bare_number_is_mebibytes(text: str, kib: int) -> None:
    assert parse.tres(f"cpu=1,mem={text}").memory_bytes == kib << 10


def test_other_tres_are_kept() -> None:
    assert parse.tres("cpu=1,license/matlab=2,gres/shard=4,fs/disk=1G").others == (
        ("fs/disk", 2**30), ("gres/shard", 4), ("license/matlab", 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "gpus", "by_type"),
    [
        ("gpu:h100:8", 8, (("h100", 8),)),
        ("gpu:h100:7(IDX:0-2,4-7)", 7, (("h100", 7),)),
        ("gpu:a100:2(S:0),gpu:h100:4(S:0-1),shard:16", 6, (("a100", 2), ("h100", 4))),
        ("gpu:0", 0, ()),
        ("gpu:8(S:0-1)", 8, ()),
        ("gpu:1g.5gb:7", 7, (("1g.5gb", 7),)),
        ("(null)", 0, ()),
        ("mygpu:3", 0, ()),
        ("gpu:(null):6(IDX:0-5)", 6, ()),  # used, of Name=gpu File=... Cores=0-7
        ("gpu:h100:2(IDX:0-1),gpu:(null):1(IDX:2)", 3, (("h100", 2),)),
        ("gpu:(null):0(IDX:N/A),shard:(null):0(0/4,0/4)", 0, ()),
    ],
)
def test_gpus_of_a_nodes_gres(text: str, gpus: int, by_type: tuple[tuple[str, int], ...]) -> None:
    assert parse.gpus(text) == (gpus, by_type)


@pytest.mark.parametrize("text", ["gpu:h100", "gpu::6", "gpu:h100:many", "shard:4,gpu:a:b:6", "gpu:h100:8,gpu:(IDX:0"])
def test_gpus_that_cannot_be_read_are_not_none(text: str) -> None:
    with pytest.raises(ValueError, match="not GPUs as sinfo has them"):
        parse.gpus(text)


@pytest.mark.parametrize(
    ("has", "used", "free"),
    [
        ("gpu:h100:8", "gpu:(null):6(IDX:0-5)", {"h100": 2}),
        ("gpu:8", "gpu:h100:6(IDX:0-5)", {"": 2}),
        ("gpu:a100:2,gpu:h100:4", "gpu:a100:1(IDX:0),gpu:(null):4(IDX:1-4)", {"a100": 0, "h100": 1}),
        ("gpu:h100:4,gpu:4", "gpu:h100:3(IDX:0-2),gpu:(null):1(IDX:4)", {"h100": 1, "": 3}),
        ("gpu:h100:4,gpu:4", "gpu:(null):6(IDX:0-5)", {"h100": 2, "": 0}),
        ("gpu:h100:4", "gpu:h100:5", {"h100": 0}),
    ],
)
def test_a_used_gpu_is_not_free_whether_its_type_is_told_or_not(has: str, used: str, free: dict[str, int]) -> None:
    (total, kinds), (taken, taken_kinds) = parse.gpus(has), parse.gpus(used)
    one = node("g1", "cpu=1", tres=TRES(gpus=total, gpus_by_type=kinds))
    one = dataclasses.replace(one, allocated=TRES(gpus=taken, gpus_by_type=taken_kinds))
    assert one.free_gpus_by_type == free


@pytest.mark.parametrize(
    ("text", "state", "flags"),
    [
        ("idle", NodeState.IDLE, set()),
        ("mixed+drain", NodeState.MIXED, {"DRAIN"}),
        ("down+drain+not_responding", NodeState.DOWN, {"DRAIN", "NOT_RESPONDING"}),
        ("idle+maintenance+reserved", NodeState.IDLE, {"MAINTENANCE", "RESERVED"}),
    ],
)
def test_a_nodes_state_has_flags(text: str, state: NodeState, flags: set[str]) -> None:
    assert parse.node_state(text) == (state, flags)


@pytest.mark.parametrize("text", ["inval", "?", "hibernating", "hibernating+drain"])
def test_a_node_state_of_a_newer_release_is_one_node_where_nothing_starts(text: str) -> None:
    known, other = nodes_as_sinfo_has_them("idle", text)
    assert (known.state, known.available) == (NodeState.IDLE, True)
    assert (other.state, other.available) == (NodeState.UNKNOWN, False)
    assert other.flags == set(text.upper().split("+"))


def nodes_as_sinfo_has_them(*states: str) -> list[Node]:
    rest = ["none", "gpu*", "0/16/0/16", "64000", "0", "20919", "gpu:h100:8", "gpu:h100:0(IDX:N/A)", "h100", "1", "22"]
    rows = [[f"g{i}", state, *rest] for i, state in enumerate(states)]
    return tables.nodes("".join("".join(f + SEPARATOR for f in row) + "\n" for row in rows), SEPARATOR)


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"SlurmctldParameters": "enable_configless,preempt_send_user_signal"}, True),  # 22.05
        ({"PreemptParameters": "send_user_signal"}, True),  # since 23.02
        ({"PreemptParameters": "(null)", "SlurmctldParameters": "(null)"}, False),
        ({}, False),
    ],
)
def test_where_a_site_says_that_preempted_jobs_get_their_signal(settings: dict[str, str], sent: bool) -> None:
    assert versions.preempt_sends_signal(settings) is sent


@pytest.mark.parametrize("text", ["22.05.8", "slurm 22.05.8", "22.05.0-0rc1"])
def test_releases(text: str) -> None:
    assert versions.release(text) == (22, 5)


@pytest.mark.parametrize(
    ("text", "name"),
    [("1000", "ada"), ("ada(1000)", "ada"), ("1002", "1002"), ("eve(1002)", "eve"), ("research", "research")],
)
def test_a_user_goes_by_their_name_in_every_release(text: str, name: str) -> None:
    assert versions.user_name(text, {"1000": "ada"}) == name


def test_users_of_a_qos_come_as_uids_or_with_them() -> None:
    users = "UserName=ada(1000) DefAccount=x DefWckey= AdminLevel=Operator\nUserName=bob(1001) AdminLevel=None\n"
    for who in ("1000", "ada(1000)"):
        text = f"{users}QOS=high(3) GrpJobs=5(2) Account Limits=No Accounts User Limits= {who}={{MaxJobsPU=3(1)}}\n"
        assert assoc_mgr.qos_limits(text) == {
            "high": (Limit("GrpJobs", None, 5, 2), Limit("MaxJobsPU", None, 3, 1, holder="ada"))
        }
    assert assoc_mgr.admin_levels(users) == {"ada": "Operator", "bob": "None"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7-00:00:00", 7 * 86400),
        ("1-02:03:04", 93784),
        ("1:00:00", 3600),
        ("10:00", 600),
        ("0:07", 7),
        ("30 sec", 30),
        ("3 min", 180),
        ("-1:30", 0),  # beyond its limit, where OverTimeLimit lets it
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
        ("gpu[001-004,7]", ("gpu001", "gpu002", "gpu003", "gpu004", "gpu7")),
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
