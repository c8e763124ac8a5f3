"""What this site's Slurm says of itself: asked once, judged by `slurm.checkup` and by what Headgate does with it."""

from __future__ import annotations

import ipaddress
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from launchers.supervisor import KILL_AFTER_S
from registry.site import Site
from slurm import checkup
from slurm.backend import choose, connect, installed
from slurm.client import SlurmClient
from slurm.errors import SlurmError, SlurmUnavailable
from slurm.findings import Finding, ok, problem, warning
from slurm.model import QOS, AccountingConfig, Association, ClusterConfig, Node, Partition
from slurm.munge import auth_settings
from slurm.process import Runner, clean_environment, run_process

T = TypeVar("T")
COMMANDS = "sacct sacctmgr sbatch scancel scontrol sinfo squeue srun sshare".split()
LONGEST_TIMEOUT_S = 30.0  # of one question here, where a person waits
MUNGE_TIMEOUT_S = 10.0
SHORT_KILL_WAIT_S = 5


@dataclass(slots=True)
class Cluster:
    """What Slurm answered. `None` is a question without an answer; `silent` has what its daemon said instead."""

    config: ClusterConfig | None = None
    partitions: list[Partition] | None = None
    nodes: list[Node] | None = None
    privileged: bool | None = None
    accounting: AccountingConfig | None = None
    qos: list[QOS] | None = None
    associations: list[Association] | None = None
    ahead_s: float | None = None  # slurmctld's clock before ours
    silent: dict[str, str] = field(default_factory=dict)  # daemon -> why nothing is known
    refused: list[str] = field(default_factory=list)  # what Slurm said to questions that this account may not ask

    @property
    def on_this_host_only(self) -> bool:
        """Whether every node is this machine: its controller is known to them by a loopback address."""
        if self.config is None:
            return False
        match = re.search(r"\(([^)]*)\)", self.config.settings.get("SlurmctldHost[0]", ""))
        try:
            return match is not None and ipaddress.ip_address(match[1]).is_loopback
        except ValueError:
            return False


def ask(client: SlurmClient, clock: Callable[[], float] = time.time) -> Cluster:
    """Ask everything once. A daemon that did not answer is not asked again, so this takes a time-out or two at most."""
    cluster = Cluster()

    def answer(daemon: str, question: Callable[[], T]) -> T | None:
        if daemon in cluster.silent or "slurmctld" in cluster.silent:
            return None
        try:
            return question()
        except SlurmUnavailable as e:
            cluster.silent[daemon] = str(e)
        except SlurmError as e:
            cluster.refused.append(str(e))
        return None

    before_s = clock()
    cluster.config = answer("slurmctld", client.config)
    if cluster.config is not None:
        cluster.ahead_s = checkup.ahead_s(cluster.config.answered_at.timestamp(), before_s, clock())
    cluster.partitions = answer("slurmctld", client.partitions)
    cluster.nodes = answer("slurmctld", client.nodes)
    cluster.privileged = answer("slurmctld", client.privileged)
    if cluster.config is not None and cluster.config.accounting:
        cluster.accounting = answer("slurmdbd", client.accounting_config)
        cluster.qos = answer("slurmdbd", client.qos)
        cluster.associations = answer("slurmdbd", client.associations)
    return cluster


def ask_site(site: Site, environment: Mapping[str, str]) -> Cluster:
    """The site's Slurm, in an environment that points at it (`launchers.schedulers.slurm_environment`)."""
    timeout_s = min(site.scheduler.command_timeout_s, LONGEST_TIMEOUT_S)
    client = connect(environment, timeout_s=timeout_s, backend="commands")  # each question once: no worker for that
    return ask(client)


# -- judging --------------------------------------------------------------------------------------------------------


def slurm_findings(cluster: Cluster, site: Site) -> list[Finding]:
    config = cluster.config
    if config is None:
        return [_silent("slurmctld", cluster.silent["slurmctld"])]
    findings = [checkup.release(config), *_clock(cluster)]
    findings += [checkup.requeue(config), *checkup.preemption(config, cluster.partitions or (), cluster.qos or ())]
    findings += [kill_wait(config, site), checkup.memory(config), checkup.arrays(config)]
    if cluster.partitions is not None:
        findings += checkup.time_limits(cluster.partitions)
    if cluster.privileged is not None:
        findings.append(checkup.privacy(config, cluster.accounting, cluster.privileged))
    for why in cluster.refused:
        remedy = "make this account one of Slurm's operators, or do without what Slurm hides"
        findings.append(warning("hidden", f"refused: {why}", remedy))
    if "slurmctld" in cluster.silent:
        findings.append(_silent("slurmctld", cluster.silent["slurmctld"]))
    return findings


def accounting_findings(cluster: Cluster) -> list[Finding]:
    config = cluster.config
    if config is None:
        return [problem("accounting", "not asked for: slurmctld did not answer", "mend that first")]
    if not config.accounting:
        says = "none: what a job used is forgotten with the job, so that reports and quotas miss it"
        return [problem("accounting", says, "AccountingStorageType=accounting_storage/slurmdbd, with a slurmdbd")]
    findings = [checkup.books(cluster.accounting)] if cluster.accounting else []
    if why := cluster.silent.get("slurmdbd"):
        says = f"did not answer: {why}. Jobs run on, and are missing in reports until it is back"
        findings.append(problem("slurmdbd", says, "look at slurmdbd and its database on AccountingStorageHost"))
    findings += [*checkup.enforcement(config), checkup.tracked(config, cluster.nodes or ()), checkup.comments(config)]
    return findings


def _silent(daemon: str, why: str) -> Finding:
    remedy = "`scontrol ping` should say UP; is SLURM_CONF (scheduler.slurm_conf) this cluster's, and munged running?"
    return problem(daemon, f"did not answer: {why}", remedy)


def _clock(cluster: Cluster) -> Iterator[Finding]:
    if cluster.ahead_s is not None:
        remedy = "synchronise this host's clock and that of slurmctld's host (chrony)"
        yield checkup.clock_skew(cluster.ahead_s, "slurmctld's clock", remedy)


def kill_wait(config: ClusterConfig, site: Site) -> Finding:
    """What `scancel` leaves a job. Headgate's own stop of a replica is not bound by it (launchers.slurm_scheduler)."""
    seconds = config.kill_wait_s
    says = (
        f"{seconds} s from SIGTERM to SIGKILL: what a cancelled run has to save, and plain scancel leaves a replica's "
        f"open requests; `headgate stop` drains those first, for up to {site.replicas.shutdown_timeout_s} s"
    )
    if seconds < SHORT_KILL_WAIT_S:
        return warning("KillWait", says, f"KillWait=30 (a run may take {KILL_AFTER_S:.0f} s to save)")
    return ok("KillWait", says)


def backend(site: Site, environment: Mapping[str, str]) -> Finding:
    """Which back end speaks to Slurm, and why."""
    if site.scheduler.backend == "commands":
        return ok("back end", "commands: scheduler.backend says so")
    choice = choose(environment)
    says = f"{choice.backend}: {choice.why}"
    if choice.backend == "commands" and installed():
        return warning("back end", says, "install the pyslurm of this Slurm's release, or none: the commands will do")
    return ok("back end", says)


# -- this host's side of it -----------------------------------------------------------------------------------------


def commands(environment: Mapping[str, str]) -> Finding:
    missing = [name for name in COMMANDS if shutil.which(name, path=environment.get("PATH")) is None]
    if missing:
        says = f"not in PATH: {', '.join(missing)}"
        return problem("commands", says, "install Slurm's client commands on this host, or name their folder in PATH")
    return ok("commands", f"{', '.join(COMMANDS)}: all there")


def munge(cluster: Cluster, environment: Mapping[str, str], run: Runner = run_process) -> Finding:
    """Whether a credential can be made and read back on this host."""
    if cluster.config is not None and cluster.config.auth != "munge":
        return ok("munge", f"not used: the cluster authenticates by auth/{cluster.config.auth}")
    settings = cluster.config.settings if cluster.config else auth_settings(environment)
    name = checkup.munge_socket(settings)
    socket = [f"--socket={name}"] if name else []
    clean = clean_environment(environment)
    remedy = "start munged on this host, with the cluster's key; `munge -n | unmunge` shows what it says"
    try:
        with tempfile.TemporaryDirectory() as folder:
            credential = f"{folder}/credential"
            for argv in (("munge", *socket, "-n", "-o", credential), ("unmunge", *socket, "-i", credential, "-n")):
                done = run(argv, clean, MUNGE_TIMEOUT_S)
                if done.returncode != 0:
                    said = " ".join(done.stderr.split()) or f"{argv[0]} exited with status {done.returncode}"
                    return problem("munge", said, remedy)
    except TimeoutError:
        return problem("munge", f"{argv[0]} did not answer within {MUNGE_TIMEOUT_S:g} s", remedy)
    except OSError as e:
        if "munge" not in str(e.filename):
            raise
        return warning("munge", f"not tried: {e.filename} cannot be run: {e.strerror}", "install munge's commands here")
    return ok("munge", f"a credential was made and read back{f' through {name}' if name else ''}")
