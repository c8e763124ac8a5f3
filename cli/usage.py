"""`headgate usage`: what my accounts use and what their limits leave; with --since, what was used in the past."""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from cli.client import Control
from cli.context import Context
from cli.moments import Moment, local_zone
from cli.render import render as render_report
from cli.report import fetch
from cli.sight import footing, hidden, local, look, slurm_answers
from cli.table import json_option, table
from launchers import direct
from launchers.subjects import user_name
from registry.site import Site
from slurm import amounts

if TYPE_CHECKING:
    from slurm.accounting import By, Total, Usage

LIMITS = ("of", "what", "limit", "used", "left", "in Slurm's words")
FAIR_SHARE = ("of", "shares", "recent billing-hours", "fair-share")
BY = ("cluster", "account", "user", "qos", "partition", "month")


@click.command()
@click.option("-A", "--account", help="One account; by default all that I may use.")
@click.option("--since", type=Moment(), help="From the books instead: what was used since 2026-11, 2026-11-24, 7d ...")
@click.option("--until", type=Moment(), help="... until then; by default now.")
@click.option("--by", multiple=True, type=click.Choice(BY), help="Split what was used; may be given several times.")
@click.option("-a", "--all", "everybody", is_flag=True, help="With --since: everybody's use, not mine alone.")
@click.option("--mine", is_flag=True, help="Instead what my tenants used this month, and what is left.")
@json_option
@click.pass_obj
def usage(
    context: Context,
    /,
    account: str | None,
    since: datetime | None,
    until: datetime | None,
    by: tuple[By, ...],
    everybody: bool,
    mine: bool,
    as_json: bool,
) -> None:
    """My accounts' use against their limits, those of the accounts above them, and of each QOS; my fair-share."""
    site = context.site()
    if mine:
        if account or since or until or by or everybody:
            raise click.UsageError("--mine is of tenants: it goes with --json alone")
        made = fetch(Control(site.control_socket), "mine")
        click.echo(render_report(made, "json" if as_json else "table"), nl=False)
    elif since is not None:
        window = (since, until or datetime.now().astimezone())
        books(site, window, account, tuple(dict.fromkeys(by)) or ("account",), everybody, as_json)
    elif until or by or everybody:
        raise click.UsageError("--until, --by and --all are of the books: say --since as well")
    else:
        said = look(site, "/v1/limits", lambda source: direct.usage(source, account), account=account)
        click.echo(json.dumps(said, indent=2) if as_json else render(said))


def render(said: dict[str, Any]) -> str:
    lines = []
    if said["limits"]:
        rows = [
            {**row, "limit": "none" if row["allowed"] is None else row["allowed"], "in Slurm's words": row["kind"]}
            for row in said["limits"]
        ]
        lines.append(table(rows, LIMITS))
    if said["fair_share"]:
        rows = [
            {**row, "recent billing-hours": row["recent_billing_hours"], "fair-share": row["fair_share"]}
            for row in said["fair_share"]
        ]
        lines += ["", "Fair-share (0: far more used than its share, 1: nothing)", table(rows, FAIR_SHARE), ""]
    if not lines:
        lines.append(f"nothing limits {said['user']} here")
    if note := hidden(said, "usage"):
        lines.append(note)
    return "\n".join([*lines, footing(said)])


# The books. Asked for as whoever types this: slurmdbd shows each what they may see.


def books(
    site: Site,
    window: tuple[datetime, datetime],
    account: str | None,
    by: tuple[By, ...],
    everybody: bool,
    as_json: bool,
) -> None:
    from launchers.schedulers import slurm_client
    from slurm import accounting

    if site.scheduler.kind != "slurm":
        raise click.ClickException("--since reads Slurm's books; `headgate report gpu` has those of this machine")
    start, end = window
    whose = None if everybody or account else user_name(os.getuid())
    client = slurm_client(site, "commands")
    with slurm_answers():
        found = accounting.usage(client, start, end, user=whose, account=account)
        if account and not found.attempts:
            known = sorted({a.account for a in client.associations()})
            if known and account not in known:
                raise ValueError(f"no account is called {account!r}; you may see: {', '.join(known)}")
    of = f"account {account}" if account else whose or "everybody"
    click.echo(json.dumps(as_document(found, by, of), indent=2) if as_json else books_table(found, by, of))


def as_document(found: Usage, by: tuple[By, ...], of: str) -> dict[str, Any]:
    """Whole seconds, so that the parts add up to the total."""
    return {
        "of": of,
        "since": amounts.moment(found.start),
        "until": amounts.moment(found.end),
        "at": amounts.moment(found.at),
        "partial": found.partial,
        "totals": [dict(zip(by, key, strict=True)) | _seconds(total) for key, total in _totals(found, by).items()],
        "total": _seconds(found.total),
    }


def _totals(found: Usage, by: tuple[By, ...]) -> dict[tuple[str, ...], Total]:
    return found.totals(*by, zone=local_zone()) if "month" in by else found.totals(*by)


def _seconds(total: Total) -> dict[str, Any]:
    used = total.tres_s
    return {
        "attempts": total.attempts,
        "elapsed_s": total.elapsed_s,
        "gpu_s": used.gpus,
        "gpu_s_by_type": dict(used.gpus_by_type),
        "cpu_s": used.cpus,
        "memory_byte_s": used.memory_bytes,
        "node_s": used.nodes,
        "billing_s": used.billing,
    }


def books_table(found: Usage, by: tuple[By, ...], of: str) -> str:
    kinds = [kind for kind, _ in found.total.tres_s.gpus_by_type]
    gpus = [amounts.hours_of(f"gres/gpu:{kind}") for kind in kinds]
    columns = (
        *by,
        "attempts",
        "GPU-hours",
        *(gpus if len(gpus) > 1 else ()),
        "CPU-hours",
        "GiB-hours",
        "billing-hours",
    )
    rows = [dict(zip(by, key, strict=True)) | _hours(total) for key, total in _totals(found, by).items()]
    rows.append({by[0]: "total", **{b: "" for b in by[1:]}, **_hours(found.total)})
    lines = [local(f"{of}, {amounts.moment(found.start)} to {amounts.moment(found.end)}"), table(rows, columns)]
    if found.partial:
        lines.append(f"This may not be all: {found.partial}")
    if found.estimated:
        lines.append(f"CPU-hours of {amounts.counted(len(found.estimated), 'suspended attempt')} are estimated")
    return "\n".join(lines)


def _hours(total: Total) -> dict[str, Any]:
    used = total.tres_s
    return {
        "attempts": total.attempts,
        "GPU-hours": amounts.hours("gres/gpu", used.gpus),
        **{amounts.hours_of(f"gres/gpu:{kind}"): amounts.hours(kind, s) for kind, s in used.gpus_by_type},
        "CPU-hours": amounts.hours("cpu", used.cpus),
        "GiB-hours": amounts.hours("mem", used.memory_bytes),
        "billing-hours": amounts.hours("billing", used.billing),
    }
