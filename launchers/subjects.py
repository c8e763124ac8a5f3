"""What a job is to us: the run or the replica whose id it carries as its comment."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launchers.run_folder import RunFolder
from launchers.spec import SpecError, load
from slurm.model import Job

WHAT = {"train": "run", "convert": "conversion", "serve": "replica", "script": "script"}  # by a spec's kind


@dataclass(frozen=True, slots=True)
class Subject:
    id: str
    what: str  # run | conversion | replica | script
    of: str  # the run's or the deployment's name
    owner: str  # whoever wanted it; a replica's job runs as the service's user
    user: str  # whose jobs may carry its id: anybody can write a comment
    revision: int | None = None  # of its deployment, which a replica is of,
    reason: str | None = None  # and why it was started, in words


def subject_of(job: Job, subjects: Mapping[str, Subject]) -> Subject | None:
    """By what the job itself says, and who runs it: ids are recycled, and a run folder may claim any."""
    found = subjects.get(job.comment)
    return found if found is not None and job.user == found.user else None


def from_folders(runs_dir: Path, comments: Iterable[str]) -> dict[str, Subject]:
    """What the run folders of these ids say, for want of a registry. A folder that cannot be read says nothing."""
    found = {}
    for comment in comments:
        folder = RunFolder(runs_dir / comment)
        if not comment or folder.root.parent != runs_dir or comment in (".", ".."):
            continue
        try:
            spec = load(folder.spec)
            uid = os.stat(folder.root, follow_symlinks=False).st_uid
        except (OSError, SpecError):
            continue
        found[comment] = Subject(comment, WHAT[spec.kind], spec.name, spec.owner, user_name(uid))
    return found


def user_name(uid: int) -> str:
    """As Slurm prints it: the number of one that has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
