"""Which back end speaks to this cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from slurm.client import SlurmClient
from slurm.commands import CommandClient
from slurm.errors import SlurmUnavailable

Backend = Literal["auto", "commands", "pyslurm"]


def connect(
    environment: Mapping[str, str] | None = None, timeout_s: float = 30.0, backend: Backend = "auto"
) -> SlurmClient:
    """A client for the cluster that this environment (default: the process's own) points at."""
    if backend == "pyslurm":
        raise SlurmUnavailable("pyslurm is not supported yet")
    return CommandClient(environment=environment, timeout_s=timeout_s)
