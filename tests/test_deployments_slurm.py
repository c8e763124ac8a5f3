"""Deployments as a whole on a private Slurm cluster, and what Slurm and its administrators do to them.

Controller, gateway, command line, jobs and supervisors are real; only the engine is scripted. Clients stream all the
time, some for longer than a drain, and each answer is checked token by token.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import PrivateCluster
from platform_fixtures import platform
from scripted_deployments import Deployments, bad, engine_settings, model, streaming
from slurm_daemons import Daemon
from waiting import wait_for

from registry import notices
from registry.db import open_reader, rows

DRAIN_S, SHUTDOWN_S = 10, 3
SETTINGS = (
    *engine_settings(),
    "gateway.continue_streams=true",
    f"replicas.drain_timeout={DRAIN_S}s",
    f"replicas.shutdown_timeout={SHUTDOWN_S}s",
    "deployments.margin=5s",
    "deployments.scale_up_every=2s",
    "deployments.scale_down_after=3s",
    "defaults.serve.mem_gb=0.5",
)

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def site(slurm_cluster: PrivateCluster) -> Iterator[Deployments]:
    conf = f"scheduler.slurm_conf={slurm_cluster.root}/etc/slurm.conf"
    with platform("private-cluster.toml", conf, *SETTINGS, env=slurm_cluster.env) as on:
        model(on.root / "model")
        on.ok("up")
        on.ok("tenant", "create", "acme")
        yield Deployments(on, on.ok("key", "create", "acme").strip())


@pytest.fixture(autouse=True)
def nothing_left(site: Deployments) -> Iterator[None]:
    """By a test that failed: the next one needs the nodes."""
    yield
    for described in site.on.json("status")["deployments"]:
        if site.live(name := described["deployment"]["name"]):
            site.delete(name)


def serve(site: Deployments, name: str, *options: str) -> None:
    site.on.ok("serve", str(site.on.root / "model"), "--name", name, "--no-wait", *options)


def free(site: Deployments, cluster: PrivateCluster) -> bool:
    """Whether no job is left in the queue, and Slurm counts no GPU as taken."""
    nodes = cluster.run("scontrol", "-o", "show", "nodes")
    return not cluster.run("squeue", "-h", "-o", "%A") and "AllocTRES=cpu" not in nodes


def add_up(site: Deployments, cluster: PrivateCluster) -> None:
    wait_for(lambda: free(site, cluster), 60)
    site.on.ok("ledger", "verify")
    site.on.ok("report", "gpu")  # which fails when its parts are not Slurm's total


def limit_s(cluster: PrivateCluster, job: str) -> int:
    """The time limit of a job."""
    said = cluster.run("scontrol", "-o", "show", "job", job)
    hours, minutes, seconds = next(w for w in said.split() if w.startswith("TimeLimit=")).split("=")[1].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds)


def test_a_job_that_ends_at_its_time_limit_is_succeeded_and_no_stream_fails(
    site: Deployments, slurm_cluster: PrivateCluster
) -> None:
    serve(site, "roll", "--replicas", "1", "-t", "1")
    (old,) = site.has("roll", 1)
    with streaming(site, ["roll"], long_s=DRAIN_S + SHUTDOWN_S + 10, long_every=3) as seen:
        wait_for(lambda: old.id not in {r.id for r in site.live("roll")}, 120)
        successor = next(r for r in site.replicas("roll") if r.replaces == old.id)
        assert successor in site.live("roll")
    assert not bad(seen), bad(seen)
    assert any(one.continued for one in seen)  # those that no drain waits for
    (ended,) = [r for r in site.replicas("roll") if r.id == old.id]
    assert ended.state == "stopped", ended
    site.delete("roll")
    add_up(site, slurm_cluster)


def test_jobs_get_shorter_before_maintenance_those_that_wait_too_and_callers_are_warned_once(
    site: Deployments, slurm_cluster: PrivateCluster
) -> None:
    run = slurm_cluster.run
    serve(site, "early", "--replicas", "1")
    (early,) = site.has("early", 1)
    with streaming(site, ["early"], streams=1) as seen:
        wait_for(lambda: callers(site, "early") == ["acme"])
    blockers = []
    for node in ("g1", "g2"):
        take = ("-p", "gpu", "-w", node, f"--gres=gpu:{7 if node == early.nodes else 8}", "-t", "5", "-o", "/dev/null")
        blockers.append(run("sbatch", "--parsable", *take, "--wrap", "sleep 300").strip())
    serve(site, "waits", "--replicas", "1")
    job = wait_for(lambda: next((r.job_id for r in site.live("waits") if r.job_id), None))
    assert limit_s(slurm_cluster, job) == 3600
    what = ("reservationname=pipes", "starttime=now+30minutes", "duration=10", "nodes=g1,g2", "user=root")
    run("scontrol", "create", "reservation", *what, "flags=maint,ignore_jobs")
    try:
        assert 600 <= wait_for(lambda: (s := limit_s(slurm_cluster, job)) < 3600 and s, 60) <= 1800
        run("scancel", *blockers)
        site.has("waits", 1)
        serve(site, "new", "--replicas", "1")
        (new,) = site.has("new", 1)
        assert new.job_id is not None and 600 <= limit_s(slurm_cluster, new.job_id) <= 1800
        assert "maintenance pipes begins" in site.on.ok("explain", "new")
        warned = warnings(site)
        assert {(w["name"], *w["tenants"]) for w in warned} == {("early", "acme"), ("waits",), ("new",)}, warned
        assert len(warned) == 3 and all("maintenance pipes" in w["message"] for w in warned), warned
    finally:
        run("scontrol", "delete", "reservationname=pipes")
        subprocess.run(("scancel", *blockers), env=slurm_cluster.env, check=False)
    assert not bad(seen)
    for name in ("early", "waits", "new"):
        site.delete(name)
    add_up(site, slurm_cluster)


def warnings(site: Deployments) -> list[dict[str, Any]]:
    db = open_reader(site.on.root / "state" / "registry.db")
    try:
        told = [json.loads(r["document"]) for r in rows(db, "SELECT document FROM alerts ORDER BY id")]
    finally:
        db.close()
    return [one for one in told if one["kind"] == "notice"]


def callers(site: Deployments, name: str) -> list[str]:
    db = open_reader(site.on.root / "state" / "registry.db")
    try:
        return notices.tenants_of(db, site.on.root / "state" / "ledger.db", name)
    finally:
        db.close()


def test_a_node_that_is_drained_is_left_once_a_successor_serves_elsewhere(
    site: Deployments, slurm_cluster: PrivateCluster
) -> None:
    serve(site, "moves", "--replicas", "1")
    (old,) = site.has("moves", 1)
    with streaming(site, ["moves"]) as seen:
        slurm_cluster.run("scontrol", "update", f"nodename={old.nodes}", "state=drain", "reason=fan")
        try:
            wait_for(lambda: old.id not in {r.id for r in site.live("moves")}, 90)
            (new,) = site.has("moves", 1)
        finally:
            slurm_cluster.run("scontrol", "update", f"nodename={old.nodes}", "state=resume")
    assert new.nodes != old.nodes and new.replaces == old.id
    assert not bad(seen), bad(seen)
    site.delete("moves")
    add_up(site, slurm_cluster)


def test_a_preemptible_replica_of_the_overflow_is_preempted_and_replaced_and_no_stream_fails(
    site: Deployments, slurm_cluster: PrivateCluster
) -> None:
    how = ("--target-tokens", "200", "--overflow-qos", "preemptible", "--gpus-per-node=5")
    serve(site, "flood", "--min", "1", "--max", "2", *how)
    site.has("flood", 1)
    with streaming(site, ["flood"], streams=8) as seen:
        kept, extra = site.has("flood", 2)
        assert (kept.overflow, extra.overflow) == (False, True)
        take = ("-p", "gpu", "-w", extra.nodes, "--gres=gpu:5", "--qos=high", "-t", "1", "-o", "/dev/null")
        slurm_cluster.run("sbatch", *take, "-J", "outranks", "--wrap", "sleep 1")
        wait_for(lambda: extra.id not in {r.id for r in site.ready("flood")}, 60)
        still, another = site.has("flood", 2, 120)
    assert still.id == kept.id and another.overflow
    assert not bad(seen), bad(seen)
    site.delete("flood")
    add_up(site, slurm_cluster)


def test_while_slurmctld_is_down_everything_stays_as_it_is_and_then_goes_on(
    site: Deployments, slurm_cluster: PrivateCluster
) -> None:
    serve(site, "quiet", "--replicas", "1")
    (replica,) = site.has("quiet", 1)
    with streaming(site, ["quiet"]) as seen:
        with Daemon(slurm_cluster, "slurmctld").down():
            wait_for(lambda: "does not answer" in site.on.ok("explain", "quiet"), 60, every=1)
            before = len(seen)
            wait_for(lambda: len(seen) >= before + 4, 60)
            assert [r.id for r in site.has("quiet", 1)] == [replica.id]
        site.on.ok("scale", "quiet", "2")
        after = site.has("quiet", 2, 120)
    assert after[0].id == replica.id
    assert not bad(seen), bad(seen)
    site.delete("quiet")
    add_up(site, slurm_cluster)


def test_two_replicas_of_a_pack_share_a_job_and_one_that_loses_its_engine_is_ready_again_in_it(
    site: Deployments, slurm_cluster: PrivateCluster
) -> None:
    serve(site, "pair", "--replicas", "2", "--pack", "2", "--gpus-per-node=2")
    first, second = site.has("pair", 2)
    assert first.job_id == second.job_id is not None
    with streaming(site, ["pair"]) as seen:
        site.kill_part(second, "engine")
        wait_for(lambda: [r.restarts for r in site.live("pair")] == [0, 1])
        assert [r.id for r in site.has("pair", 2)] == [first.id, second.id]
    assert not bad(seen), bad(seen)
    site.delete("pair")
    add_up(site, slurm_cluster)
