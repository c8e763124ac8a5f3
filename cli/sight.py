"""Where `queue`, `nodes` and `usage` look: at the controller's poll, or at the scheduler itself where none answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from cli.client import Control, Refused, Unreachable
from launchers.direct import DirectSlurm, Source
from registry.site import Site
from slurm import amounts
from slurm.errors import SlurmError, SlurmUnavailable

ANSWER_S = 20.0  # longer than a controller takes that is well
MISDIRECTED = 421  # the controller may not see what the caller may


def look(site: Site, path: str, directly: Callable[[Source], dict[str, Any]], **query: str | None) -> dict[str, Any]:
    """The control API's answer, else what `directly` finds; `asked` says whom."""
    try:
        return {"asked": "controller", **Control(site.control_socket, ANSWER_S).get(path, **query)}
    except Unreachable as e:
        why = e.message
    except Refused as e:
        if e.status != MISDIRECTED:
            raise
        why = e.message
    with slurm_answers():
        return {"asked": site.scheduler.kind, "not_the_controller": why, **directly(_source(site))}


@contextmanager
def slurm_answers() -> Iterator[None]:
    """What Slurm does not answer, or refuses, ends the command with its words."""
    try:
        yield
    except SlurmUnavailable as e:
        raise click.ClickException(f"Slurm did not answer: {e}") from e
    except SlurmError as e:
        raise click.ClickException(f"Slurm refuses: {e}") from e
    except ValueError as e:
        raise click.ClickException(str(e)) from e


def _source(site: Site) -> Source:
    if site.scheduler.kind == "local":
        from launchers.schedulers import local_spool
        from launchers.this_machine import ThisMachine

        return ThisMachine(local_spool(site))
    from launchers.schedulers import slurm_client

    return DirectSlurm(slurm_client(site, backend="commands"))  # another takes longer to load than all of this


def footing(said: dict[str, Any]) -> str:
    """How old an answer is, and whose word it is."""
    if said["silence"]:
        text = f"as of {amounts.duration(said['age_s'])} ago: Slurm has not answered since {said['silent_since']}"
        return local(f"{text}: {said['silence']}")
    if said["asked"] == "controller":
        return f"as of {amounts.duration(said['age_s'])} ago"
    return "as of now" + ("" if said["asked"] == "local" else ", asked of Slurm directly")


def hidden(said: dict[str, Any], *kinds: str) -> str | None:
    """What an answer lacks, in words."""
    words = {"usage": "other people's use"}
    names = [words.get(kind, kind) for kind in kinds if kind in said["hidden"]]
    return f"Slurm hides {amounts.several(names)} from you (PrivateData)" if names else None


def local(text: str) -> str:
    """With its moments by the clock of whoever reads it."""
    return amounts.localised(text, datetime.now(UTC))
