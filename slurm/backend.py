"""Which back end speaks to this cluster, and why."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from slurm.client import SlurmClient
from slurm.commands import TIMEOUT_S, CommandClient
from slurm.errors import SlurmUnavailable

if TYPE_CHECKING:
    from slurm.native import NativeClient

Backend = Literal["auto", "commands", "pyslurm"]
PROBE_TIMEOUT_S = 5.0  # a slurmctld that takes longer is asked by the commands, which wait as long as they are told to


@dataclass(frozen=True, slots=True)
class Choice:
    backend: Literal["commands", "pyslurm"]
    why: str  # one sentence, in plain words


def connect(
    environment: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S, backend: Backend = "auto"
) -> SlurmClient:
    """A client for the cluster that this environment (default: the process's own) points at.

    "auto" takes pyslurm where it works (`choose`), and asks nothing where it is not even installed. Raises
    SlurmUnavailable when pyslurm is asked for and does not work.
    """
    commands = CommandClient(environment=environment, timeout_s=timeout_s)
    if backend == "commands":
        return commands
    choice, native = _probe(environment, timeout_s, timeout_s if backend == "pyslurm" else PROBE_TIMEOUT_S)
    if native is None and backend == "pyslurm":
        raise SlurmUnavailable(choice.why)
    return native or commands


def choose(environment: Mapping[str, str] | None = None) -> Choice:
    """What "auto" means here: pyslurm if it, in a process of its own, reads this cluster's nodes from slurmctld."""
    choice, native = _probe(environment, TIMEOUT_S, PROBE_TIMEOUT_S)
    if native is not None:
        native.close()
    return choice


def _probe(
    environment: Mapping[str, str] | None, timeout_s: float, patience_s: float
) -> tuple[Choice, NativeClient | None]:
    if not installed():
        return Choice("commands", f"pyslurm is not installed for {sys.executable}"), None
    from slurm.native import NativeClient

    client = NativeClient(environment=environment, timeout_s=timeout_s)
    try:
        pyslurm, slurm = client.probe(min(timeout_s, patience_s))
    except SlurmUnavailable as e:
        client.close()
        return Choice("commands", f"pyslurm is installed but does not work here: {e}"), None
    return Choice("pyslurm", f"pyslurm {pyslurm} reads this cluster's Slurm {slurm}"), client


def installed() -> bool:
    """Whether this Python has a pyslurm. Looks for it without importing it: that can end the process."""
    found = importlib.util.find_spec("pyslurm")
    return found is not None and found.origin is not None  # a mere folder of that name has none
