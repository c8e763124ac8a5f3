"""What rows say becomes what planning looks at: times by its own clock, and what is not known stays so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchers import situations
from launchers.planning.facts import Loaded, Options, Situation, Timings
from launchers.scheduler import Maintenance, Outlook
from launchers.steady_clock import SteadyClock
from registry import clock
from registry import site as settings
from registry.demand import Demand, Load, Served
from registry.deployments import Deployment, DeploymentState, Replica, ReplicaState
from registry.site import Site

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
JUMP = 7.0  # by which the planner's clock differs from what is written


def text(seconds: float) -> str:
    return clock.text(NOON + timedelta(seconds=seconds))


def moment(seconds: float) -> float:
    return NOON.timestamp() + seconds + JUMP


def at(written: str) -> float:
    return clock.parse(written).timestamp() + JUMP


def deployment(**changed: Any) -> Deployment:
    made = Deployment(
        name="chat", owner="ada", state=DeploymentState.READY, model="tiny", version=1, model_path="/m/tiny",
        min_replicas=1, request={}, cause=None, created_at=text(0), ended_at=None, max_replicas=4,
    )  # fmt: skip
    return replace(made, **changed)


def replica(name: str = "r1", **changed: Any) -> Replica:
    nothing: dict[str, Any] = dict.fromkeys(
        ("host", "port", "upstream_key", "context_tokens", "cause", "ready_at", "ended_at")
    )
    made = Replica(
        id=name, deployment="chat", owner="ada", state=ReplicaState.READY, folder=f"/runs/{name}", created_at=text(10),
        **nothing,
    )  # fmt: skip
    return replace(made, **changed)


def seen(
    *theirs: Replica,
    of: Deployment | None = None,
    served: Mapping[str, Served] | None = None,
    limits: Mapping[str, int] | None = None,
    **more: Any,
) -> Situation:
    rules = situations.rules_of(of or deployment(), site())
    return situations.situation(
        of or deployment(), theirs, rules, at, moment(1000), served=served or {}, limits=limits or {}, **more
    )


def site(**changed: Any) -> Site:
    scheduler = settings.Scheduler(kind="local")
    made = Site(name="test", state_dir=Path("/state"), shared_dir=Path("/shared"), scheduler=scheduler)
    return replace(made, **changed)


def test_times_are_the_planners_and_a_jobs_end_is_slurmctlds() -> None:
    job = {"nodes": "n1,n2", "expected_start_at": text(30), "ends_at": text(3600)}
    states = {"started_at": text(20), "ready_at": text(40), "draining_at": text(50)}
    found = seen(replica(**job, **states), limits={"r1": 1800})
    (had,) = found.replicas
    assert (had.created_at, had.started_at, had.ready_at) == (moment(10), moment(20), moment(40))
    assert (had.draining_at, had.expected_start_at) == (moment(50), moment(30))
    assert had.ends_at == NOON.timestamp() + 3600  # whose clock did not jump
    assert (had.nodes, had.time_limit_s) == (("n1", "n2"), 1800)
    assert found.now == moment(1000)


def test_a_rollout_begins_with_the_deployment_where_none_was_asked_for() -> None:
    assert seen().wanted.rollout_at == moment(0)
    assert seen(of=deployment(rollout_at=text(60), revision=2, stable=1, canary=10)).wanted.rollout_at == moment(60)


def test_what_nobody_has_said_is_not_taken_for_nothing() -> None:
    found = seen(replica())
    (had,) = found.replicas
    assert (found.load, found.called_at, had.outstanding, had.time_limit_s, had.ends_at) == (None,) * 5
    assert (had.nodes, had.requests, had.failures) == ((), 0, 0)


def test_load_and_calls_are_the_gateways() -> None:
    found = seen(called=Demand("chat", text(900), 3), load=Load("chat", text(990), 2, 500, 1, 80, 4.0))
    assert found.load == Loaded(2, 500, 1, 80, 4.0)
    assert found.called_at == moment(900)


def test_a_replica_that_drains_has_what_gateways_say_that_have_noticed() -> None:
    draining = replica(state=ReplicaState.DRAINING, draining_at=text(500))
    for said_at, said, outstanding in ((500.5, 0, 1), (500.5, 2, 2), (501.5, 2, 2), (501.5, 0, 0)):
        (had,) = seen(draining, served={"r1": Served("r1", text(said_at), said, 9, 1, 4, 0.5)}).replicas
        assert had.outstanding == outstanding
        assert (had.requests, had.failures, had.first_outputs, had.first_output_s) == (9, 1, 4, 0.5)


@given(
    made_s=st.floats(0, 20_000), called_s=st.floats(0, 20_000), jump_s=st.floats(-20_000, 20_000), former=st.booleans()
)
def test_whatever_clock_is_set_whose_a_replica_is_stays_told_by_what_is_written(
    made_s: float, called_s: float, jump_s: float, former: bool
) -> None:
    wall, monotonic = NOON.timestamp() + 20_000, 0.0
    steady = SteadyClock(lambda: wall, lambda: monotonic)
    steady.now()
    wall, monotonic = wall + 1 + jump_s, 1.0
    now = steady.now()
    was = deployment(created_at=text(made_s))
    theirs = replica(created_at=text(made_s - 1) if former else text(max(made_s, called_s)))
    found = situations.situation(
        was, [theirs], situations.rules_of(was, site()),
        lambda written: steady.corrected(clock.parse(written).timestamp(), now), now,
        called=Demand("chat", text(max(made_s, called_s)), 0), served={}, limits={},
    )  # fmt: skip
    assert [r.former for r in found.replicas] == [former]
    assert found.called_at is not None


def test_calls_of_a_former_deployment_do_not_count() -> None:
    assert seen(called=Demand("chat", text(-1), 0)).called_at is None
    assert seen(called=Demand("chat", text(0), 0)).called_at == moment(0)


def test_why_a_job_waits_is_said_of_one_that_waits_only() -> None:
    waits, runs = replica(state=ReplicaState.PENDING), replica()
    reasons = [replace(r, waiting_reason="Priority") for r in (waits, runs)]
    assert [had.waiting_reason for had in seen(*reasons).replicas] == ["Priority", None]


def test_a_deployments_own_words_come_before_the_sites() -> None:
    usual = settings.Deployments(idle_timeout_s=60.0, bake_s=10.0, bake_requests=7, max_step=2)
    common = settings.Replicas(drain_timeout_s=100, shutdown_timeout_s=5)
    ours = site(deployments=usual, replicas=common)
    found = situations.rules_of(deployment(), ours)
    assert (found.idle_s, found.bake_s, found.bake_requests, found.max_step) == (60.0, 10.0, 7, 2)
    assert (found.drain_s, found.shutdown_s, found.partition, found.overflow) == (100, 5, "", False)
    own = {"idle_timeout_s": 5.0, "bake_requests": 0, "pack": 2, "overflow": {"qos": "scavenger"}}
    resources = {"partition": "gpu,cpu", "time_limit_s": 7200}
    found = situations.rules_of(deployment(request={**own, "resources": resources}), ours)
    assert (found.idle_s, found.bake_s, found.bake_requests) == (5.0, 10.0, 0)  # none is a word, too
    assert (found.pack, found.overflow, found.partition, found.time_limit_s) == (2, True, "gpu,cpu", 7200)
    assert (found.where(True), found.limit_s(True)) == ("gpu,cpu", 7200)  # its own words are over the others'
    spare = {"partition": "spare", "time_limit_s": 3600}
    found = situations.rules_of(deployment(request={**own, "resources": resources, "overflow": spare}), ours)
    assert (found.where(True), found.limit_s(True)) == ("spare", 3600)
    assert (found.where(False), found.limit_s(False)) == ("gpu,cpu", 7200)


def test_what_no_site_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="time_limit_s"):
        situations.rules_of(deployment(request={"resources": {"time_limit_s": 0}}), site())


def test_overflow_is_over_what_the_others_ask_for() -> None:
    request = {"resources": {"partition": "gpu", "qos": "normal"}, "overflow": {"qos": "scavenger"}}
    spec = situations.spec_of(deployment(request=request))
    assert situations.resources_asked(spec, overflow=False) == {"partition": "gpu", "qos": "normal"}
    assert situations.resources_asked(spec, overflow=True) == {"partition": "gpu", "qos": "scavenger"}


def test_timings_are_the_medians_of_the_last_replicas_that_got_so_far() -> None:
    assert situations.timings([replica()], at) == Timings(0.0, 60.0)  # none was measured
    slow = replica(created_at=text(0), started_at=text(900), ready_at=text(1900))
    quick = [replica(created_at=text(0), started_at=text(n), ready_at=text(n + 40 + n)) for n in (1, 2, 3, 4, 5)]
    waits = replica(created_at=text(0), started_at=text(3))
    assert situations.timings([slow, *quick], at) == Timings(3.0, 43.0)
    assert situations.timings([slow, *quick, waits], at) == Timings(3.0, 43.0)
    assert situations.timings([waits], at) == Timings(3.0, 60.0)


def test_a_clock_that_was_set_back_makes_no_negative_times() -> None:
    back = replica(created_at=text(50), started_at=text(20), ready_at=text(10))
    assert situations.timings([back], at) == Timings(0.0, 0.0)


def test_the_clusters_times_are_seconds() -> None:
    window = Maintenance("upgrade", NOON, NOON + timedelta(hours=2), frozenset({"n1"}))
    found = situations.cluster_of(Outlook({"n2": "bad fan"}, {"n3": "no power"}, (window,), {"": frozenset({"n1"})}))
    assert found.known and (found.leaving, found.down) == ({"n2": "bad fan"}, {"n3": "no power"})
    (kept,) = found.maintenance
    assert (kept.name, kept.starts_at, kept.ends_at) == ("upgrade", NOON.timestamp(), NOON.timestamp() + 7200)
    assert kept.nodes == {"n1"} and found.partition_nodes == {"": {"n1"}}
    assert found.seen_at is None
    assert situations.cluster_of(Outlook({}, {}, (), {}, NOON)).seen_at == NOON.timestamp()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], Options()),
        (["--time-min=30"], Options(time_min_s=1800)),
        (["--time-min=4:00:00", "--exclude=n1,n2"], Options(time_min_s=14400, exclude=frozenset({"n1", "n2"}))),
        (["--nodelist=n1"], Options(nodelist=True)),
        (["--time-min=soon"], Options()),  # for sbatch to refuse
    ],
)
def test_what_a_deployments_own_options_say_of_time_and_nodes_is_known_of_each_kind_of_its_jobs(
    options: list[str], said: Options
) -> None:
    rules = situations.rules_of(
        deployment(request={"resources": {"options": options}, "overflow": {"qos": "low"}}), site()
    )
    assert rules.says(overflow=False) == rules.says(overflow=True) == said
    other = deployment(request={"resources": {"options": ["--nice=5"]}, "overflow": {"options": options}})
    rules = situations.rules_of(other, site())
    assert (rules.says(overflow=False), rules.says(overflow=True)) == (Options(), said)
