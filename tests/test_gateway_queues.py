"""What becomes of those who wait for a place when replicas and deployments go; the registry is plain data here."""

from __future__ import annotations

import asyncio

import pytest

from gateway.catalog import View
from gateway.errors import NoReplica
from gateway.fair_queue import Priority
from gateway.queues import Queues
from registry.deployments import Deployment, DeploymentState, Replica, ReplicaState
from registry.site import Gateway

AT = "2026-01-02T13:50:00.000000Z"


def replica(name: str) -> Replica:
    return Replica(name, "chat", "ada", ReplicaState.READY, "/runs/r", None, None, None, None, None, AT, None, None)


def view(state: str, *ready: str) -> View:
    chat = Deployment("chat", "ada", DeploymentState(state), "tiny", 1, "/m", 1, {}, None, AT, None)
    known = {"chat": chat}
    replicas = {"chat": [replica(name) for name in ready]} if ready else {}
    ended = chat.state.ended
    return View(deployments={} if ended else known, ended=known if ended else {}, live=replicas, replicas=replicas)


async def one_that_waits(queues: Queues) -> asyncio.Task[object]:
    queue = queues.of("chat")
    task: asyncio.Task[object] = asyncio.create_task(queue.enter("ada", 10, Priority.NORMAL))
    await asyncio.sleep(0)
    assert queue.waiting == 1
    return task


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (view("stopping"), "deployment chat is stopping"),
        (view("stopped"), "deployment chat is stopped"),
        (view("failed"), "deployment chat failed"),
        (View(), "deployment chat is gone"),
    ],
)
async def test_who_waits_for_a_deployment_that_is_no_more_is_told_so_at_once(after: View, words: str) -> None:
    queues = Queues(Gateway(max_in_flight=1), lambda: 0.0)
    queues.resize(view("ready", "r1"))
    slot = queues.of("chat").try_enter("ada", 10, Priority.NORMAL)
    assert slot is not None
    slot.used_at("r1")
    waits = await one_that_waits(queues)
    queues.resize(after)
    with pytest.raises(NoReplica, match=words):
        await waits
    slot.leave()
    queues.resize(after)
    assert not queues.taken()


async def test_who_waits_while_no_replica_is_ready_gets_the_first_place_of_the_next_one() -> None:
    queues = Queues(Gateway(max_in_flight=1), lambda: 0.0)
    queues.resize(view("ready", "r1"))
    slot = queues.of("chat").try_enter("ada", 10, Priority.NORMAL)
    assert slot is not None
    slot.used_at("r1")
    waits = await one_that_waits(queues)
    queues.resize(view("ready"))
    await asyncio.sleep(0)
    assert not waits.done()
    queues.resize(view("ready", "r2"))  # while r1 still does what it has
    await waits
    assert queues.taken() == {("chat",): 2.0}
