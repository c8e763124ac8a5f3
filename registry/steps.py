"""The steps of the ledger, what they may state, and how the journal spells them.

Tuples instead of frozen dataclasses: three of them are made for each request, on the gateway's event loop.
"""

from __future__ import annotations

import enum
import json
import random
from typing import Any, NamedTuple

import orjson

from registry.db import Conflict

AMOUNT_LIMIT = 2**53  # of tokens or micro-credits in one step: sums of a thousand such still fit SQLite's integers
HOLD, NOTE, SETTLE, RELEASE, REVERSAL = "h", "n", "s", "r", "c"  # the first field of a record
PLATFORM = "(platform)"  # whom what Headgate asks engines itself is booked to: probes, shadows; no tenant's name
APPLICATION = "app:"  # begins the `user` of a key that belongs to an application

Fields = tuple[Any, ...]  # a step as a journal is given it: its letter, then its fields, the attempt's in line
Record = list[Any]  # the same, read back


class TooMuch(Conflict):
    """A step states an amount that cannot be one."""


class Outcome(enum.StrEnum):
    COMPLETED = "completed"
    CLIENT_LEFT = "client_left"
    UPSTREAM_FAILED = "upstream_failed"
    ORPHANED = "orphaned"  # the gateway's process ended, or was about to, before the request did
    REVERSED = "reversed"  # no attempt's: a correction takes an event back, with negative amounts


class Attempt(NamedTuple):
    """One dispatch of one request to one replica. `event_id` is the request's id, a colon, and which attempt it is."""

    event_id: str
    tenant: str
    key_id: str  # of a rotated key, the first one's
    model: str  # the deployment, its LoRA adapter or the external model that is asked, never an endpoint before it
    replica: str  # its id, or the provider's model for an external one
    kind: str  # gateway.calls.Kind
    started_at: str
    user: str = ""  # whose key it is: a user, or an application ("app:NAME")


class Hold(NamedTuple):
    """What is set aside before an attempt is dispatched."""

    attempt: Attempt
    tokens: int
    microcredits: int


class Note(NamedTuple):
    """A running count: what an attempt that is still streaming has used so far."""

    event_id: str
    prompt_tokens: int
    completion_tokens: int
    microcredits: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class UsageEvent(NamedTuple):
    """What an attempt used, once it is over. Any outcome but `completed` bills what was counted until then."""

    attempt: Attempt
    prompt_tokens: int
    completion_tokens: int
    microcredits: int
    outcome: Outcome
    ended_at: str
    cached_tokens: int = 0  # of the prompt's
    reasoning_tokens: int = 0  # of the completion's


class Release(NamedTuple):
    """An attempt that used nothing: the hold goes back and leaves no usage event."""

    event_id: str


class Reversal(NamedTuple):
    """A correction: everything that the event `corrects` used is taken back, in an event of its own."""

    event_id: str  # its own
    corrects: str
    by: str  # the administrator's user name
    reason: str
    at: str


Step = Hold | Note | UsageEvent | Release | Reversal


def mint(ns: int) -> str:
    """A new request's id: 16 hex digits of the time in nanoseconds, then 32 random bits (unique, not secret).

    Later ids sort later, so that the ledger's tables grow at their ends.
    """
    return f"{ns << 32 | random.getrandbits(32):024x}"


def check(step: Step) -> None:
    """Raises TooMuch for an amount that cannot be one."""
    for name, amount in _amounts(step):
        if not 0 <= amount <= AMOUNT_LIMIT:
            raise TooMuch(f"{amount} {name} in one request; the ledger takes 0 to {AMOUNT_LIMIT}")


def fields(step: Step) -> Fields:
    """Raises TooMuch."""
    # Most frequent first; a match statement would cost as much as all the rest.
    if isinstance(step, Hold):
        attempt, tokens, microcredits = step
        if not (0 <= tokens <= AMOUNT_LIMIT and 0 <= microcredits <= AMOUNT_LIMIT):
            check(step)
        return (HOLD, *attempt, tokens, microcredits)
    if isinstance(step, UsageEvent):
        attempt, prompt, completion, microcredits, outcome, ended_at, cached, reasoning = step
        if not (
            0 <= prompt <= AMOUNT_LIMIT
            and 0 <= completion <= AMOUNT_LIMIT
            and 0 <= microcredits <= AMOUNT_LIMIT
            and 0 <= cached <= AMOUNT_LIMIT
            and 0 <= reasoning <= AMOUNT_LIMIT
        ):
            check(step)
        return (SETTLE, *attempt, prompt, completion, microcredits, outcome, ended_at, cached, reasoning)
    check(step)
    return (_LETTERS[type(step)], *step)


def encode(step: Step) -> bytes:
    """The body of a journal's line that has one step. Raises TooMuch."""
    return orjson.dumps(fields(step))


def encode_all(steps: list[Fields]) -> bytes:
    """The body of a line that has several: they count together or, torn, not at all."""
    return orjson.dumps(steps)


def may_be_lost(step: Fields) -> bool:
    """Whether a step that could not be journaled need not be: a running count, which the next one replaces, or a hold,
    which nothing is dispatched for."""
    return step[0] in (NOTE, HOLD)


_LETTERS = {Note: NOTE, Release: RELEASE, Reversal: REVERSAL}


def spelled(step: Step) -> str:
    """Any step, even one that states an amount that cannot be one, for people to read."""
    if isinstance(step, Hold | UsageEvent):
        return json.dumps([HOLD if isinstance(step, Hold) else SETTLE, *step.attempt, *step[1:]])
    return json.dumps([_LETTERS[type(step)], *step])


def record(step: Step) -> Record:
    """What a reader of the journal gets to see of a step. Raises TooMuch."""
    found: Record = orjson.loads(encode(step))
    return found


def decode(record: Record) -> Step:
    """The opposite of encode(). Raises ValueError for what encode() does not write."""
    match upgraded(record):
        case [str(letter), *attempt, int(tokens), int(microcredits)] if letter == HOLD:
            return Hold(Attempt(*attempt), tokens, microcredits)
        case [
            str(letter),
            *attempt,
            int(prompt),
            int(completion),
            int(microcredits),
            outcome,
            ended,
            cached,
            reason,
        ] if letter == SETTLE:
            return UsageEvent(
                Attempt(*attempt), prompt, completion, microcredits, Outcome(outcome), ended, cached, reason
            )
        case [str(letter), str(event_id), int(prompt), int(completion), int(microcredits), cached, reason] if (
            letter == NOTE
        ):
            return Note(event_id, prompt, completion, microcredits, cached, reason)
        case [str(letter), str(event_id)] if letter == RELEASE:
            return Release(event_id)
        case [str(letter), *fields] if letter == REVERSAL and len(fields) == 5:
            return Reversal(*fields)
    raise ValueError(f"not a step of the ledger: {record!r}")


def upgraded(record: Record) -> Record:
    """A record as this Headgate writes it, of one that the gateway before it may have written."""
    match record:
        case [letter, *_] if letter == HOLD and len(record) == 10:
            return [*record[:8], "", *record[8:]]
        case [letter, *_] if letter == SETTLE and len(record) == 13:
            return [*record[:8], "", *record[8:], 0, 0]
        case [letter, *_] if letter == NOTE and len(record) == 5:
            return [*record, 0, 0]
    return record


def _amounts(step: Step) -> list[tuple[str, int]]:
    match step:
        case Hold(_, tokens, microcredits):
            return [("tokens", tokens), ("micro-credits", microcredits)]
        case Note() | UsageEvent():
            return [
                ("prompt tokens", step.prompt_tokens),
                ("completion tokens", step.completion_tokens),
                ("micro-credits", step.microcredits),
                ("cached tokens", step.cached_tokens),
                ("reasoning tokens", step.reasoning_tokens),
            ]
        case Release() | Reversal():
            return []
