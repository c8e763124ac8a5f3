"""What Slurm, and the world, do to a deployment: it has again what it wants, and those who call it see nothing of it.

Real vLLM on a real Slurm, gateway and controller as processes. The tests are one story of one deployment of two
replicas, so that few engines have to be started; each of them can be told alone.
"""

from __future__ import annotations

import json
import math
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from certificates import minted, serving
from conftest import PrivateCluster, private_cluster
from platform_fixtures import ROOT, Platform, platform
from slurm_daemons import Daemon
from streaming_client import TOKENS, Client, digits_alone, streaming
from vllm_fixtures import START_S, make_llamas
from waiting import wait_for

from launchers.run_folder import RunFolder

pytestmark = [pytest.mark.chain, pytest.mark.slurm, pytest.mark.timeout(1800)]

WANTED = 2
BOUND_S = START_S  # until there are as many replicas as are wanted: a start of vLLM, which a busy machine draws out
NAME = "chat"
LIVE = ("pending", "starting", "ready", "draining")


@dataclass
class Story:
    """The deployment, whoever calls it, and what is done to both."""

    site: Platform
    cluster: PrivateCluster
    client: Client
    told: int = 0  # answers that a former fault accounts for
    began: float = field(default_factory=time.monotonic)

    def replicas(self, *states: str) -> list[dict[str, Any]]:
        (described,) = [d for d in self.site.json("status")["deployments"] if d["deployment"]["name"] == NAME]
        return [r["replica"] for r in described["replicas"] if r["replica"]["state"] in (states or LIVE)]

    def folder(self, replica: str) -> RunFolder:
        return RunFolder(self.site.root / "shared" / "runs" / replica)

    def folders(self) -> set[str]:
        return {path.name for path in (self.site.root / "shared" / "runs").glob(f"{NAME}-*")}

    def said(self, replica: str, kind: str) -> list[dict[str, Any]]:
        found = sorted(self.folder(replica).announcements.glob(f"*-{kind}.json"))
        return [json.loads(path.read_text()) for path in found]

    def kill(self, service: str) -> None:
        """kill -9, and no goodbye."""
        process = self.site.service(service)
        process.kill()
        wait_for(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)

    def jobs(self) -> set[str]:
        return set(self.cluster.run("squeue", "-h", "-p", "gpu", "-o", "%i").split())

    def gpus(self) -> int:
        """That Slurm has given away."""
        said = self.cluster.run("sinfo", "-h", "-N", "-p", "gpu", "-O", "GresUsed:60")
        return sum(int(n) for n in re.findall(r"gpu:\w+:(\d+)", said))

    def answered(self, more: int = 3) -> None:
        """So many more streams came to an end, whatever it was."""
        least = len(self.client.answers) + more
        wait_for(lambda: len(self.client.answers) >= least, timeout=180)

    def whole(self) -> bool:
        live = self.replicas()
        return [r["state"] for r in live] == ["ready"] * WANTED and {r["job_id"] for r in live} == self.jobs()

    def mended(self, gone: int) -> None:
        """As many replicas as are wanted, no other job, no other GPU taken, and books that add up.

        `gone`: the streams, at most, that may have broken off after their first byte.
        """
        wait_for(self.whole, timeout=BOUND_S, every=1)
        took = time.monotonic() - self.began
        wait_for(lambda: self.gpus() == WANTED)
        self.answered()
        answers, self.told = self.client.answers[self.told :], len(self.client.answers)
        fates = Counter(a.fate for a in answers)
        retried, slowest = sum(a.retried for a in answers), max(a.ended - a.began for a in answers)
        sys.stdout.write(
            f"{WANTED} of {WANTED} replicas after {took:.0f} s (bound: {BOUND_S:.0f} s); streams: {dict(fates)}; "
            f"continued by another replica: {sum(a.continued for a in answers)}; "
            f"connections tried again: {retried}; the longest stream took {slowest:.1f} s\n"
        )
        errors = [a.error for a in answers if a.error]
        assert fates["failed"] == fates["truncated"] == 0, errors
        assert fates["broken"] <= gone, errors
        assert len({a.text for a in answers if a.fate == "whole"}) == 1  # greedy: nothing was left out, or said twice
        self.site.ok("ledger", "verify")
        assert all(check["holds"] for check in self.site.report("gpu")["checks"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateCluster]:
    with private_cluster() as made:
        yield made


@pytest.fixture(scope="module")
def deployed(
    cluster: PrivateCluster, training_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    if not (ROOT / ".venvs" / "engine" / "bin" / "python").exists():
        pytest.skip("no engine environment (make environments)")
    model = make_llamas(training_python, tmp_path_factory.mktemp("models")) / "plain"
    settings = (
        f"scheduler.slurm_conf={cluster.root}/etc/slurm.conf", "gateway.continue_streams=true",
        "gateway.show_route=true",
        "replicas.drain_timeout=20s", "replicas.shutdown_timeout=10s",
    )  # fmt: skip
    with platform("private-cluster.toml", *settings, env=cluster.env) as site:
        site.ok("up")
        site.ok("tenant", "create", "callers")
        key = site.ok("key", "create", "callers").strip()
        site.ok(
            "serve", str(model), "--name", NAME, "--replicas", str(WANTED), "--qos", "preemptible", timeout=2 * START_S
        )
        with streaming(site.url, key, NAME, digits_alone(model)) as client:
            yield Story(site, cluster, client)


@pytest.fixture
def story(deployed: Story) -> Story:
    """Before the next fault."""
    deployed.site.ok("up")
    wait_for(deployed.whole, timeout=2 * BOUND_S, every=1)
    deployed.answered()
    deployed.told = len(deployed.client.answers)
    deployed.began = time.monotonic()
    return deployed


def test_a_replica_at_its_time_limit_is_succeeded_however_often_the_controller_is_killed_meanwhile(
    story: Story,
) -> None:
    old, _ = story.replicas()
    before = story.folders()
    (began,), (ready,) = story.said(old["id"], "attempt-started"), story.said(old["id"], "replica-ready")
    # Its successor is due in moments: it has as long as this one had to start, and then there are a drain and a margin.
    left_s = ready["at"] - began["at"] + 90
    minutes = math.ceil((time.time() - began["at"] + left_s) / 60)
    limit = ("scontrol", "update", f"jobid={old['job_id']}", f"TimeLimit={minutes}")

    def dies_when(happened: Callable[[], object]) -> None:
        wait_for(happened, timeout=BOUND_S, every=0.02)
        story.kill("controller")
        story.answered(1)
        story.site.ok("up")

    def successors() -> set[str]:
        return story.folders() - before

    def submitted() -> bool:
        return bool(successors() & set(story.cluster.run("squeue", "-h", "-p", "gpu", "-o", "%j").split()))

    story.cluster.run(*limit)
    dies_when(submitted)
    dies_when(lambda: any(story.said(r, "attempt-started") for r in successors()))
    dies_when(lambda: any(story.said(r, "replica-ready") for r in successors()))
    dies_when(lambda: any(r["id"] == old["id"] for r in story.replicas("draining", "stopped")))
    wait_for(lambda: old["id"] not in [r["id"] for r in story.replicas()], timeout=120)
    story.mended(gone=0)
    assert len([r for r in successors() if story.said(r, "attempt-started")]) == 1
    (ended,) = [r for r in story.replicas("stopped", "failed", "lost") if r["id"] == old["id"]]
    assert ended["state"] == "stopped", ended


def test_a_replica_that_is_cancelled_by_hand_is_replaced_although_the_gateway_is_killed_too(story: Story) -> None:
    old, _ = story.replicas()
    story.cluster.run("scancel", old["job_id"])
    wait_for(lambda: old["id"] not in [r["id"] for r in story.replicas("ready")], timeout=60)
    story.kill("gateway")
    story.site.ok("up")
    story.mended(gone=1)  # the one that the gateway had


def speaks(story: Story, replica: str) -> bool:
    """Whether it is in the first fifth of an answer."""
    answer = story.client.latest
    return answer.replica == replica and 0 < len(answer.text) < TOKENS / 5


class Stranger:
    """Somebody who listens, with TLS and a certificate of its own, where an engine did."""

    def __init__(self, port: int) -> None:
        self.heard: list[bytes] = []
        self.called = 0
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wait_for(lambda: self._bound(port), timeout=5, every=0.01)
        self._socket.listen()
        self._context = serving(minted())
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _bound(self, port: int) -> bool:
        try:
            self._socket.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.called += 1
            connection.settimeout(5)
            try:
                with self._context.wrap_socket(connection, server_side=True) as secured:
                    if words := secured.recv(1000):
                        self.heard.append(words)
            except (OSError, ssl.SSLError):
                connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@contextmanager
def taken(port: int) -> Iterator[Stranger]:
    stranger = Stranger(port)
    try:
        yield stranger
    finally:
        stranger.close()


def test_a_stranger_on_the_port_of_an_engine_that_was_killed_hears_nothing(story: Story) -> None:
    victim, _ = story.replicas()
    (started,) = story.said(victim["id"], "attempt-started")
    (engine,) = psutil.Process(started["pid"]).children()
    ready, told = len(story.said(victim["id"], "replica-ready")), story.told
    family = [engine, *engine.children(recursive=True)]
    wait_for(lambda: speaks(story, victim["id"]), timeout=60, every=0.005)
    for process in family:
        process.kill()
    with taken(victim["port"]) as stranger:
        wait_for(lambda: len(story.said(victim["id"], "replica-ready")) > ready, timeout=2 * BOUND_S)
        story.mended(gone=0)
    assert any(answer.continued for answer in story.client.answers[told:])
    assert stranger.called > 0 and stranger.heard == []
    again = story.said(victim["id"], "replica-ready")[-1]
    assert again["port"] != victim["port"]
    assert victim["id"] in [r["id"] for r in story.replicas("ready")]


def test_replicas_that_are_preempted_come_back(story: Story) -> None:
    victim, _ = story.replicas()
    node = victim["nodes"]
    there = len([r for r in story.replicas() if r["nodes"] == node])
    job = story.cluster.run(
        *("sbatch", "--parsable", "--qos=high", "--partition=gpu", "-w", node, f"--gres=gpu:h100:{9 - there}"),
        *("--mem=100M", "--time=1", "--output=/dev/null", "--wrap=sleep 1"),
    ).strip()
    wait_for(lambda: job not in story.jobs(), timeout=120)
    story.mended(gone=0)


def test_a_node_whose_slurmd_was_killed_is_left_and_both_services_may_be_killed_meanwhile(story: Story) -> None:
    victim, _ = story.replicas()
    slurmd = Daemon(story.cluster, "slurmd", "-N", victim["nodes"])
    slurmd.stop(signal.SIGKILL)
    try:
        wait_for(lambda: victim["id"] not in [r["id"] for r in story.replicas("ready")], timeout=120)
        story.kill("controller")
        story.kill("gateway")
        story.site.ok("up")
        story.answered(1)
    finally:
        slurmd.start()
    story.mended(gone=1)


def test_a_node_that_is_drained_is_left_without_a_gap(story: Story) -> None:
    node = story.replicas()[0]["nodes"]
    there = {r["id"] for r in story.replicas() if r["nodes"] == node}
    story.cluster.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=fan")
    try:
        wait_for(lambda: not there & {r["id"] for r in story.replicas()}, timeout=2 * BOUND_S)
        story.mended(gone=0)
        assert node not in {r["nodes"] for r in story.replicas()}
    finally:
        subprocess.run(("scontrol", "update", f"nodename={node}", "state=resume"), env=story.cluster.env, check=True)


def test_a_slurmctld_that_is_down_changes_nothing(story: Story) -> None:
    there = {r["id"] for r in story.replicas()}
    slurmctld = Daemon(story.cluster, "slurmctld")
    with slurmctld.down():
        wait_for(lambda: "not" in story.site.ok("explain", NAME), timeout=120)
        story.answered(20)
        assert {r["id"] for r in story.replicas("ready")} == there
    wait_for(
        lambda: subprocess.run(("sinfo", "-h"), env=story.cluster.env, capture_output=True, check=False).returncode == 0
    )
    story.mended(gone=0)
    assert {r["id"] for r in story.replicas()} == there
