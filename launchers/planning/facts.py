"""What planning looks at, and what it may decide: plain values, so that every decision can be tested on data.

Times are seconds since the epoch, by the controller's steady clock; durations are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from registry.deployments import DeploymentState
from registry.replicas import ReplicaState


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a deployment's own options for sbatch say of its jobs of one kind."""

    time_min_s: int = 0  # Slurm takes no shorter time limit
    nodelist: bool = False  # whether they name the nodes to run on
    exclude: frozenset[str] = frozenset()  # nodes, as far as each is named by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How one deployment is kept, scaled and rolled out: its own words, else the site's."""

    target_tokens: int | None = None  # queued and running tokens that one replica is to have; None: no scaling by load
    target_wait_s: float = 10.0
    idle_s: float = 900.0
    scale_up_every_s: float = 30.0
    scale_down_after_s: float = 300.0
    max_step: int = 4
    bake_s: float = 300.0
    bake_requests: int = 20
    pack: int = 1  # replicas that share a job: more are wanted in multiples of it
    overflow: bool = False  # whether those above `least` may be preemptible ones
    time_limit_s: int = 24 * 3600  # of a replica's job
    shortest_s: int = 600  # a job that would have to be shorter to end before maintenance is not worth its start
    drain_s: float = 600.0
    shutdown_s: float = 30.0
    margin_s: float = 60.0
    partition: str = ""  # where its jobs run; "": the default
    overflow_time_limit_s: int | None = None  # of a preemptible replica's job; None: as of the others
    overflow_partition: str | None = None
    options: Options = Options()
    overflow_options: Options | None = None

    def limit_s(self, overflow: bool) -> int:
        """The time limit of a job of this kind."""
        own = self.overflow_time_limit_s if overflow else None
        return self.time_limit_s if own is None else own

    def where(self, overflow: bool) -> str:
        """The partition that a job of this kind runs in."""
        own = self.overflow_partition if overflow else None
        return self.partition if own is None else own

    def says(self, overflow: bool) -> Options:
        own = self.overflow_options if overflow else None
        return self.options if own is None else own


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A deployment."""

    name: str
    state: DeploymentState
    least: int = 1
    most: int = 1
    paused: bool = False
    revision: int = 1
    stable: int | None = None  # the newest revision that proved itself
    canary: int | None = None  # percent of the calls for the revision on trial; None: its share of the replicas
    proven: bool = False  # this revision is what another was that proved itself: it needs no trial
    rollout_at: float = 0.0
    desired: int | None = None
    scaled_at: float | None = None
    low_since: float | None = None
    rules: Rules = Rules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Had:
    """A replica of the deployment's, live or ended. The ended: those of the last day, and the last that was ready."""

    id: str
    state: ReplicaState
    created_at: float
    former: bool = False  # it was a former deployment's, of the same name
    revision: int = 1
    started_at: float | None = None  # its supervisor's beginning
    ready_at: float | None = None
    ended_at: float | None = None
    ends_at: float | None = None  # when its job's time limit ends it; None: it does not run yet, or has none
    draining_at: float | None = None
    overflow: bool = False
    replaces: str | None = None
    job: str | None = None  # that it shares with others; None: it has one of its own
    nodes: tuple[str, ...] = ()
    waiting_reason: str | None = None  # of its pending job, in the scheduler's words
    expected_start_at: float | None = None
    time_limit_s: int | None = None  # of its job, where it is not the rules'
    failure: str | None = None  # launchers.vllm.failures.Kind
    cause: str | None = None
    restarts: int = 0
    outstanding: int | None = None  # requests that gateways have there; None: no gateway that lives has said
    requests: int = 0  # that ended there,
    failures: int = 0  # of these, the replica's own fault
    first_outputs: int = 0
    first_output_s: float = 0.0  # the sum of so many times to the first output


@dataclass(frozen=True, slots=True)
class Loaded:
    """What all gateways have to do for the deployment, now."""

    running: int
    running_tokens: int
    queued: int
    queued_tokens: int
    waited_s: float  # the longest wait


@dataclass(frozen=True, slots=True)
class Timings:
    """What was measured of this deployment's replicas lately, or is assumed."""

    queue_s: float  # from submission to the job's start
    start_s: float  # from there to the first generated token


@dataclass(frozen=True, slots=True)
class Maintenance:
    name: str
    starts_at: float
    ends_at: float
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Slurm's view. While it is not known, nothing is started, stopped or given up."""

    known: bool = True
    silence: str | None = None  # why it is not, in the scheduler's words
    seen_at: float | None = None  # when the nodes were asked for; None: as they are now
    leaving: Mapping[str, str] = field(default_factory=dict)  # nodes that drain while jobs run there -> the reason
    down: Mapping[str, str] = field(default_factory=dict)
    maintenance: tuple[Maintenance, ...] = ()
    partition_nodes: Mapping[str, frozenset[str]] = field(default_factory=dict)  # "": the default partition's

    def nodes_of(self, partitions: str) -> frozenset[str]:
        """Of all that a job may name, with commas; none where any of them is not known."""
        names = partitions.split(",")
        if len(names) == 1 or not all(name in self.partition_nodes for name in names):
            return self.partition_nodes.get(partitions, frozenset())
        return frozenset[str]().union(*(self.partition_nodes[name] for name in names))


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that a decision about one deployment depends on, but for the cluster."""

    wanted: Wanted
    replicas: tuple[Had, ...] = ()
    load: Loaded | None = None  # None: no gateway that lives has said
    called_at: float | None = None  # when it (no former one) was last called, or a request was still in flight
    timings: Timings = Timings(0.0, 60.0)
    now: float


# What may be done.


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReplica:
    deployment: str
    revision: int
    why: str
    replaces: str | None = None
    overflow: bool = False
    time_limit_s: int | None = None  # None: the deployment's own
    exclude: tuple[str, ...] = ()  # nodes that it is not to run on


@dataclass(frozen=True, slots=True)
class Drain:
    """Take it out of routing; it is stopped (by a later plan) when it is empty or its time to drain is over."""

    replica: str
    why: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End its job: what has begun finishes what it has within the shutdown time-out."""

    replica: str
    why: str


@dataclass(frozen=True, slots=True)
class Shorten:
    """Give its waiting job a time limit that ends before maintenance begins."""

    replica: str
    time_limit_s: int
    why: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Remember how many are wanted, and since when the load has asked for fewer."""

    deployment: str
    desired: int
    low_since: float | None
    why: str  # "" when only `low_since` is new


@dataclass(frozen=True, slots=True)
class Settle:
    """A revision has proven itself, or is given up for the stable one, which is then the one wanted."""

    deployment: str
    revision: int
    good: bool
    why: str


@dataclass(frozen=True, slots=True)
class EndTrial:
    """The revision on trial takes over: calls are shared by replicas from now on, however few it was to get before."""

    deployment: str
    revision: int


@dataclass(frozen=True, slots=True)
class SetState:
    deployment: str
    state: DeploymentState
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Warn:
    """Its tenants are to know, once: the same words again are not told again."""

    deployment: str
    words: str


Action = StartReplica | Drain | Stop | Shorten | Scale | Settle | EndTrial | SetState | Warn


@dataclass(frozen=True, slots=True)
class Plan:
    actions: tuple[Action, ...] = ()
    why: tuple[str, ...] = ()  # in plain words, what it wants, what it has, and why it does what it does
    next: tuple[tuple[float | None, str], ...] = ()  # what happens next, and when, where that is known
