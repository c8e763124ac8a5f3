"""`headgate tenant`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import click

from cli.client import Control
from cli.context import Context
from cli.keys import KEY_COLUMNS, shown
from cli.limits import NONE, amounts_of, change, in_words, limit_options
from cli.table import cell, json_option, show, table


@click.group()
def tenant() -> None:
    """Tenants: who is billed, who belongs to them, and their limits."""


@tenant.command("create")
@click.argument("name")
@click.option("--account", help="The Slurm account this tenant stands for.")
@limit_options("What is not said is the site's ([tenants.default]).")
@click.pass_obj
def create(context: Context, /, name: str, account: str | None, **amounts: Any) -> None:
    """Make a tenant."""
    made = _control(context).post("/v1/tenants", name=name, account=account, limits=amounts_of(amounts))
    click.echo(f"tenant {name} created: {in_words(made['limits'])}")


@tenant.command("list")
@json_option
@click.pass_obj
def list_(context: Context, /, as_json: bool) -> None:
    """Every tenant (for an administrator), or those I belong to."""
    found = _control(context).get("/v1/tenants")
    if not as_json:
        found = [row | {"limits": in_words(row["limits"])} for row in found]
    show(found, ("name", "account", "members", "limits", "owner"), as_json, "no tenant yet")


@tenant.command("show")
@click.argument("name")
@json_option
@click.pass_obj
def show_(context: Context, /, name: str, as_json: bool) -> None:
    """One tenant: its account, limits, members and keys."""
    found = _control(context).get("/v1/tenants/{}", name)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    whole = found["tenant"]
    click.echo(f"tenant   {whole['name']}, made by {whole['owner']} at {whole['created_at']}")
    click.echo(f"account  {cell(whole['account'])}")
    click.echo(f"limits   {in_words(found['limits'])}")
    for rows, columns in ((found["members"], MEMBER_COLUMNS), ([shown(k) for k in found["keys"]], KEY_COLUMNS)):
        if rows:
            click.echo("\n" + table(rows, columns))


@tenant.command("account")
@click.argument("name")
@click.argument("account", required=False)
@click.pass_obj
def account(context: Context, /, name: str, account: str | None) -> None:
    """Have a tenant stand for a Slurm account, or for "none"; without ACCOUNT, say which it is."""
    control = _control(context)
    if account is None:
        account = control.get("/v1/tenants/{}", name)["tenant"]["account"]
    else:
        account = None if account == NONE else account
        control.post("/v1/tenants/{}/account", name, account=account)
    click.echo(f"tenant {name} stands for {f'account {account}' if account else 'no account'}")


@tenant.command("limits")
@click.argument("name")
@limit_options("What is not named stays.")
@click.pass_obj
def limits(context: Context, /, name: str, **amounts: Any) -> None:
    """Change a tenant's limits: `limit set tenant NAME`."""
    change(context, "tenant", name, amounts)


@tenant.command("sync")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("--prune", is_flag=True, help="Remove members whom Slurm no longer has, and revoke their keys there.")
@click.option("--json", "as_json", is_flag=True, help="Print {changes, done}.")
@click.pass_obj
def sync(context: Context, /, dry_run: bool, prune: bool, as_json: bool) -> None:
    """A tenant for every Slurm account that has users, a member for every user. Takes nothing away without --prune."""
    said = _control(context).post("/v1/tenants/sync", dry_run=dry_run, prune=prune)
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    lines = list(told(said["changes"]))
    if dry_run:
        click.echo("nothing was changed; without --dry-run this would be done:" if lines else "nothing to do")
    for line in lines or ([] if dry_run else ["everything is as Slurm has it"]):
        click.echo(line)


def told(changes: dict[str, Any]) -> Iterable[str]:
    """What a sync does, a line each."""
    for name, account in changes["create"]:
        yield f"tenant {name}: made for account {account}"
    for name, users in _by_tenant(changes["add"]):
        yield f"tenant {name}: added {', '.join(users)}"
    for name, users in _by_tenant(changes["gone"]):
        if changes["prune"]:
            yield f"tenant {name}: removed {', '.join(users)}"
        else:
            yield f"tenant {name}: Slurm no longer has {', '.join(users)}; --prune removes them and revokes their keys"
    for key in changes["revoke"] if changes["prune"] else ():
        yield f"tenant {key['tenant']}: revoked {key['id']} of {key['user']}"
    for account, why in changes["skipped"]:
        yield f"account {account}: skipped: {why}"


def _by_tenant(pairs: Iterable[tuple[str, str]]) -> Iterable[tuple[str, list[str]]]:
    found = defaultdict(list)
    for name, user in pairs:
        found[name].append(user)
    return found.items()


@tenant.group("member")
def member() -> None:
    """Who belongs to a tenant, and so may make keys for themselves in it."""


MEMBER_COLUMNS = ("user", "source", "added_at")


@member.command("add")
@click.argument("name", metavar="TENANT")
@click.argument("user")
@click.pass_obj
def add(context: Context, /, name: str, user: str) -> None:
    """Have USER belong to TENANT."""
    _control(context).post("/v1/tenants/{}/members", name, user=user)
    click.echo(f"{user} is a member of tenant {name}")


@member.command("remove")
@click.argument("name", metavar="TENANT")
@click.argument("user")
@click.pass_obj
def remove(context: Context, /, name: str, user: str) -> None:
    """Have USER belong to TENANT no more, and revoke the keys they have there."""
    revoked = _control(context).post("/v1/tenants/{}/members/remove", name, user=user)
    keys = f"; revoked: {', '.join(k['id'] for k in revoked)}" if revoked else ""
    click.echo(f"{user} is no longer a member of tenant {name}{keys}")


@member.command("list")
@click.argument("name", metavar="TENANT")
@json_option
@click.pass_obj
def members(context: Context, /, name: str, as_json: bool) -> None:
    """Who belongs to TENANT, and by whose word."""
    found = _control(context).get("/v1/tenants/{}", name)["members"]
    show(found, MEMBER_COLUMNS, as_json, f"nobody belongs to tenant {name} yet")


def _control(context: Context) -> Control:
    return Control(context.site().control_socket)
