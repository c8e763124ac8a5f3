"""A replica that fails is left alone for a while, and comes back by one request's success."""

from __future__ import annotations

import timeit
from dataclasses import replace

import pytest

from gateway.replica_health import (
    FIRST_S,
    FORGIVEN_S,
    JITTER,
    LIMITS,
    LONGEST_S,
    PROBE_S,
    Fault,
    Health,
    ReplicaHealth,
    Standing,
    after_failure,
    after_poll,
    after_success,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> ReplicaHealth:
    return ReplicaHealth(clock, luck=lambda: 0.0)


def out(state: Health = Health.EJECTED, fault: Fault = Fault.UNREACHABLE, ejections: int = 1) -> Standing:
    return Standing(state, {fault: 1}, ejections, 0.0, 10.0, 0.0, fault, "gone")


def healthy(failures: int, ejections: int = 0, until: float = 10.0, fault: Fault = Fault.REQUEST) -> Standing:
    counts = {fault: failures} if failures else {}
    return Standing(Health.HEALTHY, counts, ejections, 0.0, until, 0.0, fault, "500")


@pytest.mark.parametrize(
    ("old", "fault", "now", "state", "length"),
    [
        (None, Fault.UNREACHABLE, 5.0, Health.EJECTED, FIRST_S),
        (None, Fault.REQUEST, 5.0, Health.HEALTHY, None),
        (None, Fault.POLL, 5.0, Health.HEALTHY, None),
        (healthy(1), Fault.REQUEST, 5.0, Health.HEALTHY, None),
        (healthy(2), Fault.REQUEST, 5.0, Health.EJECTED, FIRST_S),
        (healthy(2), Fault.POLL, 5.0, Health.HEALTHY, None),
        (healthy(2), Fault.HUNG, 5.0, Health.HEALTHY, None),
        (healthy(2, fault=Fault.POLL), Fault.HUNG, 5.0, Health.HEALTHY, None),
        (healthy(2, fault=Fault.HUNG), Fault.HUNG, 5.0, Health.EJECTED, FIRST_S),
        (healthy(0), Fault.UNREACHABLE, 5.0, Health.EJECTED, FIRST_S),
        (healthy(2, ejections=2), Fault.REQUEST, 5.0, Health.EJECTED, FIRST_S * 4),  # not forgiven yet
        (healthy(2, ejections=2), Fault.REQUEST, 10.0, Health.EJECTED, FIRST_S),  # forgiven
        (out(Health.PROBING), Fault.REQUEST, 5.0, Health.EJECTED, FIRST_S * 2),
        (out(Health.PROBING, ejections=3), Fault.REQUEST, 5.0, Health.EJECTED, FIRST_S * 8),
        (out(Health.PROBING, ejections=10_000), Fault.REQUEST, 5.0, Health.EJECTED, LONGEST_S),
        (out(), Fault.POLL, 10.0, Health.EJECTED, FIRST_S * 2),  # /health was the probe
        (out(), Fault.UNREACHABLE, 10.0, Health.EJECTED, FIRST_S * 2),
    ],
)
def test_failures_in_a_row_eject_and_each_ejection_is_longer(
    old: Standing | None, fault: Fault, now: float, state: Health, length: float | None
) -> None:
    new = after_failure(old, fault, "why", now, luck=0.0)
    assert new.state is state and new.why == "why" and new.failed_at == now
    if length is not None:
        assert new.until - now == length
        assert after_failure(old, fault, "why", now, luck=1.0).until - now == length * (1 - JITTER)


@pytest.mark.parametrize(("fault", "now"), [(Fault.REQUEST, 5.0), (Fault.REQUEST, 50.0), (Fault.POLL, 9.9)])
def test_what_fails_late_of_before_the_ejection_makes_it_no_longer(fault: Fault, now: float) -> None:
    assert after_failure(out(), fault, "late", now, 0.0) == replace(out(), failed_at=now, why="late")


@pytest.mark.parametrize(
    ("old", "now", "new"),
    [
        (out(), 50.0, out()),  # a stream from before the ejection ends well: its listener may be gone all the same
        (healthy(2), 5.0, None),
        (healthy(2, ejections=1), 5.0, healthy(0, ejections=1)),
        (healthy(2, ejections=1), 10.0, None),
    ],
)
def test_a_success_ends_a_run_of_failures(old: Standing, now: float, new: Standing | None) -> None:
    assert after_success(old, now) == new


def test_a_probes_success_makes_it_healthy_and_its_ejections_are_remembered_for_a_while() -> None:
    new = after_success(out(Health.PROBING, ejections=3), 5.0)
    assert new and (new.state, new.failures, new.ejections, new.until) == (Health.HEALTHY, {}, 3, 5.0 + FORGIVEN_S)


@pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.POLL, Fault.HUNG])
def test_an_answered_poll_disproves_that_it_cannot_be_reached(fault: Fault) -> None:
    assert after_poll(out(fault=fault), 3.0) == replace(out(fault=fault), until=3.0)
    assert after_poll(out(fault=fault), 30.0) == out(fault=fault)  # was due before
    assert after_poll(healthy(2, fault=fault), 3.0) is None
    probing = out(Health.PROBING, fault)
    assert after_poll(probing, 3.0) == probing


def test_an_answered_poll_says_nothing_about_an_engine_that_fails_requests() -> None:
    assert after_poll(out(fault=Fault.REQUEST), 3.0) == out(fault=Fault.REQUEST)
    assert after_poll(healthy(2), 3.0) == healthy(2)
    both = replace(healthy(2), failures={Fault.REQUEST: 2, Fault.HUNG: 2})
    assert after_poll(both, 3.0) == healthy(2)


def test_a_refused_connection_ejects_at_once_and_a_500_only_when_it_is_the_third_in_a_row(
    health: ReplicaHealth,
) -> None:
    health.failed("refuses", "connection refused", Fault.UNREACHABLE)
    assert not health.usable("refuses")
    for n in range(1, LIMITS[Fault.REQUEST]):
        health.failed("stumbles", f"answered 500, {n}")
        assert health.usable("stumbles")
    health.succeeded("stumbles")
    assert "stumbles" not in health.snapshot()
    for _ in range(LIMITS[Fault.REQUEST]):
        assert health.usable("stumbles")
        health.failed("stumbles", "answered 500")
    assert not health.usable("stumbles") and health.snapshot()["stumbles"].why == "answered 500"


def test_one_request_alone_is_let_through_after_an_ejection(health: ReplicaHealth, clock: Clock) -> None:
    health.failed("r", "refused", Fault.UNREACHABLE)
    clock.now += FIRST_S - 0.01
    assert not health.usable("r")
    clock.now += 0.01
    assert health.usable("r") and health.usable("r")  # asking takes nothing
    assert health.started("r")
    assert not health.usable("r") and health.snapshot()["r"].state is Health.PROBING
    health.succeeded("r")
    assert health.usable("r") and not health.started("r")


def test_a_failed_probe_ejects_for_longer_and_never_longer_than_the_bound(health: ReplicaHealth, clock: Clock) -> None:
    waits = []
    health.failed("r", "refused", Fault.UNREACHABLE)
    for _ in range(12):
        waits.append(health.snapshot()["r"].until - clock.now)
        clock.now = health.snapshot()["r"].until
        assert health.usable("r") and health.started("r")
        health.failed("r", "answered 500")
        assert not health.usable("r")
    assert waits[:5] == [FIRST_S * 2**n for n in range(5)] and max(waits) == waits[-1] == LONGEST_S


def test_a_probe_whose_client_left_leaves_its_place_to_the_next(health: ReplicaHealth, clock: Clock) -> None:
    health.failed("r", "refused", Fault.UNREACHABLE)
    clock.now += FIRST_S
    assert health.started("r") and not health.usable("r")
    health.abandoned("r")
    assert health.usable("r") and health.started("r") and not health.usable("r")
    health.abandoned("r")
    health.failed("r", "answered 500")  # said after all: ejected, and for longer
    standing = health.snapshot()["r"]
    assert (standing.state, standing.until - clock.now) == (Health.EJECTED, 2 * FIRST_S) and not health.usable("r")
    health.abandoned("r")
    assert not health.usable("r")
    health.abandoned("unknown")
    assert "unknown" not in health.snapshot()


def test_a_probe_that_is_silent_keeps_others_away_for_a_bounded_time(health: ReplicaHealth, clock: Clock) -> None:
    health.failed("r", "refused", Fault.UNREACHABLE)
    clock.now += FIRST_S
    health.started("r")
    clock.now += PROBE_S - 1
    assert not health.usable("r")
    clock.now += 1
    assert health.usable("r") and health.started("r") and not health.usable("r")


def test_a_poll_that_is_answered_lets_the_probe_through_at_once(health: ReplicaHealth, clock: Clock) -> None:
    for _ in range(4):
        health.failed("r", "refused", Fault.UNREACHABLE)
        clock.now = health.snapshot()["r"].until
        health.started("r")
    health.failed("r", "refused", Fault.UNREACHABLE)
    assert health.snapshot()["r"].until - clock.now > 20 and not health.usable("r")
    health.polled("r")
    assert health.usable("r") and health.started("r") and not health.usable("r")
    health.polled("never failed")
    assert "never failed" not in health.snapshot()


def test_where_all_are_out_the_one_that_failed_least_recently_is_tried_and_then_the_next(
    health: ReplicaHealth, clock: Clock
) -> None:
    for replica_id in ("b", "a", "c"):
        health.failed(replica_id, "refused", Fault.UNREACHABLE)
        clock.now += 0.1
    tried = []
    for _ in range(6):
        chosen = health.fallback(["a", "b", "c"])
        assert chosen is not None and not health.usable(chosen) and health.started(chosen)
        tried.append(chosen)
        clock.now += 0.1
        health.failed(chosen, "refused", Fault.UNREACHABLE)
    assert tried == ["b", "a", "c", "b", "a", "c"]
    health.started("b")
    health.succeeded("b")
    assert health.usable("b")
    assert health.fallback([]) is None
    assert health.fallback(["a", "never failed"]) == "never failed"


def test_each_ejection_is_told_once_with_its_fault(clock: Clock) -> None:
    told: list[tuple[str, Fault]] = []
    health = ReplicaHealth(clock, lambda: 0.0, lambda *what: told.append(what))
    for _ in range(5):
        health.failed("r", "answered 500")
    assert told == [("r", Fault.REQUEST)]
    health.started("r")
    health.failed("r", "refused", Fault.UNREACHABLE)
    assert told == [("r", Fault.REQUEST), ("r", Fault.UNREACHABLE)]


def test_faults_that_take_turns_are_not_added_up_and_still_eject(health: ReplicaHealth) -> None:
    for _ in range(2):
        health.failed("r", "answered 500")
        health.failed("r", "/health said nothing", Fault.HUNG)
    assert health.usable("r")
    health.failed("r", "/health answered 503", Fault.POLL)
    assert health.usable("r")
    health.failed("r", "answered 500")
    assert not health.usable("r") and health.snapshot()["r"].fault is Fault.REQUEST


def test_a_replica_that_is_gone_leaves_nothing_behind(health: ReplicaHealth) -> None:
    health.failed("r", "refused", Fault.UNREACHABLE)
    health.failed("s", "answered 500")
    health.forget(["r", "never failed"])
    assert list(health.snapshot()) == ["s"] and health.usable("r")


def test_asking_for_a_healthy_replica_costs_next_to_nothing(health: ReplicaHealth) -> None:
    health.failed("other", "refused", Fault.UNREACHABLE)
    best = min(timeit.repeat(lambda: health.usable("r"), number=20_000, repeat=7)) / 20_000
    assert best < 1e-6, f"{best * 1e6:.2f} us"  # 0.1 us on an idle machine
