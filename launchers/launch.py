"""Spec -> run folder -> job. The folder is complete before anything is submitted, so a person can submit it too."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from launchers import spec as specs
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobRequest, Scheduler

PACKAGES = ("launchers", "registry", "slurm")  # what a job may import; frozen into each run folder


@dataclass(frozen=True, slots=True)
class Launched:
    folder: RunFolder
    job: JobRef


def new_id(name: str, now: datetime | None = None) -> str:
    """A run's or replica's id: readable, sortable within a name, unique."""
    at = (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S")
    return f"{name}-{at}-{secrets.token_hex(2)}"


def launch(spec: specs.Spec, runs_dir: Path, scheduler: Scheduler) -> Launched:
    """Make the run folder, freeze code and spec into it, submit.

    Raises SchedulerError when the scheduler refuses: the folder is then removed, since nothing was started.
    """
    folder = RunFolder(runs_dir.resolve() / spec.id)
    folder.create()
    freeze(folder.code)
    folder.spec.write_text(specs.dump(spec), encoding="utf-8")
    request = request_for(spec, folder)
    folder.script.write_text(scheduler.script(request), encoding="utf-8")
    try:
        job = scheduler.submit(request)
    except BaseException:
        shutil.rmtree(folder.root)
        raise
    write_job(folder, job)
    return Launched(folder, job)


def request_for(spec: specs.Spec, folder: RunFolder) -> JobRequest:
    """What is submitted for a run folder: our supervisor on it, with the folder's frozen code."""
    command = ("env", "-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPATH={folder.code}", sys.executable, "-u")
    return JobRequest(
        key=spec.id,
        name=spec.id,
        command=(*command, "-m", "launchers.supervisor", str(folder.root)),
        log_dir=folder.logs,
        resources=spec.resources,
    )


def freeze(destination: Path) -> None:
    """Copy the packages as they are now, so that an upgrade or an edit does not reach a job that waits."""
    source = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        shutil.copytree(source / package, destination / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def write_job(folder: RunFolder, job: JobRef) -> None:
    """Note which job was submitted. Lost when the submitter dies first; the controller then finds it by its key."""
    text = json.dumps(
        {"cluster": job.cluster, "job_id": job.job_id, "submitted_at": job.submitted_at.isoformat()}, indent=2
    )
    temporary = folder.root / f".job.{os.getpid()}"
    temporary.write_text(text + "\n", encoding="utf-8")
    os.rename(temporary, folder.job)


def read_job(folder: RunFolder) -> JobRef | None:
    """The noted job, or None when no note was left."""
    try:
        data = json.loads(folder.job.read_text(encoding="utf-8"))
        return JobRef(str(data["cluster"]), str(data["job_id"]), datetime.fromisoformat(data["submitted_at"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None  # torn by a full disk: the key finds the job
