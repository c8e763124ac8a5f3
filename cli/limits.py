"""`headgate limit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from cli.client import Control
from cli.context import Context
from cli.table import cell, json_option, show
from registry.limits import NAMES, WHOLE, Subject

F = TypeVar("F", bound=Callable[..., Any])

# How each is said, and what --help says of it.
WORDS = {
    "requests_per_minute": ("{} requests a minute", "Requests within any 60 s."),
    "burst": ("{} of them at once", "So many of a minute's requests may start at once; the others evenly after them."),
    "tokens_per_minute": ("{} tokens a minute", "Prompt and completion tokens within any 60 s."),
    "concurrent_requests": ("{} requests in flight", "Requests in flight."),
    "tokens_per_day": ("{} tokens a day", "Tokens in a day (UTC)."),
    "tokens_per_month": ("{} tokens a month", "Tokens in a month (UTC)."),
    "credits_per_day": ("{} credits a day", "Credits in a day (UTC)."),
    "credits_per_month": ("{} credits a month", "Credits in a month (UTC)."),
    "token_budget": ("{} tokens in all", "Tokens in all, ever."),
    "spend_ceiling": ("{} credits in all", "Credits in all, ever."),
}
NONE = "none"


class Amount(click.ParamType[float | str]):
    """A number, or "none"."""

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.name = "whole number" if whole else "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        text = str(value).replace("_", "")
        if text == NONE:
            return NONE
        try:
            number = int(text) if self.whole else float(text)
        except ValueError:
            number = -1
        if not (math.isfinite(number) and number >= 0):
            self.fail(f"{value!r} is no {self.name} from 0, nor {NONE!r}, which takes the limit away", param, ctx)
        return number


def limit_options(otherwise: str) -> Callable[[F], F]:
    """An option per limit, whose values `amounts_of` reads. `otherwise`: what holds for those that are not given."""

    def decorate(command: F) -> F:
        for name in reversed(NAMES):
            text = f"{WORDS[name][1]} {otherwise}" if name == NAMES[0] else WORDS[name][1]
            option = f"--{name.replace('_', '-')}"
            command = click.option(option, type=Amount(name in WHOLE), metavar="N|none", help=text)(command)
        return command

    return decorate


def amounts_of(options: Mapping[str, float | str | None]) -> dict[str, float | None]:
    """The limits that were given; None is to take one away."""
    given = {name: value for name, value in options.items() if value is not None}
    return {name: None if isinstance(value, str) else value for name, value in given.items()}


def in_words(limits: Mapping[str, float | None]) -> str:
    said = [words.format(cell(limits[name])) for name, (words, _) in WORDS.items() if limits[name] is not None]
    return ", ".join(said) or "no limit"


def change(context: Context, of: str, name: str, options: Mapping[str, float | str | None]) -> None:
    """Change the limits that were given, and say what holds now."""
    amounts = amounts_of(options)
    if not amounts:
        raise click.UsageError(f"name a limit: --{', --'.join(n.replace('_', '-') for n in NAMES)}")
    said = Control(context.site().control_socket).post("/v1/quotas", of=of, name=name, limits=amounts)
    for warning in said["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{of} {name}: {in_words(said['limits'])}")


SUBJECTS = click.Choice([subject.value for subject in Subject])


@click.group()
def limit() -> None:
    """Limits of tenants, users, keys and models. All that concern a request are checked together."""


@limit.command("set")
@click.argument("of", type=SUBJECTS)
@click.argument("name")
@limit_options("What is not named stays; none takes one away.")
@click.pass_obj
def set_(context: Context, /, of: str, name: str, **amounts: Any) -> None:
    """Change limits; running gateways know within a second. NAME: a key's id, an application's TENANT/app:NAME."""
    change(context, of, name, amounts)


@limit.command("list")
@click.option("--of", type=SUBJECTS, help="Only those of tenants, users, keys or models.")
@json_option
@click.pass_obj
def list_(context: Context, /, of: str | None, as_json: bool) -> None:
    """Whatever is limited, as far as I may see it."""
    found = Control(context.site().control_socket).get("/v1/quotas", of=of)
    if not as_json:
        found = [row | {"limits": in_words(row["limits"])} for row in found]
    show(found, ("of", "name", "limits"), as_json, "nothing is limited")
