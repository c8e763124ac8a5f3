"""`headgate logs`: what a run, a replica or a service printed. Reads run folders; needs no control plane."""

from __future__ import annotations

import codecs
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import click

from cli import record, scripts
from cli.client import Control, Refused, Unreachable
from cli.context import Context
from cli.folders import find_folder
from cli.record import Attempt
from cli.runs import registered
from launchers.announce import names
from launchers.launch import read_job
from launchers.run_folder import RunFolder
from launchers.schedulers import scheduler_for
from launchers.spec import ScriptSpec, ServeSpec, load
from launchers.subjects import user_name
from launchers.untrusted import Unbelievable, open_regular
from registry.site import Site

LOOK_S = 0.3
ASK_S = 5.0  # between two questions to the control plane
FIRST_ASK_S = 1.0  # what starts at once needs no explanation


@click.command()
@click.argument("name", metavar="RUN|DEPLOYMENT|REPLICA|gateway|controller")
@click.option("-f", "--follow", is_flag=True, help="Go on, through restarts too, until it has ended (or Ctrl-C).")
@click.option("--task", type=click.IntRange(0), help="Whose output: the task's number, or a script's array task. [0]")
@click.option("--attempt", help="Of which attempt of a run: its number (1, 2, ...), or JOB.RESTART. Default: the last.")
@click.pass_obj
def logs(context: Context, /, name: str, follow: bool, task: int | None, attempt: str | None) -> None:
    """Print what the newest attempt printed."""
    site = context.site()
    try:
        for text in decoded(pieces(site, name, follow, task, attempt)):
            sys.stdout.write(text)
            sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        raise SystemExit(130) from None


def decoded(pieces: Iterable[bytes]) -> Iterator[str]:
    """A character whose bytes come in two pieces is one all the same."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        yield decoder.decode(piece)
    yield decoder.decode(b"", final=True)


def pieces(site: Site, name: str, follow: bool, array_task: int | None, attempt: str | None) -> Iterator[bytes]:
    """What is to be printed, as it comes."""
    if name in ("gateway", "controller"):
        path = site.services_dir / f"{name}.log"
        if not path.exists():
            raise click.ClickException(f"{path}: the {name} was never started here")
        return read_on(path, lambda: not follow)
    folder = find_folder(site, name)
    if folder is None:
        raise click.ClickException(f"nothing of the name {name!r} has run in {site.runs_dir}")
    task = array_task or 0
    spec = load(folder.spec)
    if isinstance(spec, ScriptSpec):
        return _script(site, folder, spec, follow, array_task)
    if isinstance(spec, ServeSpec):
        if follow:
            wait_for_log(folder, task)
        return read_on(_printed(folder, task, newest_log(folder, task)), lambda: not follow or has_ended(folder))
    told = record.story(folder).attempts
    if attempt is not None:
        chosen = _chosen(told, attempt, folder)
        over = attempt_over(folder, chosen) if follow else lambda: True
        return read_on(_printed(folder, task, folder.attempt_log(chosen.attempt, task)), over)
    if follow:
        return Follower(site, folder, task).pieces()
    logs_there = (folder.attempt_log(a.attempt, task) for a in reversed(told))
    newest = next((path for path in logs_there if path.exists()), None) or newest_log(folder, task)
    return read_on(_printed(folder, task, newest), lambda: True)


def _script(site: Site, folder: RunFolder, spec: ScriptSpec, follow: bool, task: int | None) -> Iterator[bytes]:
    """What a script's job prints stands where Slurm was asked to put it."""
    owner = user_name(os.stat(folder.root).st_uid)
    following = Follower(site, folder, 0)
    while True:
        over = not follow or following.script_ended()
        job = read_job(folder)
        found = scripts.printed(spec, job.job_id, owner, task) if job else []
        if found:
            return read_on(found[-1], lambda: not follow or following.script_ended())
        if over:
            place = scripts.where(spec, job.job_id, owner, task) if job else spec.output
            raise click.ClickException(f"{place}: run {folder.id} has printed nothing yet")
        following.say_why_it_waits()
        time.sleep(LOOK_S)


class Follower:
    """A run's output from its newest attempt on, until the run has ended: a restart's follows."""

    def __init__(self, site: Site, folder: RunFolder, task: int) -> None:
        self.site, self.folder, self.task = site, folder, task
        self.asked_at = time.monotonic()  # just submitted, or running: there is time
        self.ask_why_at = time.monotonic() + FIRST_ASK_S
        self.said: str | None = None

    def pieces(self) -> Iterator[bytes]:
        story = record.story(self.folder)
        shown = len(story.attempts) - (0 if story.submitted_again else 1)  # so many attempts need no showing any more
        shown = max(0, shown)
        while True:
            if shown < len(story.attempts):
                attempt = story.attempts[shown]
                if shown:
                    yield f"--- attempt {attempt.number}: job {attempt.job_id} on {attempt.nodes} ---\n".encode()
                yield from self._attempt(attempt)
                shown += 1
                if (after := self._after(attempt)) is not None:
                    yield after
            elif (story.attempts and not story.goes_on) or self._ended():
                return
            else:
                self.say_why_it_waits()
                time.sleep(LOOK_S)
            story = record.story(self.folder)

    def _attempt(self, attempt: Attempt) -> Iterator[bytes]:
        over = attempt_over(self.folder, attempt)
        path = self.folder.attempt_log(attempt.attempt, self.task)
        while not path.exists():
            if over() or self._ended():
                return
            time.sleep(LOOK_S)
        yield from read_on(path, lambda: over() or self._ended())

    def _after(self, attempt: Attempt) -> bytes | None:
        """What follows an attempt, once that is known, where the run goes on."""
        told = record.story(self.folder).attempts
        now = next((a for a in told if a.attempt == attempt.attempt), attempt)
        if now.cause is None or now.cause in ("completed", "cancelled"):
            return None
        return f"--- attempt {now.number} ended: {now.cause}{f'; {now.why}' if now.why else ''} ---\n".encode()

    def _ended(self) -> bool:
        """Whether the control plane knows that the run is over: not every end is announced. Asked now and then."""
        if time.monotonic() - self.asked_at < ASK_S:
            return False
        self.asked_at = time.monotonic()
        try:
            return Control(self.site.control_socket).get("/v1/runs/{}", self.folder.id)["run"]["state"] in record.ENDED
        except (Unreachable, Refused):
            return False

    def script_ended(self) -> bool:
        """The same of a script, of which the scheduler has to be asked where no controller answers."""
        if time.monotonic() - self.asked_at < ASK_S:
            return False
        self.asked_at = time.monotonic()
        if (known := registered(self.site, self.folder.id)) is not None:
            return known["run"]["state"] in record.ENDED
        return scripts.is_over(scheduler_for(self.site), self.folder)

    def say_why_it_waits(self) -> None:
        """Once, and when somebody knows."""
        if not self.said and time.monotonic() >= self.ask_why_at:
            self.ask_why_at = time.monotonic() + ASK_S
            self.said = why_it_waits(self.site, self.folder.id)
            if self.said:
                click.echo(self.said, err=True)


def why_it_waits(site: Site, run: str) -> str | None:
    """In the words of `headgate queue`, where a controller answers and knows the run's job."""
    from cli.sight import local

    try:
        control = Control(site.control_socket)
        jobs = {job["job_id"] for job in control.get("/v1/runs/{}", run)["jobs"]}
        waiting = [j for j in control.get("/v1/queue", all="1")["jobs"] if j["job"] in jobs]
    except (Unreachable, Refused):
        return None
    return f"run {run}, job {waiting[-1]['job']}: {local(waiting[-1]['why'])}" if waiting else None


def _chosen(told: Sequence[Attempt], wanted: str, folder: RunFolder) -> Attempt:
    for attempt in told:
        if wanted in (str(attempt.number), attempt.attempt):
            return attempt
    there_are = ", ".join(f"{a.number} ({a.attempt})" for a in told) or "none yet"
    raise click.ClickException(f"run {folder.id} has no attempt {wanted!r}; there are: {there_are}")


def _printed(folder: RunFolder, task: int, path: Path | None) -> Path:
    if path is None or not path.exists():
        raise click.ClickException(f"{folder.logs}: task {task} has printed nothing yet")
    return path


def newest_log(folder: RunFolder, task: int = 0) -> Path | None:
    """What one task of the newest attempt printed."""
    found = sorted(folder.logs.glob(f"*-{task}.log"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None


def has_ended(folder: RunFolder) -> bool:
    """Whether the newest word of the job is that its attempt ended."""
    said = list(names(folder.announcements))
    return bool(said) and said[-1].endswith("-attempt-ended.json")


def attempt_over(folder: RunFolder, attempt: Attempt) -> Callable[[], bool]:
    """Whether an attempt has ended and what follows is known, or another has begun."""

    def over() -> bool:
        told = record.story(folder).attempts
        now = next((a for a in told if a.attempt == attempt.attempt), attempt)
        if told and told[-1].number > now.number:
            return True
        return now.cause is not None and (now.action is not None or not now.judged)

    return over


def wait_for_log(folder: RunFolder, task: int) -> None:
    while newest_log(folder, task) is None and not has_ended(folder):
        time.sleep(LOOK_S)


def read_on(path: Path, ended: Callable[[], bool]) -> Iterator[bytes]:
    """The file's bytes, and those that come, until `ended()` and nothing is left."""
    try:
        with open_regular(path) as f:
            while True:
                over = ended()
                piece = f.read(1 << 16)
                if piece:
                    yield piece
                elif over:
                    return
                else:
                    time.sleep(LOOK_S)
    except Unbelievable as e:
        raise click.ClickException(f"{path}: {e}") from e
