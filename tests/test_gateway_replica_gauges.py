"""Replicas on /metrics: whether they are given requests, and what their engines say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gateway.catalog import View
from gateway.metrics import Metrics
from gateway.replica_gauges import had, wanted, watch_replicas
from gateway.replica_health import Fault, ReplicaHealth
from gateway.routing import STALE_S, Gauges, ReplicaLoad
from registry.deployments import Deployment, DeploymentState, Replica, ReplicaState


def replica(replica_id: str) -> Replica:
    none: Any = (None,) * 5
    return Replica(replica_id, "tiny", "root", ReplicaState.READY, "/runs", *none, "", None, None)


async def test_ready_replicas_are_shown_with_their_state_and_what_their_engines_said_lately() -> None:
    now = 100.0
    health = ReplicaHealth(lambda: now)
    health.failed("b", "refused", Fault.UNREACHABLE)
    loads = [
        ReplicaLoad("a", outstanding=2, gauges=Gauges(3, 1, 0.5, now)),
        ReplicaLoad("b", outstanding=0, gauges=Gauges(9, 9, 0.9, now - STALE_S - 1)),
        ReplicaLoad("gone", outstanding=4, gauges=Gauges(9, 9, 0.9, now)),
    ]
    ready = [replica("a"), replica("b"), replica("c")]
    metrics = Metrics()
    watch_replicas(metrics, lambda: ready, health, lambda: loads, lambda: now)
    page = (await metrics.page()).decode().splitlines()
    shown = [line for line in page if line.startswith(("headgate_replica", "headgate_engine"))]
    assert shown == [
        'headgate_replicas{deployment="tiny",state="healthy"} 2.0',
        'headgate_replicas{deployment="tiny",state="ejected"} 1.0',
        'headgate_replicas{deployment="tiny",state="probing"} 0.0',
        'headgate_replica_requests_outstanding{deployment="tiny",replica="a"} 2.0',
        'headgate_replica_requests_outstanding{deployment="tiny",replica="b"} 0.0',
        'headgate_engine_num_requests_running{deployment="tiny",replica="a"} 3.0',
        'headgate_engine_num_requests_waiting{deployment="tiny",replica="a"} 1.0',
        'headgate_engine_kv_cache_usage_ratio{deployment="tiny",replica="a"} 0.5',
    ]
    ready.clear()
    assert b"headgate_replica_requests_outstanding{" not in await metrics.page()


def test_a_deployment_shows_how_many_replicas_it_wants_and_how_far_those_are_that_it_has() -> None:
    chat = Deployment("chat", "ada", DeploymentState.READY, "m", 1, "/m", 2, {}, None, "", None, max_replicas=4)
    scaled = replace(chat, name="scaled", desired=3)
    drains = replace(replica("b"), state=ReplicaState.DRAINING)
    view = View(deployments={"chat": chat, "scaled": scaled}, live={"chat": [replica("a"), drains], "scaled": []})
    assert wanted(view) == {("chat",): 2.0, ("scaled",): 3.0}
    states = ("pending", "starting", "ready", "draining")
    assert [had(view)["chat", state] for state in states] == [0, 0, 1, 1]
    assert [had(view)["scaled", state] for state in states] == [0, 0, 0, 0]
