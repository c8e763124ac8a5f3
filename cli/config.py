"""`headgate config`: what this site is set to, and by which line of which file."""

from __future__ import annotations

import json

import click

from cli.context import Context
from registry.site import show


@click.group()
def config() -> None:
    """Settings of the site."""


@config.command("show")
@click.option("--origin", is_flag=True, help="Say where each value came from: a file and line, a variable, a flag.")
@click.option("--json", "as_json", is_flag=True, help="A list of {key, value, origin}.")
@click.pass_obj
def show_command(context: Context, /, origin: bool, as_json: bool) -> None:
    """Print every setting, defaults included."""
    rows = show(context.site())
    if as_json:
        click.echo(json.dumps([{"key": k, "value": v, "origin": o} for k, v, o in rows], indent=2))
        return
    # Values as TOML writes them, which for these types is how JSON does; a setting left open has none.
    lines = [
        (f"{key} = {json.dumps(value, ensure_ascii=False)}" if value is not None else f"# {key} is not set", o)
        for key, value, o in rows
    ]
    width = min(max(len(line) for line, _ in lines), 72)
    for line, where in lines:
        click.echo(f"{line:{width}}  # {where}" if origin else line)
