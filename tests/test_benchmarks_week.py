"""The simulated week: its trace, its cluster, and that its figures would tell the policies apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.week import Fixed, Ours, naive, run
from benchmarks.week_cluster import PATIENCE_S, SLOTS, Cluster, Line
from benchmarks.week_trace import HOURS, TICK_S, Arrivals, Stays, curve, read, week

BUSY_HOURS = slice(7 * 3600 // TICK_S, 10 * 3600 // TICK_S)  # of Monday, when ever more is asked for


def test_a_trace_is_read_in_seconds_since_its_first_request(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50,1,2"
    )
    assert read(file) == [(0.0, 374, 44), (pytest.approx(3.31941), 1, 2)]
    file.write_text("at,tokens\n1,2\n")
    with pytest.raises(ValueError, match="is to have TIMESTAMP, ContextTokens and GeneratedTokens"):
        read(file)


def test_a_day_has_its_curve_and_the_weekend_less_of_it() -> None:
    assert curve(10 * 3600) == HOURS[10]
    assert curve(10.5 * 3600) == pytest.approx((HOURS[10] + HOURS[11]) / 2)
    assert curve(5 * 86_400 + 10 * 3600) < curve(4 * 86_400 + 10 * 3600) / 2


def test_what_does_not_fit_waits_and_is_refused_when_it_has_waited_too_long() -> None:
    line, one = Line(), Arrivals(2.0 * SLOTS * TICK_S, 0.0, 1 / 0.03)  # a second each: twice what a replica can do
    line.tick(TICK_S, one, 1)
    assert (line.running, line.queued, line.refused) == (SLOTS, pytest.approx(SLOTS * TICK_S), 0.0)
    line.tick(2 * TICK_S + PATIENCE_S, Arrivals(0.0, 0.0, 0.0), 1)
    assert (line.queued, line.refused) == (0.0, pytest.approx(SLOTS * TICK_S))
    assert line.p99_s() == PATIENCE_S


def test_jobs_are_preempted_or_reach_their_time_limit_and_their_hours_are_counted() -> None:
    cluster = Cluster()
    first, second = cluster.submit(), cluster.submit()
    first.starts_at = second.starts_at = 0.0
    first.preempted_at, second.preempted_at, second.ends_at = 3600.0, 9e9, 7200.0
    ended = [job.id for _ in range(7200 // TICK_S) for job in cluster.tick()]
    assert ended == [first.id, second.id]
    assert cluster.gpu_s == 3600.0 + 7200.0


def test_what_a_replica_has_as_it_drains_stays_for_the_rest_of_its_time_and_is_cut_off_with_it() -> None:
    stays = Stays(None).draw(10_000)
    assert min(stays) < 0.1 and max(stays) > 30.0  # some take long, as in the trace
    cluster, line = Cluster(), Line()
    job = cluster.submit()
    job.draining_at, job.leaves = 0.0, [2.0, 10.0, 30.0]
    assert [job.outstanding(at) for at in (0.0, 2.0, 29.0, 30.0)] == [3, 2, 1, 0]
    line.lose(job, 29.0, 1)
    assert line.cut == 1.0


def test_ours_serves_a_busy_morning_with_fewer_hours_than_the_peak_takes_and_fewer_cut_off_than_naive_scaling() -> None:
    morning = week(None)[BUSY_HOURS]
    ours, peak, mean = run(morning, Ours(Stays(None))), run(morning, Fixed(30)), run(morning, Fixed(6))
    assert ours.asked == peak.asked == mean.asked > 0
    assert mean.gpu_hours < ours.gpu_hours < peak.gpu_hours
    assert ours.refused < mean.refused
    by_number = run(morning, naive)
    assert ours.refused <= by_number.refused and ours.cut < by_number.cut
