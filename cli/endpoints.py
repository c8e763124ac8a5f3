"""`headgate endpoint`."""

from __future__ import annotations

import click

from cli.client import Control
from cli.context import Context
from cli.table import json_option, show


class Share(click.ParamType[tuple[str, int]]):
    """NAME=NUMBER."""

    def __init__(self, name: str, default: int | None) -> None:
        self.name, self.default = name, default

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        deployment, equals, number = value.partition("=")
        if not equals and self.default is not None:
            return deployment, self.default
        if not deployment or not number.isascii() or not number.isdigit():
            self.fail(f"{value!r} is not DEPLOYMENT={self.name.upper()}, a whole number", param, ctx)
        return deployment, int(number)


@click.group()
def endpoint() -> None:
    """Endpoints: the stable names that clients call, whatever serves them."""


@endpoint.command("set")
@click.argument("name")
@click.option(
    "--to",
    "targets",
    multiple=True,
    required=True,
    type=Share("weight", 1),
    metavar="DEPLOYMENT[=WEIGHT]",
    help="Serves its weight's share of the calls; repeatable.",
)
@click.option(
    "--sticky",
    default="none",
    show_default=True,
    metavar="key|header:NAME|none",
    help="What keeps a caller at one deployment.",
)
@click.option(
    "--shadow",
    multiple=True,
    type=Share("percent", None),
    metavar="DEPLOYMENT=PERCENT",
    help="Gets copies of so many calls; nobody reads its answers. Repeatable.",
)
@click.option(
    "--fallback",
    "fallbacks",
    multiple=True,
    metavar="NAME",
    help="A deployment or external model for when no target answers; repeatable, in order.",
)
@click.pass_obj
def set_(
    context: Context,
    /,
    name: str,
    targets: tuple[tuple[str, int], ...],
    sticky: str,
    shadow: tuple[tuple[str, int], ...],
    fallbacks: tuple[str, ...],
) -> None:
    """Make the endpoint NAME, or replace all it did."""
    for option, shares in (("--to", targets), ("--shadow", shadow)):
        if len(dict(shares)) < len(shares):
            raise click.UsageError(f"{option} names a deployment twice")
    Control(context.site().control_socket).post(
        "/v1/endpoints",
        name=name,
        targets=dict(targets),
        sticky=None if sticky == "none" else sticky,
        shadow=dict(shadow),
        fallbacks=list(fallbacks),
    )
    click.echo(f"endpoint {name} set")


@endpoint.command("list")
@json_option
@click.pass_obj
def list_(context: Context, /, as_json: bool) -> None:
    """Every endpoint with what is behind it."""
    found = Control(context.site().control_socket).get("/v1/endpoints")
    if not as_json:
        for row in found:
            row |= {field: [f"{name}={share}" for name, share in row[field]] for field in ("targets", "shadow")}
    show(found, ("name", "targets", "sticky", "shadow", "fallbacks", "owner"), as_json, "no endpoint yet")


@endpoint.command("delete")
@click.argument("name")
@click.pass_obj
def delete(context: Context, /, name: str) -> None:
    """Forget the endpoint NAME; its deployments go on under their own names."""
    Control(context.site().control_socket).post("/v1/endpoints/{}/delete", name)
    click.echo(f"endpoint {name} deleted")
