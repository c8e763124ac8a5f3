"""Runs of kind "script": nothing of ours runs in their jobs, so Slurm says how they stand, and where they print."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from launchers.launch import read_job
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobState, JobStatus, Scheduler, SchedulerError
from launchers.spec import ScriptSpec

RUN_STATES = {
    JobState.PENDING: "pending",
    JobState.RUNNING: "running",
    JobState.SUSPENDED: "running",
    JobState.COMPLETED: "completed",
    JobState.CANCELLED: "stopped",
}  # registry.runs.RunState; every other end is "failed"
_FIELD = re.compile(r"%(\d*)(.)", re.DOTALL)


def states(scheduler: Scheduler, folders: Iterable[RunFolder]) -> dict[str, tuple[str, str | None]]:
    """(state, cause) of each, by the run's id, in one question. Of what nobody knows, "unknown" and why."""
    noted = {folder.id: read_job(folder) for folder in folders}
    try:
        found = scheduler.states([ref for ref in noted.values() if ref is not None])
    except SchedulerError as e:
        return {run: ("unknown", str(e)) for run in noted}
    return {run: state_of(ref, found.get(ref) if ref else None) for run, ref in noted.items()}


def is_over(scheduler: Scheduler, folder: RunFolder) -> bool:
    """Whether the script's job has ended, perhaps so long ago that Slurm has forgotten it. No answer is no end."""
    ref = read_job(folder)
    try:
        job = scheduler.states([ref]).get(ref) if ref else None
    except SchedulerError:
        return False
    return job is not None and (job.state.ended or job.state is JobState.UNKNOWN)


def state_of(ref: JobRef | None, job: JobStatus | None) -> tuple[str, str | None]:
    if ref is None:
        return "unknown", "no job is noted in its folder"
    if job is None:
        return "unknown", f"Slurm does not answer for job {ref.job_id}"
    if job.state is JobState.UNKNOWN:
        return "unknown", f"Slurm does not know job {job.ref.job_id} any more"
    state = RUN_STATES.get(job.state, "failed")
    if state != "failed":
        return state, None
    why = f" ({job.reason})" if job.reason and job.reason != "None" else ""
    return state, f"the job ended as {job.state.value}{why}"


def printed(spec: ScriptSpec, job_id: str, user: str, task: int | None = None) -> list[Path]:
    """The files that a script's job has written its output to, oldest first; `task`: of one task of its array."""
    paths = [Path(p) for p in glob.glob(where(spec, job_id, user, task))]
    return sorted((p for p in paths if p.is_file()), key=lambda p: p.stat().st_mtime)


def where(spec: ScriptSpec, job_id: str, user: str, task: int | None = None) -> str:
    """sbatch's pattern for the job's output as a glob: what only Slurm knows (nodes, a task's own job id) is a `*`."""
    array, _, of_array = job_id.partition("_")
    is_array = bool(of_array) or "%a" in _fields(spec.output)
    number = of_array or ("*" if task is None else str(task))  # of a job that is no array, some large number
    known = {
        "%": "%",
        "A": array,
        "a": number,
        "b": f"{int(number) % 10}" if number.isdecimal() else "*",
        "j": "*" if is_array else job_id,
        "J": "*" if is_array else job_id,
        "n": "0",
        "s": "batch",
        "t": "0",
        "u": user,
        "x": spec.job_name,
    }
    if "\\" in spec.output:  # Slurm then takes the name as it stands
        return glob.escape(spec.output.replace("\\", ""))

    def value(match: re.Match[str]) -> str:
        text = known.get(match[2], "*")
        if text == "*":
            return text
        return glob.escape(text.zfill(min(10, int(match[1]))) if match[1] and text.isdecimal() else text)

    parts, end = [], 0
    for match in _FIELD.finditer(spec.output):
        parts += [glob.escape(spec.output[end : match.start()]), value(match)]
        end = match.end()
    return os.path.normpath("".join([*parts, glob.escape(spec.output[end:])]))


def _fields(pattern: str) -> set[str]:
    return {f"%{match[2]}" for match in _FIELD.finditer(pattern)}
