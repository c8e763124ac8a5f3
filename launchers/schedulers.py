"""Which scheduler a site has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launchers.scheduler import Scheduler
from registry.site import Site
from slurm.backend import Backend, connect
from slurm.client import SlurmClient

if TYPE_CHECKING:
    from slurm.watch import Watch


def scheduler_for(site: Site) -> Scheduler:
    """Slurm, or processes of this machine. Raises SchedulerError when the site's Slurm cannot be spoken to at all."""
    if site.scheduler.kind == "local":
        from launchers.local_scheduler import LocalScheduler

        return LocalScheduler(local_spool(site))
    from launchers.slurm_scheduler import SlurmScheduler

    return SlurmScheduler(slurm_client(site))


def slurm_client(site: Site, backend: Backend | None = None) -> SlurmClient:
    """The site's Slurm, by its own choice of back end or another."""
    environment = slurm_environment(site, os.environ)
    wanted = site.scheduler.backend if backend is None else backend
    return connect(environment, timeout_s=site.scheduler.command_timeout_s, backend=wanted)


def watch_for(site: Site, scheduler: Scheduler) -> Watch | None:
    """What a service runs so that everyone in it, this scheduler too, shares one poll of Slurm. None without Slurm."""
    from launchers.slurm_scheduler import SlurmScheduler
    from slurm.watch import Watch

    if not isinstance(scheduler, SlurmScheduler):
        return None
    pace = site.scheduler
    scheduler.watch = Watch(scheduler.client, least_s=pace.min_poll_s, most_s=pace.max_poll_s)
    return scheduler.watch


def slurm_environment(site: Site, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in which Slurm's commands speak to this site's cluster."""
    # sbatch exports its environment into the job, where other providers' keys and our mail's password have no business.
    secret = {external.api_key_env for external in site.external.values()}
    if site.alerts.mail is not None:
        secret.add(site.alerts.mail.password_env)
    environment = {name: value for name, value in environ.items() if name not in secret}
    if site.scheduler.slurm_conf is not None:
        environment["SLURM_CONF"] = str(site.scheduler.slurm_conf)
    return environment


def local_spool(site: Site) -> Path:
    """Where the local scheduler keeps what it knows of its jobs."""
    return site.shared_dir / "local-jobs"
