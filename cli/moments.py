"""Instants as people type them."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click

from registry.strict_toml import duration_seconds

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
ALLOWED = "2026-11, 2026-11-24, 2026-11-24T14:20, now, today, or how long ago: 90m, 12h, 7d, 2w"
ALLOWED_UTC = "2026-12, 2026-12-01, 2026-12-01T09:00Z, or how long from now: 12h, 90d"


class Moment(click.ParamType[datetime]):
    """A month's or a day's start, an instant (without a zone: this machine's), or so long ago."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        moment = parse(str(value), datetime.now().astimezone())
        if moment is None:
            self.fail(f"{value!r} is no time; allowed: {ALLOWED}", param, ctx)
        return moment


class UtcInstant(click.ParamType[datetime]):
    """A day's or a month's start in UTC, an instant (without a zone: UTC), or so long from now."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        instant = parse_utc(str(value), datetime.now(UTC))
        if instant is None:
            self.fail(f"{value!r} is no time; allowed: {ALLOWED_UTC}", param, ctx)
        return instant


class Duration(click.ParamType[int]):
    """In whole seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return int(duration_seconds(str(value)))
        except ValueError as e:
            self.fail(str(e), param, ctx)


def parse_utc(text: str, now: datetime) -> datetime | None:
    """None for what is no time."""
    try:
        found = datetime.fromisoformat(f"{text}-01" if re.fullmatch(r"\d{4}-\d\d", text) else text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # a duration, maybe
    try:
        return now + timedelta(seconds=duration_seconds(text))
    except (ValueError, OverflowError):
        return None


def parse(text: str, now: datetime) -> datetime | None:
    """None for what is no time. What says no zone is of this machine's."""
    if text == "now":
        return now
    if text == "today":
        return datetime(now.year, now.month, now.day).astimezone()
    try:
        if match := re.fullmatch(r"(\d{1,6})([mhdw])", text):
            return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
        found = datetime.fromisoformat(f"{text}-01" if re.fullmatch(r"\d{4}-\d\d", text) else text)
        # The zone as it was then, not as it is now: summer time has passed in between.
        return found.astimezone() if found.tzinfo is None else found
    except (ValueError, OverflowError):
        return None


def local_zone() -> tzinfo:
    """This machine's zone with its summer times, which an instant's own zone does not know."""
    try:
        if name := os.environ.get("TZ", "").removeprefix(":"):
            return ZoneInfo(name)
        with Path("/etc/localtime").open("rb") as f:
            return ZoneInfo.from_file(f)
    except (OSError, KeyError, ValueError):  # no such zone, or none set
        return datetime.now().astimezone().tzinfo or UTC
