"""Whose turn it is under overload, on plain data and with random interleavings; a clock that only the test moves."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from gateway.errors import BadRequest, NoReplica, QueueFull
from gateway.fair_queue import FairQueue, Priority, Slot
from gateway.turns import RANKS, SHARE

NORMAL = Priority.NORMAL


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """A queue, and everybody who was given a place, in order."""

    queue: FairQueue
    clock: Clock
    held: list[tuple[str, Slot]] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    refused: list[tuple[str, QueueFull]] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def _one(self, tenant: str, tokens: int, priority: Priority) -> None:
        try:
            slot = await self.queue.enter(tenant, tokens, priority)
        except QueueFull as e:
            self.refused.append((tenant, e))
            return
        self.held.append((tenant, slot))
        self.served.append(tenant)

    async def come(self, tenant: str, count: int = 1, tokens: int = 100, priority: Priority = NORMAL) -> None:
        self.tasks += [asyncio.create_task(self._one(tenant, tokens, priority)) for _ in range(count)]
        await settle()

    async def leave(self, count: int = 1, seconds: float = 0.0) -> None:
        """The oldest place is left, so many times, each after so many seconds."""
        for _ in range(count):
            self.clock.now += seconds
            self.held.pop(0)[1].leave()
            await settle()

    async def finish(self) -> None:
        while self.held:
            await self.leave()
        await asyncio.gather(*self.tasks)


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def bench(capacity: int = 1, *, length: int = 1000, wait_s: float = 1e6) -> Bench:
    clock = Clock()
    queue = FairQueue("chat", length=length, wait_s=wait_s, clock=clock)
    queue.resize(capacity)
    return Bench(queue, clock)


def test_a_free_place_is_taken_without_waiting_and_given_back_once() -> None:
    queue = bench(2).queue
    first, second = queue.try_enter("ada", 10, NORMAL), queue.try_enter("ada", 10, NORMAL)
    assert first is not None and second is not None and queue.try_enter("ada", 10, NORMAL) is None
    with first:
        assert queue.taken == 2
    first.leave()
    assert queue.taken == 1 and first.waited_s == 0.0
    assert queue.try_enter("eve", 10, NORMAL) is not None


async def test_whoever_waits_goes_before_whoever_comes_and_learns_how_long_it_was() -> None:
    b = bench(1)
    await b.come("ada", 2)
    assert b.queue.waiting == 1
    await b.leave(seconds=3.0)
    assert b.queue.try_enter("eve", 1, NORMAL) is None
    assert b.held[0][1].waited_s == 3.0
    await b.finish()
    assert (b.queue.waiting, b.queue.taken) == (0, 0)


async def test_ten_thousand_requests_of_one_tenant_do_not_starve_ten_of_another() -> None:
    b = bench(4, length=20_000)
    await b.come("many", 10_000)
    await b.come("few", 10)
    await b.leave(24)
    assert b.served.count("few") == 10  # turn by turn, however many were there before
    b.queue.resize(20_000)
    await b.finish()
    assert Counter(b.served) == {"many": 10_000, "few": 10}


async def test_turns_are_weighted_by_tokens() -> None:
    b = bench(1)
    await b.come("blocker")
    await b.come("long", 50, tokens=1000)
    await b.come("short", 200, tokens=100)
    await b.leave(111)
    assert 8 * b.served.count("long") <= b.served.count("short") <= 12 * b.served.count("long")
    await b.finish()


async def test_one_that_was_idle_is_not_owed_the_time_it_did_not_ask() -> None:
    b = bench(1)
    await b.come("busy", 100)
    await b.leave(60)
    await b.come("late", 40)
    await b.leave(20)
    assert 9 <= b.served[-20:].count("late") <= 11
    await b.finish()


@pytest.mark.parametrize("seed", range(6))
async def test_any_two_tenants_who_both_wait_are_given_the_same_within_one_request_each(seed: int) -> None:
    """The bound of start-time fair queueing: over any time in which both wait, the difference of what both were given
    is at most one largest request of each."""
    rng = random.Random(seed)
    b = bench(rng.randint(1, 3), length=10_000)
    sizes = {name: rng.choice([10, 100, 1000]) for name in ("a", "b", "c")}
    await b.come("blocker", 3)
    await b.come("a", 20_000 // sizes["a"], sizes["a"])
    await b.come("b", 20_000 // sizes["b"], sizes["b"])
    await b.come("c", 20_000 // sizes["c"], sizes["c"])
    given: Counter[str] = Counter()
    seen = len(b.served)
    while all(b.served.count(name) * size < 20_000 for name, size in sizes.items()):
        for tenant in b.served[seen:]:
            given[tenant] += sizes.get(tenant, 0)
        seen = len(b.served)
        for x, y in (("a", "b"), ("b", "c"), ("a", "c")):
            assert abs(given[x] - given[y]) <= sizes[x] + sizes[y]
        await b.leave()
    await b.finish()


@pytest.mark.parametrize("seed", range(8))
async def test_no_place_is_lost_or_given_twice_whatever_happens_in_between(seed: int) -> None:
    rng = random.Random(seed)
    b = bench(rng.randint(0, 4), length=rng.choice([5, 50]))
    for _ in range(600):
        match rng.randrange(6):
            case 0 | 1:
                await b.come(rng.choice("abc"), rng.randint(1, 4), rng.randint(0, 500), rng.choice(list(Priority)))
            case 2 | 3 if b.held:
                await b.leave(seconds=rng.random())
            case 4:
                rng.choice(b.tasks).cancel() if b.tasks else None
                if rng.random() < 0.5 and b.held:
                    b.held.pop(rng.randrange(len(b.held)))[1].leave()  # in the same turn of the loop
                await settle()
            case 5:
                b.queue.resize(rng.randint(0, 4))
                await settle()
        open_tasks = sum(not task.done() for task in b.tasks)
        assert (b.queue.taken, b.queue.waiting) == (len(b.held), open_tasks)
        assert b.queue.waiting == 0 or b.queue.taken >= b.queue.capacity
    b.queue.resize(4)
    await settle()
    while b.held:
        await b.leave()
    await asyncio.gather(*b.tasks, return_exceptions=True)
    assert (b.queue.taken, b.queue.waiting) == (0, 0)
    assert not b.queue._band.lines and not b.queue._band.tokens


async def test_ten_thousand_cancellations_leave_no_trace() -> None:
    b = bench(1, length=100)
    await b.come("holder")
    for n in range(200):
        tasks = [asyncio.create_task(b.queue.enter(f"t{n}-{i % 7}", 50, NORMAL)) for i in range(50)]
        await asyncio.sleep(0)
        if n % 3 == 0:
            b.queue.resize(1 + n % 5)  # some get a place and are cancelled before they know
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        b.queue.resize(1)
    assert (b.queue.taken, b.queue.waiting) == (1, 0)
    band = b.queue._band
    assert not band.lines and band.tokens == 0 and len(band._heap) < 100
    del tasks, task
    await settle()  # asyncio itself keeps the last result until then
    gc.collect()
    assert not any(type(o).__name__ == "_Waiter" for o in gc.get_objects())
    await b.leave()
    assert b.queue.try_enter("ada", 1, NORMAL) is not None


async def test_a_cancelled_request_does_not_cost_its_tenant_a_turn() -> None:
    b = bench(1)
    await b.come("holder")
    doomed = asyncio.create_task(b.queue.enter("ada", 1_000_000, NORMAL))
    await settle()
    await b.come("ada", 3)
    await b.come("eve", 3)
    doomed.cancel()
    await settle()
    await b.leave(6)
    assert b.served[1:] in (["ada", "eve"] * 3, ["eve", "ada"] * 3)
    await b.finish()


async def test_of_one_tenants_requests_a_higher_class_goes_first_and_a_lower_one_is_not_starved() -> None:
    b = bench(1)
    await b.come("holder")
    for priority, count in ((Priority.LOW, 5), (NORMAL, 5), (Priority.HIGH, 100)):
        await b.come("ada", count, tokens=100 + priority, priority=priority)
    given = []
    for _ in range(SHARE * 4):
        await b.leave()
        given.append(b.held[0][1].tokens - 100)
    assert Counter(given) == {Priority.HIGH: SHARE * 4 - 4, Priority.LOW: 2, NORMAL: 2}
    assert given[0] == Priority.HIGH and len(Priority) == RANKS
    await b.finish()


async def test_nobody_passes_another_tenant_by_calling_its_requests_high() -> None:
    b = bench(1)
    await b.come("holder")
    await b.come("modest", 20, priority=Priority.LOW)
    await b.come("pushing", 20, priority=Priority.HIGH)
    await b.leave(20)
    assert 9 <= b.served[1:].count("pushing") <= 11
    b.clock.now += 1.0
    assert b.queue.expected_wait("modest", Priority.LOW) > b.queue.expected_wait("modest", Priority.HIGH)
    await b.finish()


async def test_a_full_queue_has_no_room_for_another_tenants_higher_class() -> None:
    b = bench(1, length=4)
    await b.come("holder")
    await b.come("modest", 2, priority=Priority.LOW)
    await b.come("pushing", 3, priority=Priority.HIGH)
    assert [tenant for tenant, _ in b.refused] == ["pushing"] and b.queue.waiting == 4
    await b.finish()
    assert b.served.count("modest") == 2


@pytest.mark.parametrize(
    ("name", "priority"), [(None, Priority.NORMAL), ("high", Priority.HIGH), (" Low ", Priority.LOW)]
)
def test_a_class_has_a_name(name: str | None, priority: Priority) -> None:
    assert Priority.named(name) is priority


def test_an_unknown_class_is_refused_by_the_names_there_are() -> None:
    with pytest.raises(BadRequest, match="no priority is called 'urgent'; there are: high, normal, low"):
        Priority.named("urgent")


# -- bounds -----------------------------------------------------------------------------------------------------------


async def test_a_wait_that_would_be_too_long_is_refused_at_once_and_says_when_to_come_again() -> None:
    b = bench(2, wait_s=30.0)
    await b.come("ada", 2)
    for _ in range(5):  # 100 tokens a second, from two places
        await b.come("ada", 2)
        await b.leave(2, seconds=1.0)
    await b.come("ada", 27)
    assert not b.refused and b.queue.waiting == 27
    await b.come("ada", 10)
    assert 3 <= len(b.refused) <= 9 and b.queue.waiting <= 34
    error = b.refused[0][1]
    assert (error.status, error.code) == (429, "deployment_overloaded")
    assert error.retry_after is not None and 30 <= error.retry_after <= 40
    # Tokens ahead of it, not tokens in all: somebody whose turn it is sooner still gets in.
    await b.come("eve")
    assert b.queue.expected_wait("eve", NORMAL) < 5 and b.refused[-1][0] == "ada"
    await b.finish()


async def test_a_deployment_with_little_to_do_is_not_taken_for_a_slow_one() -> None:
    b = bench(1, wait_s=10.0)
    for _ in range(20):  # one request of a second, every hour
        await b.come("ada")
        await b.leave(seconds=1.0)
        b.clock.now += 3600
    await b.come("ada", 8)
    assert not b.refused and b.queue.waiting == 7
    assert b.queue.expected_wait("ada", NORMAL) == pytest.approx(8.0, rel=0.1)
    await b.finish()


async def test_twice_the_places_are_expected_to_be_twice_as_fast() -> None:
    b = bench(1)
    await b.come("ada", 30)
    await b.leave(10, seconds=1.0)
    before = b.queue.expected_wait("ada", NORMAL)
    b.queue.resize(2)
    await settle()
    assert b.queue.expected_wait("ada", NORMAL) == pytest.approx(before / 2, rel=0.2)
    b.queue.resize(0)  # none is ready: that is not for the queue to judge, and its bound holds
    assert b.queue.expected_wait("ada", NORMAL) == pytest.approx(before, rel=0.2)
    b.queue.resize(1)
    await b.finish()


async def test_an_engine_that_hangs_makes_the_expected_wait_longer() -> None:
    b = bench(1, wait_s=30.0)
    await b.come("ada", 20)
    await b.leave(10, seconds=1.0)
    b.clock.now += 300.0
    await b.come("eve")
    assert [tenant for tenant, _ in b.refused] == ["eve"]
    await b.finish()


async def test_whoever_has_waited_longer_than_the_bound_is_refused_all_the_same() -> None:
    b = bench(1, wait_s=0.02)
    await b.come("ada", 2)
    await asyncio.wait_for(b.tasks[1], 5)
    ((tenant, error),) = b.refused
    assert (tenant, b.queue.waiting) == ("ada", 0) and "it has waited for" in str(error)
    assert error.retry_after is not None and 1 <= error.retry_after <= 120
    await b.finish()


async def test_no_more_wait_than_the_length_and_retry_after_is_never_above_what_sdks_take() -> None:
    b = bench(1, length=3)
    await b.come("ada", 10, tokens=10_000)
    assert (b.queue.waiting, len(b.refused)) == (3, 6)
    await b.leave(seconds=3600.0)
    await b.come("ada", 2, tokens=10_000)
    assert b.refused[-1][1].retry_after == 120 and "3 requests are waiting already" in str(b.refused[-1][1])
    await b.finish()


async def test_a_full_queue_has_room_for_a_tenant_who_has_less_waiting() -> None:
    b = bench(1, length=10)
    await b.come("many", 11)
    await b.come("few", 3)
    assert [tenant for tenant, _ in b.refused] == ["many"] * 3
    assert b.queue.waiting == 10
    await b.come("many", 1)
    assert len(b.refused) == 4 and b.queue.waiting == 10
    await b.leave(6)
    assert b.served.count("few") == 3
    await b.finish()


async def test_a_full_queue_has_room_for_a_higher_class_and_none_for_a_lower_one() -> None:
    b = bench(1, length=2)
    await b.come("ada", 3)
    await b.come("ada", priority=Priority.LOW)
    await b.come("ada", tokens=10_000, priority=Priority.HIGH)
    assert len(b.refused) == 2 and b.queue.waiting == 2
    await b.leave()
    assert b.held[0][1].tokens == 10_000
    await b.finish()


async def test_nobody_waits_where_the_length_is_nought() -> None:
    b = bench(1, length=0)
    await b.come("ada", 2)
    assert (b.queue.taken, b.queue.waiting, len(b.refused)) == (1, 0, 1)
    await b.finish()


async def test_fewer_places_take_none_away_and_more_go_to_whoever_waits() -> None:
    b = bench(3)
    await b.come("ada", 6)
    b.queue.resize(1)
    await b.leave(2)
    assert (b.queue.taken, b.queue.waiting) == (1, 3)
    b.queue.resize(3)
    await settle()
    assert (b.queue.taken, b.queue.waiting) == (3, 1)
    await b.finish()


async def test_what_runs_on_a_replica_that_takes_no_more_takes_no_place_from_the_others() -> None:
    b = bench(4)
    await b.come("ada", 8)
    for _, slot in b.held:
        slot.used_at("draining")
    b.queue.resize(2, {"sound"})
    await settle()
    assert (b.queue.taken, b.queue.waiting) == (6, 2)
    for _, slot in b.held[4:]:
        slot.used_at("sound")
    await b.leave(4)  # on the one that drains: they free no place on the other
    assert (b.queue.taken, b.queue.waiting) == (2, 2)
    b.queue.resize(2, {"sound"})
    await b.leave()
    assert (b.queue.taken, b.queue.waiting) == (2, 1)
    await b.finish()


async def test_a_request_that_moves_to_a_ready_replica_counts_there() -> None:
    b = bench(1)
    await b.come("ada", 2)
    b.held[0][1].used_at("draining")
    b.queue.resize(0, set())
    b.queue.resize(0, {"draining"})  # it is back
    assert b.queue.taken == 1 and not b.queue._outside
    b.queue.resize(0, set())
    b.held[0][1].used_at("sound")
    b.queue.resize(1, {"sound"})
    await settle()
    assert (b.queue.taken, b.queue.waiting) == (1, 1)
    await b.finish()


async def test_all_who_wait_can_be_refused_at_once() -> None:
    b = bench(0)
    tasks = [asyncio.create_task(b.queue.enter(name, 10, priority)) for name in "ab" for priority in Priority]
    await settle()
    tasks[0].cancel()
    b.queue.refuse_all(NoReplica("gone"))
    said = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(s) for s in said] == [asyncio.CancelledError] + [NoReplica] * 5
    assert (b.queue.taken, b.queue.waiting) == (0, 0) and not b.queue._band.lines


async def test_patience_with_replicas_that_do_not_come_back_ends_as_what_it_is() -> None:
    b = bench(0, wait_s=0.02)
    with pytest.raises(NoReplica, match="no replica of deployment chat is ready any more, and it has waited"):
        await asyncio.wait_for(b.queue.enter("ada", 1, NORMAL), 5)
    assert b.queue.waiting == 0
