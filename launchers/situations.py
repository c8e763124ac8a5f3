"""The registry's rows, what gateways say and the scheduler's outlook, as planning takes them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from launchers.deployment_spec import spec_of
from launchers.planning import facts as planning
from launchers.planning.facts import Cluster, Had, Loaded, Rules, Situation, Timings, Wanted
from launchers.resources import REPLICA_OPTIONS, resources_from
from launchers.scheduler import Outlook
from launchers.spec import Resources
from launchers.steady_clock import SteadyClock
from registry import clock
from registry.demand import Demand, Load, Served
from registry.deployments import Deployment, DeploymentState
from registry.replicas import Replica, ReplicaState
from registry.site import Site

MEASURED = 5  # replicas, the last ones, whose times count
START_S = 60.0  # from a job's start to the first token, until one was measured


@dataclass(frozen=True, slots=True)
class Heard:
    """What gateways said."""

    demand: Mapping[str, Demand] = field(default_factory=dict)
    loads: Mapping[str, Load] = field(default_factory=dict)
    served: Mapping[str, Served] = field(default_factory=dict)


def situation(
    site: Site,
    deployment: Deployment,
    replicas: Sequence[Replica],
    heard: Heard,
    limits: Mapping[str, int],
    steady: SteadyClock,
    now: float,
) -> Situation:
    """`limits`: the time limits of replicas' jobs, by the replica's id, in seconds, where they are known."""
    called, load = heard.demand.get(deployment.name), heard.loads.get(deployment.name)
    had = tuple(_had(r, heard.served.get(r.id), limits.get(r.id), steady) for r in replicas)
    return Situation(
        wanted=_wanted(site, deployment, steady),
        replicas=had,
        load=None if load is None else _loaded(load),
        called_at=steady.steady(called.at) if called is not None else None,
        timings=timings(had, now),
        now=now,
    )


def _loaded(load: Load) -> Loaded:
    return Loaded(load.running, load.running_tokens, load.queued, load.queued_tokens, load.waited_s)


def resources(site: Site, request: Mapping[str, object], *, overflow: bool = False) -> Resources:
    """What a replica's job asks for. Raises ValueError, naming the field."""
    asked = {**_table(request, "resources"), **(_table(request, "overflow") if overflow else {})}
    return resources_from(site.defaults.serve, asked, REPLICA_OPTIONS)


def _table(request: Mapping[str, object], name: str) -> dict[str, object]:
    found = request.get(name)
    return dict(found) if isinstance(found, dict) else {}


def cluster_of(outlook: Outlook) -> Cluster:
    return Cluster(
        leaving=outlook.leaving,
        down=outlook.down,
        maintenance=tuple(
            planning.Maintenance(m.name, m.starts_at.timestamp(), m.ends_at.timestamp(), m.nodes)
            for m in outlook.maintenance
        ),
        partition_nodes=outlook.partition_nodes,
    )


def timings(had: Sequence[Had], now: float) -> Timings:
    """The medians of the last replicas whose times are known; else what the scheduler expects, or an assumption."""
    queued = [r.started_at - r.created_at for r in had if r.started_at is not None]
    started = [r.ready_at - r.started_at for r in had if r.ready_at is not None and r.started_at is not None]
    expected = [r.expected_start_at - now for r in had if r.expected_start_at is not None]
    waits = queued[-MEASURED:] or expected[-1:]
    return Timings(
        max(0.0, median(waits)) if waits else 0.0,
        max(0.0, median(started[-MEASURED:])) if started else START_S,
    )


def _wanted(site: Site, deployment: Deployment, steady: SteadyClock) -> Wanted:
    moved, scaled, low = deployment.rollout_at, deployment.scaled_at, deployment.low_since
    created_at = steady.steady(deployment.created_at)
    return Wanted(
        name=deployment.name,
        state=deployment.state,
        created_at=created_at,
        least=deployment.min_replicas,
        most=deployment.max_replicas,
        paused=deployment.paused,
        revision=deployment.revision,
        stable=deployment.stable,
        canary=deployment.canary,
        rollout_at=steady.steady(moved) if moved else created_at,
        desired=deployment.desired,
        scaled_at=steady.steady(scaled) if scaled else None,
        low_since=steady.steady(low) if low else None,
        rules=rules(site, deployment),
    )


def rules(site: Site, deployment: Deployment) -> Rules:
    spec, general = spec_of(deployment), site.deployments
    try:
        asked = resources(site, deployment.request)
    except ValueError:  # the site has changed since; its start will say so
        asked = resources_from(site.defaults.serve, {})
    return Rules(
        target_tokens=spec.target_tokens,
        target_wait_s=general.target_wait_s if spec.target_wait_s is None else spec.target_wait_s,
        idle_s=general.idle_timeout_s if spec.idle_timeout_s is None else spec.idle_timeout_s,
        scale_up_every_s=general.scale_up_every_s,
        scale_down_after_s=general.scale_down_after_s,
        max_step=general.max_step,
        bake_s=general.bake_s if spec.bake_s is None else spec.bake_s,
        bake_requests=general.bake_requests if spec.bake_requests is None else spec.bake_requests,
        pack=spec.pack,
        overflow=spec.overflow is not None,
        time_limit_s=asked.time_limit_s,
        drain_s=site.replicas.drain_timeout_s,
        shutdown_s=site.replicas.shutdown_timeout_s,
        margin_s=general.margin_s,
        partition=asked.partition or "",
    )


def _had(r: Replica, served: Served | None, limit: int | None, steady: SteadyClock) -> Had:
    """Times that the job's host or the scheduler said are taken as they are: a jump of our clock is not theirs."""

    def own(at: str | None) -> float | None:
        return steady.steady(at) if at else None

    def theirs(at: str | None) -> float | None:
        return clock.parse(at).timestamp() if at else None

    outstanding = None
    if served is not None:
        draining = r.state is ReplicaState.DRAINING and r.draining_at
        outstanding = served.left(draining) if draining else served.outstanding
    return Had(
        id=r.id,
        state=r.state,
        created_at=steady.steady(r.created_at),
        revision=r.revision,
        started_at=theirs(r.started_at),
        ready_at=own(r.ready_at),
        ended_at=own(r.ended_at),
        ends_at=theirs(r.ends_at),
        draining_at=own(r.draining_at),
        overflow=r.overflow,
        replaces=r.replaces,
        nodes=tuple(n for n in r.nodes.split(",") if n),
        waiting_reason=r.waiting_reason,
        expected_start_at=theirs(r.expected_start_at),
        time_limit_s=limit,
        failure=r.failure,
        cause=r.cause,
        restarts=r.restarts,
        outstanding=outstanding,
        requests=served.requests if served else 0,
        failures=served.failures if served else 0,
        first_outputs=served.first_outputs if served else 0,
        first_output_s=served.first_output_s if served else 0.0,
    )


def over(deployment: Deployment) -> bool:
    """Whether nothing is started for it any more."""
    return deployment.state.ended or deployment.state is DeploymentState.STOPPING
