"""`headgate alias`: names that move between a model's versions, and who moved them."""

from __future__ import annotations

from typing import Any

import click

from cli.client import Control
from cli.context import Context
from cli.table import json_option, show
from registry import canary as percent


class Alias(click.ParamType[tuple[str, str]]):
    """MODEL@ALIAS."""

    name = "alias"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        model, at, alias = str(value).partition("@")
        if not (model and at and alias):
            self.fail(f"{value!r} is not MODEL@ALIAS", param, ctx)
        return model, alias


@click.group()
def alias() -> None:
    """Aliases of models: deployments of MODEL@ALIAS roll each move out."""


@alias.command("list")
@json_option
@click.pass_obj
def list_(context: Context, /, as_json: bool) -> None:
    """Every alias, with the version that it names."""
    found = _control(context).get("/v1/aliases")
    empty = "no alias yet: `headgate alias set MODEL@ALIAS VERSION` makes one"
    show(found, ("model", "alias", "version", "owner", "moved_at"), as_json, empty)


@alias.command("set")
@click.argument("named", type=Alias(), metavar="MODEL@ALIAS")
@click.argument("version", type=click.IntRange(1))
@click.option("--why", help="Kept in its history.")
@click.option(
    "--canary",
    type=click.IntRange(percent.LEAST, percent.MOST),
    metavar="PERCENT",
    help="Of the calls, for the new version on trial.",
)
@click.pass_obj
def set_(context: Context, /, named: tuple[str, str], version: int, why: str | None, canary: int | None) -> None:
    """Have MODEL@ALIAS name VERSION; deployments that follow it roll it out."""
    model, name = named
    _control(context).post("/v1/aliases", model=model, alias=name, version=version, why=why, canary=canary)
    click.echo(f"{model}@{name} is version {version}")


@alias.command()
@click.argument("named", type=Alias(), metavar="MODEL@ALIAS")
@json_option
@click.pass_obj
def history(context: Context, /, named: tuple[str, str], as_json: bool) -> None:
    """Who moved it, when, from where, to where, and why; the newest first."""
    model, name = named
    found = _control(context).get("/v1/aliases/moves", model=model, alias=name)
    rows = found if as_json else [{**move, "from": move["from_version"], "to": move["to_version"]} for move in found]
    show(rows, ("at", "by", "from", "to", "canary", "why"), as_json, f"{model} has no alias {name!r}")


@alias.command()
@click.argument("named", type=Alias(), metavar="MODEL@ALIAS")
@click.option("--why", help="Kept in its history.")
@click.pass_obj
def rollback(context: Context, /, named: tuple[str, str], why: str | None) -> None:
    """Have it name again the version before the one that it names.

    It never goes to one that it was taken back from, by anybody or by Headgate for a canary that failed: doing it
    twice goes back twice.
    """
    model, name = named
    move = _control(context).post("/v1/aliases/rollback", model=model, alias=name, why=why)
    click.echo(f"{model}@{name} is version {move['to_version']} again")


def _control(context: Context) -> Control:
    return Control(context.site().control_socket)
