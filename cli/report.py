"""`headgate report`: made by the controller, shown here in whatever form is wanted."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cli.client import Control
from cli.context import Context
from cli.render import FORMATS, Format, render
from cli.table import printable
from registry.report import Report, from_json

KINDS = ("quota", "usage", "gpu", "models", "efficiency", "statement")


@click.command("report", epilog="Days and months are UTC's.")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--month", metavar="2026-11", help="Of that month. By default of this one.")
@click.option("--since", metavar="2026-11-24", help="Instead of a month: from that day on ...")
@click.option("--until", metavar="2026-12-01", help="... until before that day; by default until now.")
@click.option("--by", help="Columns to split it by, with commas between them: tenant,user,model,account,qos,partition.")
@click.option("--tenant", help="Of one tenant alone. Without it: of all that you may see.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write it into a file.")
@click.pass_obj
def report(
    context: Context,
    /,
    kind: str,
    month: str | None,
    since: str | None,
    until: str | None,
    by: str | None,
    tenant: str | None,
    form: Format,
    output: Path | None,
) -> None:
    """What was used, by whom, what it cost, and what is left.

    \b
    quota       each limit, used and left, and the day it runs out
    usage       requests, tokens and credits; top users; month against month
    gpu         GPU-hours by whom and what for, adding up to the scheduler's own
    models      each model's tokens, cost as served, charges and idle share
    efficiency  tokens per GPU-hour, waits in the queue, hours wasted
    statement   what each tenant owes for a month

    
    A report proves its figures. Where one of its checks does not hold, this says so and ends with status 1, in every
    format; the report is still written. CSV has figures alone: notes are printed beside it, as errors are.
    """
    made = fetch(
        Control(context.site().control_socket), kind, month=month, since=since, until=until, by=by, tenant=tenant
    )
    shown = render(made, form)
    if output is not None:
        write(output, shown)
    elif isinstance(shown, bytes) and sys.stdout.isatty():
        raise click.UsageError("a PDF is not for a terminal: say where it goes with -o FILE")
    else:
        click.echo(shown, nl=False)
    if form == "csv":
        for note in (*made.notes, *(f"{s.title}: {note}" for s in made.sections for note in s.notes)):
            click.echo(f"note: {printable(note)}", err=True)
    if failed := [c.text for c in made.checks if not c.holds]:
        said = f"{len(failed)} of {len(made.checks)} checks do not hold: {'; '.join(failed)}"
        raise click.ClickException(printable(said))


def fetch(control: Control, kind: str, **asked: str | None) -> Report:
    return from_json(control.get("/v1/report/{}", kind, **asked))


def write(path: Path, shown: str | bytes) -> None:
    try:
        path.write_bytes(shown.encode() if isinstance(shown, str) else shown)
    except OSError as e:
        raise click.ClickException(f"{path}: cannot be written: {e.strerror}") from e
