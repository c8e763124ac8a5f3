"""`headgate price`."""

from __future__ import annotations

from datetime import datetime

import click

from cli.client import Control
from cli.context import Context
from cli.moments import UtcInstant
from cli.table import json_option, show


@click.group()
def price() -> None:
    """Prices, in versions: of a model's tokens, and of a GPU type's hour."""


@price.command("set")
@click.argument("model", required=False)
@click.option("--prompt", type=float, metavar="N", help="Credits per million tokens of prompts.")
@click.option(
    "--cached", type=float, metavar="N", help="The same of those found in the engine's cache. Default: --prompt."
)
@click.option("--completion", type=float, metavar="N", help="The same of completions.")
@click.option("--gpu", metavar="TYPE", help="Instead of MODEL: a type of GPU, as Slurm's gres has it.")
@click.option("--hour", type=float, metavar="N", help="Credits per hour of one GPU.")
@click.option("--from", "start", type=UtcInstant(), metavar="DATE", help="From when on (UTC). Default: now.")
@click.pass_obj
def set_(
    context: Context,
    /,
    model: str | None,
    prompt: float | None,
    cached: float | None,
    completion: float | None,
    gpu: str | None,
    hour: float | None,
    start: datetime | None,
) -> None:
    """Set the price of MODEL, or of a GPU type. "default" is whatever has no price. What was billed stays as it was."""
    if (model is None) == (gpu is None):
        raise click.UsageError("name a MODEL, or a type of GPU with --gpu")
    if model is not None and (prompt is None or completion is None):
        raise click.UsageError("the price of a model needs --prompt and --completion")
    if gpu is not None and hour is None:
        raise click.UsageError("the price of a type of GPU needs --hour")
    made = Control(context.site().control_socket).post(
        "/v1/prices",
        kind="model" if model is not None else "gpu",
        name=model if model is not None else gpu,
        prompt=prompt,
        cached=cached,
        completion=completion,
        hour=hour,
        valid_from=None if start is None else start.isoformat(),
    )
    click.echo(f"price of {made['name']} set, from {made['valid_from']} on")


@price.command("list")
@click.option("--at", type=UtcInstant(), metavar="DATE", help="Only those that hold then (UTC).")
@json_option
@click.pass_obj
def list_(context: Context, /, at: datetime | None, as_json: bool) -> None:
    """Every price there was, is and will be; also the site file's. Tokens: credits per million."""
    found = Control(context.site().control_socket).get("/v1/prices", at=None if at is None else at.isoformat())
    if not as_json:
        found = [p | {"by": p["by"] or "site file", "cached": _cached(p)} for p in found]
    columns = ("kind", "name", "valid_from", "valid_until", "prompt", "cached", "completion", "hour", "by")
    show(found, columns, as_json, "no price yet: nothing is charged for")
    others = sorted(set(context.site().external) - {p["name"] for p in found})
    if others and not as_json:
        click.echo(
            f"external models without a price of their own cost what LiteLLM says: {', '.join(others)}", err=True
        )


def _cached(price: dict[str, float | None]) -> float | None:
    return price["prompt"] if price["cached"] is None else price["cached"]
