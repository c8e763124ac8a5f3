"""A replica's supervisor over real vLLM: an engine killed, an engine that hangs, one that can never be ready."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from platform_fixtures import ROOT
from specs import folder_of, serve
from vllm_fixtures import START_S, make_llamas
from waiting import wait_for

from launchers import announce
from launchers.announce import Announcement
from launchers.run_folder import RunFolder
from launchers.spec import Environment
from launchers.vllm import probes
from launchers.vllm.endpoint import Endpoint
from registry.site import load_site

pytestmark = pytest.mark.chain
PYTHON = ROOT / ".venvs" / "engine" / "bin" / "python"


class Job:
    """One supervisor in a process of its own, over vLLM as the laptop's site starts it."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SUBMITIT_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launchers.supervisor", str(folder.root)],
            cwd=ROOT,
            env={**outside, "SUBMITIT_LOCAL_JOB_ID": "77"},
        )

    def said(self, kind: str) -> list[Announcement]:
        names = announce.names(self.folder.announcements)
        read = (announce.read(self.folder.announcements / name, os.getuid()) for name in names)
        return [a for a in read if a.kind == kind]

    def ready(self, times: int) -> Announcement:
        wait_for(lambda: self.process.poll() is not None or len(self.said("replica-ready")) >= times, START_S)
        assert self.process.poll() is None, self.log()[-3000:]
        return self.said("replica-ready")[times - 1]

    def end(self) -> dict[str, Any]:
        self.process.wait(START_S)
        return self.said("attempt-ended")[-1].facts

    def log(self) -> str:
        return self.folder.attempt_log("77.0", 0).read_text()

    def engine(self) -> psutil.Process:
        """The API server; what computes are children of its."""
        (engine,) = psutil.Process(self.process.pid).children()
        return engine


@contextmanager
def replica(runs: Path, model: Path, **changed: Any) -> Iterator[Job]:
    laptop = load_site(ROOT / "site-configs" / "laptop.toml", {}, [f"state_dir={runs}", f"shared_dir={runs}"])
    how = laptop.environment("engine")
    environment = Environment(kind="venv", python=str(PYTHON), command=how.command, env=how.env)
    spec = serve(environment=environment, model_path=str(model), engine_args=how.args, shutdown_timeout_s=5, **changed)
    folder = folder_of(spec, runs)
    (folder.root / "code").symlink_to(ROOT)
    job = Job(folder)
    try:
        yield job
    finally:
        job.process.terminate()
        job.process.wait(60)


@pytest.fixture(scope="module")
def models(training_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PYTHON.exists():
        pytest.skip(f"no engine environment at {PYTHON} (make environments)")
    return make_llamas(training_python, tmp_path_factory.mktemp("models"))


def endpoint(job: Job, ready: Announcement) -> Endpoint:
    facts = ready.facts
    return Endpoint(facts["host"], facts["port"], job.folder.secret.read_text(), facts["certificate"])


@pytest.mark.timeout(1800)  # three starts of vLLM, each of which may take START_S
def test_an_engine_that_is_killed_or_hangs_is_started_again_and_answers_at_the_same_place(
    models: Path, tmp_path: Path
) -> None:
    with replica(tmp_path, models / "plain", hang_timeout_s=10) as job:
        first = job.ready(1)
        computing = job.engine().children(recursive=True)
        job.engine().kill()
        killed = job.ready(2)
        assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in computing)
        assert [a.facts["failure"] for a in job.said("engine-restarting")] == ["crashed"]
        assert "was killed by SIGKILL" in job.said("engine-restarting")[0].facts["cause"]
        assert probes.proven(endpoint(job, killed), "generate", "chat") is not None

        job.engine().send_signal(signal.SIGSTOP)  # it takes connections, and answers none
        hung = job.ready(3)
        assert [a.facts["failure"] for a in job.said("engine-restarting")] == ["crashed", "hung"]
        assert endpoint(job, hung) == endpoint(job, killed) == endpoint(job, first)
        assert probes.proven(endpoint(job, hung), "generate", "chat") is not None
        load = json.loads(wait_for(lambda: job.folder.load.exists() and job.folder.load.read_text()))
        assert load["restarts"] <= 2 and load["generated_tokens"] >= 1

        job.process.send_signal(signal.SIGUSR2)
        ended = job.end()
        assert (ended["exit_code"], ended["cause"], ended["failure"]) == (0, "timeout", None)
        assert [a.facts for a in job.said("replica-draining")] == [{"why": "time limit"}]


def test_an_engine_that_can_never_generate_is_classified_and_not_tried_again(models: Path, tmp_path: Path) -> None:
    """Heads of 16 numbers: vLLM's CPU kernels take none, which they say at the first token."""
    narrow = shutil.copytree(models / "plain", tmp_path / "narrow")
    config = json.loads((narrow / "config.json").read_text())
    config.update(num_attention_heads=8, num_key_value_heads=4, head_dim=16)
    (narrow / "config.json").write_text(json.dumps(config))
    with replica(tmp_path, narrow) as job:
        ended = job.end()
    assert ended["failure"] == "bad-model" and "head_dim=16" in ended["cause"]
    assert ended["exit_code"] == 1 and job.said("replica-ready") == job.said("engine-restarting") == []
