"""`headgate doctor`'s page: every probe at once, each for a bounded time, and what they found in sections.

A probe runs in a thread that nobody waits for longer than it may take: a file system that hangs holds whoever looks at
it, and this must still say so.
"""

from __future__ import annotations

import os
import pwd
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from launchers.doctor import cluster, programs, storage
from launchers.doctor.asks import asks
from launchers.doctor.cluster import Cluster
from launchers.schedulers import slurm_environment
from registry.site import Site
from slurm.findings import Finding, ok, problem, warning

T = TypeVar("T")
P = ParamSpec("P")
LOOK_S = 10.0  # at a directory or a port
SLURM_S = 5 * cluster.LONGEST_TIMEOUT_S
ENVIRONMENT_S = programs.IMPORT_TIMEOUT_S + LOOK_S


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    findings: tuple[Finding, ...]


def examine(site: Site, environ: Mapping[str, str], services: Callable[[], Iterable[Finding]]) -> list[Section]:
    """`services` looks at the gateway's port and the control socket. Writes nothing but a probe file, gone at once."""
    environment = slurm_environment(site, environ)
    mounted = storage.mounts()
    state, shared = (begin(storage.look, path, mounted) for path in (site.state_dir, site.runs_dir))
    serving = begin(lambda: list(services()))
    running = begin(_environments, site, environment)

    sections, spread = _slurm(site, environment) if site.scheduler.kind == "slurm" else (_no_slurm(), False)
    host = [
        *found("state_dir", LOOK_S, state, storage.judge_state),
        *found("shared_dir", LOOK_S, shared, lambda seen: storage.judge_shared(seen, spread)),
        storage.network(mounted),
        *found("interpreters", LOOK_S, begin(storage.judge_interpreters, site, mounted, spread), as_found),
        *found("gateway", LOOK_S, serving, as_found),
        *_reach(site, spread),
    ]
    return [
        *sections,
        Section("This host", tuple(host)),
        Section("Environments", tuple(found("environments", 2 * ENVIRONMENT_S, running, as_found))),
    ]


def begin(probe: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """What a probe will return or raise. Its thread does not keep this process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(probe(*args, **kwargs))
        except BaseException as e:  # noqa: BLE001  # raised again by whoever asks for the result
            future.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return future


def found(
    subject: str, limit_s: float, looking: Future[T], judge: Callable[[T], Iterable[Finding]]
) -> Iterator[Finding]:
    """What there is to say of a probe, also where it did not come back or was not let in."""
    try:
        seen = looking.result(limit_s)
    except TimeoutError:
        says = f"did not answer within {limit_s:g} s"
        yield problem(subject, says, "most likely a file system that hangs: `df` and `mount` show which")
    except OSError as e:
        yield problem(subject, f"cannot be looked at: {e}", "let this account read it")
    else:
        yield from judge(seen)


def as_found(findings: Iterable[Finding]) -> Iterable[Finding]:
    """For a probe that judges by itself."""
    return findings


def _no_slurm() -> list[Section]:
    says = "not used: scheduler.kind is local, so jobs are processes of this machine"
    return [Section("Slurm", (ok("scheduler", says),))]


def _slurm(site: Site, environment: Mapping[str, str]) -> tuple[list[Section], bool]:
    """The sections on Slurm, and whether its nodes are other hosts than this one (as far as it answered)."""
    asking = begin(cluster.ask_site, site, environment)
    choosing = begin(cluster.backend, site, environment)
    having = begin(cluster.commands, environment)
    try:
        answers = asking.result(SLURM_S)
    except TimeoutError:
        answers = Cluster(silent={"slurmctld": f"nothing came within {SLURM_S:g} s"})
    trying = begin(cluster.munge, answers, environment)
    slurm = [
        *found("commands", LOOK_S, having, lambda finding: [finding]),
        *found("back end", SLURM_S, choosing, lambda finding: [finding]),
        *found("munge", 3 * cluster.MUNGE_TIMEOUT_S, trying, lambda finding: [finding]),
        *cluster.slurm_findings(answers, site),
    ]
    sections = [Section("Slurm", tuple(slurm)), Section("Accounting", tuple(cluster.accounting_findings(answers)))]
    if wanted := tuple(asks(site, answers, _user())):
        sections.append(Section("What jobs ask for", wanted))
    return sections, answers.config is not None and not answers.on_this_host_only


def _user() -> str:
    """Ours as Slurm knows it: by uid, whatever $USER says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _reach(site: Site, spread: bool) -> Iterator[Finding]:
    """Whether the gateway can reach an engine that runs on another host."""
    if spread and site.replicas.listen.startswith("127."):
        says = f"replicas.listen is {site.replicas.listen}: no gateway reaches an engine on another node"
        yield warning("replicas", says, 'replicas.listen = "0.0.0.0" (each engine has a key of its own)')


def _environments(site: Site, environment: Mapping[str, str]) -> list[Finding]:
    here = programs.runtimes(environment)
    names: tuple[programs.Name, ...] = ("training", "engine")
    looking = [(name, begin(programs.check, site, name, here, environment)) for name in names]
    return [
        programs.runtimes_finding(here),
        *(f for name, look in looking for f in found(name, ENVIRONMENT_S, look, as_found)),
    ]
