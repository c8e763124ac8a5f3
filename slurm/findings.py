"""What somebody who looked found: one subject, how bad it is, and what to do about it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Level(enum.IntEnum):
    """From good to bad: the largest of several is the worst."""

    OK = 0
    WARNING = 1  # it works, but not as somebody might expect
    PROBLEM = 2  # something does not work


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str
    level: Level
    says: str  # the value, and what it means
    remedy: str | None = None  # None: nothing is to be done


def ok(subject: str, says: str) -> Finding:
    return Finding(subject, Level.OK, says)


def warning(subject: str, says: str, remedy: str) -> Finding:
    return Finding(subject, Level.WARNING, says, remedy)


def problem(subject: str, says: str, remedy: str) -> Finding:
    return Finding(subject, Level.PROBLEM, says, remedy)


def worst(findings: Iterable[Finding]) -> Level:
    return max((f.level for f in findings), default=Level.OK)
