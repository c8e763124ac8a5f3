"""Each turn's plans for all deployments, made of the registry's rows, and what of them the registry has to know.

On the registry's writer's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from launchers import adapter_changes, following, situations
from launchers.planning import facts as planned
from launchers.planning.plan import plan
from launchers.spec import ServeSpec, Spec
from launchers.steady_clock import SteadyClock
from registry import clock, deployments, notices, replicas, revisions
from registry.db import Database, RegistryError, transaction
from registry.demand import DemandReader
from registry.deployments import Deployment, DeploymentState
from registry.replicas import Replica, ReplicaState
from registry.revisions import RevisionState
from registry.site import Site

log = logging.getLogger(__name__)


class DeploymentPlans:
    """`specs`: what replicas' jobs were told, by the replica's id, as far as it is known."""

    def __init__(self, site: Site, db: Database, specs: Mapping[str, Spec], time: SteadyClock | None = None) -> None:
        self.site, self.db, self._specs = site, db, specs
        self.clock = SteadyClock() if time is None else time
        self.latest: dict[str, planned.Plan] = {}  # of each deployment, by its name
        self.made_at: str | None = None
        self.adapters: dict[str, dict[str, str]] = {}  # what replicas are to have: by id, name -> directory
        self.shortened: dict[str, int] = {}  # time limits in seconds that jobs were given later, by the replica's id
        self.channels: Sequence[str] = ()  # by which people are told something
        self._demand = DemandReader(site.ledger_db)

    def close(self) -> None:
        self._demand.close()

    def make(self, cluster: planned.Cluster) -> list[planned.Action]:
        """What to do now. What is explained to people is kept, too."""
        now = self.clock.now()
        since = clock.text(datetime.fromtimestamp(now, UTC) - situations.ENDED)
        demand, loads, served = self._demand.latest(), self._demand.loads(), self._demand.served()

        def at(text: str) -> float:
            return self.clock.corrected(clock.parse(text).timestamp(), now)

        if cluster.seen_at is not None:
            cluster = replace(cluster, seen_at=self.clock.corrected(cluster.seen_at, now))
        actions: list[planned.Action] = []
        plans: dict[str, planned.Plan] = {}
        self.adapters = {}

        def decide(known: Deployment) -> planned.Plan:
            words = following.follow(self.db, known)
            deployment = deployments.get(self.db, known.name)
            theirs = deployments.recent_replicas(self.db, deployment.name, since)
            changing = self._change_adapters(
                deployment, theirs, now - at(deployment.rollout_at or deployment.created_at)
            )
            if changing is not None and changing.done:
                deployment = deployments.get(self.db, known.name)
                theirs = deployments.recent_replicas(self.db, deployment.name, since)
            elif changing is not None and changing.asked:  # nothing to roll out: the stable revision's replicas stay
                deployment = replace(deployment, revision=deployment.stable or deployment.revision)
            try:
                rules = situations.rules_of(deployment, self.site)
            except ValueError as e:
                rules, words = planned.Rules(), str(e)
                # Rules that are not its own do not scale it.
                deployment = replace(deployment, min_replicas=deployment.desired or deployment.min_replicas)
            decided = plan(
                situations.situation(
                    deployment,
                    theirs,
                    rules,
                    at,
                    now,
                    called=demand.get(deployment.name),
                    load=loads.get(deployment.name),
                    served=served,
                    limits=self._time_limits(theirs),
                    proven=revisions.is_proven(self.db, deployment),
                ),
                cluster,
            )
            if changing is not None:
                decided = replace(decided, why=(*decided.why, changing.words))
            if words is not None:
                decided = replace(decided, why=(*decided.why, words))
            if self.clock.jump:
                jumped = f"this host's clock jumped by {self.clock.jump:.0f} s, which is not believed yet"
                decided = replace(decided, why=(*decided.why, jumped))
            return decided

        for known in deployments.everything(self.db):
            if known.state.ended and not replicas.unended_of(self.db, known.name):
                continue
            try:
                plans[known.name] = decide(known)
            except (RegistryError, OSError) as e:  # all others have their plans
                log.error("%s: nothing is done for it now: %s", known.name, e)
                plans[known.name] = planned.Plan(why=(f"nothing is done for it now: {e}",))
            actions += plans[known.name].actions
        self.latest, self.made_at = plans, clock.now()
        return actions

    def _change_adapters(
        self, deployment: Deployment, theirs: Iterable[Replica], waited_s: float
    ) -> adapter_changes.Change | None:
        """What replicas are to have loaded: what their revision is made of, or the one that they become. Where they
        have it, they become it here."""
        live = [
            r
            for r in theirs
            if not r.state.ended and r.state is not ReplicaState.DRAINING and deployments.is_current(deployment, r)
        ]
        own = {n: revisions.get(self.db, deployment.name, n) for n in {r.revision for r in live}}
        wanted, changing = revisions.get(self.db, deployment.name, deployment.revision), None
        over = deployment.paused or deployment.state.ended or deployment.state is DeploymentState.STOPPING
        if deployment.stable in own and not over:
            changing = adapter_changes.change(own[deployment.stable], wanted, live, waited_s)
        asked = () if changing is None else changing.asked
        for r in live:
            if names := adapter_changes.adapters_of(wanted if r.id in asked else own[r.revision]):
                self.adapters[r.id] = names
        if changing is not None and changing.done:
            with transaction(self.db):
                replicas.move_replicas(self.db, asked, wanted.revision)
                revisions.settle(self.db, deployment.name, wanted.revision, True, "engines that run have its adapters")
        return changing

    def _time_limits(self, theirs: Iterable[replicas.Replica]) -> dict[str, int]:
        """Of their jobs, in seconds, as far as that is known."""
        known = {
            r.id: spec.resources.time_limit_s for r in theirs if isinstance(spec := self._specs.get(r.id), ServeSpec)
        }
        return {**known, **{r.id: self.shortened[r.id] for r in theirs if r.id in self.shortened}}

    def note(self, action: planned.Action) -> None:
        """What only the registry has to know."""
        match action:
            case planned.Drain(replica, why):
                deployments.drain_replica(self.db, replica, why)
            case planned.SetState(name, state, cause):
                deployments.set_state(self.db, name, state, cause)
            case planned.Scale(name, desired, low_since, why):
                since = None if low_since is None else clock.text(datetime.fromtimestamp(low_since, UTC))
                deployments.set_scale(self.db, name, desired, since)
                if why:
                    log.info("%s: replicas wanted from now on: %d: %s", name, desired, why)
            case planned.EndTrial(name, revision):
                revisions.end_trial(self.db, name, revision)
            case planned.Settle(name, revision, good, why):
                self._settle_revision(deployments.get(self.db, name), revision, good, why)
            case planned.Warn(name, words):
                notices.tell(self.db, self.site.ledger_db, name, words, self.channels)

    def _settle_revision(self, deployment: Deployment, revision: int, good: bool, why: str) -> None:
        """One that is given up takes the alias back that asked for it: both or neither."""
        log.warning("%s: revision %d is %s: %s", deployment.name, revision, "good" if good else "given up", why)
        with transaction(self.db):
            revisions.settle(self.db, deployment.name, revision, good, why)
            tried = revisions.get(self.db, deployment.name, revision)
            if tried.state is RevisionState.BAD:
                following.take_back(self.db, deployment, tried)
