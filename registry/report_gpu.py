"""`headgate report gpu`: GPU-hours by whom and for what, priced, in parts that add up to the scheduler's own total."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from registry import clock
from registry.attribution import Allocation, Attributed, Line, split
from registry.prices import PriceBook
from registry.report import Chart, Check, Column, Section
from registry.report_columns import HOUR, MICRO, TOP, Row, credits, dimensions, equal, named, row, top

K = TypeVar("K")

ALLOWED = ("tenant", "user", "model", "account", "partition", "qos", "gpu", "subject")
DEFAULT = ("tenant",)
WHATS = {"serving": "Serving", "startup": "Start-up", "idle": "Idle", "training": "Training", "batch": "Batch"}


@dataclass(frozen=True, slots=True)
class GpuTime:
    """What a reader may see of a window's GPU time."""

    lines: tuple[Line, ...]
    allocations: tuple[Allocation, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]  # why it may not be all


def seen(attributed: Attributed, tenants: Collection[str] | None, payer: Callable[[Allocation], str | None]) -> GpuTime:
    """`tenants`: of these alone; the site's totals are then nobody's to see. `payer`: the tenant of a job."""
    books = attributed.books
    notes = () if books.partial is None else (f"The scheduler's books may not be whole: {books.partial}",)
    if tenants is not None:
        return GpuTime(
            tuple(line for line in attributed.lines if line.tenant in tenants),
            tuple(a for a in books.allocations if payer(a) in tenants),
            (Check("the site's parts add up to the scheduler's total", attributed.adds_up),),
            notes,
        )
    checks = tuple(
        equal(f"{name} of the lines", sum(of), total, "the scheduler's total")
        for name, of, total in (
            ("GPU-seconds", (line.gpu_s for line in attributed.lines), books.gpu_s),
            ("CPU-seconds", (line.cpu_s for line in attributed.lines), books.cpu_s),
        )
    )
    return GpuTime(attributed.lines, books.allocations, checks, notes)


Priced = Callable[[Line], int]  # what it costs, as Time.cost


def prices_of(book: PriceBook) -> Priced:
    """A GPU-hour costs what was in force when its allocation began, be that before the window."""
    known: dict[tuple[str, int], int] = {}  # (type, Unix seconds) -> micro-credits

    def price(line: Line) -> int:
        of = (line.gpu_type, line.began_at)
        hour = known.get(of)
        if hour is None:
            at = clock.text(datetime.fromtimestamp(line.began_at, UTC))
            hour = known[of] = round(book.of_gpu(line.gpu_type, at) * MICRO)
        return hour * line.gpu_s

    return price


@dataclass(frozen=True, slots=True)
class Time:
    gpu_s: int = 0
    cpu_s: int = 0
    cost: int = 0  # micro-credits an hour times seconds: whole, so that nothing is rounded before it is added up

    def __add__(self, other: Time) -> Time:
        return Time(self.gpu_s + other.gpu_s, self.cpu_s + other.cpu_s, self.cost + other.cost)

    @property
    def microcredits(self) -> int:
        return round(self.cost / HOUR)


Times = Mapping[str, Time]  # what for -> how much


def summed(lines: Iterable[Line], priced: Priced, key: Callable[[Line], K]) -> dict[K, Times]:
    """In one pass: a large site has hundreds of thousands of lines a month."""
    sums: dict[K, dict[str, list[int]]] = {}
    for line in lines:
        of = sums.setdefault(key(line), {}).setdefault(line.what, [0, 0, 0])
        of[0] += line.gpu_s
        of[1] += line.cpu_s
        of[2] += priced(line)
    return {one: {what: Time(*of) for what, of in whats.items()} for one, whats in sums.items()}


def by_what(lines: Iterable[Line], priced: Priced) -> Times:
    return summed(lines, priced, lambda _: None).get(None, {})


def total(times: Times, *whats: str) -> Time:
    """Of all, or of these alone."""
    return sum((times.get(what, Time()) for what in whats or times), Time())


def paid(of: Sequence[Time]) -> list[float]:
    """Credits of each, in whole micro-credits that add up to those of all together."""
    whole = sum(of, Time()).microcredits
    return [credits(part) for part in split(whole, [time.cost for time in of])] if of else []


def by_columns(of: GpuTime, by: Sequence[str], priced: Priced) -> Section:
    """Where there was no GPU at all, the parts are CPU-hours."""
    groups = dict(sorted(summed(of.lines, priced, lambda line: tuple(_value(line, one) for one in by)).items()))
    whole = together(groups.values())
    unit = "GPU" if total(whole).gpu_s else "CPU"

    def hours(time: Time) -> float:
        return (time.gpu_s if unit == "GPU" else time.cpu_s) / HOUR

    def cells(times: Times, price: float) -> Row:
        everything = total(times)
        return row(
            **{what: hours(total(times, what)) for what in WHATS},
            gpu_hours=everything.gpu_s / HOUR,
            cpu_hours=everything.cpu_s / HOUR,
            credits=price,
        )

    prices = paid([total(times) for times in groups.values()])

    most = top([*groups.items()], lambda item: (hours(total(item[1])),))
    chart = Chart(
        "stacked",
        f"{unit}-hours by {by[0]}",
        f"{unit}-hours",
        tuple(" / ".join(key) for key, _ in most),
        tuple((title, tuple(hours(total(times, what)) for _, times in most)) for what, title in WHATS.items()),
    )
    return Section(
        "gpu",
        f"{unit}-hours",
        (
            *dimensions(by),
            *(Column(what, title, "hours") for what, title in WHATS.items()),
            Column("gpu_hours", "GPU-hours", "hours"),
            Column("cpu_hours", "CPU-hours", "hours"),
            Column("credits", "Credits", "credits"),
        ),
        tuple(named(by, key) | cells(times, price) for (key, times), price in zip(groups.items(), prices, strict=True)),
        named(by[:1], ["total"]) | cells(whole, credits(total(whole).microcredits)),
        notes=(
            "A GPU-hour costs what was in force when its job began; one that was requeued begins anew.",
            *((f"The chart shows the {TOP} largest of {len(groups)}.",) if len(groups) > TOP else ()),
        ),
        charts=(chart,) if groups else (),
    )


def together(of: Iterable[Times]) -> Times:
    found: dict[str, Time] = {}
    for times in of:
        for what, time in times.items():
            found[what] = found.get(what, Time()) + time
    return found


def what_for(times: Times) -> Section:
    """In whole seconds, which add up."""

    parts = [total(times, what) for what in WHATS]

    def cells(what: str, time: Time, price: float) -> Row:
        return row(what=what, gpu_s=time.gpu_s, cpu_s=time.cpu_s, credits=price)

    return Section(
        "what",
        "What for",
        (
            Column("what", "What"),
            Column("gpu_s", "GPU-seconds", "count"),
            Column("cpu_s", "CPU-seconds", "count"),
            Column("credits", "Credits", "credits"),
        ),
        tuple(map(cells, WHATS.values(), parts, paid(parts))),
        cells("total", total(times), credits(total(times).microcredits)),
    )


def _value(line: Line, by: str) -> str:
    match by:
        case "tenant":
            return line.tenant or "none"
        case "gpu":
            return line.gpu_type or ("untyped" if line.gpu_s else "none")
    return str(getattr(line, by)) or "none"
