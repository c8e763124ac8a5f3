"""`headgate login`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cli import credentials
from cli.client import Control
from cli.context import Context
from cli.credentials import Credentials
from launchers.schedulers import slurm_environment
from slurm import munge
from slurm.errors import SlurmUnavailable


@click.command()
@click.option(
    "--url",
    envvar="HEADGATE_URL",
    show_envvar=True,
    help="The control API: https://HOST:PORT. Absent: the one on this host.",
)
@click.option("--tenant", help="Whose the key shall be, if you are a member of several.")
@click.option(
    "--cacert",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    help="PEM file of the authority that vouches for the URL; else SSL_CERT_FILE or the system's.",
)
@click.option("--show", is_flag=True, help="Print the key as well.")
@click.pass_obj
def login(context: Context, /, url: str | None, tenant: str | None, cacert: Path | None, show: bool) -> None:
    """Get a key as the cluster's user that you are, and keep it for the commands on this host.

    Munge, Slurm's own authentication, says who you are: there is no password. The key calls models and the control
    API until it expires.
    """
    site = context.site()
    control = Control(site.control_socket, here=True)
    if url is not None:
        url = credentials.checked_url(url)
        asking = Credentials(url, "", cacert=None if cacert is None else str(cacert))
        control = Control(site.control_socket, remote=asking)
    wanted = control.post("/v1/login/nonce")
    environment = slurm_environment(site, os.environ)
    try:
        credential = munge.encode(
            str(wanted["nonce"]),
            int(wanted["uid"]),
            int(wanted["ttl_s"]),
            environment=environment,
            socket=munge.configured_socket(environment),
        )
    except SlurmUnavailable as e:
        raise click.ClickException(f"munge makes no credential: {e}") from e
    made = control.post("/v1/login", credential=credential, tenant=tenant)
    key = made["key"]
    where = Credentials(url, "", cacert=None if cacert is None else str(cacert))
    if url is None:  # a home may be shared with hosts that need to know it
        where = credentials.stored(os.environ) or where
    got = Credentials(where.url, made["secret"], key["tenant"], key["expires_at"], where.cacert)
    path = credentials.store(got, os.environ)
    click.echo(f"logged in as {key['user']} of tenant {key['tenant']} until {key['expires_at'][:10]}; key in {path}")
    if show:
        click.echo(made["secret"])
