"""Replicas as the controller launches them, without one: run folders, a scheduler's job, and what is said of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from platform_fixtures import ROOT
from specs import serve
from waiting import wait_for

from launchers import announce, replica_launch
from launchers.announce import Announcement
from launchers.local_scheduler import LocalScheduler
from launchers.resources import engine_environment
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobState
from launchers.slurm_scheduler import SlurmScheduler
from launchers.spec import ServeSpec
from launchers.vllm.endpoint import Endpoint, call
from registry.site import load_site


@dataclass(frozen=True)
class Replica:
    folder: RunFolder
    scheduler: LocalScheduler | SlurmScheduler
    job: JobRef

    def said(self, kind: str) -> list[Announcement]:
        directory = self.folder.announcements
        read = (announce.read(directory / name, os.getuid()) for name in announce.names(directory))
        return [a for a in read if a.kind == kind]

    @property
    def state(self) -> JobState:
        return self.scheduler.states([self.job])[self.job].state

    def ready(self, timeout: float) -> Endpoint:
        wait_for(lambda: self.said("replica-ready") or self.state.ended, timeout=timeout, every=0.2)
        assert self.said("replica-ready"), self.logs()
        facts = self.said("replica-ready")[-1].facts
        return Endpoint(facts["host"], facts["port"], self.folder.secret.read_text(), facts["certificate"])

    def ends(self) -> None:
        wait_for(lambda: self.state.ended, timeout=120)

    def logs(self) -> str:
        return "\n".join(f"{p}:\n{p.read_text()[-3000:]}" for p in sorted(self.folder.logs.glob("*.*")))


@contextmanager
def launched(
    scheduler: LocalScheduler | SlurmScheduler, runs: Path, *specs: ServeSpec
) -> Iterator[tuple[Replica, ...]]:
    """Several specs share a job. It is over when this is."""
    job = replica_launch.launch(specs, runs, scheduler).job
    replicas = tuple(Replica(RunFolder(runs / spec.id), scheduler, job) for spec in specs)
    try:
        yield replicas
    finally:
        scheduler.cancel(replicas[0].job)
        replicas[0].ends()


def real_spec(root: Path, model: Path, *words: str, **asked: Any) -> ServeSpec:
    """For an engine of the laptop's site; skips where there is none."""
    if not (ROOT / ".venvs" / "engine" / "bin" / "python").exists():
        pytest.skip("no engine environment (make environments)")
    site = load_site(ROOT / "site-configs" / "laptop.toml", {}, [f"state_dir={root}", f"shared_dir={root}"])
    args = (*site.environment("engine").args, "--max-model-len", "128", *words)
    return serve(environment=engine_environment(site), model_path=str(model), engine_args=args, **asked)


def asked(endpoint: Endpoint, path: str, **body: Any) -> dict[str, Any]:
    """A replica's answer, which must be one."""
    status, raw = call(endpoint, "POST", path, body, 120)
    assert status == 200, raw
    answer: dict[str, Any] = json.loads(raw)
    return answer
