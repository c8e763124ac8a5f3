"""`headgate submit`: what sbatch takes, as it takes it. Needs no control plane."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import click

from cli.context import Context
from launchers import sbatch
from launchers.sbatch import CommandLine, NotUnderstood
from launchers.submission import Outcome, Submission, find_script, prepare
from launchers.submission import submit as submit_script
from registry.site import Site

ABOUT = """\
Usage: headgate submit [--dry-run] [sbatch's options] SCRIPT [ARGUMENTS]

  Submit a script as sbatch does, with all of its options, and keep a run
  folder of it. --dry-run prints the script that would be submitted.

"""


class Verbatim(click.Command):
    """A command that gets its words as they were typed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params["words"] = tuple(args)
        return []


@click.command(cls=Verbatim, add_help_option=False)
@click.pass_obj
def submit(context: Context, /, words: tuple[str, ...]) -> None:
    """Submit a script as sbatch does, with all of sbatch's options, and keep a run folder of it."""
    site = context.site()
    environ = _environment(site)
    try:
        command = sbatch.parse(words)
    except NotUnderstood:
        command = None
    asks_for_help = command is not None and command.says("help", "usage")
    if asks_for_help:
        click.echo(ABOUT, nl=False)
    if site.scheduler.kind != "slurm":
        if asks_for_help:
            return
        raise click.ClickException(
            f"{site.file}: scheduler.kind is {site.scheduler.kind!r}, and `headgate submit` needs Slurm: name another "
            "site with --site or HEADGATE_SITE"
        )
    dry_run = command is not None and command.says("dry-run")
    if command is None or (not dry_run and _is_sbatchs_alone(command)):
        _sbatch(words, environ)
    cwd = os.getcwd()
    path = find_script(command, cwd, environ)
    try:
        body = _text(command, path)
    except OSError as e:
        if dry_run:
            raise click.ClickException(f"{path}: {e.strerror}") from e
        _sbatch(words, environ)  # which cannot read it either, and says so in its own words
    submission = prepare(words, command, body, path, cwd, environ, site.runs_dir)
    if dry_run:
        sys.stdout.buffer.write(submission.script)
        return
    out, err, quiet = sys.stdout.buffer, sys.stderr.buffer, command.says("quiet")
    try:
        outcome = submit_script(submission, site.runs_dir, environ, out, err, quiet=quiet)
    except OSError as e:
        raise click.ClickException(f"{e.filename or site.runs_dir}: {e.strerror or e}") from e
    _tell(site, submission, outcome)
    raise SystemExit(outcome.returncode)


def _environment(site: Site) -> dict[str, str]:
    """The person's own, whole: sbatch hands it to the job. On the site's cluster."""
    conf = site.scheduler.slurm_conf
    return {**os.environ, **({} if conf is None else {"SLURM_CONF": str(conf)})}


def _is_sbatchs_alone(command: CommandLine) -> bool:
    """Whether nothing will be submitted, or sbatch is going to refuse these words."""
    contradicts = command.says("quiet") and command.says("verbose")
    has_two_scripts = command.says("wrap") and command.script is not None
    return command.says("help", "usage", "version", "test-only") or contradicts or has_two_scripts


def _sbatch(words: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Become sbatch."""
    sys.stdout.flush()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python had it ignored
    try:
        os.execvpe("sbatch", ["sbatch", *words], environ)
    except OSError as e:
        raise click.ClickException(f"sbatch cannot be run: {e.strerror}") from e


def _text(command: CommandLine, path: Path | None) -> bytes:
    """The script's. Raises OSError."""
    if (wrap := command.last("wrap")) is not None:
        return sbatch.wrapped(wrap.value or "")
    return sys.stdin.buffer.read() if path is None else path.read_bytes()


def _tell(site: Site, submission: Submission, outcome: Outcome) -> None:
    if outcome.folder is not None and outcome.job_id is None:
        click.echo(
            f"headgate: whether there is a job is not known; run {submission.spec.id} in {outcome.folder.root} "
            "will find it if there is one",
            err=True,
        )
    if outcome.job_id is not None and site.control_socket.exists():
        from cli.client import Control

        Control(site.control_socket).poke()
