"""A FairQueue for each deployment, as long as it is there, with room for what its ready replicas take."""

from __future__ import annotations

from collections.abc import Callable

from gateway.catalog import View
from gateway.fair_queue import FairQueue
from gateway.waiting_room import Standing, refusal
from registry.site import Gateway


class Queues:
    def __init__(self, settings: Gateway, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self._queues: dict[str, FairQueue] = {}
        self._ready: dict[str, frozenset[str]] = {}  # ids, by deployment

    def of(self, deployment: str) -> FairQueue:
        queue = self._queues.get(deployment)
        if queue is None:
            settings = self._settings
            queue = FairQueue(deployment, length=settings.queue_length, wait_s=settings.queue_wait_s, clock=self._clock)
            self._fit(queue)
            self._queues[deployment] = queue
        return queue

    def resize(self, view: View) -> None:
        """As replicas come and go. Who waits in vain, as the deployment is no more and will not be, is told so at once.

        While none is ready of a deployment that lives, those who wait stay, as another may be; up to their patience.
        """
        self._ready = {name: frozenset(r.id for r in ready) for name, ready in view.replicas.items()}
        for name, queue in list(self._queues.items()):
            self._fit(queue)
            if queue.waiting and not queue.capacity:
                deployment = view.deployments.get(name) or view.ended.get(name)
                if (refused := refusal(name, Standing(deployment, ()))) is not None:
                    queue.refuse_all(refused)
            if name not in self._ready and not queue.waiting and not queue.taken:
                del self._queues[name]

    def _fit(self, queue: FairQueue) -> None:
        ready = self._ready.get(queue.deployment, frozenset())
        queue.resize(len(ready) * self._settings.max_in_flight, ready)

    def waiting(self) -> dict[tuple[str, ...], float]:
        return {(name,): float(queue.waiting) for name, queue in self._queues.items()}

    def taken(self) -> dict[tuple[str, ...], float]:
        return {(name,): float(queue.taken) for name, queue in self._queues.items()}

    def work(self, deployment: str) -> tuple[int, int, int, float]:
        """Requests that have places; those that wait, their likely tokens, and how long the first has waited."""
        queue = self._queues.get(deployment)
        return (queue.taken, queue.waiting, queue.waiting_tokens, queue.longest_wait()) if queue else (0, 0, 0, 0.0)

    def in_use(self) -> list[str]:
        """The deployments that have requests."""
        return [name for name, queue in self._queues.items() if queue.taken or queue.waiting]
