"""Why a job waits, in plain words: a table of Slurm's reasons against what the cluster looks like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta, timezone
from typing import Any

import pytest
from slurm_records import GIB, NOW, after, association, gpus, job, node, partition, picture, qos, reservation

from slurm import amounts, limits, room
from slurm.model import Job, JobState, Limit, Node, NodeState
from slurm.reasons import Reasons, tasks
from slurm.sight import Limits, Sight

H100 = "gres/gpu:h100"


def why(
    one: Job, seen: Any = None, limits: Limits | None = None, hidden: tuple[str, ...] = (), jobs: tuple[Job, ...] = ()
) -> str:
    """The sentence, with its times as a clock in UTC shows them."""
    seen = seen or picture(jobs=(one, *jobs), nodes=[node("g1"), node("g2")])
    text = Reasons(Sight(seen, limits, frozenset(hidden)), NOW).why(one)
    assert text is not None
    return amounts.localised(text, NOW, NOW.tzinfo)


def used(count: int, cpus: int = 1, memory: str = "1G") -> str:
    return f"cpu={cpus},mem={memory},gres/gpu={count},gres/gpu:h100={count}"


# -- Resources: what is asked for against what is free ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("asks", "nodes", "sentence"),
    [
        (gpus(4), [node("g1", used(8)), node("g2", used(6))], "waiting for 2 more H100 in gpu"),
        (gpus(16, nodes=2), [node("g1", used(8)), node("g2")], "waiting for 8 more H100 in gpu"),
        (gpus(1, kind=""), [node("g1", used(8))], "waiting for 1 more GPU in gpu"),
        (gpus(12, kind=""), [node("g1", used(8)), node("g2")], "waiting for 4 more GPUs in gpu"),
        (gpus(4, kind="a100"), [node("g1")], "waiting for 4 more A100 in gpu"),
        # Enough in all: then nothing "more" is needed, and the sentence must not say so.
        (
            gpus(6),
            [node("g1", used(4)), node("g2", used(4))],
            "waiting for 6 H100 in gpu; 8 are free, at most 4 on one node",
        ),
        (
            gpus(8, nodes=2),
            [node("g1", used(1)), node("g2", used(7))],
            "waiting for 8 H100 on 2 nodes of gpu; 8 are free, at most 7 on one node",
        ),
        (
            "cpu=8,mem=1G,node=1,gres/gpu=2,gres/gpu:h100=2",
            [node("g1", used(0, cpus=12))],
            "2 H100 are free in gpu, but not with 8 CPUs on 1 node",
        ),
        (
            "cpu=1,mem=60G,node=1,gres/gpu=2,gres/gpu:h100=2",
            [node("g1", used(1, memory="8G"))],
            "2 H100 are free in gpu, but not with 60 GiB of memory on 1 node",
        ),
        ("cpu=20,mem=1G,node=2", [node("g1", used(0, 15)), node("g2", used(0, 13))], "waiting for 16 more CPUs in gpu"),
        (
            "cpu=16,mem=1G,node=1",
            [node("g1", used(0, 8)), node("g2", used(0, 8))],
            "waiting for 16 CPUs on 1 node of gpu",
        ),
        (
            "cpu=1,mem=100G,node=1",
            [node("g1"), node("g2", used(0, memory="32G"))],
            "waiting for 4 GiB more memory in gpu",
        ),
        (
            "cpu=2,mem=100G,node=2",
            [node("g1", used(0, memory="20G")), node("g2")],
            "waiting for 50 GiB of memory on each of 2 nodes of gpu",
        ),
        # One of anything is free, two are free.
        (
            "cpu=8,mem=1G,node=1,gres/gpu=1",
            [node("g1", used(0, cpus=12))],
            "1 GPU is free in gpu, but not with 8 CPUs on 1 node",
        ),
        (
            "cpu=1,mem=60G,node=1,gres/gpu=1,gres/gpu:h100=1",
            [node("g1", used(1, memory="8G"))],
            "1 H100 is free in gpu, but not with 60 GiB of memory on 1 node",
        ),
        (
            gpus(1, nodes=2),
            [node("g1", used(7)), node("g2", used(8))],
            "waiting for 1 H100 on 2 nodes of gpu; 1 is free, at most 1 on one node",
        ),
        (
            gpus(2),
            [node("g1")],
            "waiting for room in gpu: enough is free, but not just as it asks, or it is kept for others",
        ),
    ],
)
def test_what_is_missing_is_counted_from_what_is_free(asks: str, nodes: list[Any], sentence: str) -> None:
    assert why(job(1, asks, reason="Resources"), picture(nodes=nodes)) == f"{sentence}; no estimate yet"


def test_nodes_that_are_out_or_reserved_for_others_have_nothing_free() -> None:
    one = job(1, gpus(4), reason="Resources")
    drained = node("g1", flags=frozenset({"DRAIN"}))
    course = reservation("course", ["g2"], active=True, flags=frozenset())
    seen = picture(nodes=[drained, node("g2"), node("g3", used(6))], reservations=[course])
    assert why(one, seen) == "waiting for 2 more H100 in gpu; no estimate yet"
    within = job(1, gpus(9), reason="Resources", reservation="course")
    assert why(within, seen) == "waiting for 1 more H100 in gpu (reservation course); no estimate yet"


def test_of_several_partitions_the_one_where_least_is_missing_counts() -> None:
    nodes = [node("g1", used(8)), node("d1", used(6), partitions=("debug",))]
    one = job(1, gpus(4), reason="Resources", partition="gpu,debug")
    assert why(one, picture(nodes=nodes)).startswith("waiting for 2 more H100 in debug")


def test_what_is_free_is_not_guessed_where_nodes_are_hidden() -> None:
    one = job(1, gpus(4), reason="Resources")
    assert why(one, picture(), hidden=("nodes",)) == "waiting for 4 H100 in gpu; no estimate yet"


# -- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("starts_at", "when"),
    [
        (after(hours=2, minutes=20), "; Slurm expects 14:20"),
        (after(days=1), "; Slurm expects 3 Mar 12:00"),
        (after(days=400), "; Slurm expects 6 Apr 2027 12:00"),
        (after(minutes=-1), "; Slurm expects it any moment"),
        (None, "; no estimate yet"),
    ],
)
def test_an_estimate_is_slurms_and_says_the_day_unless_it_is_today(starts_at: Any, when: str) -> None:
    one = job(1, gpus(4), reason="Resources", starts_at=starts_at)
    assert why(one, picture(nodes=[node("g1", used(6))])) == f"waiting for 2 more H100 in gpu{when}"


def test_times_are_shown_by_the_readers_clock() -> None:
    text = f"Slurm expects {amounts.moment(after(hours=11))}"
    assert amounts.localised(text, NOW, timezone(timedelta(hours=2))) == "Slurm expects 3 Mar 01:00"


# -- Priority ---------------------------------------------------------------------------------------------------------


def test_a_job_behind_others_says_how_many_and_what_they_ask_for() -> None:
    others = (
        job(1, gpus(8), priority=2000, reason="Resources"),
        job(2, gpus(4), priority=1000, reason="Priority"),  # as urgent, and earlier
        job(3, gpus(4), id="3_[0-9%2]", priority=3000, reason="Priority"),  # ten tasks
        job(4, gpus(4), priority=3000, reason="Dependency"),  # nobody waits for these
        job(5, gpus(4), priority=0, reason="JobHeldUser"),
        job(6, gpus(4), priority=3000, reason="QOSMaxGRESPerUser"),
        job(7, gpus(4), priority=3000, reason="BeginTime"),
        job(8, gpus(4), priority=3000, state=JobState.RUNNING),
        job(9, gpus(4), priority=3000, reason="Resources", partition="cpu"),
        job(11, gpus(4), priority=1000, reason="Priority"),  # as urgent, and later
    )
    one = job(10, gpus(1), reason="Priority")
    assert why(one, jobs=others) == "behind 12 jobs in gpu that ask for 52 GPUs; no estimate yet"


def test_who_is_ahead_is_not_guessed_where_other_peoples_jobs_are_hidden() -> None:
    mine = job(1, gpus(8), priority=2000, reason="Resources")
    text = why(job(10, reason="Priority"), jobs=(mine,), hidden=("jobs",))
    assert text == "behind jobs of higher priority in gpu; no estimate yet"


@pytest.mark.parametrize(
    ("name", "count"),
    [("7", 1), ("7_3", 1), ("7_[0-9%2]", 10), ("7_[1,3,5-7]", 5), ("7_[0-9:3,20%2]", 5), ("7_[0-1,3,...]", 3)],
)
def test_an_array_that_waits_counts_task_by_task(name: str, count: int) -> None:
    assert tasks(job(7, id=name)) == count


# -- limits -----------------------------------------------------------------------------------------------------------

HOUR = 3600
LIMITS = Limits(
    NOW,
    (
        association("root", None, Limit("GrpTRES", "gres/gpu", 100, 40)),
        association(
            "physics",
            None,
            Limit("GrpTRES", "gres/gpu", 16, 14),
            Limit("GrpTRES", "cpu", 1000, 100),
            Limit("GrpTRESMins", "gres/gpu", 1000 * HOUR, 990 * HOUR),
            Limit("GrpSubmitJobs", None, 50, 50),
            Limit("GrpTRES", "mem", 100 * GIB, 100 * GIB),
            parent="root",
        ),
        association("physics", "ada", Limit("MaxJobs", None, 4, 4), Limit("MaxWallPJ", None, HOUR // 2, None)),
        association("physics", "bob", Limit("MaxJobs", None, 9, 0)),
    ),
    (
        qos(
            "normal",
            Limit("MaxTRESPU", H100, 4, 3, "ada"),
            Limit("MaxTRESPU", H100, 4, 4, "bob"),
            Limit("MaxTRESPJ", "gres/gpu", 2, None),
            Limit("MinTRESPJ", "cpu", 8, None),
            Limit("MaxTRESRunMinsPA", "cpu", 10 * HOUR, 9 * HOUR, "physics"),
        ),
    ),
)


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("AssocGrpGRES", "account physics allows 16 GPUs at once; 14 GPUs in use; this job asks for 4 GPUs"),
        (
            "AssocGrpGRESMinutes",
            "account physics allows 1,000 GPU-hours in all; 990 GPU-hours used; this job could use 20 GPU-hours",
        ),
        ("AssocGrpSubmitJobsLimit", "account physics allows 50 jobs in the queue; 50 jobs now"),
        (
            "AssocGrpMemLimit",
            "account physics allows 100 GiB of memory at once; 100 GiB of memory in use; this job asks "
            "for 1 GiB of memory",
        ),
        ("AssocMaxJobsLimit", "account physics allows ada 4 jobs at once; 4 jobs now"),
        ("AssocMaxWallDurationPerJobLimit", "account physics allows ada at most 30m for one job; this one asks for 5h"),
        (
            "QOSMaxGRESPerUser",
            "QOS normal allows each user 4 H100 at once; 3 H100 in use by ada; this job asks for 4 H100",
        ),
        ("QOSMaxGRESPerJob", "QOS normal allows at most 2 GPUs for one job; this one asks for 4 GPUs"),
        ("QOSMinCpuNotSatisfied", "QOS normal allows at least 8 CPUs for one job; this one asks for 1 CPU"),
        (
            "MaxCpuRunMinsPerAccount",
            "QOS normal allows each account 10 CPU-hours still to run; 9 CPU-hours taken by physics; "
            "this job could use 5 CPU-hours",
        ),
        ("QOSGrpNodeLimit", "a limit of QOS normal is reached (QOSGrpNodeLimit)"),
        ("AssocGrpNodeLimit", "a limit of account physics or of one above it is reached (AssocGrpNodeLimit)"),
        ("AssociationJobLimit", "a limit of its account or its QOS is reached (AssociationJobLimit)"),
    ],
)
def test_a_limit_says_whose_it_is_how_much_is_used_and_what_is_asked_for(reason: str, sentence: str) -> None:
    assert why(job(1, gpus(4), reason=reason, time_limit_s=5 * HOUR), limits=LIMITS) == sentence


def test_a_job_that_asks_for_more_than_is_allowed_can_never_start_whatever_slurm_expects() -> None:
    one = job(1, gpus(20), reason="AssocGrpGRES", starts_at=after(hours=1))
    sentence = "account physics allows 16 GPUs at once; this job asks for 20 GPUs, so it can never start"
    assert why(one, limits=LIMITS) == sentence


def test_the_limit_that_the_job_would_pass_is_the_one_meant() -> None:
    """Slurm says AssocGrpGRES for any account above; the account's own has room, the one above it has not."""
    seen = Limits(
        NOW,
        (
            association("root", None, Limit("GrpTRES", "gres/gpu", 100, 99)),
            association("physics", None, Limit("GrpTRES", "gres/gpu", 16, 2), parent="root"),
        ),
        (),
    )
    text = why(job(1, gpus(4), reason="AssocGrpGRES"), limits=seen)
    assert text == "account root allows 100 GPUs at once; 99 GPUs in use; this job asks for 4 GPUs"


def test_the_qos_of_a_partition_counts_too() -> None:
    seen = picture(nodes=[node("g1")], partitions=[partition("gpu", qos="part")])
    found = Limits(NOW, (), (qos("normal"), qos("part", Limit("GrpTRES", "cpu", 10, 10))))
    text = why(job(1, reason="QOSGrpCpuLimit"), seen, limits=found)
    assert text == "QOS part allows 10 CPUs at once; 10 CPUs in use; this job asks for 1 CPU"


def test_without_the_limits_the_reason_still_says_whose() -> None:
    text = why(job(1, reason="QOSMaxJobsPerUserLimit"))
    assert text == "a limit of QOS normal is reached (QOSMaxJobsPerUserLimit)"


# As in job_state_reason_string() of 22.05 and 26.05.
NAMES = """
AssocGrpCpuLimit=GrpTRES:cpu AssocGrpCPUMinutesLimit=GrpTRESMins:cpu AssocGrpCPURunMinutesLimit=GrpTRESRunMins:cpu
AssocGrpJobsLimit=GrpJobs AssocGrpMemLimit=GrpTRES:mem AssocGrpNodeRunMinutes=GrpTRESRunMins:node
AssocGrpWallLimit=GrpWall AssocGrpGRESRunMinutes=GrpTRESRunMins:gres/ AssocGrpLicense=GrpTRES:license/
AssocMaxCpuMinutesPerJobLimit=MaxTRESMinsPJ:cpu AssocMaxSubmitJobLimit=MaxSubmitJobs AssocMaxCpuPerNode=MaxTRESPN:cpu
AssocMaxWallDurationPerJobLimit=MaxWallPJ AssocMaxBillingPerJob=MaxTRESPJ:billing
QOSGrpMemoryMinutes=GrpTRESMins:mem QOSGrpSubmitJobsLimit=GrpSubmitJobs QOSMaxCpuPerUserLimit=MaxTRESPU:cpu
QOSMaxGRESMinutesPerJob=MaxTRESMinsPJ:gres/ QOSMaxMemoryPerUser=MaxTRESPU:mem QOSMaxNodePerJobLimit=MaxTRESPJ:node
QOSMaxSubmitJobPerUserLimit=MaxSubmitJobsPU QOSMinGRES=MinTRESPJ:gres/ QOSMinCpuNotSatisfied=MinTRESPJ:cpu
MaxGRESPerAccount=MaxTRESPA:gres/ MaxJobsPerAccount=MaxJobsPA MaxMemoryRunMinsPerUser=MaxTRESRunMinsPU:mem
"""


@pytest.mark.parametrize("pair", NAMES.split())
def test_slurms_names_of_limits_are_understood(pair: str) -> None:
    reason, _, meant = pair.partition("=")
    found = limits.wanted(reason)
    assert found is not None
    assert f"{found.kind}:{found.tres}" == meant or (found.kind == meant and found.tres is None)
    assert found.owner == ("Assoc" if reason.startswith("Assoc") else "QOS")


@pytest.mark.parametrize(
    "reason", ["Priority", "MaxMemPerLimit", "QOSNotAllowed", "AssociationTimeLimit", "QOSGrpUnknown"]
)
def test_other_reasons_are_not_taken_for_limits(reason: str) -> None:
    assert limits.wanted(reason) is None


# -- everything else --------------------------------------------------------------------------------------------------

MAINT = reservation("maint-1", ["g1", "g2"])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"reason": None}, "Slurm has not looked at it yet"),
        ({"reason": "BeginTime", "starts_at": after(hours=3)}, "not before 15:00"),
        ({"reason": "BeginTime", "starts_at": after(minutes=2), "restarts": 1}, "not before 12:02 (it was requeued)"),
        ({"reason": "Dependency", "dependency": "afterok:12(unfulfilled)"}, "waits until job 12 has completed"),
        (
            {"reason": "Dependency", "dependency": "afterany:12(unfulfilled),afternotok:13_2(unfulfilled)"},
            "waits until job 12 has ended and job 13_2 has failed",
        ),
        (
            {"reason": "Dependency", "dependency": "afterok:1(failed)?afterok:2(unfulfilled)"},
            "waits until job 1 has completed or job 2 has completed",
        ),
        (
            {"reason": "Dependency", "dependency": "after:12+30(unfulfilled)"},
            "waits until 30 min after job 12 has begun",
        ),
        (
            {"reason": "Dependency", "dependency": "singleton(unfulfilled)"},
            "waits until no other job of the name wrap runs",
        ),
        ({"reason": "Dependency", "dependency": "new:1"}, "waits for other jobs (new:1)"),
        (
            {"reason": "DependencyNeverSatisfied", "dependency": "afterok:12(failed)"},
            "can never start: what it depends on did not end as it had to (afterok:12(failed))",
        ),
        ({"reason": "JobHeldUser", "priority": 0}, "held by its user; `scontrol release 1` lets it start"),
        ({"reason": "JobHeldAdmin", "priority": 0}, "held by an administrator"),
        (
            {"reason": "launch_failed_requeued_held", "state": JobState.REQUEUE_HOLD},
            "its launch failed; Slurm requeued and holds it; `scontrol release 1` tries again",
        ),
        (
            {"reason": "(launch failed requeued held)"},
            "its launch failed; Slurm requeued and holds it; `scontrol release 1` tries again",
        ),
        ({"reason": "PartitionTimeLimit", "time_limit_s": 2 * 86400}, "asks for 2d, and partition gpu allows 1d"),
        ({"reason": "PartitionTimeLimit", "time_limit_s": None}, "asks for no time limit, and partition gpu allows 1d"),
        ({"reason": "PartitionNodeLimit", "node_count": 9}, "asks for 9 nodes, and partition gpu allows 4"),
        ({"reason": "PartitionTimeLimit", "partition": "x"}, "its time limit is more than partition x allows"),
        ({"reason": "PartitionDown"}, "partition gpu is down: nothing starts there"),
        ({"reason": "PartitionInactive"}, "partition gpu is inactive"),
        ({"reason": "JobArrayTaskLimit", "id": "1_[3-9%2]"}, "its array runs 2 tasks at once"),
        ({"reason": "Licenses", "tres": job(1, "cpu=1,license/matlab=2").tres}, "waiting for 2 licenses of matlab"),
        ({"reason": "BadConstraints"}, "no node can be what it asks for (constraints, memory, GPUs)"),
        (
            {"reason": "ReqNodeNotAvail, UnavailableNodes:g[3-4]"},
            "nodes it needs are not available: g3 (drained: bad disk, see #4) and g4 (not responding)",
        ),
        ({"reason": "ReqNodeNotAvail, UnavailableNodes:x9"}, "nodes it needs are not available: x9"),
        (
            {"reason": "ReqNodeNotAvail, May be reserved for other job"},
            "the nodes it needs may be reserved for other jobs",
        ),
        (
            {"reason": "ReqNodeNotAvail, Reserved for maintenance", "time_limit_s": 3 * HOUR},
            "maintenance (maint-1) from 14:00 to 16:00; a time limit below 2h would end before it",
        ),
        (
            {"reason": "ReqNodeNotAvail,_Reserved_for_maintenance", "time_limit_s": 3 * HOUR},
            "maintenance (maint-1) from 14:00 to 16:00; a time limit below 2h would end before it",
        ),
        ({"reason": "Reservation", "reservation": "later"}, "waiting for its reservation later, from 14:00"),
        ({"reason": "Reservation", "reservation": "gone"}, "waiting for its reservation gone"),
        (
            {"reason": "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions"},
            "nodes it needs are down, drained or kept for partitions that come first: g3 (drained: bad disk, see #4) "
            "and g4 (not responding)",
        ),
        ({"reason": "SomethingNew"}, "Slurm says SomethingNew"),
    ],
)
def test_reasons_in_plain_words(changed: dict[str, Any], sentence: str) -> None:
    seen = picture(
        nodes=[
            node("g1"),
            node("g2"),
            node("g3", flags=frozenset({"DRAIN"}), reason="bad disk, see #4"),
            node("g4", state=NodeState.DOWN, flags=frozenset({"NOT_RESPONDING"})),
        ],
        partitions=[partition("gpu", max_time_s=86400, max_nodes=4)],
        reservations=[MAINT, reservation("later", ["g1"], flags=frozenset())],
    )
    assert why(job(1, **changed), seen) == sentence


class Counted(tuple[Any, ...]):
    """Counts how often it is gone through."""

    looks = 0

    def __iter__(self) -> Any:
        self.looks += 1
        return super().__iter__()


def whys(seen: Any, jobs: Iterable[Job], limits: Limits | None = None) -> set[str | None]:
    reasons = Reasons(Sight(seen, limits), NOW)
    return {reasons.why(one) for one in jobs}


def test_jobs_that_wait_for_the_same_closed_nodes_share_one_look_at_the_nodes() -> None:
    nodes = Counted([node("g1", flags=frozenset({"DRAIN"})), node("c1", partitions=("cpu",))])
    reasons = Reasons(Sight(replace(picture(), nodes=nodes), None, frozenset()), NOW)
    told = {reasons.why(job(i, reason="ReqNodeNotAvail, UnavailableNodes:")) for i in range(100)}
    assert (told, nodes.looks) == ({"nodes it needs are not available: g1 (drained)"}, 1)
    in_cpu = reasons.why(job(100, partition="cpu", reason="ReqNodeNotAvail, UnavailableNodes:c1,g1"))
    assert in_cpu == "nodes it needs are not available: g1 (drained)"


def test_jobs_that_wait_for_the_same_maintenance_share_one_look_at_the_nodes() -> None:
    nodes = Counted([node("g1"), node("c1", partitions=("cpu",))])
    reservations = [reservation("late", ["g1"], starts_at=after(hours=3)), MAINT, reservation("other", ["c1"])]
    seen = replace(picture(reservations=reservations), nodes=nodes)
    told = whys(seen, [job(i, reason="ReqNodeNotAvail, Reserved for maintenance") for i in range(100)])
    assert told == {"its nodes are reserved for maintenance"}  # it would end before
    looks = nodes.looks
    jobs = [job(i, reason="ReqNodeNotAvail, Reserved for maintenance", time_limit_s=4 * HOUR + i) for i in range(100)]
    (text,) = whys(seen, jobs)
    assert text is not None and text.startswith("maintenance (maint-1) from 2026-03-02T14:00:00Z")
    assert (looks, nodes.looks) == (1, 2)


def test_what_nodes_have_free_is_counted_once_however_many_jobs_ask_for_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: Counter[str] = Counter()

    def looked(what: str, count: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counting(one: Any) -> Any:
            looks[what] += 1
            return count(one)

        return counting

    monkeypatch.setattr(room, "free_cpus", looked("cpus", room.free_cpus))
    monkeypatch.setattr(room, "free_memory_bytes", looked("memory", room.free_memory_bytes))
    free_gpus_by_type: Any = Node.free_gpus_by_type
    monkeypatch.setattr(Node, "free_gpus_by_type", property(looked("gpus", free_gpus_by_type.fget)))
    seen = picture(nodes=[node(f"g{i}", used(0, cpus=12)) for i in range(10)])
    asks = [f"cpu={8 + i},mem=1G,node=1,gres/gpu=2,gres/gpu:h100=2" for i in range(20)]
    told = whys(seen, [job(i, asked, reason="Resources") for i, asked in enumerate(asks)])
    assert told == {f"2 H100 are free in gpu, but not with {8 + i} CPUs on 1 node; no estimate yet" for i in range(20)}
    assert max(looks.values()) == 10


def test_jobs_at_a_limit_share_one_look_at_whose_limits_there_are() -> None:
    associations = Counted([*LIMITS.associations, *(association("physics", f"u{i}") for i in range(10))])
    rules = Counted(LIMITS.qos)
    seen = Limits(NOW, associations, rules)
    reasons = ("AssocMaxJobsLimit", "QOSMaxGRESPerUser")
    jobs = [job(i, gpus(2), reason=reasons[i % 2]) for i in range(100)]
    assert whys(picture(), jobs, seen) == {
        "account physics allows ada 4 jobs at once; 4 jobs now",
        "QOS normal allows each user 4 H100 at once; 3 H100 in use by ada; this job asks for 2 H100",
    }
    assert (associations.looks, rules.looks) == (1, 1)


def test_maintenance_that_has_begun_says_until_when() -> None:
    begun = reservation("maint-2", ["g1"], starts_at=after(hours=-1), ends_at=after(hours=1), active=True)
    seen = picture(nodes=[node("g1", flags=frozenset({"MAINTENANCE"}))], reservations=[begun])
    assert why(job(1, reason="ReqNodeNotAvail, Reserved for maintenance"), seen) == "maintenance (maint-2) until 13:00"


def test_a_job_that_does_not_wait_has_no_reason_to() -> None:
    assert Reasons(Sight(picture()), NOW).why(job(1, state=JobState.RUNNING)) is None
