"""`headgate up`, `down`, and the two services they start and stop."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import psutil

from cli.client import Control, Refused, Unreachable
from cli.context import Context
from registry.db import StorageError, require_room
from registry.site import Site

START_S = 60.0
STOP_S = 60.0


@click.command()
@click.pass_obj
def up(context: Context, /) -> None:
    """Start the gateway and the controller in the background, and say where they are."""
    started = start_services(context)
    site = context.site()
    for service in ("controller", "gateway"):
        click.echo(f"{service}: {'started' if service in started else 'already running'}")
    click.echo(f"applications call {url(site)}/v1")


@click.command()
@click.option(
    "--stop-deployments/--keep-deployments",
    "stop_deployments",
    default=None,
    help="Default: stop them where jobs are local processes, keep them on Slurm.",
)
@click.pass_obj
def down(context: Context, /, stop_deployments: bool | None) -> None:
    """Stop the gateway and the controller, and, where jobs are processes of this machine, those too.

    On Slurm, jobs go on; deployments are taken up again by the next `headgate up`, unless told otherwise.
    """
    site = context.site()
    local = site.scheduler.kind == "local"
    if local if stop_deployments is None else stop_deployments:
        for name in wind_down_deployments(site):
            click.echo(f"deployment {name}: stopped")
    if local and stop_deployments is not False:
        for name in stop_local_jobs(site):
            click.echo(f"{name}: stopped")
    stopped = stop_services(site)
    click.echo("\n".join(f"{name}: stopped" for name in stopped) or "nothing was running")


@click.command()
@click.option("--take-over", is_flag=True, help="In place of the gateway that runs here: it finishes its streams.")
@click.pass_obj
def gateway(context: Context, /, take_over: bool) -> None:
    """Serve tenant traffic until SIGTERM."""
    from gateway.serve import run

    prepare_service()
    sys.exit(run(context.site(), take_over=take_over))


@click.command()
@click.pass_obj
def upgrade(context: Context, /) -> None:
    """Replace the running gateway by a new one: it takes over the listening socket, so that no request is refused.

    The old one finishes its streams, however long they take, and ends by itself.
    """
    site = context.site()
    old = running(site, "gateway")
    if old is None:
        raise click.ClickException("no gateway runs here; `headgate up` starts one")
    start(context, site, "gateway", lambda site: gateway_answers(site, but=old.pid), "--take-over")
    new = running(site, "gateway")
    click.echo(f"gateway: process {new.pid if new else '?'} has taken over; {old.pid} finishes its streams")


@click.command()
@click.option("--standby", is_flag=True, help="Where another controller runs here: wait until it ends, then lead.")
@click.pass_obj
def controller(context: Context, /, standby: bool) -> None:
    """Reconcile and serve the control API until SIGTERM."""
    from launchers.control import run
    from launchers.schedulers import scheduler_for

    prepare_service()
    site = context.site()
    try:
        run(site, scheduler_for(site), standby=standby)
    except (StorageError, ValueError) as e:
        raise click.ClickException(str(e)) from e
    except OSError as e:  # the control API's address is taken, say
        raise click.ClickException(e.strerror or str(e)) from e


def prepare_service() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.umask(0o027)  # facts are group-readable, nothing is world-readable


def url(site: Site) -> str:
    return f"{'https' if site.gateway.tls else 'http'}://{site.gateway.host}:{site.gateway.port}"


def start_services(context: Context) -> list[str]:
    """Start what is not running; returns the names of what was started. Nothing stays when one of them fails."""
    site = context.site()
    try:
        require_room(site.state_dir)  # before their logs, which could not say so any more
        site.services_dir.mkdir(parents=True, exist_ok=True)
    except (StorageError, OSError) as e:
        raise click.ClickException(str(e)) from e
    started: list[str] = []
    try:
        for name, answers in (("controller", controller_answers), ("gateway", gateway_answers)):
            if running(site, name) is None:
                started.append(name)
                start(context, site, name, answers)
    except BaseException:
        stop_services(site, started)
        raise
    return started


def start(context: Context, site: Site, name: str, answers: Callable[[Site], bool], *options: str) -> None:
    log_path = site.services_dir / f"{name}.log"
    words = [sys.executable, "-m", "cli.main"]
    words += ["--site", str(context.site_file)] if context.site_file else []
    words += [word for setting in context.settings for word in ("--set", setting)]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with open(log_path, "ab") as log:
        begins = log.tell()
        process = subprocess.Popen(
            [*words, name, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
        )
    created = psutil.Process(process.pid).create_time()
    before = _pid_file(site, name).read_text(encoding="utf-8") if _pid_file(site, name).exists() else None
    _pid_file(site, name).write_text(json.dumps({"pid": process.pid, "created": created}), encoding="utf-8")
    deadline = time.monotonic() + START_S
    while not answers(site):
        if process.poll() is not None:
            if before is None:
                _pid_file(site, name).unlink(missing_ok=True)
            else:  # that one serves on
                _pid_file(site, name).write_text(before, encoding="utf-8")
            said = log_path.read_bytes()[begins:].decode(errors="replace").strip().splitlines()
            last = said[-1].removeprefix("Error: ") if said else "it said nothing"
            raise click.ClickException(f"the {name} did not start: {last}\n(its log: {log_path})")
        if time.monotonic() > deadline:
            raise click.ClickException(f"the {name} did not answer within {START_S:.0f} s (its log: {log_path})")
        time.sleep(0.1)


def controller_answers(site: Site) -> bool:
    try:
        Control(site.control_socket, timeout_s=5, here=True).get("/v1/status")
    except (Unreachable, Refused):
        return False
    return True


def gateway_answers(site: Site, but: int | None = None) -> bool:
    """Whether this site's own gateway answers: on a login node somebody else's may hold the port.

    `but`: not the process of this id, which another one is to replace.
    """
    connection: http.client.HTTPConnection
    if site.gateway.tls:
        # Its certificate names the host that clients call, which need not be this address; nothing secret is sent.
        anyone = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(site.gateway.host, site.gateway.port, timeout=5, context=anyone)
    else:
        connection = http.client.HTTPConnection(site.gateway.host, site.gateway.port, timeout=5)
    try:
        connection.request("GET", "/health")
        said = json.loads(connection.getresponse().read(4096))
        ours = isinstance(said, dict) and said.get("state_dir") == str(site.state_dir)
        return ours and (but is None or said.get("pid") != but)
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def running(site: Site, name: str) -> psutil.Process | None:
    """The service's process, by pid and start time, if it is alive."""
    try:
        noted = json.loads(_pid_file(site, name).read_text(encoding="utf-8"))
        process = psutil.Process(int(noted["pid"]))
        alive = abs(process.create_time() - float(noted["created"])) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None
    return process if alive else None


def stop_services(site: Site, names: list[str] | None = None) -> list[str]:
    """SIGTERM, wait, and SIGKILL for one that hangs. Returns the names of those that were running."""
    stopped = []
    for name in names if names is not None else ["gateway", "controller"]:
        process = running(site, name)
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait()
            stopped.append(name)
        _pid_file(site, name).unlink(missing_ok=True)
    return stopped


def wind_down_deployments(site: Site) -> list[str]:
    """Stop every deployment and wait until their replicas are gone. Nothing to do when the controller is not up."""
    control = Control(site.control_socket, here=True)
    try:
        live = [d["deployment"]["name"] for d in control.get("/v1/deployments") if not _ended(d)]
    except Unreachable:
        return []
    for name in live:
        control.post("/v1/deployments/{}/stop", name)
    deadline = time.monotonic() + STOP_S + site.replicas.drain_timeout_s + site.replicas.shutdown_timeout_s
    while not all(_ended(d) and _jobs_ended(d) for d in control.get("/v1/deployments")):
        if time.monotonic() > deadline:
            raise click.ClickException("the deployments did not stop; `headgate status` shows them")
        time.sleep(0.2)
    return live


def stop_local_jobs(site: Site) -> list[str]:
    """Ask every job that still runs on this machine to stop, and wait until it has. Needs no controller."""
    from launchers.local_job import records
    from launchers.schedulers import local_spool

    live = [job for job in records(local_spool(site)) if job.process() is not None]
    for job in live:
        job.terminate(local_spool(site))
    deadline = time.monotonic() + STOP_S + site.replicas.shutdown_timeout_s
    while left := [job.name for job in live if job.process() is not None]:
        if time.monotonic() > deadline:
            raise click.ClickException(f"still running: {', '.join(left)}")
        time.sleep(0.2)
    return [job.name for job in live]


def _ended(described: dict[str, dict[str, str]]) -> bool:
    return described["deployment"]["state"] in ("stopped", "failed")


def _jobs_ended(described: dict[str, list[dict[str, list[dict[str, str]]]]]) -> bool:
    jobs = [job for replica in described["replicas"] for job in replica["jobs"]]
    return all(job["state"] not in ("PENDING", "RUNNING", "SUSPENDED", "UNKNOWN") for job in jobs)


def _pid_file(site: Site, name: str) -> Path:
    return site.services_dir / f"{name}.json"
