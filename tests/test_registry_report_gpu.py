"""GPU-hours in parts that add up, and their price."""

from __future__ import annotations

from datetime import UTC, datetime

from report_books import HOUR, allocation, attributed, line

from registry.prices import Kind, PriceBook, Version
from registry.report_gpu import GpuTime, by_columns, by_what, prices_of, seen, what_for
from registry.site import GpuPrice

NOVEMBER = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp())
LINES = (
    line("serving", 3 * HOUR),
    line("idle", HOUR),
    line("training", 2 * HOUR, tenant="biology", account="bio", model="", subject="run-1", gpu_type="a100"),
    line("batch", HOUR + 1, tenant=None, account="guests", model="", subject="77"),
)


def nothing(_: object) -> int:
    return 0


def test_parts_of_a_second_are_priced_alike_however_they_are_split() -> None:
    priced = prices_of(PriceBook(gpus={"h100": GpuPrice(hour=2.0)}))
    lines = [line("serving", 1, user=f"user-{n}", tenant=("physics", "biology", "x")[n % 3]) for n in range(3600)]
    for by in ("tenant", "user", "gpu"):
        section = by_columns(seen(attributed(*lines), None, lambda a: None), (by,), priced)
        assert section.total is not None and section.total["credits"] == 2.0
        parts = [round(float(r["credits"] or 0) * 1_000_000) for r in section.rows]
        assert sum(parts) == 2_000_000 and max(parts) - min(parts) <= 1


def whole() -> GpuTime:
    return seen(attributed(*LINES), None, lambda a: None)


def test_parts_and_total_are_hours_by_the_chosen_columns() -> None:
    section = by_columns(whole(), ("tenant",), nothing)
    assert [(r["tenant"], r["serving"], r["idle"], r["training"], r["gpu_hours"]) for r in section.rows] == [
        ("biology", 0, 0, 2, 2),
        ("none", 0, 0, 0, (HOUR + 1) / HOUR),
        ("physics", 3, 1, 0, 4),
    ]
    assert section.total is not None and section.total["gpu_hours"] == (7 * HOUR + 1) / HOUR
    (chart,) = section.charts
    assert chart.labels == ("physics", "biology", "none") and chart.unit == "GPU-hours"


def test_two_columns_split_further_and_a_types_name_is_one() -> None:
    section = by_columns(whole(), ("account", "gpu"), nothing)
    assert [(r["account"], r["gpu"]) for r in section.rows] == [("bio", "a100"), ("guests", "h100"), ("phys", "h100")]


def test_a_site_without_gpus_is_told_its_cpu_hours() -> None:
    time = seen(attributed(line("training", 0, gpu_type="", cpu_s=7 * HOUR)), None, lambda a: None)
    section = by_columns(time, ("gpu",), nothing)
    assert section.title == "CPU-hours"
    assert [(r["gpu"], r["training"], r["gpu_hours"], r["cpu_hours"]) for r in section.rows] == [("none", 7, 0, 7)]


def test_the_check_compares_the_lines_with_the_schedulers_own_total() -> None:
    assert [(c.text, c.holds) for c in whole().checks] == [
        ("GPU-seconds of the lines add up to the scheduler's total: 25,201", True),
        ("CPU-seconds of the lines add up to the scheduler's total: 201,608", True),
    ]
    wrong = seen(attributed(*LINES, gpu_s=25_200), None, lambda a: None)
    assert [c.holds for c in wrong.checks] == [False, True]
    assert "25,201, but the scheduler's total is 25,200" in wrong.checks[0].text


def test_a_tenant_sees_its_own_lines_and_jobs_and_no_total_of_the_site() -> None:
    jobs = (allocation("1", 0, 1, account="phys"), allocation("2", 0, 1, account="bio"))
    time = seen(
        attributed(*LINES, allocations=jobs), {"physics"}, lambda a: "physics" if a.account == "phys" else "biology"
    )
    assert {x.tenant for x in time.lines} == {"physics"} and [a.job for a in time.allocations] == ["1"]
    assert [(c.text, c.holds) for c in time.checks] == [("the site's parts add up to the scheduler's total", True)]


def test_a_gpu_hour_costs_what_was_in_force_when_its_job_began() -> None:
    rise = Version(Kind.GPU, "h100", "2026-11-02T00:00:00.000000Z", 0, None, 0, 4.0, "", "root")
    book = PriceBook([rise], gpus={"h100": GpuPrice(hour=2.0), "default": GpuPrice(hour=1.0)})
    requeued = NOVEMBER + 2 * 24 * HOUR
    lines = (
        line("serving", 3 * HOUR, began_at=NOVEMBER - HOUR),  # in the window before
        line("idle", HOUR, began_at=requeued),
        line("training", 2 * HOUR, gpu_type="a100", began_at=NOVEMBER),
        line("batch", 0, gpu_type="", began_at=NOVEMBER),
    )
    section = what_for(by_what(lines, prices_of(book)))
    assert [(r["what"], r["gpu_s"], r["credits"]) for r in section.rows] == [
        ("Serving", 3 * HOUR, 6.0),
        ("Start-up", 0, 0),
        ("Idle", HOUR, 4.0),
        ("Training", 2 * HOUR, 2.0),
        ("Batch", 0, 0),
    ]
    assert section.total is not None
    assert (section.total["gpu_s"], section.total["credits"]) == (6 * HOUR, 12.0)
