"""The days that a report is about. Days and months are UTC's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from registry import clock
from registry.db import RegistryError

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """Whole days: from `first` on, until before `last`."""

    first: date
    last: date

    def __str__(self) -> str:
        if self.month is not None:
            return f"{self.first:%B %Y}"
        return f"{self.first} to {self.last - DAY}" if self.last - self.first > DAY else str(self.first)

    @property
    def month(self) -> str | None:
        """ "2026-11", where it is just that."""
        return f"{self.first:%Y-%m}" if self == of_month(self.first) else None

    @property
    def days(self) -> tuple[str, ...]:
        return tuple(str(self.first + n * DAY) for n in range((self.last - self.first).days))

    @property
    def start(self) -> datetime:
        return datetime(self.first.year, self.first.month, self.first.day, tzinfo=UTC)

    @property
    def end(self) -> datetime:
        return self.start + (self.last - self.first)

    @property
    def before(self) -> Window:
        """The month before a month; else as many days."""
        if self.month is not None:
            return of_month(self.first - DAY)
        return Window(self.first - (self.last - self.first), self.first)


def of_month(day: date) -> Window:
    first = day.replace(day=1)
    return Window(first, (first + 31 * DAY).replace(day=1))


def window_of(month: str | None, since: str | None, until: str | None, now: datetime) -> Window:
    """What somebody asked for in words: a month, or days; this month when nothing is said. Raises RegistryError."""
    today = now.astimezone(UTC).date()
    if month is not None and (since is not None or until is not None):
        raise RegistryError("say a month, or since and until, not both")
    if until is not None and since is None:
        raise RegistryError("until needs a since")
    if since is None:
        found = of_month(today if month is None else _day("month", f"{month}-01", month, r"\d{4}-\d\d", "2026-11"))
    else:
        first = _day("since", since, since, r"\d{4}-\d\d-\d\d", "2026-11-24")
        last = today + DAY if until is None else _day("until", until, until, r"\d{4}-\d\d-\d\d", "2026-12-01")
        if first >= last:
            raise RegistryError(f"since {first} must be before until {last} (the first day that no longer counts)")
        found = Window(first, last)
    if found.first > today:
        raise RegistryError(f"{found} is yet to come (today is {today} in UTC)")
    return found


def _day(name: str, text: str, said: str, shape: str, example: str) -> date:
    try:
        if re.fullmatch(shape, said, re.ASCII) and (found := date.fromisoformat(text)) >= date(1970, 1, 1):
            return found
    except ValueError:
        pass
    raise RegistryError(f"{name} {said!r} is no such time; it is written as {example}")


def unfinished(window: Window, now: datetime) -> tuple[str, ...]:
    """What to note where a window that is not over is set against the one before."""
    if window.end <= now:
        return ()
    return (f"{window} so far, until {now:%Y-%m-%d %H:%M} UTC, is set against the whole of {window.before}.",)


def text(window: Window) -> tuple[str, str]:
    """Its start and its end, as registry.clock writes times."""
    return clock.text(window.start), clock.text(window.end)
