"""Spec -> run folder -> job. The folder is complete before anything is submitted, so a person can submit it too."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from launchers import spec as specs
from launchers.freeze import note_environment
from launchers.run_folder import RunFolder
from launchers.scheduler import NOTICE_S, JobRef, JobRequest, Scheduler, SchedulerError, SchedulerUnavailable
from launchers.untrusted import read_object

PACKAGES = ("launchers", "registry", "slurm")  # what a job may import; frozen into each run folder
JOB_ID = re.compile(
    r"[0-9]{1,10}([_+][0-9]{1,10})?"
)  # Slurm's (an array's task, a heterogeneous job's part), or a process id
MAX_JOB_ID = 2**32 - 1
MAX_JOB_BYTES = 4096
CLOSING_S = 15  # a replica's, beside its shutdown time: until all have heard, and until an engine that hangs is killed


@dataclass(frozen=True, slots=True)
class Launched:
    folder: RunFolder
    job: JobRef


def new_id(name: str, now: datetime | None = None) -> str:
    """A run's or replica's id: readable, sortable within a name, unique."""
    at = (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S")
    return f"{name}-{at}-{secrets.token_hex(2)}"


def launch(
    spec: specs.SupervisedSpec, runs_dir: Path, scheduler: Scheduler, after: tuple[JobRef, ...] = ()
) -> Launched:
    """Make the run folder, freeze code and spec into it, submit. `after`: jobs that must have ended well first.

    Raises SchedulerError when the scheduler refuses, OSError when the folder cannot be made: it is then removed, since
    nothing was started. After SchedulerUnavailable it stays: the job may have been submitted, and its key tells.
    """
    folder = RunFolder(runs_dir.resolve() / spec.id)
    folder.create()
    try:
        freeze(folder.code)
        note_environment(folder.environment, os.environ)
        request = replace(request_for(spec, folder), after=after)
        folder.script.write_text(scheduler.script(request), encoding="utf-8")
        write_whole(folder.spec, specs.dump(spec))  # last: a folder with a spec is one to be adopted
    except BaseException:
        remove([folder])
        raise
    job = submit_or_remove(request, scheduler, [folder])
    write_job(folder, job)
    return Launched(folder, job)


def submit_or_remove(request: JobRequest, scheduler: Scheduler, folders: Sequence[RunFolder]) -> JobRef:
    """Raises as `launch` does. What was made for a job that was refused is removed."""
    try:
        return scheduler.submit(request)
    except SchedulerUnavailable:
        raise
    except (SchedulerError, OSError, ValueError):  # not a Ctrl-C, which may come after the job was taken
        remove(folders)
        raise


def remove(folders: Iterable[RunFolder]) -> None:
    for folder in folders:
        shutil.rmtree(folder.root, ignore_errors=True)


def launch_again(spec: specs.SupervisedSpec, folder: RunFolder, scheduler: Scheduler) -> JobRef:
    """Submit a run's folder again, with `spec`, which may ask for other resources than the one that is there.

    Raises SchedulerError when the scheduler refuses, OSError when the folder cannot be written: it is then as before.
    After SchedulerUnavailable the job may have been submitted, with what was asked for now.
    """
    request = request_for(spec, folder)
    before = {path: path.read_text(encoding="utf-8") for path in (folder.script, folder.spec)}
    try:
        if spec != specs.load(folder.spec):
            write_whole(folder.script, scheduler.script(request))
            write_whole(folder.spec, specs.dump(spec))
        job = scheduler.submit_again(request, folder.script)
    except SchedulerUnavailable:
        raise
    except (SchedulerError, OSError):
        for path, text in before.items():
            write_whole(path, text)
        raise
    write_job(folder, job)
    return job


def request_for(spec: specs.SupervisedSpec, folder: RunFolder) -> JobRequest:
    """What is submitted for a run folder: our supervisor on it; a training run's is started by `launchers.batch`."""
    return JobRequest(
        key=spec.id,
        name=spec.id,
        command=supervisor_command(folder),
        log_dir=folder.logs,
        resources=spec.resources,
        modules=_modules(spec),
        batch=program(folder, "launchers.batch") if isinstance(spec, specs.TrainSpec) else None,
        # A replica serves until then: what it has in flight gets its shutdown time, and no less than that.
        notice_s=spec.shutdown_timeout_s + CLOSING_S if isinstance(spec, specs.ServeSpec) else NOTICE_S,
    )


def _modules(spec: specs.SupervisedSpec) -> tuple[str, ...]:
    """What is loaded in the batch script: the environment's, and an evaluation's harness's."""
    more = spec.harness.modules if isinstance(spec, specs.EvaluateSpec) else ()
    return tuple(dict.fromkeys((*spec.environment.modules, *more)))


def supervisor_command(folder: RunFolder) -> tuple[str, ...]:
    return program(folder, "launchers.supervisor")


def program(folder: RunFolder, module: str) -> tuple[str, ...]:
    """One of our own programs, on a run folder and with its frozen code."""
    command = ("env", "-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPATH={folder.code}", sys.executable, "-u")
    return (*command, "-m", module, str(folder.root))


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
    write_whole(folder.job, text + "\n")


def read_job(folder: RunFolder) -> JobRef | None:
    """The noted job, or None when no note was left that can be believed: the key finds the job."""
    try:
        data = read_object(folder.job, MAX_JOB_BYTES)
        cluster, job_id = data["cluster"], data["job_id"]
        submitted_at = datetime.fromisoformat(data["submitted_at"]).astimezone(UTC)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    if not isinstance(cluster, str) or not isinstance(job_id, str) or not JOB_ID.fullmatch(job_id):
        return None
    if any(int(number) > MAX_JOB_ID for number in re.findall("[0-9]+", job_id)):
        return None  # a command that is asked for it, among others, answers for none
    return JobRef(cluster, job_id, submitted_at)


def write_whole(path: Path, text: str) -> None:
    """The file appears with all of its text, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.rename(temporary, path)
