"""Which checkpoints may go."""

from __future__ import annotations

import pytest

from launchers.retention import surplus

SAVED = [100, 200, 300, 400, 500]


@pytest.mark.parametrize(
    ("asked", "goes"),
    [
        ({"keep_last": 0}, []),
        ({"keep_last": 0, "keep_every": 1000}, []),
        ({"keep_last": 2}, [100, 200, 300]),
        ({"keep_last": 9}, []),
        ({"keep_last": 1, "keep_every": 200}, [100, 300]),
        ({"keep_last": 1, "pinned": {100, 999}}, [200, 300, 400]),
        ({"keep_last": 1, "in_use": {300}}, [100, 200, 400]),
    ],
)
def test_the_newest_the_multiples_the_pinned_and_those_in_use_stay(asked: dict, goes: list[int]) -> None:
    assert surplus(SAVED, **asked) == goes
    assert surplus(reversed(SAVED), **asked) == goes


def test_the_newest_is_never_surplus() -> None:
    assert surplus([7], keep_last=1) == []
    assert surplus([], keep_last=1) == []
