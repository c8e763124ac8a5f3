"""How much of a running count has left this process for its client: what may be billed should the process be killed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from gateway.metering import Usage


class Client(Protocol):
    """Bytes since its connection began. gateway.front.Front is one."""

    @property
    def written(self) -> int: ...
    @property
    def sent(self) -> int: ...
    def takes(self, size: int) -> bool: ...
    def when_sent(self, then: Callable[[], object]) -> None: ...


class PassedOn:
    """Of one stream. What waits in our memory for a client that reads slowly dies with us, and is not billed then."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._waiting: deque[tuple[int, Usage]] = deque()  # (bytes written by then, the count that they go with)
        self._passed: Usage | None = None

    def of(self, counted: Usage | None) -> Usage | None:
        """The newest count of those asked about so far of which the client was sent everything; None: of none."""
        if counted is not None and (not self._waiting or self._waiting[-1][1] != counted):
            self._waiting.append((self.client.written, counted))
        sent = self.client.sent
        while self._waiting and self._waiting[0][0] <= sent:
            self._passed = self._waiting.popleft()[1]
        return self._passed
