"""`headgate doctor` as a person runs it: on a real Slurm, on a laptop, and where something is broken."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import PrivateCluster
from platform_fixtures import ROOT, Platform, platform

from cli.doctor import as_document, page
from cli.main import main
from launchers.doctor import examine, storage
from launchers.doctor.examine import Section
from slurm.findings import Finding, ok, problem, warning

LIGHT = ("environments.engine.python=/bin/sh", "environments.training.python=/bin/sh")  # quick, and no Python at all
LEVELS = {"ok": 0, "warning": 1, "problem": 2}


@pytest.fixture(scope="module")
def laptop() -> Iterator[Platform]:
    with platform("laptop.toml", *LIGHT) as made:
        yield made


@pytest.fixture(scope="module")
def on_slurm(slurm_cluster: PrivateCluster) -> Iterator[Platform]:
    conf = f"scheduler.slurm_conf={slurm_cluster.root}/etc/slurm.conf"
    with platform("private-cluster.toml", conf, *LIGHT, env=slurm_cluster.env) as made:
        yield made


def document(made: Platform, *flags: str) -> dict[str, Any]:
    """What `doctor --json` printed. Its exit status must be its worst line's."""
    done = made.run(*flags, "doctor", "--json", timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == max(LEVELS[f["level"]] for f in said["findings"]) == LEVELS[said["worst"]]
    return said


def section(said: dict[str, Any], title: str) -> dict[str, dict[str, Any]]:
    return {f["subject"]: f for f in said["findings"] if f["section"] == title}


def not_ok(findings: dict[str, dict[str, Any]]) -> list[str]:
    return [subject for subject, f in findings.items() if f["level"] != "ok"]


# -- the page -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("findings", "status", "verdict"),
    [
        ([ok("a", "x")], 0, "all is well"),
        ([ok("a", "x"), warning("b", "x", "y"), warning("c", "x", "y")], 1, "2 warnings"),
        ([warning("b", "x", "y"), problem("c", "x", "y"), ok("a", "x")], 2, "1 problem, 1 warning"),
    ],
)
def test_the_exit_status_is_the_worst_lines(
    monkeypatch: pytest.MonkeyPatch, findings: list[Finding], status: int, verdict: str
) -> None:
    monkeypatch.setattr(examine, "examine", lambda *_: [Section("Some", tuple(findings))])
    done = CliRunner().invoke(main, [*(w for s in LIGHT for w in ("--set", s)), "doctor"])
    assert done.exit_code == status
    assert done.output.splitlines()[-1] == verdict


def test_help_says_what_the_exit_status_means(laptop: Platform) -> None:
    assert "0 ok, 1 warning, 2 problem" in laptop.ok("doctor", "--help")


def test_a_page_is_aligned_wrapped_and_has_the_remedy_below() -> None:
    sections = [
        Section("First", (ok("short", "fine"),)),
        Section("Second", (problem("longer", "a b " * 30 + "end", "AccountingStorageEnforce=limits"),)),
    ]
    assert click.unstyle(page("here", sections, 80)).splitlines() == [
        "site here",
        "",
        "First",
        "  ok       short   fine",
        "",
        "Second",
        "  problem  longer  " + "a b " * 15 + "a",
        "                   " + "b a " * 14 + "b end",
        "                   -> AccountingStorageEnforce=limits",
        "",
        "1 problem",
    ]
    assert json.loads(as_document("here", sections))["findings"][0] == {
        "section": "First",
        "subject": "short",
        "level": "ok",
        "says": "fine",
        "remedy": None,
    }


# -- a site that works ----------------------------------------------------------------------------------------------


def test_a_real_cluster_is_judged_without_a_controller(on_slurm: Platform) -> None:
    said = document(on_slurm)
    slurm = section(said, "Slurm")
    assert not_ok(slurm) == []
    assert set(slurm) >= {
        *("commands", "back end", "munge", "release", "clock", "JobRequeue", "preemption", "KillWait", "MinJobAge"),
        *("MaxArraySize", "MaxTime", "PrivateData"),
    }
    assert re.match(r"\d\d\.\d\d\.\d+, cluster headgate-test", slurm["release"]["says"])
    assert "QOS preemptible get the signal they asked for 15 s before" in slurm["preemption"]["says"]
    assert "run/munge.sock" in slurm["munge"]["says"]
    accounting = section(said, "Accounting")
    assert not_ok(accounting) == []
    assert "associations, limits, qos, safe" in accounting["enforcement"]["says"]
    assert "h100" in accounting["AccountingStorageTRES"]["says"]
    asks = section(said, "What jobs ask for")
    assert {"defaults.train", "defaults.serve", "defaults.convert"} <= set(asks)
    assert not_ok(asks) == []
    assert not (on_slurm.root / "shared").exists()  # it looks, and makes nothing


def test_defaults_that_the_cluster_cannot_give_are_problems(on_slurm: Platform) -> None:
    flags = ("defaults.train.partition=gpus", "defaults.serve.gpus_per_node=9", "defaults.convert.account=teachin")
    asks = section(document(on_slurm, *(word for flag in flags for word in ("--set", flag))), "What jobs ask for")
    assert "did you mean 'gpu'" in asks["defaults.train"]["says"]
    assert "no node of gpu has 9 GPUs (at most 8)" in asks["defaults.serve"]["says"]
    assert "no account teachin" in asks["defaults.convert"]["says"]
    assert {asks[f"defaults.{use}"]["level"] for use in ("train", "serve", "convert")} == {"problem"}


def test_a_laptop_says_in_one_line_that_there_is_no_slurm(laptop: Platform) -> None:
    said = document(laptop)
    assert list(section(said, "Slurm")) == ["scheduler"]
    assert "scheduler.kind is local" in section(said, "Slurm")["scheduler"]["says"]
    assert {f["section"] for f in said["findings"]} == {"Slurm", "This host", "Environments"}


def test_services_that_run_are_recognised_as_ones_own(laptop: Platform) -> None:
    laptop.ok("up")
    try:
        host = section(document(laptop), "This host")
    finally:
        laptop.ok("down")
    assert host["gateway"]["says"] == f"answers on http://127.0.0.1:{laptop.port}"
    assert host["controller"]["says"].startswith("answers on ")


def test_real_environments_are_told_with_their_versions(training_python: str) -> None:
    engine_python = ROOT / ".venvs" / "engine" / "bin" / "python"
    if not engine_python.exists():
        pytest.skip(f"no engine environment at {engine_python}")
    with platform("laptop.toml", f"environments.training.python={training_python}") as made:
        environments = section(document(made), "Environments")
    assert not_ok(environments) == []
    assert re.search(r"megatron.core \d+\.\d+.*, torch \d", environments["training"]["says"])
    assert re.search(r"vllm \d+\.\d+.*, torch \d", environments["engine"]["says"])


# -- a site that does not -------------------------------------------------------------------------------------------


def changed(cluster: PrivateCluster, tmp_path: Path, setting: str, value: str) -> tuple[str, str]:
    """Flags for this cluster's slurm.conf with one setting changed, as its clients then read it."""
    text = (cluster.root / "etc" / "slurm.conf").read_text()
    text, count = re.subn(rf"^{setting}=.*$", f"{setting}={value}", text, flags=re.MULTILINE)
    assert count == 1
    conf = tmp_path / "slurm.conf"
    conf.write_text(text)
    return "--set", f"scheduler.slurm_conf={conf}"


def test_a_slurmctld_that_is_down_is_one_problem_and_the_rest_is_judged(
    on_slurm: Platform, slurm_cluster: PrivateCluster, tmp_path: Path
) -> None:
    said = document(on_slurm, *changed(slurm_cluster, tmp_path, "SlurmctldPort", "1"))
    slurm = section(said, "Slurm")
    assert not_ok(slurm) == ["slurmctld"]
    assert "Unable to contact slurm controller" in slurm["slurmctld"]["says"]
    assert "scontrol ping" in slurm["slurmctld"]["remedy"]
    assert "not asked for" in section(said, "Accounting")["accounting"]["says"]
    assert section(said, "This host")["state_dir"]["level"] in ("ok", "warning")


def test_a_broken_munge_is_named_beside_what_it_breaks(
    on_slurm: Platform, slurm_cluster: PrivateCluster, tmp_path: Path
) -> None:
    said = document(on_slurm, *changed(slurm_cluster, tmp_path, "AuthInfo", "socket=/nonexistent/munge.sock"))
    slurm = section(said, "Slurm")
    assert not_ok(slurm) == ["munge", "slurmctld"]
    assert "/nonexistent/munge.sock" in slurm["munge"]["says"]
    assert "munged" in slurm["munge"]["remedy"]


def test_a_slurmdbd_that_is_down_is_a_problem_of_accounting_alone(
    on_slurm: Platform, slurm_cluster: PrivateCluster, tmp_path: Path
) -> None:
    said = document(on_slurm, *changed(slurm_cluster, tmp_path, "AccountingStoragePort", "1"))
    assert not_ok(section(said, "Slurm")) == []
    assert not_ok(section(said, "Accounting")) == ["slurmdbd"]
    assert not_ok(section(said, "What jobs ask for")) == []


def test_a_host_without_slurms_commands_says_which(on_slurm: Platform, tmp_path: Path) -> None:
    bare = dataclasses.replace(on_slurm, env={**on_slurm.env, "PATH": str(tmp_path)})
    slurm = section(document(bare), "Slurm")
    assert "squeue" in slurm["commands"]["says"] and slurm["commands"]["level"] == "problem"
    assert "scontrol cannot be run" in slurm["slurmctld"]["says"]
    assert slurm["munge"]["level"] == "warning"


def test_a_command_that_hangs_is_given_up_in_time(on_slurm: Platform, tmp_path: Path) -> None:
    hanging = tmp_path / "scontrol"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(0o755)
    slow = dataclasses.replace(on_slurm, env={**on_slurm.env, "PATH": f"{tmp_path}:{on_slurm.env['PATH']}"})
    began = time.monotonic()
    slurm = section(document(slow, "--set", "scheduler.command_timeout=1s"), "Slurm")
    assert time.monotonic() - began < 30
    assert slurm["slurmctld"]["says"] == "did not answer: scontrol did not answer within 1 s"


def test_a_state_dir_on_a_refused_file_system_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounts = f"/dev/vda / ext4 rw 0 0\nserver:/home {tmp_path} nfs4 rw 0 0\n"
    monkeypatch.setattr(storage, "mounts", lambda: mounts)
    here = (f"state_dir={tmp_path}/s", f"shared_dir={tmp_path}/shared", *LIGHT)
    done = CliRunner().invoke(main, [*(word for setting in here for word in ("--set", setting)), "doctor", "--json"])
    assert done.exit_code == 2
    state = section(json.loads(done.output), "This host")["state_dir"]
    assert state["level"] == "problem"
    assert f"nfs4 (mounted at {tmp_path})" in state["says"]
    assert "own disk" in state["remedy"]


@contextmanager
def file_system_that_hangs(point: Path) -> Iterator[None]:
    """A FUSE mount whose server never answers; whoever looks at it waits until its device is closed."""
    point.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as e:
        pytest.skip(f"cannot make a file system that hangs: /dev/fuse: {e.strerror}")
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    try:
        if libc.mount(b"hangs", os.fsencode(point), b"fuse.test", 0, options):
            pytest.skip(f"cannot mount a file system that hangs: {os.strerror(ctypes.get_errno())} (needs root)")
        yield
    finally:
        os.close(device)
        libc.umount2(os.fsencode(point), 2)  # MNT_DETACH


def test_a_file_system_that_hangs_is_named_and_the_command_ends(laptop: Platform, tmp_path: Path) -> None:
    with file_system_that_hangs(tmp_path / "scratch"):
        said = document(laptop, "--set", f"shared_dir={tmp_path}/scratch/headgate")
    host = section(said, "This host")
    assert host["shared_dir"]["level"] == "problem"
    assert host["shared_dir"]["says"] == f"did not answer within {examine.LOOK_S:g} s"
    assert host["state_dir"]["level"] in ("ok", "warning")


def test_a_port_that_somebody_else_holds_is_a_problem(laptop: Platform) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of gateways before may linger
        taken.bind(("127.0.0.1", laptop.port))
        taken.listen()
        gateway = section(document(laptop), "This host")["gateway"]
    assert gateway["level"] == "problem"
    assert f"cannot listen on 127.0.0.1:{laptop.port}" in gateway["says"]
    assert "gateway.port" in gateway["remedy"]


def test_settings_that_cannot_be_read_are_the_problem(laptop: Platform) -> None:
    said = document(laptop, "--set", "gateway.prot=1")
    (finding,) = said["findings"]
    assert finding["level"] == "problem" and "did you mean 'port'" in finding["says"]
