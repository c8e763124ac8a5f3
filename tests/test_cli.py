"""The command line: quick help, and bad input that gets one clear message and changes nothing."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from platform_fixtures import ROOT, Platform, platform
from waiting import wait_for

from cli.main import COMMANDS
from cli.resources import Memory, TimeLimit
from cli.table import table

HEAVY = ("aiohttp", "litellm", "sqlite_utils", "rich", "submitit", "psutil", "openai", "torch")


@pytest.fixture(scope="module")
def laptop() -> Iterator[Platform]:
    with platform("laptop.toml", "environments.engine.python=/bin/sh", "environments.training.python=/bin/sh") as made:
        yield made


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, click.testing, cli.main as m; r = click.testing.CliRunner().invoke(m.main, ['--help']); "
        f"assert r.exit_code == 0; print([h for h in {HEAVY!r} if h in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, laptop: Platform) -> None:
    said = laptop.ok(command, "--help")
    assert "Usage:" in said


def test_the_readme_names_only_commands_that_exist() -> None:
    words = [line.split() for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("    headgate ")]
    assert words
    assert {w[1] for w in words} <= set(COMMANDS) | {"submit"}


def test_a_taken_port_is_named_and_nothing_stays_running(laptop: Platform) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of gateways before may linger
        taken.bind(("127.0.0.1", laptop.port))
        taken.listen()
        done = laptop.run("up")
    assert done.returncode == 1
    assert f"127.0.0.1:{laptop.port}" in done.stderr
    assert "gateway.port" in done.stderr
    assert "Traceback" not in done.stderr
    assert laptop.processes() == []


def test_a_full_disk_is_named_before_anything_is_started(laptop: Platform) -> None:
    disk = laptop.root / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot make a full disk: {mounted.stderr.decode().strip()} (needs root)")
    try:
        done = laptop.run("--set", f"state_dir={disk}/state", "up")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert done.returncode == 1
    assert "state_dir" in done.stderr and "KiB left" in done.stderr
    assert laptop.processes() == []


def test_without_a_controller_a_command_says_how_to_start_one(laptop: Platform) -> None:
    done = laptop.run("models")
    assert done.returncode == 1
    assert "`headgate up` starts one" in done.stderr


def test_up_is_idempotent_and_down_leaves_no_process(laptop: Platform) -> None:
    try:
        assert "controller: started" in laptop.ok("up")
        assert "controller: already running" in laptop.ok("up")
        assert laptop.ok("status").count("up") >= 2
    finally:
        laptop.ok("down")
    assert laptop.processes() == []
    assert laptop.run("status").returncode == 1


def test_an_upgrade_replaces_the_gateway_by_a_new_one_and_wants_one_that_runs(laptop: Platform) -> None:
    without = laptop.run("upgrade")
    assert without.returncode == 1 and "`headgate up` starts one" in without.stderr

    def gateways() -> list[str]:
        return [line for line in laptop.processes() if line.split()[-1] in ("gateway", "--take-over")]

    laptop.ok("up")
    try:
        for _ in range(2):
            assert "has taken over" in laptop.ok("upgrade")
            assert "gateway: already running" in laptop.ok("up")
            # The old one had nothing to finish, and lingers for clients about to ask once more.
            wait_for(lambda: len(gateways()) == 1, 30)
    finally:
        laptop.ok("down")
    assert laptop.processes() == []


def test_bad_input_names_the_thing_and_what_is_allowed(laptop: Platform, tmp_path: Path) -> None:
    laptop.ok("up")
    try:
        laptop.ok("tenant", "create", "acme", "--token-budget", "10")
        for words, expected in (
            (("tenant", "create", "acme"), "tenant acme exists already"),
            (("tenant", "create", "No Spaces"), "lower-case letters"),
            (("key", "create", "nobody"), "no tenant is called 'nobody'; there are: acme"),
            (("serve", "nothing"), "no model is called 'nothing'; there are: none yet"),
            (("serve", str(tmp_path), "--name", "x"), "there is no config.json in it"),
            (("publish", "nothing", "--as", "x"), "no complete checkpoint is called 'nothing'"),
            (("stop", "nothing"), "no deployment and no run called 'nothing'"),
            (("logs", "nothing"), "nothing of the name 'nothing' has run"),
            (("train", str(tmp_path / "no.toml")), "no.toml"),
        ):
            done = laptop.run(*words)
            assert done.returncode == 1, (words, done.stdout, done.stderr)
            assert expected in done.stderr, words
            assert "Traceback" not in done.stderr
        assert laptop.json("runs") == []
        assert laptop.json("status")["deployments"] == []
    finally:
        laptop.ok("down")


def test_a_key_is_made_for_the_scopes_asked_for_and_listed_with_them(laptop: Platform) -> None:
    laptop.ok("up")
    try:
        laptop.ok("tenant", "create", "scoped")
        laptop.ok("key", "create", "scoped")
        laptop.ok("key", "create", "scoped", "--scope", "admin", "--scope", "inference")
        refused = laptop.run("key", "create", "scoped", "--scope", "root")
        assert refused.returncode == 2 and "'root' is not one of 'inference', 'control', 'admin'" in refused.stderr
        listed = [key["scopes"] for key in laptop.json("key", "list") if key["tenant"] == "scoped"]
        assert listed == [["inference"], ["inference", "admin"]]
        assert "inference,admin" in laptop.ok("key", "list")
    finally:
        laptop.ok("down")


def test_a_port_that_another_headgate_holds_is_not_taken_for_ones_own(laptop: Platform) -> None:
    flags = ("environments.engine.python=/bin/sh", "environments.training.python=/bin/sh")
    with platform("laptop.toml", *flags) as other:
        other = dataclasses.replace(other, port=laptop.port)
        laptop.ok("up")
        try:
            done = other.run("up")
            assert done.returncode == 1
            assert f"127.0.0.1:{laptop.port}" in done.stderr and "gateway.port" in done.stderr
            assert other.processes() == []
            assert other.run("status").returncode == 1
        finally:
            laptop.ok("down")


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Platform]:
    """A platform whose training program waits to be stopped."""
    program = tmp_path / "sleeper"
    program.write_text("#!/bin/sh\necho waiting; exec sleep 300\n")
    program.chmod(0o755)
    flags = ("environments.engine.python=/bin/sh", f"environments.training.python={program}")
    with platform("laptop.toml", *flags) as made:
        made.ok("up")
        yield made


def run_state(site: Platform, run: str) -> str | None:
    return next((r["state"] for r in site.json("runs") if r["id"] == run), None)


def test_down_ends_local_runs_too_with_and_without_a_controller(patient: Platform) -> None:
    run = patient.json("train", "tests/recipes/tiny.toml", "-J", "long")["run"]
    wait_for(lambda: run_state(patient, run) == "running")
    assert f"{run}: stopped" in patient.ok("down")
    assert patient.processes() == []
    patient.ok("up")
    wait_for(lambda: run_state(patient, run) == "stopped")
    again = patient.json("train", "tests/recipes/tiny.toml", "-J", "long")["run"]
    for line in (process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"]):
        if line.info["cmdline"][-1] == "controller" and f"state_dir={patient.root}/state" in line.info["cmdline"]:
            line.kill()
    assert f"{again}: stopped" in patient.ok("down")
    assert patient.processes() == []


def test_stop_means_what_still_runs_and_says_so_when_nothing_does(patient: Platform) -> None:
    run = patient.json("train", "tests/recipes/tiny.toml", "-J", "tiny")["run"]
    wait_for(lambda: run_state(patient, run) == "running")
    wait_for(lambda: "waiting" in patient.run("logs", "tiny", "--task", "1").stdout)  # the other rank is a bit later
    assert patient.ok("stop", "tiny") == f"run {run}: asked to stop\n"
    wait_for(lambda: run_state(patient, run) == "stopped")
    assert patient.ok("stop", "tiny") == "tiny had ended already\n"


def test_a_recipe_that_cannot_work_is_refused_with_the_arithmetic_before_anything_is_submitted(
    laptop: Platform, tmp_path: Path
) -> None:
    recipe = tmp_path / "odd.toml"
    recipe.write_text((ROOT / "tests/recipes/tiny.toml").read_text().replace("heads = 2", "heads = 3", 1))
    done = laptop.run("train", str(recipe))
    assert done.returncode == 1
    assert "heads" in done.stderr and "64" in done.stderr
    assert not (laptop.root / "shared" / "runs").exists() or not any((laptop.root / "shared" / "runs").iterdir())


def test_a_typo_in_a_setting_is_named_with_its_place_and_a_suggestion(laptop: Platform) -> None:
    done = laptop.run("--set", "gateway.prot=1", "config", "show")
    assert done.returncode == 1
    assert "gateway.prot" in done.stderr
    assert "did you mean 'port'" in done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 1800), ("1:30", 90), ("8:00:00", 28800), ("2-0", 172800), ("1-2:30", 95400)]
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int) -> None:
    assert TimeLimit().convert(text, None, None) == seconds


@pytest.mark.parametrize(("text", "gib"), [("1024", 1.0), ("512M", 0.5), ("4G", 4.0), ("1T", 1024.0)])
def test_memory_is_read_as_sbatch_reads_it(text: str, gib: float) -> None:
    assert Memory().convert(text, None, None) == gib


def test_tables_align_numbers_to_the_right() -> None:
    rows = [{"name": "a", "tokens": 5}, {"name": "longer", "tokens": 12345}]
    assert table(rows, ("name", "tokens")).splitlines() == [
        "name    tokens",
        "a            5",
        "longer  12,345",
    ]
