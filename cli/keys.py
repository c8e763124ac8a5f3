"""`headgate key`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click

from cli.client import Control
from cli.context import Context
from cli.moments import Duration, UtcInstant
from cli.table import json_option, show
from registry.keys import Scope

KEY_COLUMNS = ("id", "tenant", "user", "scopes", "models", "hint", "created_at", "expires_at", "state")


@click.group()
def key() -> None:
    """Keys: what users and applications call with."""


@key.command("create")
@click.argument("tenant")
@click.option("--user", help="Whose key it is. Default: mine.")
@click.option("--app", metavar="NAME", help="It is an application's, not a user's.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    default=[Scope.INFERENCE.value],
    show_default=True,
    help="What it is good for; again for another.",
)
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="It may call this model only; again for another."
)
@click.option("--expires", type=UtcInstant(), metavar="90d|DATE", help="When it ends (UTC). Default: never.")
@click.option("--json", "as_json", is_flag=True, help="Print {key, secret, warnings}.")
@click.pass_obj
def create(
    context: Context,
    /,
    tenant: str,
    user: str | None,
    app: str | None,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    expires: datetime | None,
    as_json: bool,
) -> None:
    """Make a key and print it, this once: only its hash is kept. Members of TENANT may make keys for themselves."""
    if user is not None and app is not None:
        raise click.UsageError("a key is a user's or an application's: --user or --app, not both")
    made = _control(context).post(
        "/v1/keys",
        tenant=tenant,
        user=user,
        app=app,
        scopes=list(scopes),
        models=list(models) or None,
        expires_at=_text(expires),
    )
    for warning in made["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    click.echo(json.dumps(made, indent=2) if as_json else made["secret"])


@key.command("list")
@click.option("--tenant", help="Only this tenant's.")
@click.option("--mine", is_flag=True, help="Only mine. (Whoever is no administrator sees no others anyway.)")
@json_option
@click.pass_obj
def list_(context: Context, /, tenant: str | None, mine: bool, as_json: bool) -> None:
    """Keys by their ids and first characters."""
    found = _control(context).get("/v1/keys", tenant=tenant, mine="1" if mine else None)
    show(found if as_json else [shown(k) for k in found], KEY_COLUMNS, as_json, "no key yet")


@key.command("revoke")
@click.argument("key_id")
@json_option
@click.pass_obj
def revoke(context: Context, /, key_id: str, as_json: bool) -> None:
    """Refuse a key from now on."""
    revoked = _control(context).post("/v1/keys/{}/revoke", key_id)
    click.echo(json.dumps(revoked, indent=2) if as_json else f"{key_id} revoked")


@key.command("rotate")
@click.argument("key_id")
@click.option(
    "--grace", type=Duration(), metavar="24h", help="How long the old one goes on working. Default: the site's."
)
@click.option(
    "--expires", type=UtcInstant(), metavar="90d|DATE", help="When the new one ends. Default: as the old one."
)
@click.option("--json", "as_json", is_flag=True, help="Print {key, secret, old}.")
@click.pass_obj
def rotate(context: Context, /, key_id: str, grace: int | None, expires: datetime | None, as_json: bool) -> None:
    """Make a key in the place of another, and print it, this once; the other works for a while yet."""
    made = _control(context).post("/v1/keys/{}/rotate", key_id, grace_s=grace, expires_at=_text(expires))
    if as_json:
        click.echo(json.dumps(made, indent=2))
    else:
        click.echo(f"{key_id} works until {made['old']['expires_at']}; {made['key']['id']} is in its place", err=True)
        click.echo(made["secret"])


def shown(key: dict[str, Any], now: datetime | None = None) -> dict[str, Any]:
    """A key with its state in a word or three."""
    ended = key["expires_at"] and datetime.fromisoformat(key["expires_at"]) <= (now or datetime.now(UTC))
    if key["revoked_at"]:
        state = f"revoked {key['revoked_at']}"
    elif ended:
        state = "expired"
    elif key["replaced_by"]:
        state = f"rotated to {key['replaced_by']}"
    else:
        state = "live"
    return key | {"state": state, "models": key["models"] or "all"}


def _text(instant: datetime | None) -> str | None:
    return None if instant is None else instant.isoformat()


def _control(context: Context) -> Control:
    return Control(context.site().control_socket)
