"""A curve in text: block characters, as wide as it may be. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_MOST = 1e100  # of what is drawn


def curve(
    points: Sequence[tuple[int, float]], width: int = 80, height: int = 10, marks: Collection[int] = ()
) -> list[str]:
    """The lines of a chart of (x, y), x ascending: each column is the mean of what falls into it.

    The highest and the lowest y stand at the left, the first and the last x below; `marks` (x) are shown as ^ under
    the axis. What is not finite, or beyond measure, is left out; without two different x there is nothing to draw.
    """
    drawn = [(x, y) for x, y in points if abs(y) < _MOST]
    if len(drawn) < 2 or drawn[0][0] >= drawn[-1][0]:
        return []
    low, high = min(y for _, y in drawn), max(y for _, y in drawn)
    labels = [f"{y:.4g}" for y in (high, low)]
    margin = max(map(len, labels))
    columns = max(8, width - margin - 2)
    first, last = drawn[0][0], drawn[-1][0]

    def column(x: int) -> int:
        return min(columns - 1, (x - first) * columns // (last - first))

    heights = [_eighths(y, low, high, height) for y in _means([(column(x), y) for x, y in drawn], columns)]
    lines = []
    for row in range(height):
        label = labels[0] if row == 0 else labels[1] if row == height - 1 else ""
        floor = (height - 1 - row) * 8
        cells = "".join(_EIGHTHS[min(8, max(0, filled - floor))] for filled in heights)
        lines.append(f"{label:>{margin}} ┤{cells}".rstrip())
    lines.append(f"{'':>{margin}} └{'─' * columns}")
    under = _scale(first, last, columns)
    for mark in marks:
        if first <= mark <= last and under[column(mark)] == " ":
            under[column(mark)] = "^"
    return [*lines, f"{'':>{margin}}  {''.join(under)}".rstrip()]


def _means(points: Sequence[tuple[int, float]], columns: int) -> list[float]:
    """The mean of each column's values; an empty column lies on the line between its neighbours."""
    sums, counts = [0.0] * columns, [0] * columns
    for at, y in points:
        sums[at] += y
        counts[at] += 1
    known = [(at, sums[at] / counts[at]) for at in range(columns) if counts[at]]
    found = []
    for (at, y), (following, y_there) in zip(known, [*known[1:], (columns, known[-1][1])], strict=True):
        found += [y + (y_there - y) * i / (following - at) for i in range(following - at)]
    return found


def _eighths(y: float, low: float, high: float, height: int) -> int:
    """How high a column is filled: from one eighth of a row, at the lowest, to the top."""
    share = (y - low) / (high - low) if high > low else 0.0
    return 1 + round(share * (height * 8 - 1))


def _scale(first: int, last: int, columns: int) -> list[str]:
    begin, end = f"{first:,}", f"{last:,}"
    return list(begin + end.rjust(columns - len(begin))) if len(begin) + len(end) < columns else list(" " * columns)
