"""What `queue`, `nodes` and `usage` show, from pictures that were made up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from slurm_records import GIB, NOW, after, association, gpus, job, node, partition, picture, qos, reservation

from cli import nodes
from launchers import views
from launchers.subjects import Subject
from slurm import amounts, parse, room
from slurm.changes import Silence
from slurm.model import JobState, Limit, NodeState
from slurm.sight import Limits, Sight
from slurm.watch import Unaccounted

RUNNING = {"state": JobState.RUNNING, "starts_at": after(minutes=-10), "time_left_s": 3000, "nodes": ("g1",)}


def queue(*jobs: Any, user: str | None = "ada", **subjects: Subject) -> list[dict[str, Any]]:
    nodes = [node("g1", "cpu=1,gres/gpu=8,gres/gpu:h100=8")]
    return views.queue(Sight(picture(jobs, nodes)), {s.id: s for s in subjects.values()}, user, NOW)


# -- the queue --------------------------------------------------------------------------------------------------------


def test_running_jobs_come_first_then_those_that_wait_by_priority_and_ended_ones_are_left_out() -> None:
    rows = queue(
        job(1, priority=5, reason="Resources"),
        job(2, priority=9, reason="Resources"),
        job(3, state=JobState.COMPLETED),
        job(4, **RUNNING),
        job(5, state=JobState.COMPLETING, nodes=("g1", "g2")),
    )
    assert [row["job"] for row in rows] == ["4", "5", "2", "1"]
    assert [row["why"] for row in rows[:2]] == ["on g1", "is ending on g1 and g2"]


def test_a_row_says_what_is_asked_for_and_how_much_time_is_gone() -> None:
    running, waiting = queue(
        job(1, gpus(12, nodes=2), **RUNNING), job(2, gpus(2, kind=""), reason="Resources", starts_at=after(hours=1))
    )
    assert (running["asks"], running["gpus"], running["nodes"]) == ("12 H100 on 2 nodes", {"h100": 12}, 2)
    assert (running["used_s"], running["left_s"], running["started_at"]) == (
        600,
        3000,
        amounts.moment(after(minutes=-10)),
    )
    assert (waiting["asks"], waiting["gpus"], waiting["used_s"], waiting["left_s"]) == (
        "2 GPUs",
        {"gpu": 2},
        None,
        None,
    )
    assert waiting["why"] == f"waiting for 2 more GPUs in gpu; Slurm expects {amounts.moment(after(hours=1))}"


def test_mine_are_my_jobs_and_the_replicas_of_my_deployments() -> None:
    replica = Subject("chat-1", "replica", "chat", owner="ada", user="service")
    jobs = (job(1), job(2, user="bob"), job(3, user="service", comment="chat-1"))
    assert [(r["job"], r["what"], r["of"]) for r in queue(*jobs, replica=replica)] == [
        ("1", "job", None),
        ("3", "replica", "chat"),
    ]
    assert [r["job"] for r in queue(*jobs, user="bob", replica=replica)] == ["2"]
    assert [r["job"] for r in queue(*jobs, user=None, replica=replica)] == ["1", "2", "3"]


def test_a_replica_says_which_revision_it_is_of_and_why_it_was_started() -> None:
    replica = Subject("chat-1", "replica", "chat", "ada", "service", revision=3, reason="chat-0 ends at 14:05")
    mine, other = queue(job(1), job(3, user="service", comment="chat-1"), replica=replica)[::-1]
    assert (mine["revision"], mine["reason"]) == (3, "chat-0 ends at 14:05")
    assert (other["revision"], other["reason"]) == (None, None)


def test_a_comment_alone_does_not_make_a_job_somebodys_replica() -> None:
    """Anybody can write a comment."""
    replica = Subject("chat-1", "replica", "chat", owner="ada", user="service")
    forged = job(4, user="mallory", comment="chat-1")
    assert queue(forged, replica=replica) == []
    (row,) = queue(forged, user="mallory", replica=replica)
    assert row["what"] == "job"
    assert queue(job(3, user="service"), replica=replica) == []  # nor does the user who runs it


def test_a_job_that_the_queue_lost_and_the_books_do_not_know_to_have_ended_is_told_to_whom_it_concerns() -> None:
    lost = Unaccounted(job(5, **RUNNING), after(minutes=-1), "accounting says RUNNING")
    seen = Sight(picture([job(1)]), lost=(lost,))
    _, row = views.queue(seen, {}, "ada", NOW)
    assert (row["job"], row["state"], row["used_s"]) == ("5", "UNKNOWN", 540)  # as long as it was seen to run
    assert row["why"] == "not in the queue any more; accounting says RUNNING"
    assert [r["job"] for r in views.queue(seen, {}, None, NOW)] == ["1", "5"]
    assert views.queue(seen, {}, "bob", NOW) == []


# -- nodes ------------------------------------------------------------------------------------------------------------

CLUSTER = picture(
    nodes=[
        node("g1", "cpu=4,gres/gpu=6,gres/gpu:h100=6"),
        node("g2", "cpu=16,gres/gpu=3,gres/gpu:h100=3"),
        node("g3", state=NodeState.DOWN, reason="fan"),
        node("a1", has="cpu=8,mem=64G,gres/gpu=4,gres/gpu:a100=4"),
        node("g4"),
        node("c1", "cpu=3", has="cpu=8,mem=64G", partitions=("cpu",)),
    ],
    partitions=[partition("gpu"), partition("cpu", state="DOWN"), partition("secret", hidden=True)],
    reservations=[
        reservation("course", ["g4", "x1"], active=True, flags=frozenset(), users=("bob",)),
        reservation("maint", ["g1", "c1"]),
        reservation("past", ["g1"], starts_at=after(hours=-3), ends_at=after(hours=-1)),
    ],
)


def test_free_gpus_are_counted_by_partition_and_type_without_nodes_that_are_out_or_reserved() -> None:
    said = views.nodes(Sight(CLUSTER), None, NOW)
    columns = "partition gpu nodes nodes_out gpus gpus_free nodes_free most_on_one_node cpus cpus_free"
    assert [tuple(r[c] for c in columns.split()) for r in said["partitions"]] == [
        ("gpu", "a100", 1, 0, 4, 4, 1, 4, 8, 8),
        ("gpu", "h100", 4, 2, 32, 7, 2, 5, 64, 12),
        ("cpu", None, 1, 0, 0, 0, 0, 0, 8, 0),  # the partition is down: nothing starts
    ]


def test_nodes_that_are_out_say_why_and_reservations_come_in_their_order() -> None:
    said = views.nodes(Sight(CLUSTER), None, NOW)
    assert [out["text"] for out in said["out"]] == ["g3 (down: fan)"]
    assert [(r["name"], r["nodes"], r["maintenance"], r["active"]) for r in said["reservations"]] == [
        ("course", ["g4"], False, True),
        ("maint", ["g1", "c1"], True, False),
    ]


def test_a_reservation_of_a_part_is_told_as_one() -> None:
    part = reservation("part", ["g1"], active=True, flags=frozenset(), users=("bob",), tres=parse.tres("cpu=2"))
    said = views.nodes(Sight(dataclasses.replace(CLUSTER, reservations=(part,))), None, NOW)
    (told,) = said["reservations"]
    assert told["whole"] is False and "g1" not in {out["node"] for out in said["out"]}
    heading = views.heading(NOW, NOW, Sight(CLUSTER))
    assert "partly reserved for bob (part) on g1: until" in nodes.render({"asked": "controller", **heading, **said})


def test_one_partition_is_shown_alone_also_one_that_is_hidden_and_an_unknown_one_is_refused() -> None:
    said = views.nodes(Sight(CLUSTER), "cpu", NOW)
    assert {r["partition"] for r in said["partitions"]} == {"cpu"}
    assert said["out"] == [] and [r["name"] for r in said["reservations"]] == ["maint"]
    assert views.nodes(Sight(CLUSTER), "secret", NOW)["partitions"] == []
    with pytest.raises(ValueError, match="no partition is called 'gpus'; there are: gpu, cpu, secret"):
        views.nodes(Sight(CLUSTER), "gpus", NOW)


def test_where_partitions_are_hidden_none_is_called_unknown() -> None:
    seen = Sight(picture(partitions=()), None, frozenset({"partitions"}))
    assert views.nodes(seen, "gpu", NOW)["partitions"] == []


# -- limits -----------------------------------------------------------------------------------------------------------

LIMITS = Limits(
    NOW,
    (
        association("root", None, Limit("GrpTRES", "gres/gpu", None, 40), Limit("GrpTRES", "node", None, 9)),
        association(
            "physics",
            None,
            Limit("GrpTRES", "gres/gpu:h100", 16, 14),
            Limit("GrpTRESMins", "gres/gpu", 3600 * 1000, 3600 * 250),
            Limit("GrpTRES", "mem", 512 * GIB, 128 * GIB),
            Limit("GrpWall", None, 7200, 3600),
            parent="root",
        ),
        association("physics", "ada", Limit("MaxSubmitJobs", None, 4, 1)),
        association("physics", "bob", Limit("MaxSubmitJobs", None, 8, 3)),
        association("biology", None, Limit("GrpJobs", None, 5, 6), parent="root"),
    ),
    (
        qos("normal", Limit("GrpTRES", "gres/gpu", None, 30)),
        qos("high", Limit("MaxTRESPU", "cpu", 8, 2, "ada"), Limit("MaxTRESPU", "cpu", 8, 8, "bob")),
        qos("short", Limit("MaxWallPJ", None, 1800, None), Limit("MaxTRESPN", "gres/gpu", 2, None)),
    ),
)


def rows(said: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(r["of"], r["what"], r["allowed"], r["used"], r["left"]) for r in said["limits"]]


def test_my_associations_come_with_those_above_them_in_units_that_people_count_in() -> None:
    assert rows(views.usage(LIMITS, "ada", None)) == [
        ("ada in account physics", "jobs in the queue", 4, 1, 3),
        ("account physics", "H100 at once", 16, 14, 2),
        ("account physics", "GPU-hours", 1000, 250, 750),
        ("account physics", "GiB of memory at once", 512, 128, 384),
        ("account physics", "hours of jobs", 2, 1, 1),
        ("account root", "GPUs at once", None, 40, None),
        ("QOS high, ada", "CPUs at once", 8, 2, 6),
        ("QOS short", "hours per job", 0.5, None, None),
        ("QOS short", "GPUs per node", 2, None, None),
    ]


def test_of_another_account_its_own_limits_are_shown_and_an_unknown_one_is_refused() -> None:
    found = rows(views.usage(LIMITS, "ada", "biology"))
    assert found[0] == ("account biology", "jobs at once", 5, 6, 0)
    assert not any("physics" in row[0] for row in found)
    with pytest.raises(ValueError, match="no account is called 'bio'; there are: biology, physics, root"):
        views.usage(LIMITS, "ada", "bio")
    with pytest.raises(ValueError, match="'bio'; you may see: biology"):
        views.usage(LIMITS, "ada", "bio", hidden={"usage"})


def test_somebody_without_an_association_sees_what_each_qos_limits() -> None:
    said = views.usage(LIMITS, "eve", None)
    assert {row[0] for row in rows(said)} == {"QOS short"}
    assert said["fair_share"] == []


def test_the_age_of_an_answer_is_told_and_since_when_slurm_is_silent() -> None:
    said = views.heading(NOW, after(seconds=4), Sight(picture()), Silence(after(seconds=1), "squeue did not answer", 2))
    assert said == {
        "at": "2026-03-02T12:00:00Z",
        "age_s": 4.0,
        "silent_since": "2026-03-02T12:00:01Z",
        "silence": "squeue did not answer",
        "hidden": [],
    }


# -- amounts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tres", "count", "text"),
    [
        ("gres/gpu", 1, "1 GPU"),
        ("gres/gpu", 4, "4 GPUs"),
        ("gres/gpu:h100", 1, "1 H100"),
        ("gres/gpu:a100_1g.5gb", 2, "2 A100_1G.5GB"),
        ("gres/shard", 3, "3 shard"),
        ("cpu", 1200, "1,200 CPUs"),
        ("mem", 1536 * 1024**2, "1.5 GiB of memory"),
        ("node", 1, "1 node"),
        ("billing", 3, "3 billing units"),
        ("license/matlab", 1, "1 license of matlab"),
        ("energy", 7, "7 energy"),
    ],
)
def test_amounts_are_said_as_people_say_them(tres: str, count: int, text: str) -> None:
    assert amounts.tres(tres, count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0.4, "0s"), (59, "59s"), (60, "1m"), (3600, "1h"), (3661, "1h 1m"), (86400 * 2 + 7200 + 60, "2d 2h")],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert amounts.duration(seconds) == text


def test_a_list_of_names_stays_short() -> None:
    assert [amounts.several(f"g{i}" for i in range(n)) for n in (0, 1, 2, 3, 9)] == [
        "",
        "g0",
        "g0 and g1",
        "g0, g1 and g2",
        "g0, g1, g2, g3 and 5 more",
    ]


def test_untyped_gpus_are_not_counted_as_a_type() -> None:
    untyped = node("g1", has="cpu=4,gres/gpu=4", used="cpu=1,gres/gpu=1")
    (room,) = views.nodes(Sight(picture(nodes=[untyped])), None, NOW)["partitions"]
    assert (room["gpu"], room["gpus"], room["gpus_free"]) == ("", 4, 3)
    assert parse.tres("gres/gpu=4").gpus_of_each_type == {"": 4}


def test_nodes_asked_a_while_ago_are_brought_up_to_date_by_what_jobs_did_since() -> None:
    before, ran = after(hours=-1), {"state": JobState.COMPLETED}
    old = picture(
        jobs=[
            job(1, gpus(12, nodes=2), state=JobState.RUNNING, starts_at=after(seconds=-30), nodes=("g1", "g2")),
            job(2, gpus(2), **ran, starts_at=before, ends_at=after(seconds=-10), nodes=("g1",)),
            job(3, gpus(1), state=JobState.RUNNING, starts_at=before, nodes=("g2",)),  # counted already
            job(4, gpus(4), **ran, starts_at=after(seconds=-40), ends_at=after(seconds=-20), nodes=("g2",)),
            job(5, gpus(1, kind=""), state=JobState.RUNNING, starts_at=after(seconds=-5), nodes=("g3", "gone")),
            job(6, gpus(8), reason="Resources", starts_at=after(hours=1)),
        ],
        nodes=[
            node("g1", "cpu=1,mem=1G,gres/gpu=2,gres/gpu:h100=2"),
            node("g2", "cpu=1,mem=1G,gres/gpu=1,gres/gpu:h100=1"),
            node("g3"),
        ],
    )  # fmt: skip
    asked_a_minute_ago = dataclasses.replace(old, cluster_at=after(minutes=-1))
    found = room.up_to_date(asked_a_minute_ago).nodes
    assert [n.free_gpus_by_type for n in found] == [{"h100": 2}, {"h100": 1}, {"h100": 7}]
    assert [n.allocated.cpus for n in found] == [1, 2, 1]
    assert room.up_to_date(old) is old
