"""Which scheduler a site has."""

from __future__ import annotations

import os

from launchers.scheduler import Scheduler
from registry.site import Site


def scheduler_for(site: Site) -> Scheduler:
    """Slurm, or processes of this machine. Raises SchedulerError when the site's Slurm cannot be spoken to at all."""
    if site.scheduler.kind == "local":
        from launchers.local_scheduler import LocalScheduler

        return LocalScheduler(site.shared_dir / "local-jobs")
    from launchers.slurm_scheduler import SlurmScheduler
    from slurm.client import connect

    environment = dict(os.environ)
    if site.scheduler.slurm_conf is not None:
        environment["SLURM_CONF"] = str(site.scheduler.slurm_conf)
    return SlurmScheduler(connect(environment, timeout_s=site.scheduler.command_timeout_s))
