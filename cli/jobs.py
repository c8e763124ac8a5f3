"""The scheduler's job behind a run, asked as the person who types."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from launchers.launch import read_job
from launchers.run_folder import RunFolder
from launchers.scheduler import JobState, JobStatus, Scheduler, SchedulerError


@contextmanager
def scheduler_answers() -> Iterator[None]:
    """What the scheduler does not answer, or refuses, ends the command with its words."""
    try:
        yield
    except SchedulerError as e:
        raise click.ClickException(str(e)) from e


def newest_job(scheduler: Scheduler, folder: RunFolder) -> JobStatus | None:
    """The run's newest job and its state; None where none was ever heard of. Raises SchedulerError.

    The note in the folder names the job that was submitted; one that followed it is found by the run's key.
    """
    noted = read_job(folder)
    status = scheduler.states([noted])[noted] if noted else None
    if status is not None and not status.state.ended and status.state is not JobState.UNKNOWN:
        return status
    found = scheduler.find(folder.id)
    if found is None or found == noted or (noted is not None and found.submitted_at < noted.submitted_at):
        return status
    return scheduler.states([found])[found]
