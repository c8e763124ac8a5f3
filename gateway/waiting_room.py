"""Where requests wait while no replica of their deployment is ready.

A stream hears at once, and every `heartbeat_s`, what it waits for, as a server-sent comment that SDKs skip; anything
else waits up to a bound. What is said follows from the registry's rows alone. Nobody polls: the catalog says when its
view changed (`changed`), and each deployment is then looked at once for all who wait for it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.errors import NoReplica, QueueFull
from registry import clock
from registry.deployments import Deployment, DeploymentState, Replica, ReplicaState

START_S = 15  # what a replica's start is taken to last when a client asks when to come again
UNKNOWN_S = 30  # and a wait in Slurm's queue of which Slurm does not say how long it lasts
LONGEST_RETRY_S = 120  # SDKs give up on more

_Ready = tuple[str, int, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Standing:
    """What the registry says of a deployment; None when there is none of this name."""

    deployment: Deployment | None
    replicas: Sequence[Replica]  # its own that have not ended


class WaitingRoom:
    """`look` answers from memory. `asked` is told of a deployment when a first request begins to wait for it.

    `length` requests wait for one deployment at most.
    """

    def __init__(
        self,
        look: Callable[[str], Standing],
        *,
        heartbeat_s: float,
        length: int,
        asked: Callable[[str], None] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look, self._heartbeat_s, self._length, self._asked = look, heartbeat_s, length, asked
        self._now, self._monotonic = now, monotonic
        self._rooms: dict[str, _Room] = {}

    def changed(self) -> None:
        """The registry says something new: wake those for whom it matters."""
        for name, room in self._rooms.items():
            standing = self._look(name)
            ready = _ready(standing)
            if ready != room.ready or refusal(name, standing) is not None:
                room.ready = ready
                room.wake()

    def wake(self, name: str) -> None:
        """Something else than the registry says that a replica may be asked again."""
        if (room := self._rooms.get(name)) is not None:
            room.wake()

    def waiting(self) -> dict[str, int]:
        """How many wait for each deployment."""
        return {name: room.waiting for name, room in self._rooms.items()}

    def work(self, name: str) -> tuple[int, int, float]:
        """Requests that wait for this deployment, their tokens, and how long the first of them has waited."""
        if (room := self._rooms.get(name)) is None:
            return 0, 0, 0.0
        return room.waiting, room.tokens, self._monotonic() - next(iter(room.since.values()))

    async def until_ready(
        self,
        name: str,
        ready: Callable[[], Sequence[Replica]],
        *,
        heartbeat: Callable[[bytes], None] | None = None,
        bound_s: float | None = None,
        tokens: int = 0,
    ) -> Sequence[Replica]:
        """What `ready` finds, once it finds any: it may leave out replicas that the caller will not ask again.

        `tokens`: that the request is likely to be. Raises NoReplica after `bound_s` seconds, and at once when the
        deployment failed, is stopping or is gone; and QueueFull when enough wait already.
        """
        if found := ready():
            return found
        if (waiting := room.waiting if (room := self._rooms.get(name)) else 0) >= self._length:
            words = f"{waiting} requests wait for a first replica of deployment {name} already"
            raise QueueFull(words, retry_after(self._look(name), self._now()))
        start = self._monotonic()
        end = math.inf if bound_s is None else start + bound_s
        beat = start if heartbeat else math.inf
        with self._entered(name, tokens) as room:
            while True:
                standing = self._look(name)
                if (refused := refusal(name, standing)) is not None:
                    raise refused
                now = self._monotonic()
                if now >= end:
                    raise no_replica(name, standing, self._now())
                if heartbeat is not None and now >= beat:
                    heartbeat(comment(name, standing, self._now()))
                    beat = now + self._heartbeat_s
                await room.until_changed(min(end, beat) - now)
                if found := ready():
                    return found

    @contextmanager
    def _entered(self, name: str, tokens: int) -> Iterator[_Room]:
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = _Room(_ready(self._look(name)))
            self._asked(name)
        came = object()
        room.since[came] = self._monotonic()
        room.tokens += tokens
        try:
            yield room
        finally:
            del room.since[came]
            room.tokens -= tokens
            if not room.waiting:
                del self._rooms[name]


class _Room:
    """Those who wait for one deployment."""

    def __init__(self, ready: frozenset[_Ready]) -> None:
        self.ready = ready  # when it was last looked at
        self.since: dict[object, float] = {}  # of each, when it came; the first came first
        self.tokens = 0
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self.since)

    def wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until_changed(self, at_most_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(at_most_s) else max(at_most_s, 0)):
                await self._changed.wait()


# What is said. Pure.


def refusal(name: str, standing: Standing) -> NoReplica | None:
    """Why waiting is in vain, when it is."""
    deployment = standing.deployment
    if deployment is None:
        return _error(f"deployment {name} is gone", None)
    match deployment.state:
        case DeploymentState.FAILED:
            return _error(f"deployment {name} failed: {deployment.cause or 'no cause was given'}", None)
        case DeploymentState.STOPPING | DeploymentState.STOPPED:
            return _error(f"deployment {name} is {deployment.state}", None)
    return None


def no_replica(name: str, standing: Standing, now: datetime) -> NoReplica:
    return _error(f"no replica of deployment {name} is ready: {waits_for(standing, now)}", retry_after(standing, now))


def comment(name: str, standing: Standing, now: datetime) -> bytes:
    """A server-sent event without data: an SDK skips it, a person who uses curl reads it."""
    return f": waiting for deployment {name}: {waits_for(standing, now)}\n\n".encode()


def waits_for(standing: Standing, now: datetime) -> str:
    """In words, on one line, of the replica that will be ready first."""
    replica = _first(standing)
    if replica is None:
        return "a replica is about to be submitted"
    job = f"job {replica.job_id}" if replica.job_id else "its job"
    match replica.state:
        case ReplicaState.PENDING if replica.ends_at is None:
            words = f"{job} is pending"
            if replica.waiting_reason:
                words += f" ({replica.waiting_reason})"
            if replica.expected_start_at:
                words += f", estimated start {_moment(clock.parse(replica.expected_start_at), now)}"
        case ReplicaState.PENDING | ReplicaState.STARTING:
            words = f"{job} runs and its engine is starting" + (" again" if replica.restarts else "")
        case _:
            words = "a replica is ready"
    return "".join(c if c.isprintable() else " " for c in words)


def retry_after(standing: Standing, now: datetime) -> int:
    """Seconds, from 1 to LONGEST_RETRY_S."""
    replica = _first(standing)
    if replica is not None and replica.state is ReplicaState.READY:
        return 1
    if replica is None or replica.state is ReplicaState.STARTING or replica.ends_at is not None:
        return START_S
    if replica.expected_start_at is None:
        return UNKNOWN_S
    left = (clock.parse(replica.expected_start_at) - now).total_seconds()
    return min(max(math.ceil(left), 0) + START_S, LONGEST_RETRY_S)


def _first(standing: Standing) -> Replica | None:
    nearest = (ReplicaState.READY, ReplicaState.STARTING, ReplicaState.PENDING)
    coming = [r for r in standing.replicas if r.state in nearest]
    return min(coming, key=lambda r: (nearest.index(r.state), r.expected_start_at or "~"), default=None)


def _moment(at: datetime, now: datetime) -> str:
    at, now = at.astimezone(UTC), now.astimezone(UTC)
    return at.strftime("%H:%M UTC" if at.date() == now.date() else "%Y-%m-%d %H:%M UTC")


def _ready(standing: Standing) -> frozenset[_Ready]:
    """One whose engine was started again or has got an adapter is another: whoever left the former out may ask it."""
    return frozenset((r.id, r.restarts, r.adapters) for r in standing.replicas if r.state is ReplicaState.READY)


def _error(message: str, retry_after: int | None) -> NoReplica:
    error = NoReplica(message)
    error.retry_after = retry_after
    if retry_after is None:
        error.should_retry = False
    return error
