"""Replicas become a job: one, or several that share it. The folders are complete before anything is submitted."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launchers import spec as specs
from launchers.freeze import note_environment
from launchers.launch import Launched, freeze, remove, request_for, submit_or_remove, write_job, write_whole
from launchers.run_folder import RunFolder
from launchers.scheduler import Scheduler
from launchers.vllm import pack

log = logging.getLogger(__name__)


def launch(members: Sequence[specs.ServeSpec], runs_dir: Path, scheduler: Scheduler) -> Launched:
    """Make each member's run folder, submit one job for all, known by the first one's id. Raises as launch.launch."""
    folders: list[RunFolder] = []
    try:
        for spec in members:
            folder = RunFolder(runs_dir.resolve() / spec.id)
            folder.create(switches=0o700)
            folders.append(folder)
            freeze(folder.code)
            note_environment(folder.environment, os.environ)
        request = pack.request(request_for(members[0], folders[0]), folders)
        script = scheduler.script(request)
        for spec, folder in zip(reversed(members), reversed(folders), strict=True):
            folder.script.write_text(script, encoding="utf-8")
            write_whole(folder.spec, specs.dump(spec))  # the first one's last: with it all are to be adopted
    except BaseException:
        remove(folders)
        raise
    job = submit_or_remove(request, scheduler, folders)
    try:
        write_job(folders[0], job)
    except OSError as e:  # its key finds it all the same, and it runs
        log.warning("%s: its job %s is not noted there: %s", folders[0].root, job.job_id, e)
    return Launched(folders[0], job)


def together(members: Sequence[specs.ServeSpec]) -> list[specs.ServeSpec]:
    """The same, each with the names of all that share its job; one alone has a job of its own."""
    ids = tuple(spec.id for spec in members) if len(members) > 1 else ()
    return [replace(spec, pack=ids) for spec in members]
