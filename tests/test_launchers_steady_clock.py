"""A wall clock that jumps is not believed before it has stayed where it jumped to."""

from __future__ import annotations

from launchers.steady_clock import BELIEVED_AFTER_S, SteadyClock


class Clocks:
    def __init__(self) -> None:
        self.wall, self.monotonic = 1_000_000.0, 50.0
        self.steady = SteadyClock(lambda: self.wall, lambda: self.monotonic)
        self.steady.now()

    def after(self, seconds: float, jump_s: float = 0.0) -> float:
        self.monotonic += seconds
        self.wall += seconds + jump_s
        return self.steady.now()


def test_a_clock_that_is_put_right_in_small_steps_is_followed() -> None:
    clocks = Clocks()
    assert clocks.after(5, 4) == 1_000_009
    assert clocks.after(5, -8) == 1_000_006
    assert clocks.steady.jump == 0


def test_a_jump_is_not_believed_and_counts_once_it_has_lasted() -> None:
    for jump_s in (3600.0, -3600.0):
        clocks = Clocks()
        assert clocks.after(1, jump_s) == 1_000_001
        assert clocks.steady.jump == jump_s
        assert clocks.after(BELIEVED_AFTER_S - 1) == 1_000_000 + BELIEVED_AFTER_S
        assert clocks.after(2) == 1_000_002 + BELIEVED_AFTER_S + jump_s
        assert clocks.steady.jump == 0


def test_a_jump_that_somebody_takes_back_leaves_nothing() -> None:
    clocks = Clocks()
    clocks.after(1, 3600)
    assert clocks.after(60, -3600) == 1_000_061
    assert clocks.steady.jump == 0


def test_what_was_written_after_a_jump_forwards_is_told_from_what_was_written_before() -> None:
    clocks = Clocks()
    before = clocks.wall
    now = clocks.after(10, 3600)
    assert clocks.steady.corrected(before, now) == before
    assert clocks.steady.corrected(clocks.wall, now) == now
