"""A FairQueue for each deployment, as long as it is there, with room for what its ready replicas take."""

from __future__ import annotations

from collections.abc import Callable

from gateway.catalog import View
from gateway.fair_queue import FairQueue
from registry.site import Gateway


class Queues:
    def __init__(self, settings: Gateway, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self._queues: dict[str, FairQueue] = {}
        self._places: dict[str, int] = {}

    def of(self, deployment: str) -> FairQueue:
        queue = self._queues.get(deployment)
        if queue is None:
            settings = self._settings
            queue = FairQueue(deployment, length=settings.queue_length, wait_s=settings.queue_wait_s, clock=self._clock)
            queue.resize(self._places.get(deployment, 0))
            self._queues[deployment] = queue
        return queue

    def resize(self, view: View) -> None:
        """As replicas come and go."""
        self._places = {name: len(ready) * self._settings.max_in_flight for name, ready in view.replicas.items()}
        for name, queue in list(self._queues.items()):
            queue.resize(self._places.get(name, 0))
            if name not in self._places and not queue.waiting and not queue.taken:
                del self._queues[name]

    def waiting(self) -> dict[tuple[str, ...], float]:
        return {(name,): float(queue.waiting) for name, queue in self._queues.items()}

    def taken(self) -> dict[tuple[str, ...], float]:
        return {(name,): float(queue.taken) for name, queue in self._queues.items()}

    def in_use(self) -> list[str]:
        """The deployments that have requests."""
        return [name for name, queue in self._queues.items() if queue.taken or queue.waiting]
