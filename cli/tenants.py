"""`headgate tenant` and `headgate key`."""

from __future__ import annotations

import json

import click

from cli.client import Control
from cli.context import Context
from cli.table import json_option, show
from registry.keys import Scope


@click.group()
def tenant() -> None:
    """Tenants: who is billed, and their limits."""


@tenant.command("create")
@click.argument("name")
@click.option("--account", help="The Slurm account this tenant stands for.")
@click.option("--requests-per-minute", type=int, help="Default: the site's.")
@click.option("--token-budget", type=int, help="Prompt and completion tokens in all. Default: the site's.")
@click.pass_obj
def create(
    context: Context, /, name: str, account: str | None, requests_per_minute: int | None, token_budget: int | None
) -> None:
    """Make a tenant."""
    Control(context.site().control_socket).post(
        "/v1/tenants",
        name=name,
        account=account,
        requests_per_minute=requests_per_minute,
        token_budget=token_budget,
    )
    click.echo(f"tenant {name} created")


@tenant.command("list")
@json_option
@click.pass_obj
def tenants(context: Context, /, as_json: bool) -> None:
    """Every tenant with its limits."""
    found = Control(context.site().control_socket).get("/v1/tenants")
    show(found, ("name", "account", "requests_per_minute", "token_budget", "owner"), as_json, "no tenant yet")


@tenant.command("limits")
@click.argument("name")
@click.option("--requests-per-minute", type=int)
@click.option("--token-budget", type=int, help="Prompt and completion tokens in all.")
@click.pass_obj
def limits(context: Context, /, name: str, requests_per_minute: int | None, token_budget: int | None) -> None:
    """Change a tenant's limits; what is not named stays."""
    if requests_per_minute is None and token_budget is None:
        raise click.UsageError("name a limit: --requests-per-minute, --token-budget")
    Control(context.site().control_socket).post(
        f"/v1/tenants/{name}/limits", requests_per_minute=requests_per_minute, token_budget=token_budget
    )
    click.echo(f"tenant {name}: limits changed")


@click.group()
def key() -> None:
    """Keys: what applications call with."""


@key.command("create")
@click.argument("tenant_name", metavar="TENANT")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    default=[Scope.INFERENCE.value],
    show_default=True,
    help="What it is good for; again for another.",
)
@click.option("--json", "as_json", is_flag=True, help="Print {key, secret}.")
@click.pass_obj
def create_key(context: Context, /, tenant_name: str, scopes: tuple[str, ...], as_json: bool) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    made = Control(context.site().control_socket).post("/v1/keys", tenant=tenant_name, scopes=list(scopes))
    click.echo(json.dumps(made, indent=2) if as_json else made["secret"])


@key.command("list")
@json_option
@click.pass_obj
def keys(context: Context, /, as_json: bool) -> None:
    """Every key by its id and first characters."""
    found = Control(context.site().control_socket).get("/v1/keys")
    show(found, ("id", "tenant", "scopes", "hint", "created_at", "revoked_at"), as_json, "no key yet")


@key.command("revoke")
@click.argument("key_id", metavar="KEY_ID")
@click.pass_obj
def revoke(context: Context, /, key_id: str) -> None:
    """Refuse a key from now on."""
    Control(context.site().control_socket).post(f"/v1/keys/{key_id}/revoke")
    click.echo(f"{key_id} revoked")
