"""A report's charts as SVG. Pure: a Chart in, text out.

Every mark carries its own attributes (no style sheet, no script): a browser and WeasyPrint draw the same.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from html import escape

from registry.report import Chart

WIDTH = 720
PLOT_HEIGHT = 190  # where the values go upwards
ROW = 22  # a label's height where they go to the right
# Told apart by the colour-blind, and by their lightness in print (Okabe and Ito, reordered).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#7a6f00", "#8c8c8c")
MOST_SERIES = len(COLOURS)
MOST_ROWS = 30
CHARACTER = 6.3  # about the width of one, at the size that labels have
LONGEST_LABEL = 30
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
TIME = re.compile(r"\d{4}-\d{2}(-\d{2})?([T ].*)?")


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """From a value to a place in the drawing."""

    low: float
    high: float
    at_low: float
    at_high: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        return self.at_low + (value - self.low) / (self.high - self.low) * (self.at_high - self.at_low)


def svg(chart: Chart) -> str:
    """Labels that are times, and lines, go from left to right; names stand below each other with a bar each."""
    chart, left_out = bounded(chart)
    if not chart.labels or not chart.series:
        body, height = [_text(WIDTH / 2, 24, "nothing to show", anchor="middle")], 40.0
    elif chart.kind == "line" or all(TIME.fullmatch(label) for label in chart.labels):
        body, height = _upright(chart)
    else:
        body, height = _lying(chart)
    if left_out:
        height += 16
        body.append(_text(WIDTH, height - 4, left_out, anchor="end"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(chart.title)}" font-family="Helvetica Neue, Arial, DejaVu Sans, sans-serif" '
        f'font-size="11" fill="#444">{"".join(body)}</svg>'
    )


def bounded(chart: Chart) -> tuple[Chart, str]:
    """The chart with as many series and names as can be told apart, and what was left out, in words.

    The smallest stacked series become one; of others, and of names, the largest are shown.
    """
    said = []
    series = sorted(chart.series, key=lambda s: -sum(map(abs, s[1])))
    if len(series) > MOST_SERIES and chart.kind == "stacked":
        rest = series[MOST_SERIES - 1 :]
        together = tuple(map(sum, zip(*(values for _, values in rest), strict=True)))
        series = [*series[: MOST_SERIES - 1], (f"{len(rest)} others", together)]
    elif len(series) > MOST_SERIES:
        said.append(f"the {MOST_SERIES} largest of {len(series)} series")
        series = series[:MOST_SERIES]
    else:
        series = list(chart.series)
    kept: Sequence[int] = range(len(chart.labels))
    if chart.kind != "line" and len(kept) > MOST_ROWS and not all(map(TIME.fullmatch, chart.labels)):
        said.append(f"the {MOST_ROWS} largest of {len(kept)} names")
        kept = sorted(sorted(kept, key=lambda i: -sum(abs(v[i]) for _, v in series))[:MOST_ROWS])
    shown = tuple((name, tuple(values[i] for i in kept)) for name, values in series)
    return dataclasses.replace(chart, labels=tuple(chart.labels[i] for i in kept), series=shown), "; ".join(said)


def _upright(chart: Chart) -> tuple[list[str], float]:
    body, top = _legend(chart)
    top += 24
    bottom = top + PLOT_HEIGHT
    scale = _scale(_extremes(chart), bottom, top, ticks=5)
    labels = [_compact(t, scale.ticks) for t in scale.ticks]
    left = 14 + CHARACTER * max(map(len, labels))
    body.append(_text(0, top - 12, chart.unit))
    for tick, label in zip(scale.ticks, labels, strict=True):
        body += [
            _rule(left, scale(tick), WIDTH, scale(tick), tick == 0),
            _text(left - 6, scale(tick) + 4, label, "end"),
        ]
    step = (WIDTH - left) / len(chart.labels)
    middles = [left + step * (i + 0.5) for i in range(len(chart.labels))]
    shown = _short(chart.labels)
    every = math.ceil(CHARACTER * (max(map(len, shown)) + 1.5) / step)
    for i in range(0, len(shown), every):
        body.append(_text(middles[i], bottom + 16, shown[i], "middle"))
    if chart.kind == "line":
        body += _lines(chart, middles, scale)
    else:
        for i, colour, tip, (begin, end), (place, breadth) in _bars(chart, step):
            x, y = left + step * i + place, min(scale(begin), scale(end))
            body.append(_bar(x, y, breadth, abs(scale(begin) - scale(end)), colour, tip))
    return body, bottom + 24


def _lying(chart: Chart) -> tuple[list[str], float]:
    body, top = _legend(chart)
    top += 6
    named = [_clipped(label) for label in chart.labels]
    left = 10 + CHARACTER * max(map(len, named))
    side_by_side = len(chart.series) if chart.kind == "bars" else 1
    row = max(ROW, 11 * side_by_side + 6)
    bottom = top + row * len(named)
    scale = _scale(_extremes(chart), left, WIDTH - 34, ticks=6)
    for tick in scale.ticks:
        body.append(_rule(scale(tick), top, scale(tick), bottom, tick == 0))
        body.append(_text(scale(tick), bottom + 14, _compact(tick, scale.ticks), "middle"))
    for i, name in enumerate(named):
        body.append(_text(left - 6, top + row * (i + 0.5) + 4, name, "end", tip=chart.labels[i]))
    for i, colour, tip, (begin, end), (place, breadth) in _bars(chart, row):
        x, y = min(scale(begin), scale(end)), top + row * i + place
        body.append(_bar(x, y, abs(scale(begin) - scale(end)), breadth, colour, tip))
    body.append(_text((left + WIDTH - 34) / 2, bottom + 30, chart.unit, "middle"))
    return body, bottom + 36


def _bars(chart: Chart, room: float) -> Iterator[tuple[int, str, str, tuple[float, float], tuple[float, float]]]:
    """Each bar: its label's number, colour, tip, the values it goes from and to, its place in the room and breadth."""
    gap = room * 0.15
    beside = 1 if chart.kind == "stacked" else len(chart.series)
    breadth = (room - 2 * gap) / beside
    for i, label in enumerate(chart.labels):
        above = below = 0.0
        for n, (name, values) in enumerate(chart.series):
            value = _finite(values[i])
            begin = 0.0
            if chart.kind == "stacked":
                begin = above if value >= 0 else below
                above, below = above + max(value, 0), below + min(value, 0)
            if value:
                place = gap + (0 if chart.kind == "stacked" else breadth * n)
                tip = f"{label}, {name}: {value:,.6g} {chart.unit}"
                yield i, COLOURS[n], tip, (begin, begin + value), (place, breadth)


def _lines(chart: Chart, middles: Sequence[float], scale: Scale) -> Iterator[str]:
    for n, (name, values) in enumerate(chart.series):
        points = " ".join(f"{x:.1f},{scale(_finite(v)):.1f}" for x, v in zip(middles, values, strict=True))
        yield f'<polyline points="{points}" fill="none" stroke="{COLOURS[n]}" stroke-width="2"/>'
        for label, x, value in zip(chart.labels, middles, values, strict=True):
            tip = escape(f"{label}, {name}: {_finite(value):,.6g} {chart.unit}")
            y = scale(_finite(value))
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{COLOURS[n]}"><title>{tip}</title></circle>'


def _legend(chart: Chart) -> tuple[list[str], float]:
    """Above the drawing, in as many lines as it needs; none for a single series."""
    if len(chart.series) == 1:
        return [], 0.0
    made, x, y = [], 0.0, 12.0
    for n, (name, _) in enumerate(chart.series):
        shown = _clipped(name)
        width = 24 + CHARACTER * len(shown)
        if x and x + width > WIDTH:
            x, y = 0.0, y + 16
        made.append(f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="10" height="10" fill="{COLOURS[n]}"/>')
        made.append(_text(x + 14, y, shown, tip=name))
        x += width
    return made, y + 8


def _extremes(chart: Chart) -> tuple[float, float]:
    columns = [[_finite(values[i]) for _, values in chart.series] for i in range(len(chart.labels))]
    if chart.kind == "stacked":
        columns = [[sum(v for v in column if v < 0), sum(v for v in column if v > 0)] for column in columns]
    flat = [v for column in columns for v in column]
    return min(0.0, *flat), max(0.0, *flat)


def _scale(extremes: tuple[float, float], at_low: float, at_high: float, ticks: int) -> Scale:
    """From 0, or the lowest below it, to the first round number above the highest."""
    low, high = extremes
    rough = (high - low) / ticks or 1 / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), 1)
    return Scale(first * step, last * step, at_low, at_high, tuple(round(i * step, 12) for i in range(first, last + 1)))


def _compact(value: float, among: Sequence[float]) -> str:
    """As short as an axis needs it: 2.5M, 300k, 0.02."""
    largest = max(map(abs, among))
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= 2 * size:
            return f"{value / size:.4g}{letter}" if value else "0"
    return f"{value:,.6g}"


def _short(labels: Sequence[str]) -> list[str]:
    """Of days, what they do not share: all of one month, the day alone is said."""
    one_month = len({x[:7] for x in labels}) == 1
    return [(x[8:].lstrip("0") if one_month else x[5:]) if DAY.fullmatch(x) else _clipped(x) for x in labels]


def _clipped(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _text(x: float, y: float, text: str, anchor: str = "start", tip: str | None = None) -> str:
    title = f"<title>{escape(tip)}</title>" if tip is not None and tip != text else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}{title}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, zero: bool) -> str:
    colour = "#888" if zero else "#e2e2e2"
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1"/>'


def _bar(x: float, y: float, width: float, height: float, colour: str, tip: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {place} fill="{colour}"><title>{escape(tip)}</title></rect>'
