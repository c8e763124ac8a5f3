"""Waiting for what was asked of a deployment, and saying meanwhile what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.client import Control, Unreachable
from cli.logs import newest_log
from launchers.run_folder import RunFolder

LIVE = ("pending", "starting", "ready", "draining")
ENDED = ("stopped", "failed")
PATIENCE_S = 600.0  # without a controller: one that is started anew takes its time


class Changes:
    """Says on stderr what a deployment waits for, each time that changes."""

    def __init__(self) -> None:
        self.said = ""

    def __call__(self, described: dict[str, Any]) -> None:
        waits = waiting_for(described)
        if waits != self.said:
            self.said = waits
            click.echo(waits, err=True)


def counts(described: dict[str, Any]) -> tuple[int, int]:
    """Replicas that are ready, and that are wanted: within the bounds of now, whenever that number was planned."""
    whole = described["deployment"]
    ready = sum(r["replica"]["state"] == "ready" for r in described["replicas"])
    if whole["state"] in (*ENDED, "stopping"):
        return ready, 0
    desired = whole["min_replicas"] if whole["desired"] is None else whole["desired"]
    return ready, min(max(desired, whole["min_replicas"]), whole["max_replicas"])


def waiting_for(described: dict[str, Any]) -> str:
    """Each live replica's state and, while its job is in the queue, the scheduler's reason; without any, why the last
    one ended."""
    parts = []
    for r in described["replicas"]:
        if r["replica"]["state"] not in LIVE:
            continue
        job = r["jobs"][-1] if r["jobs"] else None
        reason = f" ({job['reason']})" if job and job["state"] == "PENDING" and job["reason"] else ""
        parts.append(f"{r['replica']['id']} {r['replica']['state']}{reason}")
    deployment = described["deployment"]
    what = "a generated token"
    if deployment["stable"] is not None and deployment["stable"] != deployment["revision"]:
        what = f"revision {deployment['revision']} to prove itself"
    causes = [r["replica"]["cause"] for r in described["replicas"][-1:]]
    none = f"no replica yet; the last one: {causes[0]}" if any(causes) else "no replica yet"
    return f"waiting for {what}: {', '.join(parts) or none}"


def wait_settled(
    control: Control,
    name: str,
    revision: int | None = None,
    progress: Callable[[dict[str, Any]], None] = lambda _: None,
    scaled: bool = False,
) -> dict[str, Any]:
    """Wait until a revision of the deployment is what is served (None: the one that is wanted now).

    The first is when a replica of it is ready, another one when it has proven itself. One that may sleep, and does,
    waits for a call. `scaled`: until just as many replicas serve as are wanted. What fails, is given up, or will not
    come while the deployment is paused, ends the command with its cause.
    """
    while True:
        described = _look(control, name)
        deployment = described["deployment"]
        revision = revision or deployment["revision"]
        if deployment["state"] in ("failed", "stopped", "stopping"):
            cause = deployment["cause"] or "no cause was given"
            raise click.ClickException(f"deployment {name} {deployment['state']}: {cause}{last_lines(described)}")
        if deployment["revision"] != revision:
            raise click.ClickException(_given_up(control, name, revision, deployment["revision"]))
        served = deployment["state"] == "ready" and deployment["stable"] == revision
        asleep = deployment["state"] == "asleep" and deployment["min_replicas"] == 0
        if (served or asleep) and (not scaled or _as_many_as_wanted(described)):
            return described
        if deployment["paused"] and deployment["stable"] is not None and (scaled or deployment["stable"] != revision):
            what = "scaled" if deployment["stable"] == revision else "rolled out"
            raise click.ClickException(
                f"deployment {name} is paused, and nothing of it is {what}: `headgate pause {name} --off` goes on"
            )
        progress(described)
        time.sleep(0.5)


def wait_stopped(control: Control, name: str) -> str:
    """Wait until the deployment that was told to stop has; its state."""
    while (state := _look(control, name)["deployment"]["state"]) == "stopping":
        time.sleep(0.3)
    return str(state)


def _look(control: Control, name: str) -> dict[str, Any]:
    """A deployment, described. A controller that is away, to be started anew, is waited for for a while."""
    since = time.monotonic()
    while True:
        try:
            described: dict[str, Any] = control.get("/v1/deployments/{}", name)
            return described
        except Unreachable:
            if time.monotonic() - since >= PATIENCE_S:
                raise
            time.sleep(0.5)


def _as_many_as_wanted(described: dict[str, Any]) -> bool:
    ready, wanted = counts(described)
    return ready == wanted and not any(r["replica"]["state"] == "draining" for r in described["replicas"])


def last_lines(described: dict[str, Any]) -> str:
    """What the last replica's engine printed last, for whoever may read it."""
    from launchers.supervisor import tail

    if not described["replicas"]:
        return ""
    try:
        log = newest_log(RunFolder(Path(described["replicas"][-1]["replica"]["folder"])))
    except OSError:
        return ""
    text = tail(log) if log else ""
    return f"\nits last lines ({log}):\n{text}" if text else ""


def _given_up(control: Control, name: str, revision: int, wanted: int) -> str:
    """Why a revision is not the wanted one any more, in words."""
    revisions = control.get("/v1/deployments/{}/revisions", name)
    state, cause = next(((r["state"], r["cause"]) for r in revisions if r["revision"] == revision), ("gone", None))
    if state == "bad":
        return f"deployment {name}: revision {revision} was given up, and {wanted} is served again: {cause}"
    return f"deployment {name}: revision {revision} is {state}; {wanted} is the one that is wanted now"
