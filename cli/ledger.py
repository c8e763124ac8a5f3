"""`headgate ledger`: prove it, hand it on, copy it, and take a single event back. For the service's own account."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from cli.client import Control
from cli.context import Context
from cli.table import printable
from registry import ledger_backup, ledger_check, ledger_export
from registry.db import RegistryError, open_reader
from registry.ledger_export import Format

STDOUT = "-"


class Month(click.ParamType[str]):
    """A calendar month, in UTC as all of the ledger."""

    name = "month"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return datetime.strptime(value, "%Y-%m").strftime("%Y-%m")
        except ValueError:
            self.fail(f"{value!r} is no month; allowed: 2026-11", param, ctx)


@click.group()
def ledger() -> None:
    """The ledger: prove it, export it, copy it, correct it."""


@ledger.command()
@click.pass_obj
def verify(context: Context, /) -> None:
    """Prove that the ledger adds up; exit status 1 when something does not. Steps that were refused are listed."""
    with refusals(), closing(open_reader(context.site().ledger_db)) as db:
        found = ledger_check.verify(db)
    counts = found.counts
    click.echo(
        f"{counts.entries:,} entries, {counts.events:,} events, {counts.holds:,} open holds, "
        f"{counts.reversals:,} reversals; {counts.rolled_events:,} events were rolled up"
    )
    for line in found.conflicts:
        click.echo(printable(f"refused: {line}"))
    if found.refused > len(found.conflicts):
        click.echo(f"refused: {found.refused - len(found.conflicts):,} steps more, before these")
    for line in found.problems:
        click.echo(printable(line))
    if found.problems:
        raise click.ClickException(f"{context.site().ledger_db} does not add up")
    click.echo(
        "Every entry sums to zero, no number is missing, nothing is held by what is gone, every balance, total and day "
        "is what the events say"
    )


@ledger.command()
@click.option("--format", "form", type=click.Choice([f.value for f in Format]), required=True)
@click.option("--month", type=Month(), required=True, help="2026-11; days begin and end in UTC.")
@click.option("--tenant", help="One tenant's rows; by default everybody's.")
@click.option("--table", type=click.Choice(list(ledger_export.TABLES)), default="events", show_default=True)
@click.option("-o", "--output", required=True, metavar="FILE", help="- for standard output; not for Parquet.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.pass_obj
def export(
    context: Context, /, form: str, month: str, tenant: str | None, table: str, output: str, force: bool
) -> None:
    """Write a month's events, double entries or daily sums for other programs. Amounts are micro-credits."""
    wanted = Format(form)
    if output == STDOUT and wanted is Format.PARQUET:
        raise click.UsageError("Parquet is no text: say --output FILE")
    if output != STDOUT and Path(output).exists() and not force:
        raise click.ClickException(f"{output}: is there already; --force replaces it")
    with refusals(), closing(open_reader(context.site().ledger_db)) as db:
        if output == STDOUT:
            ledger_export.export(db, table, month, tenant, wanted, sys.stdout.buffer)
            return
        with ledger_export.whole_file(Path(output)) as file:
            rows = ledger_export.export(db, table, month, tenant, wanted, file)
    click.echo(f"{output}: {rows:,} rows of {table}, {month}")


@ledger.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def backup(context: Context, /, file: Path) -> None:
    """Copy the ledger into FILE, while the gateway goes on, and prove the copy.

    To restore it: stop the gateway, remove ledger.db-wal and ledger.db-shm, put FILE in the place of ledger.db, start
    the gateway. What the journals beside it have since is taken in again, once.
    """
    with refusals():
        size = ledger_backup.backup(context.site().ledger_db, file)
    click.echo(f"{file}: {size:,} bytes, as of {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}, and it is sound")


@ledger.command()
@click.argument("event_id")
@click.option("--reason", required=True, help="Stands in the ledger for good.")
@click.pass_obj
def reverse(context: Context, /, event_id: str, reason: str) -> None:
    """Take back all that an event used, by an event of its own: nothing in the ledger is changed or deleted."""
    said = Control(context.site().control_socket).post("/v1/ledger/reversals", event_id=event_id, reason=reason)
    if said["in_ledger"]:
        click.echo(f"{event_id} is reversed by {said['event_id']}")
    else:
        click.echo(f"{said['event_id']} is written, and reverses {event_id} once a gateway runs and takes it in")


@contextmanager
def refusals() -> Iterator[None]:
    """What the registry or the disk refuses ends the command with the message alone."""
    try:
        yield
    except RegistryError as e:
        raise click.ClickException(str(e)) from e
    except OSError as e:
        if e.errno == errno.EPIPE:
            raise  # whoever read has enough: click knows
        raise click.ClickException(f"{e.filename or 'the output'}: {e.strerror}") from e
