"""Which replica takes a request."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from registry.deployments import Replica


def pick(replicas: Sequence[Replica], load: Mapping[str, int]) -> Replica | None:
    """The replica with the fewest requests outstanding; the first of equals, None of none."""
    return min(replicas, key=lambda r: load.get(r.id, 0), default=None)


class Load:
    """How many requests each replica has outstanding, by its id."""

    def __init__(self) -> None:
        self.outstanding: Counter[str] = Counter()

    @contextlib.contextmanager
    def carried_by(self, replica_id: str) -> Iterator[None]:
        self.outstanding[replica_id] += 1
        try:
            yield
        finally:
            self.outstanding[replica_id] -= 1
            if not self.outstanding[replica_id]:
                del self.outstanding[replica_id]  # replicas come and go
