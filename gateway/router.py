"""The gateway's one Router: what each replica has been sent, and what it has seen. routing.py decides by it."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

from gateway import routing
from gateway.prefix import BLOCK_BYTES, BLOCKS_PER_REPLICA, Prefixes, blocks
from gateway.routing import Gauges, Policy, ReplicaLoad, Work
from registry import clock
from registry.deployments import Replica

SESSIONS = 20_000  # that are remembered, the most recent ones: some 5 MB
LIKELY_OUTPUT_TOKENS = 1024  # at most: what a client allows is often far more than what it gets
TOKENS_PER_BYTE = 1 / 3  # at most, in a prompt of which only the beginning is known
NEWEST = 0.05  # what the newest request weighs in a replica's moving average
UNKNOWN_CONTEXT = 1 << 20  # tokens
RECENT = 100  # replicas that are remembered to be gone
NO_MATCH: Mapping[str, int] = {}


class Routed:
    """A request's place at a replica: it counts as load from the choice on, until this context is left."""

    __slots__ = ("_load", "_output_tokens", "replica", "uncached_tokens")

    def __init__(self, replica: Replica, load: ReplicaLoad, uncached_tokens: int, output_tokens: int) -> None:
        self.replica = replica
        self.uncached_tokens = uncached_tokens
        self._load, self._output_tokens = load, output_tokens
        load.outstanding += 1
        load.queued += uncached_tokens + output_tokens
        load.prefilling[self] = uncached_tokens

    def first_output(self) -> None:
        """The engine has computed the prompt; and, as it takes them in order, all that were sent there before.

        So a stream's first output also tells about the answers that come whole. To be called once or more often.
        """
        load = self._load
        while self in load.prefilling:
            first = next(iter(load.prefilling))
            load.queued -= load.prefilling.pop(first)

    def __enter__(self) -> Routed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        load = self._load
        load.outstanding -= 1
        load.queued -= self._output_tokens + load.prefilling.pop(self, 0)


class Router:
    """For one event loop, as nothing here waits or locks."""

    def __init__(
        self,
        blocks_per_replica: int = BLOCKS_PER_REPLICA,
        monotonic: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
    ) -> None:
        self._blocks_per_replica = blocks_per_replica
        self._monotonic, self._unix = monotonic, unix
        self._loads: dict[str, ReplicaLoad] = {}
        self._fleets: dict[str, _Fleet] = {}
        self._sessions: OrderedDict[tuple[str, str], str] = OrderedDict()  # the least recent first
        self._gone: deque[str] = deque(maxlen=RECENT)
        self._choices = 0

    def route(
        self,
        deployment: str,
        policy: Policy,
        ready: Sequence[Replica],
        work_tokens: int,
        completion_tokens: int,
        longest_tokens: int,
        prompt: bytes,
        salt: bytes,
        session: str | None,
    ) -> Routed | None:
        """The replica for a request, among the `ready` ones: healthy, and not failed on it before. None: there is none.

        `work_tokens`: of the prompt, of which `prompt` may be the beginning only. `completion_tokens`: expected, or
        else allowed, of all its answers; `longest_tokens`: allowed of one, which decides whether a replica whose job
        ends may have it. `salt`: see prefix.blocks. `session`: what the client calls its own, made unique among
        tenants.
        """
        if not ready:
            return None
        fleet = self._fleets.get(deployment)
        if fleet is None:
            fleet = self._fleets[deployment] = _Fleet(self._blocks_per_replica)
        if fleet.ready != ready:
            self._muster(fleet, ready)
        if work_tokens > fleet.context_tokens:
            work_tokens = fleet.context_tokens  # a picture's bytes say little of its tokens
        hashes = blocks(prompt, salt) if policy is Policy.LEAST_WORK else ()
        matched = fleet.prefixes.matched(hashes) if hashes else NO_MATCH
        work = Work(
            work_tokens,
            longest_tokens if longest_tokens < fleet.context_tokens else fleet.context_tokens,
            min(work_tokens / len(prompt), TOKENS_PER_BYTE) * BLOCK_BYTES if matched else 0.0,
            self._sessions.get((deployment, session)) if session is not None else None,
        )
        load = routing.pick(policy, fleet.loads, work, matched, self._monotonic())
        assert load is not None  # one of `ready`
        self._choices += 1
        load.last_chosen = self._choices
        if hashes:
            fleet.prefixes.note(load.id, hashes)
        if session is not None:
            self._remember((deployment, session), load.id)
        uncached = routing.uncached(work, matched.get(load.id, 0))
        output = min(completion_tokens, LIKELY_OUTPUT_TOKENS)
        load.prompt_tokens += NEWEST * (uncached - load.prompt_tokens)
        load.output_tokens += NEWEST * (output - load.output_tokens)
        return Routed(fleet.replicas[load.id], load, uncached, output)

    def gauged(self, replica_id: str, gauges: Gauges) -> None:
        """What the engine says of itself, just read."""
        load = self._loads.get(replica_id)
        if load is None:
            if replica_id in self._gone:
                return  # the answer was on its way
            load = self._loads[replica_id] = ReplicaLoad(replica_id)
        load.gauges = gauges
        load.others = routing.others(gauges, load)

    def forget(self, gone: Iterable[str]) -> None:
        """These replicas are no more, or have lost their caches. What is under way there can still be left."""
        gone = list(gone)
        self._gone.extend(gone)  # those that nobody was sent to, too: their gauges may be on their way
        gone = [replica_id for replica_id in gone if self._loads.pop(replica_id, None)]
        for deployment, fleet in list(self._fleets.items() if gone else ()):
            for replica_id in gone:
                fleet.prefixes.forget(replica_id)
            fleet.ready = ()  # so that its loads are looked up again
            if not fleet.prefixes:
                del self._fleets[deployment]

    def outstanding(self, replica_id: str) -> int:
        """Requests of ours that the replica has not done."""
        load = self._loads.get(replica_id)
        return load.outstanding if load else 0

    def queued(self, replicas: Iterable[Replica]) -> int:
        """Tokens that these have to compute for us."""
        return sum(load.queued for replica in replicas if (load := self._loads.get(replica.id)))

    def snapshot(self) -> list[ReplicaLoad]:
        """Every replica that is known, for /metrics: to be read, and at once."""
        return list(self._loads.values())

    def _muster(self, fleet: _Fleet, ready: Sequence[Replica]) -> None:
        """Other replicas than last time, or other facts about them."""
        fleet.ready = ready[:]
        fleet.replicas = {replica.id: replica for replica in ready}
        fleet.loads = [self._loads.setdefault(replica.id, ReplicaLoad(replica.id)) for replica in ready]
        fleet.context_tokens = max(replica.context_tokens or UNKNOWN_CONTEXT for replica in ready)
        since = self._monotonic() - self._unix()
        for replica, load in zip(ready, fleet.loads, strict=True):
            load.ends_at = None if replica.ends_at is None else clock.parse(replica.ends_at).timestamp() + since

    def _remember(self, session: tuple[str, str], replica_id: str) -> None:
        self._sessions[session] = replica_id
        self._sessions.move_to_end(session)
        if len(self._sessions) > SESSIONS:
            self._sessions.popitem(last=False)


class _Fleet:
    """One deployment's replicas, as they were ready last time."""

    __slots__ = ("context_tokens", "loads", "prefixes", "ready", "replicas")

    def __init__(self, blocks_per_replica: int) -> None:
        self.prefixes = Prefixes(blocks_per_replica)
        self.ready: Sequence[Replica] = ()
        self.replicas: dict[str, Replica] = {}
        self.loads: list[ReplicaLoad] = []
        self.context_tokens = UNKNOWN_CONTEXT
