"""Which of a run's complete checkpoints may go. Pure; the training loop and `headgate prune` both ask it."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def surplus(
    complete: Iterable[int],
    *,
    keep_last: int,
    keep_every: int = 0,
    pinned: Collection[int] = (),
    in_use: Collection[int] = (),
) -> list[int]:
    """The iterations whose checkpoints are not wanted any more, oldest first.

    Kept are the newest `keep_last` (0: all of them), every multiple of `keep_every` (0: none for that reason), the
    `pinned`, which somebody asked to keep, and those `in_use`: loaded, converted or served. The newest always stays.
    """
    if keep_last <= 0:
        return []
    found = sorted(set(complete))
    kept = {*found[-keep_last:], *pinned, *in_use}
    return [i for i in found if i not in kept and not (keep_every and i % keep_every == 0)]
