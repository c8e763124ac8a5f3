"""The whole chain on real parts: Megatron trains, vLLM serves, the openai package calls, the report adds up."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import stranger
from conftest import PrivateCluster
from openai import OpenAI
from platform_fixtures import ROOT, Platform, platform
from waiting import wait_for

from cli import pins
from launchers.run_folder import RunFolder
from launchers.vllm.guard import REFUSAL

pytestmark = pytest.mark.chain
RECIPE = str(ROOT / "tests" / "recipes" / "chain.toml")
ENVIRONMENTS = [ROOT / ".venvs" / name / "bin" / "python" for name in ("training", "engine")]


@pytest.fixture(autouse=True, scope="module")
def environments() -> None:
    missing = [str(p) for p in ENVIRONMENTS if not p.exists()]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make environments)")


@pytest.fixture(scope="module")
def laptop() -> Iterator[Platform]:
    with platform("laptop.toml") as made:
        yield made


@pytest.fixture(scope="module")
def first_demo(laptop: Platform) -> str:
    """What `headgate demo --once` printed on a machine that had seen nothing of us."""
    return laptop.ok("demo", "--once", "--recipe", RECIPE)


def ready_replicas(laptop: Platform) -> list[str]:
    described = next(d for d in laptop.json("status")["deployments"] if d["deployment"]["name"] == "demo")
    return [r["replica"]["id"] for r in described["replicas"] if r["replica"]["state"] == "ready"]


def test_the_demo_goes_from_text_to_a_metered_answer_and_leaves_no_process(laptop: Platform, first_demo: str) -> None:
    assert re.search(r"data: \d+ documents, [\d,]+ tokens, vocabulary 1,024 \(tokenised now\)", first_demo)
    losses = re.search(r"loss (\d\.\d+) -> (\d\.\d+)", first_demo)
    assert losses and float(losses[2]) < float(losses[1])
    differs = re.search(r"logits differ from Megatron's by at most (\S+)", first_demo)
    assert differs and float(differs[1]) < 1e-4
    assert "healthy, and it generated a token" in first_demo
    assert re.search(r"the ledger's tokens of these two requests \(\d+\) are the engine's own", first_demo)
    assert re.search(
        r"check: the micro-credits of every day add up to what the ledger's postings consumed: \d+", first_demo
    )
    assert re.search(r"check: CPU-seconds of the lines add up to the scheduler's total: [1-9]", first_demo)
    assert laptop.processes() == []


def test_the_second_demo_reuses_data_checkpoint_and_model_and_says_so(laptop: Platform, first_demo: str) -> None:
    again = laptop.ok("demo", "--once", "--recipe", RECIPE)
    assert "reused: checkpoint demo-" in again
    assert "reused: model demo@latest, version 1" in again
    assert "are the engine's own" in again
    assert laptop.processes() == []


def test_a_run_is_shown_with_what_became_of_it_and_who_uses_its_checkpoints(laptop: Platform, first_demo: str) -> None:
    laptop.ok("up")
    said = laptop.json("show", "demo")
    assert said["run"]["state"] == "completed" and said["run"]["iteration"] == 20
    assert 0 < said["time"]["effective_training_time_ratio"] < 1
    assert said["time"]["suggested_interval"]["iterations"] >= 1
    (model,) = [m for m in said["lineage"]["models"] if m["model"] == "demo@1"]
    assert (model["checkpoint"], model["aliases"]) == (f"{said['run']['id']}/20", ["latest"])
    assert "┤█" in laptop.ok("show", "demo")
    assert f"{said['run']['id']}/20: whole" in laptop.ok("verify", "demo/20")
    rows = {r["iteration"]: r["used_by"] for r in laptop.json("checkpoints", "demo")}
    assert rows[20] == ["alias demo@latest"] and rows[10] == []  # what publishing pinned, it has read
    laptop.ok("down")


def test_a_checkpoint_pinned_for_what_has_completed_goes_and_its_pin_with_it(
    laptop: Platform, first_demo: str, tmp_path: Path
) -> None:
    laptop.ok("up")
    path = Path(next(c["path"] for c in laptop.json("checkpoints", "demo") if c["iteration"] == 10))
    shutil.copytree(path, tmp_path / path.name)
    published = [r["id"] for r in laptop.json("runs") if (r["name"], r["state"]) == ("publish-demo", "completed")]
    prune = ("prune", "demo", "--keep-last", "1")
    for run in ("not-yet-there", published[0]):
        pins.pin(path, run)
    assert "/10: stays: pinned by switches/keep-iter_0000010" in laptop.ok(*prune)
    pins.path_of(path).write_text(f"{published[0]}\n")
    assert "1 checkpoint, " in laptop.ok(*prune)
    assert not path.exists() and not pins.path_of(path).exists()
    shutil.copytree(tmp_path / path.name, path)  # for other tests
    laptop.ok("down")


def test_publishing_works_while_the_control_plane_is_down_and_refuses_a_damaged_checkpoint_by_name(
    laptop: Platform, first_demo: str
) -> None:
    """Both conversions are submitted with nothing of ours running; the controller adopts them when it is back."""
    (run,) = (laptop.root / "shared" / "runs").glob("demo-*/checkpoints/iter_0000010")
    damaged = laptop.root / "shared" / "runs" / run.parts[-3]
    victim = max(run.rglob("*.distcp"), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)
    refused = json.loads(laptop.ok("publish", f"{damaged.name}/10", "--as", "damaged", "--json"))["run"]
    whole = json.loads(laptop.ok("publish", "demo", "--as", "whole@stable", "--json"))["run"]
    laptop.ok("up")

    def both() -> dict[str, dict[str, str]] | None:
        runs = {r["id"]: r for r in laptop.json("runs") if r["id"] in (refused, whole) and r["ended_at"]}
        return runs if len(runs) == 2 else None

    ended = wait_for(both, timeout=120)
    assert (ended[refused]["state"], ended[whole]["state"]) == ("failed", "completed")
    assert victim.name in ended[refused]["cause"]
    models = {m["name"]: m for m in laptop.json("models")}
    assert "damaged" not in models
    assert models["whole"]["aliases"] == ["stable"]
    laptop.ok("down")


def test_an_engine_that_dies_at_start_fails_the_deployment_with_its_last_lines(
    laptop: Platform, first_demo: str, tmp_path: Path
) -> None:
    laptop.ok("up")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    done = laptop.run("serve", str(tmp_path), "--name", "broken")
    assert done.returncode == 1
    assert "deployment broken failed: the engine ended with exit code 1" in done.stderr
    assert "its last lines" in done.stderr and "tokenizer" in done.stderr
    described = next(d for d in laptop.json("status")["deployments"] if d["deployment"]["name"] == "broken")
    assert described["deployment"]["state"] == "failed"
    assert "tokenizer" in described["deployment"]["cause"]
    laptop.ok("down")
    assert laptop.processes() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_sigterm_in_the_demo_stops_what_it_started(
    laptop: Platform, first_demo: str, tmp_path: Path, number: signal.Signals
) -> None:
    longer = tmp_path / "longer.toml"
    longer.write_text(Path(RECIPE).read_text().replace("iterations = 20", "iterations = 100000"))
    demo = laptop.start("demo", "--recipe", str(longer))
    assert demo.stdout
    printed = ""
    for line in demo.stdout:
        printed += line
        if "model:" in line:
            break
    assert demo.poll() is None, printed
    demo.send_signal(number)
    rest, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, rest
    assert "stopping what the demo started" in rest
    assert laptop.processes() == []


def test_the_same_chain_on_slurm_and_the_report_says_what_sacct_says(slurm_cluster: PrivateCluster) -> None:
    """Training on two nodes through srun, the engine in another partition, the books from sacct."""
    conf = f"scheduler.slurm_conf={slurm_cluster.root}/etc/slurm.conf"
    with platform("private-cluster.toml", conf, env=slurm_cluster.env) as site:
        printed = site.ok("demo", "--once", "--recipe", RECIPE)
        assert "2 x cpu" in printed
        assert "are the engine's own" in printed
        assert re.search(r"the report's job seconds are sacct's \(3 jobs, [\d,]+ CPU-seconds\)", printed)
        assert site.processes() == []
        site.ok("up")
        said = site.report("gpu", "--by", "partition,subject")
        train = next(r["id"] for r in site.json("runs") if r["kind"] == "train")
        (attempt,) = site.json("show", train)["attempts"]
    assert [check["holds"] for check in said["checks"]] == [True, True]
    rows = said["sections"][0]["rows"]
    (trained,) = [r for r in rows if r["subject"] == train]
    (served,) = [r for r in rows if r["startup"] > 0]
    assert (trained["partition"], served["partition"]) == ("cpu", "gpu")
    assert served["gpu_hours"] == pytest.approx(served["startup"] + served["idle"] + served["serving"])
    nodes = slurm_cluster.run("sacct", "-X", "-n", "-P", "-j", attempt["job"], "-o", "NNodes,CPUTimeRAW")
    assert nodes.strip() == f"2|{round(trained['cpu_hours'] * 3600)}"


@pytest.fixture(scope="module")
def serving(laptop: Platform, first_demo: str) -> Iterator[Platform]:
    """Another platform, whose deployment of the demo's model no other test stops."""
    model = next((laptop.root / "shared" / "runs").glob("publish-demo-*/model"))
    cache = f"environments.engine.env.VLLM_CACHE_ROOT={laptop.root}/state/vllm"
    with platform("laptop.toml", cache) as made:
        made.ok("up")
        made.ok("serve", str(model), "--name", "demo")
        yield made
        made.ok("down")
        assert made.processes() == []


def test_an_engine_at_work_is_closed_to_everybody_who_has_not_its_key(serving: Platform) -> None:
    """Over its own routes, by plain HTTP, by its files and by `ps`; nor does a client take another for it."""
    (name,) = ready_replicas(serving)
    replica = stranger.closed(RunFolder(serving.root / "shared" / "runs" / name))
    asked = stranger.routes(replica)
    assert {("POST", "/v1/chat/completions"), ("GET", "/health"), ("GET", "/metrics")} <= set(asked)
    for key in ({}, {"authorization": "Bearer another"}):
        answers = list(stranger.answers(replica, asked, **key))
        assert [a for a in answers if a[1:] != (401, REFUSAL)] == []
    for path in ("/v1/realtime", "/health"):
        assert stranger.upgraded(replica, path).startswith(b"HTTP/1.1 403 ")
    assert not stranger.in_the_clear(replica).startswith(b"HTTP")
    assert stranger.refuses_another_pin(replica)
    known = [("GET", "/health"), ("GET", "/metrics"), ("GET", "/v1/models")]
    opened = stranger.answers(replica, known, authorization=f"Bearer {replica.key}")
    assert [status for _, status, _ in opened] == [200, 200, 200]

    lines = stranger.command_lines()
    assert [line for line in lines if str(replica.folder.tls_key(replica.attempt)) in line]
    assert not [line for line in lines if any(secret in line for secret in replica.secrets)]
    holders = stranger.holders(serving.root, replica.secrets)
    assert {replica.folder.secret, replica.folder.tls_key(replica.attempt)} <= set(holders)
    assert [path for path, others in holders.items() if others] == []
    assert not [path for path in holders if path.suffix == ".log"]
    if os.getuid() == 0:
        serving.root.chmod(0o755)  # it is a temporary directory, which alone would keep others out
        for user, group in ((stranger.NOBODY, stranger.NOBODY), (stranger.NOBODY, os.getgid())):
            secrets, facts = stranger.found_by(user, group, serving.root, replica.secrets)
            assert secrets == ""
        assert "announcements" in facts  # a group may read those


def test_a_replica_outlives_the_control_plane_and_a_client_that_leaves_is_billed(serving: Platform) -> None:
    """A client that leaves in mid-stream is billed for what was generated; a restarted controller keeps the replica."""
    (replica,) = ready_replicas(serving)
    serving.ok("down", "--keep-deployments")
    serving.ok("up")
    assert ready_replicas(serving) == [replica]

    serving.ok("tenant", "create", "leaver", "--token-budget", "5000")
    key = serving.ok("key", "create", "leaver").strip()
    with OpenAI(base_url=serving.url, api_key=key, max_retries=0) as client:
        # Without max_tokens, against a budget: bounded by the gateway, within the model's short context.
        whole = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "def"}])
        assert whole.usage and 0 < whole.usage.completion_tokens <= 256
        stream = client.completions.create(
            model="demo", prompt="def f(", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
        )
        for _ in range(3):
            next(iter(stream))
        stream.close()

    def billed() -> int:
        rows = serving.report("usage")["sections"][0]["rows"]
        return next((r["completion_tokens"] for r in rows if r["tenant"] == "leaver"), 0)

    before = whole.usage.completion_tokens
    assert wait_for(lambda: billed() >= before + 3)
    assert billed() <= before + 200
    assert all(check["holds"] for check in serving.report("usage")["checks"])
