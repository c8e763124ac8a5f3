"""What the hours gave: models and efficiency."""

from __future__ import annotations

import dataclasses
from datetime import date

import pytest
from report_books import HOUR, allocation, line

from registry.accounting import Job
from registry.attempts import Attempt
from registry.attribution import Line
from registry.report import Value
from registry.report_efficiency import Lost, Month, compared, lost, restarts, waits, wasted
from registry.report_gpu import by_what
from registry.report_models import by_model
from registry.usage_rows import Counts
from registry.window import of_month

NOVEMBER = of_month(date(2026, 11, 1))


def two_credits_an_hour(of: Line) -> int:
    return of.gpu_s * 2_000_000


def test_a_model_costs_what_its_replicas_held_and_is_compared_with_its_charges() -> None:
    lines = (line("serving", 2 * HOUR), line("idle", HOUR), line("startup", HOUR), line("training", HOUR, model=""))
    used = {"chat": Counts(10, 1, 1_500_000, 0, 500_000, 0, 6_000_000), "external": Counts(1, 0, 50, 0, 50, 0, 100)}
    section = by_model(used, {"chat": 2_000_000}, lines, two_credits_an_hour)
    chat, external = section.rows
    assert (chat["tokens"], chat["gpu_hours"], chat["idle_share"], chat["startup_share"]) == (2_000_000, 4, 0.25, 0.25)
    assert (chat["tokens_per_gpu_hour"], chat["cost"], chat["cost_per_million"]) == (500_000, 8.0, 4.0)
    assert (chat["charged"], chat["charged_per_million"]) == (6.0, 3.0)
    assert (external["gpu_hours"], external["tokens_per_gpu_hour"], external["cost_per_million"]) == (0, None, None)
    assert section.total is not None and section.total["cost"] == 8.0
    assert section.total["tokens"] == 2_000_100  # and as served, those of our own replicas alone
    assert (section.total["tokens_per_gpu_hour"], section.total["cost_per_million"]) == (500_000, 4.0)
    assert section.charts[0].labels == ("chat",)


def test_a_model_that_only_idled_is_shown_with_its_cost() -> None:
    (row,) = by_model({}, {}, (line("idle", HOUR),), two_credits_an_hour).rows
    assert (row["model"], row["tokens"], row["idle_share"], row["cost"]) == ("chat", 0, 1.0, 2.0)
    assert row["cost_per_million"] is None and row["tokens_per_gpu_hour"] == 0


def test_what_is_not_known_of_a_model_is_not_0() -> None:
    used = {"chat": Counts(10, 1, 1_500_000, 0, 500_000, 0, 6_000_000)}
    (silent,) = by_model(used, {}, None, two_credits_an_hour).rows
    assert (silent["charged"], silent["charged_per_million"]) == (6.0, 3.0)
    names = ("gpu_hours", "cost", "idle_share", "startup_share", "tokens_per_gpu_hour", "cost_per_million")
    assert {silent[name] for name in names} == {None}
    of_a_tenant = by_model(used, None, (line("idle", HOUR),), two_credits_an_hour)
    (paid,) = of_a_tenant.rows
    assert (paid["gpu_hours"], paid["cost"], paid["idle_share"]) == (1, 2.0, 1.0)
    assert (paid["tokens_per_gpu_hour"], paid["cost_per_million"]) == (None, None)
    assert any("all tenants together" in note for note in of_a_tenant.notes) and not of_a_tenant.charts


def month(tokens: int, *lines: Line, elsewhere: int = 0) -> Month:
    """`elsewhere`: of the tokens, those that no GPU of ours had a part in."""
    return Month(Counts(1, 0, tokens), tokens - elsewhere, by_what(lines, two_credits_an_hour), ())


def test_a_month_is_set_against_the_one_before() -> None:
    now = month(3_500_000, line("serving", HOUR), line("idle", HOUR), elsewhere=500_000)
    section = compared(now, month(1_000_000, line("serving", HOUR)), NOVEMBER)
    said: dict[Value, tuple[Value, ...]] = {r["what"]: (r["now"], r["before"], r["change"]) for r in section.rows}
    assert said["Tokens"] == (3_500_000, 1_000_000, 2.5)
    assert said["Tokens per GPU-hour as served"] == (1_500_000, 1_000_000, 0.5)
    assert said["Credits per million tokens as served"] == (pytest.approx(4 / 3), 2.0, pytest.approx(-1 / 3))
    assert said["Idle replicas, credits"] == (2.0, 0.0, None)
    alone = compared(now, dataclasses.replace(now, times=None), NOVEMBER)
    told = {r["what"]: r["before"] for r in alone.rows if r["before"] is not None}
    assert told == {"Tokens": 3_500_000, "Credits per million tokens charged": 0}
    of_a_tenant = compared(dataclasses.replace(now, served=None), now, NOVEMBER)
    assert [r["what"] for r in of_a_tenant.rows if r["now"] is None] == [
        "Tokens per GPU-hour as served",
        "Credits per million tokens as served",
    ]


def test_wasted_are_idle_and_starting_replicas_and_what_restarts_lost() -> None:
    gone = Lost("run-1", "5.0", 100, 1800.0, gpus=4, cpus=32)
    section = wasted(by_what((line("idle", HOUR), line("startup", HOUR // 2)), two_credits_an_hour), (gone,))
    assert [(r["gpu_hours"], r["credits"]) for r in section.rows] == [(1, 2.0), (0.5, 1.0), (2, None)]
    assert section.total == {"what": "total", "gpu_hours": 3.5, "cpu_hours": 28.0}
    assert [(r["run"], r["iterations"], r["gpu_hours"]) for r in restarts([gone]).rows] == [("run-1", 100, 2)]


def attempt(**said: object) -> Attempt:
    known = {
        "run": "run-1",
        "attempt": "5.0",
        "number": 1,
        "job_id": "5",
        "nodes": "g1",
        "started_at": "2026-11-03T00:00:00.000000Z",
        "ended_at": "2026-11-03T01:00:00.000000Z",
        "cause": "preempted",
        "detail": None,
        "exit_code": None,
        "first_iteration": 100,
        "last_iteration": 400,
        "saved_iteration": 300,
        "verdict": None,
    }
    return Attempt(**known | said)  # type: ignore[arg-type]


JOB = Job(
    "test", "5", "", "run-1", "run-1", "train", "ada", "PREEMPTED", None, "gpu", "phys", "", "", 3600, 16, 2, True
)


def test_an_attempt_lost_what_it_did_after_its_newest_checkpoint() -> None:
    (gone,) = lost([attempt()], {"run-1/5": JOB})
    assert (gone.iterations, gone.seconds, gone.gpus, gone.cpus) == (100, 1200.0, 2, 16)
    (all_of_it,) = lost([attempt(saved_iteration=None)], {"run-1/5": JOB})
    assert (all_of_it.iterations, all_of_it.seconds) == (300, 3600.0)


@pytest.mark.parametrize(
    "said",
    [{"saved_iteration": 400}, {"cause": "completed"}, {"ended_at": None}, {"last_iteration": None}, {"job_id": "6"}],
)
def test_nothing_is_lost_where_all_was_saved_or_too_little_is_known(said: dict[str, object]) -> None:
    assert lost([attempt(**said)], {"run-1/5": JOB}) == []


def test_waits_are_of_jobs_that_started_by_partition_with_a_median_and_a_ninetieth_percentile() -> None:
    jobs = [allocation(str(n), 0, 1, waited_s=n) for n in range(1, 11)]
    jobs += [allocation("11", 0, 1, partition="cpu", waited_s=60), allocation("12", 0, 1, waited_s=None)]
    section = waits(jobs, ("partition",))
    columns = ("partition", "jobs", "median_s", "p90_s", "longest_s")
    assert [tuple(r[c] for c in columns) for r in section.rows] == [("cpu", 1, 60, 60, 60), ("gpu", 10, 5, 9, 10)]
    assert section.total is not None and (section.total["jobs"], section.total["p90_s"]) == (11, 10)
    assert waits([], ("qos",)).total is None
