"""The gateway's one Router: what each replica has been sent, and what it has seen. routing.py decides with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType

from gateway.routing import Gauges, Policy, ReplicaLoad
from registry.deployments import Replica


class Routed:
    """A request's place at a replica, held until this context is left."""

    __slots__ = ("_load", "replica", "uncached_tokens")

    def __init__(self, replica: Replica, load: ReplicaLoad, uncached_tokens: int) -> None:
        self.replica = replica
        self.uncached_tokens = uncached_tokens
        self._load = load
        load.outstanding += 1

    def first_output(self) -> None:
        """Its prefill is done. May be called again, to no effect."""

    def __enter__(self) -> Routed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._load.outstanding -= 1


class Router:
    def __init__(self) -> None:
        self._loads: dict[str, ReplicaLoad] = {}
        self._choices = 0

    def route(
        self,
        deployment: str,
        policy: Policy,
        ready: Sequence[Replica],
        work_tokens: int,
        completion_tokens: int,
        prompt: bytes,
        salt: bytes,
        session: str | None,
    ) -> Routed | None:
        """None: nothing is ready. `ready`: healthy ones that this request has not failed on."""
        if not ready:
            return None
        loads = [self._loads.setdefault(r.id, ReplicaLoad(r.id)) for r in ready]
        chosen = min(loads, key=lambda load: (load.outstanding, load.last_chosen))
        self._choices += 1
        chosen.last_chosen = self._choices
        return Routed(ready[loads.index(chosen)], chosen, work_tokens)

    def gauged(self, replica_id: str, gauges: Gauges) -> None:
        """What an engine says about itself."""

    def forget(self, gone: Iterable[str]) -> None:
        """These replicas are no more."""
        for replica_id in gone:
            self._loads.pop(replica_id, None)

    def outstanding(self, replica_id: str) -> int:
        """Requests of ours that the replica has not finished."""
        load = self._loads.get(replica_id)
        return load.outstanding if load else 0

    def snapshot(self) -> list[ReplicaLoad]:
        """Of every replica that was ever asked, for /metrics; to be read only."""
        return list(self._loads.values())
