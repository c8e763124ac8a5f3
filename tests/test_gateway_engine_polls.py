"""Every ready replica is asked in turn, and none waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.engine_polls import poll_engines
from gateway.errors import UpstreamFailed, UpstreamSilent
from gateway.replica_health import Fault, Health, ReplicaHealth
from gateway.routing import Gauges
from registry.deployments import Replica, ReplicaState

PAGE = b"".join(
    b"# TYPE vllm:%s gauge\nvllm:%s 1\n" % (name, name)
    for name in (b"num_requests_running", b"num_requests_waiting", b"kv_cache_usage_perc")
)
PERIOD_S = 4.0


def replica(replica_id: str) -> Replica:
    none: Any = (None,) * 5
    return Replica(replica_id, "tiny", "root", ReplicaState.READY, "/runs", *none, "", None, None)


@dataclass
class Engines:
    """Stand-ins, and a clock that moves when the poller sleeps."""

    ids: list[str]
    now: float = 0.0
    asked: list[tuple[str, str, float]] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    answers: dict[tuple[str, str], Callable[[], Any]] = field(default_factory=dict)
    gauges: dict[str, Gauges] = field(default_factory=dict)
    sleeps: int = 0  # how many more times the poller may sleep
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.health = ReplicaHealth(self.clock, luck=lambda: 0.0)

    def clock(self) -> float:
        return self.now

    def ready(self) -> list[Replica]:
        return [replica(replica_id) for replica_id in self.ids]

    async def ask(self, asked: Replica, path: str) -> tuple[int, bytes]:
        self.asked.append((asked.id, path, self.now))
        answer = self.answers.get((asked.id, path), lambda: (200, PAGE if path == "/metrics" else b""))()
        return await answer if asyncio.iscoroutine(answer) else answer  # type: ignore[no-any-return]

    async def sleep(self, seconds: float) -> None:
        for _ in range(10):
            await asyncio.sleep(0)  # what was begun gets as far as it can
        if not self.sleeps:
            self.stopped.set()
            await asyncio.Event().wait()
        self.sleeps -= 1
        self.slept.append(seconds)
        self.now += seconds

    @asynccontextmanager
    async def polled(self, sleeps: int, **settings: Any) -> AsyncIterator[None]:
        """The poller, once it has slept so often; it goes on in `sleep` until the block ends."""
        self.sleeps = sleeps
        self.stopped.clear()
        poller = asyncio.create_task(
            poll_engines(
                self.ready,
                self.ask,
                self.health,
                self.gauges.__setitem__,
                self.clock,
                PERIOD_S,
                sleep=self.sleep,
                **settings,
            )
        )
        stopped = asyncio.create_task(self.stopped.wait())
        await asyncio.wait([poller, stopped], return_when=asyncio.FIRST_COMPLETED)
        try:
            assert not poller.done()
            yield
        finally:
            poller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await poller

    def times(self, replica_id: str) -> list[float]:
        return [at for asked, path, at in self.asked if asked == replica_id and path == "/health"]


def fails(text: str) -> Callable[[], Any]:
    def answer() -> Any:
        raise UpstreamFailed(text)

    return answer


async def test_looks_at_replicas_are_spread_over_the_period() -> None:
    engines = Engines(["c", "a", "b", "d"])
    async with engines.polled(sleeps=8):
        assert [engines.times(i)[:2] for i in "abcd"] == [[0.0, 4.0], [1.0, 5.0], [2.0, 6.0], [3.0, 7.0]]


async def test_without_a_replica_it_waits_for_one_and_then_asks_it() -> None:
    engines = Engines([])
    async with engines.polled(sleeps=2):
        assert engines.asked == [] and engines.slept == [PERIOD_S, PERIOD_S]
    engines.ids = ["a"]
    async with engines.polled(sleeps=1):
        assert len(engines.times("a")) == 2


async def test_an_engines_load_is_handed_on_with_its_time() -> None:
    engines = Engines(["a", "b"])
    async with engines.polled(sleeps=2):
        assert engines.gauges["b"] == Gauges(1, 1, 1.0, 2.0) and engines.gauges["a"].at in (0.0, 4.0)
    assert engines.health.snapshot() == {}


async def test_a_slow_engine_keeps_no_other_waiting_and_is_not_asked_twice_at_once() -> None:
    engines = Engines(["a", "b", "slow"])
    engines.answers["slow", "/health"] = lambda: asyncio.Event().wait()
    async with engines.polled(sleeps=9, timeout_s=60):
        assert len(engines.times("a")) >= 3 and len(engines.times("b")) >= 3
        assert len(engines.times("slow")) == 1


async def test_an_engine_that_says_nothing_within_its_time_has_failed() -> None:
    engines = Engines(["a"])
    engines.answers["a", "/health"] = lambda: asyncio.Event().wait()
    async with engines.polled(sleeps=0, timeout_s=0.01):
        async with asyncio.timeout(10):
            while not engines.health.snapshot():
                await asyncio.sleep(0.005)
        standing = engines.health.snapshot()["a"]
        assert standing.fault is Fault.HUNG and standing.why == "/health said nothing for 0.01 s"


async def test_failed_polls_eject_after_the_third_and_an_answered_one_lets_a_probe_through() -> None:
    engines = Engines(["a"])
    engines.answers["a", "/health"] = lambda: (503, b"engine is dead")
    async with engines.polled(sleeps=1):
        assert engines.health.usable("a")
    async with engines.polled(sleeps=0):
        assert not engines.health.usable("a") and engines.health.snapshot()["a"].fault is Fault.POLL
        assert engines.health.snapshot()["a"].why == "/health answered 503: engine is dead"
    async with engines.polled(sleeps=20):  # a failed poll is a failed probe: the ejections get longer by themselves
        standing = engines.health.snapshot()["a"]
        assert standing.state is Health.EJECTED and standing.ejections >= 4 and standing.until - engines.now > 5
    del engines.answers["a", "/health"]
    async with engines.polled(sleeps=0):
        assert engines.health.usable("a") and engines.health.started("a") and not engines.health.usable("a")


async def test_an_engine_that_cannot_be_reached_is_out_at_once() -> None:
    engines = Engines(["a"])
    engines.answers["a", "/health"] = fails("refused")
    async with engines.polled(sleeps=0, fault_of=lambda error: Fault.UNREACHABLE):
        assert engines.health.snapshot()["a"].fault is Fault.UNREACHABLE
        assert not engines.health.usable("a") and engines.health.snapshot()["a"].why == "/health: refused"


@pytest.mark.parametrize(
    ("error", "fault"), [(UpstreamSilent("silent"), Fault.HUNG), (UpstreamFailed("lost"), Fault.POLL)]
)
async def test_a_silent_engine_is_told_from_one_that_hung_up(error: UpstreamFailed, fault: Fault) -> None:
    engines = Engines(["a"])

    async def answer() -> Any:
        raise error

    engines.answers["a", "/health"] = answer
    async with engines.polled(sleeps=0):
        assert engines.health.snapshot()["a"].fault is fault


@pytest.mark.parametrize("answer", [lambda: (404, b""), lambda: (200, b"no page"), fails("lost"), asyncio.Event().wait])
async def test_metrics_that_are_not_to_be_had_are_no_failure(answer: Callable[[], Any]) -> None:
    engines = Engines(["a"])
    engines.answers["a", "/metrics"] = answer
    async with engines.polled(sleeps=3, timeout_s=0.01):
        assert engines.gauges == {} and engines.health.snapshot() == {}


async def test_replicas_that_are_no_longer_ready_are_forgotten() -> None:
    engines = Engines(["a", "b"])
    engines.health.failed("b", "refused", Fault.UNREACHABLE)
    engines.ids = ["a"]
    async with engines.polled(sleeps=0):
        assert engines.health.snapshot() == {}


async def test_what_is_asked_at_the_end_is_given_up_with_the_poller() -> None:
    engines = Engines(["a"])
    given_up = asyncio.Event()

    async def answer() -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    engines.answers["a", "/health"] = answer
    async with engines.polled(sleeps=0, timeout_s=60):
        assert not given_up.is_set()
    assert given_up.is_set()


async def test_an_engines_counts_of_tokens_are_passed_on_with_its_replica() -> None:
    engines = Engines(["a", "b"])
    page = PAGE + b"".join(
        b"# TYPE vllm:%s counter\nvllm:%s %d\n" % (name, name, value)
        for name, value in ((b"prompt_tokens_total", 812), (b"generation_tokens_total", 40))
    )
    engines.answers["b", "/metrics"] = lambda: (200, page)
    told: list[tuple[str, int, int]] = []
    async with engines.polled(sleeps=2, counted=lambda r, prompt, generated: told.append((r.id, prompt, generated))):
        assert told == [("b", 812, 40)]
        assert engines.gauges.keys() == {"a", "b"}
