"""`headgate apply -f FILE`, and what `headgate diff -f FILE` says before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.client import Control, Refused
from cli.context import Context
from cli.serve import apply as applied
from cli.serve import value
from cli.settling import Changes, wait_settled
from cli.table import printable
from registry.toml_layers import dotted

if TYPE_CHECKING:
    from launchers.deployment_spec import DeploymentSpec

Difference = tuple["DeploymentSpec", dict[str, Any]]  # what is asked, and what the control API says to it


@click.command()
@click.option(
    "-f",
    "--file",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="TOML, a table [deployments.NAME] for each; - for standard input.",
)
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--wait/--no-wait", default=False, show_default=True, help="Until each serves what was asked for.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def apply(context: Context, /, path: Path, dry_run: bool, wait: bool, as_json: bool) -> None:
    """Have deployments as FILE says: those that are missing are made, those that differ are changed.

    Other bounds of the replicas scale a deployment; anything else becomes a new revision. What FILE does not name is
    left alone. All of FILE is checked before anything changes.
    """
    control = Control(context.site().control_socket)
    told = list[dict[str, Any]]()
    try:
        for spec, would in differences(control, path):
            said = would if dry_run else _applied(control, path, spec)
            told.append({"name": spec.name, **said})
            if not as_json:
                click.echo(
                    printable("\n".join([f"deployment {spec.name}: {_done(said['done'], dry_run)}", *_lines(said)]))
                )
    finally:  # what was done is told, although the controller goes away before the rest
        if as_json and told:
            click.echo(json.dumps(told, indent=2))
    if wait and not dry_run:
        for said in told:
            scaled = said["done"] == "scaled"
            wait_settled(control, said["name"], said["deployment"]["revision"], Changes(), scaled=scaled)


def differences(control: Control, path: Path) -> list[Difference]:
    """What each deployment of the file would change. Nothing is."""
    from launchers.deployment_file import read
    from registry.strict_toml import ConfigError

    try:
        specs = read(Path("/dev/stdin"), Path.cwd()) if str(path) == "-" else read(path)
    except ConfigError as e:
        raise click.ClickException(str(e)) from e
    return [(spec, _applied(control, path, spec, dry_run=True)) for spec in specs]


def _applied(control: Control, path: Path, spec: DeploymentSpec, dry_run: bool = False) -> dict[str, Any]:
    """What is refused says whose it is: a file has many."""
    try:
        return applied(control, spec, dry_run)
    except Refused as e:
        raise Refused(f"{path}: {dotted(('deployments', spec.name))}: {e.message}", e.status) from e


def render(path: Path, found: list[Difference]) -> str:
    """As `diff` prints it: what differs of each deployment that does."""
    lines = ["--- deployed", f"+++ {path}"]
    for spec, said in found:
        if said["done"] == "created":
            lines.append(f"{spec.name}: - -> {spec.model}")
        else:
            lines += [f"{spec.name}.{c['field']}: {value(c['from'])} -> {value(c['to'])}" for c in said["changes"]]
    return printable("\n".join(lines))


def _done(done: str, dry_run: bool) -> str:
    return f"would be {done}" if dry_run and done != "unchanged" else done


def _lines(said: dict[str, Any]) -> list[str]:
    """A made one's fields differ from nothing: they stand in the file."""
    changes = said["changes"] if said["done"] != "created" else []
    return [f"  {c['field']}: {value(c['from'])} -> {value(c['to'])}" for c in changes]
