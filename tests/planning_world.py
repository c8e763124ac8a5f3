"""A world in memory for the planner: what a registry, a scheduler and gateways make of its actions, without waiting."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from launchers.planning.facts import (
    Action,
    Cluster,
    Drain,
    EndTrial,
    Had,
    Loaded,
    Plan,
    Rules,
    Scale,
    SetState,
    Settle,
    Shorten,
    Situation,
    StartReplica,
    Stop,
    Timings,
    Wanted,
    Warn,
)
from launchers.planning.plan import plan
from registry.deployments import DeploymentState
from registry.replicas import ReplicaState

NOW = 1_000_000.0
SERVING = (ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.READY)


class World:
    """One deployment. Jobs start, get ready and end when a test says so; time limits end them by themselves."""

    def __init__(self, rules: Rules | None = None, **wanted: Any) -> None:
        self.now = NOW
        state = DeploymentState.STARTING
        self.wanted = Wanted(name="chat", state=state, rules=rules or Rules(), **wanted)
        self.replicas: dict[str, Had] = {}
        self.cluster = Cluster()
        self.load: Loaded | None = Loaded(0, 0, 0, 0, 0.0)
        self.called_at: float | None = None
        self.timings = Timings(0.0, 60.0)
        self.warnings: set[str] = set()
        self.started = 0
        self._jobs: list[int] = []  # of the replicas that are started next: how many share the job that begins with it
        self._job: str | None = None

    def situation(self) -> Situation:
        replicas = tuple(self.replicas.values())
        return Situation(
            wanted=self.wanted,
            replicas=replicas,
            load=self.load,
            called_at=self.called_at,
            timings=self.timings,
            now=self.now,
        )

    def turn(self) -> Plan:
        """Plan, and take the actions."""
        decided = plan(self.situation(), self.cluster)
        self._share(decided.actions)
        for action in decided.actions:
            self._act(action)
        return decided

    def _share(self, actions: Iterable[Action]) -> None:
        """Those that are started in a row, alike, share jobs."""
        self._jobs = []
        for starts, some in itertools.groupby(actions, key=lambda a: isinstance(a, StartReplica)):
            for _, alike in itertools.groupby(some, key=_alike) if starts else ():
                count = sum(1 for _ in alike)
                for first in range(0, count, self.wanted.rules.pack):
                    members = min(self.wanted.rules.pack, count - first)
                    self._jobs += [members if n == 0 else 0 for n in range(members)]

    @property
    def jobs(self) -> list[int]:
        """How many replicas that serve or come share each job."""
        return sorted(Counter(r.job or r.id for r in self.of(*SERVING)).values())

    def of(self, *states: ReplicaState) -> list[Had]:
        return [r for r in self.replicas.values() if r.state in states]

    @property
    def count(self) -> int:
        """How many replicas are wanted."""
        return self.wanted.least if self.wanted.desired is None else self.wanted.desired

    @property
    def slots(self) -> list[Had]:
        """What comes or serves, but for successors of such; of several successors of one all but one count."""
        live = self.of(*SERVING)
        ids = {r.id for r in live}
        attached = {r.replaces: r.id for r in live if r.replaces in ids}
        return [r for r in live if r.id not in attached.values()]

    def change(self, ids: Iterable[str], **fields: Any) -> None:
        for one in ids:
            self.replicas[one] = replace(self.replicas[one], **fields)

    def run(self, one: str, node: str = "n1") -> None:
        """Its job starts."""
        limit = self.replicas[one].time_limit_s or self.wanted.rules.time_limit_s
        running = {"started_at": self.now, "ends_at": self.now + limit, "nodes": (node,), "waiting_reason": None}
        self.change([one], state=ReplicaState.STARTING, **running)

    def serve(self, one: str) -> None:
        self.change([one], state=ReplicaState.READY, ready_at=self.replicas[one].ready_at or self.now, outstanding=0)

    def end(self, one: str, state: ReplicaState = ReplicaState.LOST, failure: str | None = None) -> None:
        self.change([one], state=state, ended_at=self.now, failure=failure, cause=f"{one} ended")

    def settle_down(self) -> None:
        """What comes is up at once, and what drains has nothing outstanding; until there is nothing to be done."""
        for _ in range(60):
            actions = [a for a in self.turn().actions if not isinstance(a, Warn)]
            for r in self.of(ReplicaState.PENDING):
                self.run(r.id)
            for r in self.of(ReplicaState.STARTING):
                self.serve(r.id)
            self.change([r.id for r in self.of(ReplicaState.DRAINING)], outstanding=0)
            if not actions and not self.of(ReplicaState.DRAINING):
                return
            self.pass_time(5.0)
        raise AssertionError(f"it is still busy: {actions}")

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for r in self.of(ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING):
            if r.ends_at is not None and r.ends_at <= self.now:
                self.end(r.id, ReplicaState.STOPPED)

    def _act(self, action: Action) -> None:
        match action:
            case StartReplica():
                self.started += 1
                one = f"r{self.started}"
                if members := self._jobs.pop(0):
                    self._job = one if members > 1 else None
                self.replicas[one] = Had(
                    id=one,
                    state=ReplicaState.PENDING,
                    created_at=self.now,
                    revision=action.revision,
                    replaces=action.replaces,
                    overflow=action.overflow,
                    job=self._job,
                    time_limit_s=action.time_limit_s,
                )
            case Drain(one, _):
                assert self.replicas[one].state is ReplicaState.READY
                self.change([one], state=ReplicaState.DRAINING, draining_at=self.now)
            case Stop(one, _):
                assert not self.replicas[one].state.ended
                draining_at = self.replicas[one].draining_at or self.now
                self.change([one], state=ReplicaState.STOPPED, draining_at=draining_at, ended_at=self.now)
            case Shorten(one, limit, _):
                assert self.replicas[one].state is ReplicaState.PENDING
                self.change([one], time_limit_s=limit)
            case Scale(_, desired, low_since, _):
                scaled_at = self.now if desired != self.count else self.wanted.scaled_at
                self.wanted = replace(self.wanted, desired=desired, low_since=low_since, scaled_at=scaled_at)
            case Settle(_, revision, good, _):
                stable = revision if good else self.wanted.stable
                assert stable is not None and self.wanted.revision == revision
                self.wanted = replace(self.wanted, stable=stable, revision=stable)
            case EndTrial(_, _):
                assert self.wanted.canary is not None and self.wanted.revision != self.wanted.stable
                self.wanted = replace(self.wanted, canary=None)
            case SetState(_, state, _):
                assert state is not self.wanted.state
                self.wanted = replace(self.wanted, state=state)
            case Warn(_, words):
                self.warnings.add(words)


def _alike(a: Action) -> object:
    """As launchers.replica_jobs has it."""
    return isinstance(a, StartReplica) and (a.revision, a.overflow, a.time_limit_s, a.exclude)
