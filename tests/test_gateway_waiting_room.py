"""Waiting for a first ready replica: what is said, when it ends, and who is woken. The registry is plain data here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.errors import NoReplica, QueueFull
from gateway.waiting_room import START_S, UNKNOWN_S, Standing, WaitingRoom, comment, refusal, retry_after, waits_for
from registry import clock
from registry.deployments import Deployment, DeploymentState, Replica, ReplicaState

NOW = datetime(2026, 1, 2, 13, 50, tzinfo=UTC)
CHAT = Deployment("chat", "ada", DeploymentState.STARTING, "tiny", 1, "/m", 1, {}, None, clock.text(NOW), None)


def replica(state: str, number: int = 0, *, starts_in_s: float | None = None, **facts: Any) -> Replica:
    facts = {"job_id": "123", **facts}
    if starts_in_s is not None:
        facts["expected_start_at"] = clock.text(NOW + timedelta(seconds=starts_in_s))
    made = ReplicaState(state)
    return Replica(
        f"r{number}", "chat", "ada", made, "/runs/r", None, None, None, None, None, CHAT.created_at, None, None, **facts
    )


def standing(*replicas: Replica, state: str = "starting", cause: str | None = None) -> Standing:
    return Standing(replace(CHAT, state=DeploymentState(state), cause=cause), replicas)


# -- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "words", "seconds"),
    [
        ([], "a replica is about to be submitted", START_S),
        ([replica("draining")], "a replica is about to be submitted", START_S),
        ([replica("pending", job_id=None)], "its job is pending", UNKNOWN_S),
        ([replica("pending", waiting_reason="Priority")], "job 123 is pending (Priority)", UNKNOWN_S),
        (
            [replica("pending", waiting_reason="Resources", starts_in_s=900)],
            "job 123 is pending (Resources), estimated start 14:05 UTC",
            120,
        ),
        (
            [replica("pending", starts_in_s=86_400)],
            "job 123 is pending, estimated start 2026-01-03 13:50 UTC",
            120,
        ),
        ([replica("pending", starts_in_s=30)], "job 123 is pending, estimated start 13:50 UTC", 30 + START_S),
        ([replica("pending", starts_in_s=-60)], "job 123 is pending, estimated start 13:49 UTC", START_S),
        ([replica("starting")], "job 123 runs and its engine is starting", START_S),
        # Its job runs, and nothing in it has said so yet.
        ([replica("pending", ends_at=clock.text(NOW))], "job 123 runs and its engine is starting", START_S),
        ([replica("ready")], "a replica is ready", 1),
        # The one that will be ready first counts.
        ([replica("pending"), replica("starting", job_id="9")], "job 9 runs and its engine is starting", START_S),
        (
            [replica("pending"), replica("pending", job_id="8", starts_in_s=30)],
            "job 8 is pending, estimated start 13:50 UTC",
            30 + START_S,
        ),
        ([replica("pending", waiting_reason="a\n\ndata: x\r")], "job 123 is pending (a  data: x )", UNKNOWN_S),
    ],
)
def test_what_is_waited_for_and_when_to_come_again(replicas: list[Replica], words: str, seconds: int) -> None:
    assert waits_for(standing(*replicas), NOW) == words
    assert comment("chat", standing(*replicas), NOW) == f": waiting for deployment chat: {words}\n\n".encode()
    assert retry_after(standing(*replicas), NOW) == seconds


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (Standing(None, ()), "deployment chat is gone"),
        (standing(state="stopping"), "deployment chat is stopping"),
        (standing(state="stopped"), "deployment chat is stopped"),
        (standing(state="failed", cause="no kernel image"), "deployment chat failed: no kernel image"),
        (standing(state="failed"), "deployment chat failed: no cause was given"),
    ],
)
def test_waiting_in_vain_is_refused_with_its_cause(told: Standing, words: str) -> None:
    refused = refusal("chat", told)
    assert refused is not None and str(refused) == words
    assert (refused.status, refused.retry_after, refused.should_retry) == (503, None, False)


@pytest.mark.parametrize("state", ["starting", "ready", "asleep"])
def test_a_deployment_that_may_come_up_is_not_refused(state: str) -> None:
    assert refusal("chat", standing(state=state)) is None


# -- waiting ----------------------------------------------------------------------------------------------------------


@dataclass
class House:
    """A room, and the registry it looks at."""

    standings: dict[str, Standing] = field(default_factory=lambda: {"chat": standing(replica("pending"))})
    length: int = 1000
    heartbeat_s: float = 3600.0
    looks: int = 0
    asked: list[str] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)
    room: WaitingRoom = field(init=False)

    def __post_init__(self) -> None:
        self.room = WaitingRoom(
            self.look, heartbeat_s=self.heartbeat_s, length=self.length, asked=self.asked.append, now=lambda: NOW
        )

    def look(self, name: str) -> Standing:
        self.looks += 1
        return self.standings.get(name, Standing(None, ()))

    def ready(self, *but: str, name: str = "chat") -> Sequence[Replica]:
        return [r for r in self.standings[name].replicas if r.state is ReplicaState.READY and r.id not in but]

    def becomes(self, told: Standing, name: str = "chat") -> None:
        self.standings[name] = told
        self.room.changed()

    def enter(self, *but: str, bound_s: float | None = None, stream: bool = False) -> asyncio.Task[Sequence[Replica]]:
        heartbeat = self.heard.append if stream else None
        return asyncio.create_task(
            self.room.until_ready("chat", lambda: self.ready(*but), heartbeat=heartbeat, bound_s=bound_s)
        )


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def until_heard(house: House, last: bytes) -> None:
    async with asyncio.timeout(10):
        while house.heard[-1:] != [last]:
            await asyncio.sleep(0.005)


async def test_whoever_finds_a_ready_replica_does_not_wait() -> None:
    house = House({"chat": standing(replica("ready"))})
    assert [r.id for r in await house.enter(bound_s=0.0)] == ["r0"]
    assert house.looks == 0 and not house.asked


async def test_a_stream_hears_at_once_and_again_what_it_waits_for_and_is_woken_by_the_change() -> None:
    house = House(heartbeat_s=0.02)
    waits = house.enter(stream=True)
    await settle()
    assert set(house.heard) == {b": waiting for deployment chat: job 123 is pending\n\n"}
    house.becomes(standing(replica("pending", waiting_reason="Resources", starts_in_s=900)))
    new = b": waiting for deployment chat: job 123 is pending (Resources), estimated start 14:05 UTC\n\n"
    await until_heard(house, new)
    assert len(set(house.heard)) == 2
    house.becomes(standing(replica("ready")))
    await settle()
    assert waits.done() and [r.id for r in waits.result()] == ["r0"]
    assert house.room.waiting() == {}


async def test_a_stream_that_is_left_out_of_what_became_ready_waits_on() -> None:
    house = House()
    waits, other = house.enter("r0"), house.enter()
    await settle()
    house.becomes(standing(replica("ready")))
    await settle()
    assert other.done() and not waits.done()
    house.becomes(standing(replica("ready"), replica("ready", 1)))
    assert [r.id for r in await waits] == ["r1"]


async def test_whatever_waits_without_a_stream_is_refused_after_its_bound() -> None:
    house = House({"chat": standing(replica("pending", waiting_reason="Resources", starts_in_s=60))})
    with pytest.raises(NoReplica) as refused:
        await house.enter(bound_s=0.03)
    assert str(refused.value).startswith("no replica of deployment chat is ready: job 123 is pending (Resources), esti")
    assert (refused.value.status, refused.value.retry_after) == (503, 60 + START_S)
    assert house.room.waiting() == {}


async def test_so_many_wait_and_no_more() -> None:
    house = House({"chat": standing(replica("pending", starts_in_s=30))}, length=3)
    waits = [house.enter(stream=True) for _ in range(3)]
    await settle()
    heard = len(house.heard)
    with pytest.raises(QueueFull, match="3 requests wait for a first replica of deployment chat already") as refused:
        await house.enter(stream=True)
    assert (refused.value.status, refused.value.retry_after) == (429, 30 + START_S)
    assert house.room.waiting() == {"chat": 3} and len(house.heard) == heard
    waits[0].cancel()
    await settle()
    waits.append(house.enter())
    house.becomes(standing(replica("ready")))
    await asyncio.gather(*waits[1:])


@pytest.mark.parametrize("told", [standing(state="failed", cause="no kernel image"), standing(state="stopping")])
async def test_waiting_ends_when_it_becomes_vain(told: Standing) -> None:
    house = House()
    waits = house.enter(stream=True)
    await settle()
    house.becomes(told)
    with pytest.raises(NoReplica, match=r"chat (failed: no kernel image|is stopping)"):
        await asyncio.wait_for(waits, 5)
    with pytest.raises(NoReplica):
        await house.enter()
    assert len(house.heard) == 1 and house.room.waiting() == {}


async def test_a_change_that_matters_to_nobody_who_waits_wakes_nobody_and_costs_one_look() -> None:
    house = House()
    waits = [house.enter() for _ in range(100)]
    await settle()
    assert house.room.waiting() == {"chat": 100} and house.asked == ["chat"]
    looks = house.looks
    for n in range(10):
        house.becomes(standing(replica("pending", job_id=str(n))))
        await settle()
    assert house.looks == looks + 10
    house.becomes(standing(replica("ready")))
    assert len(await asyncio.gather(*waits)) == 100
    assert house.looks == looks + 11


async def test_a_deployment_is_asked_for_again_when_somebody_waits_again() -> None:
    house = House()
    for _ in range(2):
        waits = house.enter()
        await settle()
        waits.cancel()
        await settle()
    assert house.asked == ["chat", "chat"] and house.room.waiting() == {}


async def test_something_else_than_the_registry_may_wake_them() -> None:
    house = House({"chat": standing(replica("ready"))})
    shunned = {"r0"}
    waits = asyncio.create_task(house.room.until_ready("chat", lambda: house.ready(*shunned)))
    await settle()
    assert not waits.done()
    shunned.clear()
    house.room.wake("chat")
    house.room.wake("nobody's")
    assert [r.id for r in await asyncio.wait_for(waits, 5)] == ["r0"]


async def test_a_client_that_is_gone_ends_its_wait() -> None:
    house = House()

    def gone(_: bytes) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await house.room.until_ready("chat", house.ready, heartbeat=gone)
    assert house.room.waiting() == {}
