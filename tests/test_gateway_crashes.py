"""kill -9 of the gateway at random moments: what ended is billed once to the token, what was cut within its bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import crashes
from benchmarks.crash_bounds import NOTE_S, TURN_S, Delivered, Kill, judged, silence
from benchmarks.soak_engine import PROMPT_BASE
from registry.ledger import Attempt, Outcome, UsageEvent

SEED = 6


async def test_streams_through_killed_gateways_are_billed_what_their_clients_got(tmp_path: Path) -> None:
    result = await crashes.series(tmp_path, streams=200, kills=3, seed=SEED)
    assert result.verdict.wrong == [] and result.books == [] and result.holds == 0
    assert len(result.streams) == 200 and len(result.kills) == 3
    assert result.verdict.cut and result.verdict.ended  # some of each, or nothing was shown
    assert result.verdict.cut + result.verdict.ended == 200


# How it is judged, which nobody should have to believe.

KILL = Kill(at=100.0, silence_s=0.005)
DUE = KILL.at - NOTE_S - KILL.slack_s  # what had come by then must be billed


def event(nonce: int, tokens: int, outcome: Outcome = Outcome.ORPHANED) -> UsageEvent:
    attempt = Attempt(f"{nonce}:1", "physics", "k", "m", "r", "chat", "t")
    return UsageEvent(attempt, PROMPT_BASE + nonce, tokens, 0, outcome, "t")


def stream(*, ended: bool = False, life: int = 0, status: int = 200) -> Delivered:
    """Of ten tokens: four long ago, two just due, and four later."""
    arrivals = [(DUE - 1, 4), (DUE, 6), (DUE + 0.1, 10)]
    return Delivered(1, 10, life, ended, status, 10, arrivals)


@pytest.mark.parametrize(
    ("seen", "events", "wrong"),
    [
        (stream(ended=True), [event(1, 10, Outcome.COMPLETED)], None),
        (stream(ended=True), [event(1, 9, Outcome.COMPLETED)], "ended with 10"),
        (stream(ended=True), [event(1, 10)], "ended with 10"),
        (stream(ended=True), [], "ended with 10"),
        (stream(ended=True), [event(1, 10, Outcome.COMPLETED)] * 2, "billed 2 times"),
        (stream(), [event(1, 10)], None),
        (stream(), [event(1, 6)], None),
        (stream(), [event(1, 5)], "billed 5 of 6 due"),
        (stream(), [], "billed 0 of 6 due"),
        (stream(), [event(1, 11)], "cut after 10 tokens, billed 11"),
        (stream(life=1), [event(1, 10)], "by no kill"),
        (stream(status=502), [], "cut with status 502"),
        (Delivered(1, 10, 0), [], None),  # nothing of it had come
    ],
)
def test_a_bill_is_held_against_what_was_delivered(
    seen: Delivered, events: list[UsageEvent], wrong: str | None
) -> None:
    found = judged([seen], [KILL], events).wrong
    assert (found == []) if wrong is None else (len(found) == 1 and wrong in found[0])


def test_what_only_a_busy_machine_excuses_is_counted() -> None:
    arrivals = [(DUE - 1, 4), (DUE + TURN_S / 2, 6)]
    assert judged([Delivered(1, 10, 0, False, 200, 6, arrivals)], [KILL], [event(1, 4)]).needed_slack == 1


@pytest.mark.parametrize(
    ("arrivals", "longest"),
    [
        ([], 0.0),
        ([99.0], 1.0),
        ([90.0, 99.4, 99.8, 99.9], 0.4),  # the nine seconds before were over in time
        ([90.0, 99.9], 9.9),
    ],
)
def test_silence_is_what_reaches_into_the_time_before_the_kill(arrivals: list[float], longest: float) -> None:
    assert silence(arrivals, 100.0) == pytest.approx(longest)
