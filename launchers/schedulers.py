"""Which scheduler a site has."""

from __future__ import annotations

import os
from pathlib import Path

from launchers.scheduler import Scheduler
from registry.site import Site
from slurm.client import SlurmClient


def scheduler_for(site: Site) -> Scheduler:
    """Slurm, or processes of this machine. Raises SchedulerError when the site's Slurm cannot be spoken to at all."""
    if site.scheduler.kind == "local":
        from launchers.local_scheduler import LocalScheduler

        return LocalScheduler(local_spool(site))
    from launchers.slurm_scheduler import SlurmScheduler

    return SlurmScheduler(slurm_client(site))


def slurm_client(site: Site) -> SlurmClient:
    """The site's Slurm."""
    from slurm.backend import connect

    # sbatch exports its environment into the job, where the keys of other providers have no business.
    secret = {external.api_key_env for external in site.external.values()}
    environment = {name: value for name, value in os.environ.items() if name not in secret}
    if site.scheduler.slurm_conf is not None:
        environment["SLURM_CONF"] = str(site.scheduler.slurm_conf)
    return connect(environment, timeout_s=site.scheduler.command_timeout_s)


def local_spool(site: Site) -> Path:
    """Where the local scheduler keeps what it knows of its jobs."""
    return site.shared_dir / "local-jobs"
