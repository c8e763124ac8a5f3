"""What the registry, the gateways and the scheduler say of a deployment, as planning wants it. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from launchers.deployment_spec import DeploymentSpec, spec_of
from launchers.planning.facts import Cluster, Had, Loaded, Maintenance, Options, Rules, Situation, Timings, Wanted
from launchers.resources import REPLICA_OPTIONS, resources_from, time_limit_s
from launchers.scheduler import Outlook
from launchers.spec import Resources
from registry import clock, deployments
from registry.demand import Demand, Load, Served
from registry.deployments import Deployment, Replica, ReplicaState
from registry.site import Site

ENDED = timedelta(days=1)  # for how long replicas that ended are looked at
MEASURED = 5  # replicas, the last ones: so many are what the next will take is told by
ASSUMED = Timings(0.0, 60.0)  # while none was measured

Moment = Callable[[str], float]  # a time as registry.clock writes it -> seconds since the epoch, by the steady clock


def situation(
    deployment: Deployment,
    theirs: Sequence[Replica],
    rules: Rules,
    at: Moment,
    now: float,
    *,
    called: Demand | None = None,
    load: Load | None = None,
    served: Mapping[str, Served],
    limits: Mapping[str, int],
    proven: bool = False,
) -> Situation:
    """`theirs`: registry.replicas.recent_replicas. `limits`: their jobs' time limits in seconds.

    `proven`: registry.revisions.is_proven.
    """
    return Situation(
        wanted=Wanted(
            name=deployment.name,
            state=deployment.state,
            least=deployment.min_replicas,
            most=deployment.max_replicas,
            paused=deployment.paused,
            revision=deployment.revision,
            stable=deployment.stable,
            canary=deployment.canary,
            proven=proven,
            rollout_at=at(deployment.rollout_at or deployment.created_at),
            desired=deployment.desired,
            scaled_at=_at(deployment.scaled_at, at),
            low_since=_at(deployment.low_since, at),
            rules=rules,
        ),
        replicas=tuple(_had(r, deployment, at, served.get(r.id), limits.get(r.id)) for r in theirs),
        load=None
        if load is None
        else Loaded(load.running, load.running_tokens, load.queued, load.queued_tokens, load.waited_s),
        called_at=_called(deployment, called, at),
        timings=timings(theirs, at),
        now=now,
    )


def rules_of(deployment: Deployment, site: Site) -> Rules:
    """What a deployment says of itself, over what the site says of all. Raises ValueError for what no site takes."""
    spec, usual, common = spec_of(deployment), site.deployments, site.replicas
    asks, spare = (
        resources_from(site.defaults.serve, resources_asked(spec, overflow=kind), REPLICA_OPTIONS)
        for kind in (False, True)
    )
    return Rules(
        target_tokens=spec.target_tokens,
        target_wait_s=_or(spec.target_wait_s, usual.target_wait_s),
        idle_s=_or(spec.idle_timeout_s, usual.idle_timeout_s),
        scale_up_every_s=usual.scale_up_every_s,
        scale_down_after_s=usual.scale_down_after_s,
        max_step=usual.max_step,
        bake_s=_or(spec.bake_s, usual.bake_s),
        bake_requests=usual.bake_requests if spec.bake_requests is None else spec.bake_requests,
        pack=spec.pack,
        overflow=spec.overflow is not None,
        time_limit_s=asks.time_limit_s,
        drain_s=common.drain_timeout_s,
        shutdown_s=common.shutdown_timeout_s,
        margin_s=usual.margin_s,
        partition=asks.partition or "",
        overflow_time_limit_s=spare.time_limit_s,
        overflow_partition=spare.partition or "",
        options=_options(asks),
        overflow_options=_options(spare),
    )


def _options(asks: Resources) -> Options:
    """What cannot be understood is left for sbatch to refuse; node lists in brackets are Slurm's to read."""
    said = {name: value for name, _, value in (option[2:].partition("=") for option in asks.options)}
    return Options(
        time_min_s=time_limit_s(said.get("time-min", "")) or 0,
        nodelist="nodelist" in said,
        exclude=frozenset(filter(None, said.get("exclude", "").split(","))),
    )


def resources_asked(spec: DeploymentSpec, *, overflow: bool) -> dict[str, object]:
    """What a replica's job asks for, over the site's defaults."""
    return {**spec.resources, **(spec.overflow or {})} if overflow else dict(spec.resources)


def timings(theirs: Sequence[Replica], at: Moment) -> Timings:
    """Medians of the last replicas that got so far. Of one that is started again in its job only the first start."""
    queued = [at(r.started_at) - at(r.created_at) for r in theirs if r.started_at][-MEASURED:]
    started = [at(r.ready_at) - at(r.started_at) for r in theirs if r.started_at and r.ready_at][-MEASURED:]
    return Timings(
        max(0.0, statistics.median(queued)) if queued else ASSUMED.queue_s,
        max(0.0, statistics.median(started)) if started else ASSUMED.start_s,
    )


def cluster_of(outlook: Outlook) -> Cluster:
    return Cluster(
        seen_at=None if outlook.at is None else outlook.at.timestamp(),  # by this host's clock
        leaving=outlook.leaving,
        down=outlook.down,
        maintenance=tuple(
            Maintenance(m.name, m.starts_at.timestamp(), m.ends_at.timestamp(), m.nodes) for m in outlook.maintenance
        ),
        partition_nodes=outlook.partition_nodes,
    )


def _had(r: Replica, deployment: Deployment, at: Moment, served: Served | None, time_limit_s: int | None) -> Had:
    outstanding = None
    if served is not None:
        outstanding = served.left(r.draining_at) if r.draining_at is not None else served.outstanding
    return Had(
        id=r.id,
        state=r.state,
        created_at=at(r.created_at),
        former=not deployments.is_current(deployment, r),  # by what is written: the steady clock keeps no order
        revision=r.revision,
        started_at=_at(r.started_at, at),
        ready_at=_at(r.ready_at, at),
        ended_at=_at(r.ended_at, at),
        # By slurmctld's clock, which did not jump.
        ends_at=clock.parse(r.ends_at).timestamp() if r.ends_at is not None else None,
        draining_at=_at(r.draining_at, at),
        overflow=r.overflow,
        replaces=r.replaces,
        job=r.pack,
        nodes=tuple(r.nodes.split(",")) if r.nodes else (),
        waiting_reason=r.waiting_reason if r.state is ReplicaState.PENDING else None,
        expected_start_at=_at(r.expected_start_at, at),
        time_limit_s=time_limit_s,
        failure=r.failure,
        cause=r.cause,
        restarts=r.restarts,
        outstanding=outstanding,
        requests=served.requests if served else 0,
        failures=served.failures if served else 0,
        first_outputs=served.first_outputs if served else 0,
        first_output_s=served.first_output_s if served else 0.0,
    )


def _called(deployment: Deployment, called: Demand | None, at: Moment) -> float | None:
    """When it was last called. A former deployment's calls do not count; where the clock was set back and either may
    be meant, it is called."""
    if called is None or not (called.at >= deployment.created_at or at(called.at) >= at(deployment.created_at)):
        return None
    return at(called.at)


def _at(text: str | None, at: Moment) -> float | None:
    return None if text is None else at(text)


def _or(own: float | None, usual: float) -> float:
    return usual if own is None else own
