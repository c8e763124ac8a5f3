"""Follow a run to its end: its metrics as they are written, its state as the registry has it."""

from __future__ import annotations

import time
from typing import Any

import click

from cli.client import Control, Refused
from cli.logs import newest_log
from cli.metrics import Tail, count, number, seconds
from cli.progress import Display, clock
from cli.table import printable
from launchers.run_folder import RunFolder
from launchers.supervisor import tail
from registry.site import Site


def follow(site: Site, folder: RunFolder, display: Display) -> dict[str, Any]:
    """Show a run until it has ended, and return it. One that failed ends the command with its cause and last lines."""
    control = Control(site.control_socket)
    metrics = Tail(folder.metrics)
    while True:
        run, job = _look(control, folder.id)
        for fact in metrics.read():
            show(fact, display)
        if run["state"] == "completed":
            return run
        if run["state"] in ("failed", "stopped"):
            log = newest_log(folder)
            last = f"\nits last lines ({log}):\n{tail(log)}" if log else ""
            raise click.ClickException(f"run {folder.id} {run['state']}: {run['cause'] or 'asked to stop'}{last}")
        if job and job["state"] == "PENDING":
            display.update(f"waits in the queue ({job['reason'] or 'no reason yet'})")
        time.sleep(0.3)


def _look(control: Control, run_id: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    try:
        found = control.get("/v1/runs/{}", run_id)
    except Refused as e:
        if e.status != 404:
            raise
        return {"state": "pending", "cause": None}, None  # not adopted yet
    return found["run"], found["jobs"][-1] if found["jobs"] else None


def show(fact: dict[str, Any], display: Display) -> None:
    """One line of a run's metrics, in words. A job wrote it: what is not as it should be is passed over."""
    match fact:
        case {"stage": "data", "reused": reused, "documents": int(documents), "tokens": int(tokens), "vocab": int(v)}:
            how = "reused, tokenised before" if reused else "tokenised now"
            display.note(f"data: {documents:,} documents, {tokens:,} tokens, vocabulary {v:,} ({how})")
        case {"stage": "model", "parameters": int(parameters)}:
            ranks, device = count(fact.get("ranks")) or 1, printable(str(fact.get("device", "?")))
            display.note(f"model: {parameters:,} parameters, {ranks} x {device}")
        case {"stage": "done" | "stopped", "first_loss": float(first), "last_loss": float(last)}:
            display.note(f"loss {first:.3f} -> {last:.3f} in {clock(seconds(fact.get('elapsed_s')) or 0)}")
        case {"checkpoint": int(iteration)}:
            display.note(f"checkpoint at iteration {iteration}: complete, manifest written")
        case {"validation_loss": said} if (loss := number(said)) is not None:
            display.note(f"validation loss {loss:.3f}")
        case {"iteration": int(now), "iterations": int(whole), "loss": said} if (loss := number(said)) is not None:
            speed, eta = number(fact.get("tokens_per_s")), seconds(fact.get("eta_s"))
            words = [f"iteration {now}/{whole}", f"loss {loss:.3f}"]
            words += [f"{speed:,.0f} tokens/s"] if speed is not None else []
            words += [f"ETA {clock(eta)}"] if eta is not None else []
            display.update("  ".join(words), now, whole)
