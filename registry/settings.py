"""The settings of a site, section by section; registry.site puts them together.

Fields that end in `_s` are seconds, and are written as durations under the name without it (`read_timeout = "2m"`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

LONGEST_GRACE_S = 366 * 86400
_DURATION: dict[str, Any] = {"unit": "duration", "above": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """For clients, where the gateway itself ends TLS: PEM files, the certificate with its chain."""

    certificate: Path = field(metadata={"must_exist": True})
    key: Path = field(metadata={"must_exist": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The tenants' door."""

    host: str = "127.0.0.1"
    port: int = field(default=8080, metadata={"min": 1, "max": 65535})
    tls: Tls | None = None  # absent: plain HTTP
    max_body_mb: int = field(default=32, metadata={"min": 1})  # MiB of one request
    request_timeout_s: float = field(default=30.0, metadata=_DURATION)  # for a client to send a request's headers, and
    # for each wait for more of its body
    client_timeout_s: float = field(default=300.0, metadata=_DURATION)  # for a client that does not read its answer
    connect_timeout_s: float = field(default=5.0, metadata=_DURATION)  # to a replica
    first_byte_timeout_s: float = field(default=300.0, metadata=_DURATION)  # of a stream: queue and prefill
    read_timeout_s: float = field(default=120.0, metadata=_DURATION)  # between two reads of a stream, not in total
    max_in_flight: int = field(default=256, metadata={"min": 1})  # requests that one replica is given at a time
    queue_length: int = field(default=1000, metadata={"min": 0})  # requests that wait for a deployment's replicas
    queue_wait_s: float = field(default=30.0, metadata=_DURATION)  # expected wait above which one is refused
    start_wait_s: float = field(default=60.0, metadata=_DURATION)  # for a first ready replica, without a stream
    heartbeat_s: float = field(default=10.0, metadata=_DURATION)  # between two comments in a stream that waits
    show_route: bool = True  # name the deployment, the replica and the time queued in headers of each answer
    continue_streams: bool = False  # replay a broken stream's prompt and text on another replica
    media_hosts: tuple[str, ...] = ()  # from which engines may fetch what a request links to; "*.example.org" too
    metrics_from: tuple[str, ...] = ("127.0.0.0/8", "::1/128")  # networks that may read /metrics without a key
    cors_origins: tuple[str, ...] = ()  # web pages that may call from a browser; "*" for any


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    poll_s: float = field(default=2.0, metadata=_DURATION)  # between two looks at the run folders


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    kind: Literal["local", "slurm"]
    slurm_conf: Path | None = field(default=None, metadata={"must_exist": True})  # exported as SLURM_CONF
    backend: Literal["auto", "commands"] = "auto"  # auto: pyslurm where it works, else Slurm's commands
    command_timeout_s: float = field(default=30.0, metadata=_DURATION)  # of one squeue, sbatch, ...
    min_poll_s: float = field(default=2.0, metadata=_DURATION)  # between two looks at Slurm's queue: never less,
    max_poll_s: float = field(default=30.0, metadata=_DURATION)  # and this when nothing happens


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """What every replica of every deployment has in common."""

    listen: str = "127.0.0.1"  # the address engines bind; "0.0.0.0" where the gateway is on another node
    tls: bool = True  # engines speak TLS with a certificate of their own, which the gateway pins
    start_timeout_s: int = field(default=900, metadata=_DURATION)  # from the job's start to the first generated token
    shutdown_timeout_s: int = field(default=30, metadata=_DURATION)  # for requests in flight, after SIGTERM
    drain_timeout_s: int = field(default=600, metadata=_DURATION)  # for requests in flight before that, once a replica
    # takes no new ones; less where its job ends earlier
    max_restarts: int = field(default=3, metadata={"min": 0})  # of a crashed or hung engine in its job, in ten minutes
    hang_timeout_s: int = field(default=120, metadata=_DURATION)  # for the token of a probe
    stage_dir: str | None = None  # node-local directory for copies of weights (`headgate serve --stage`)
    isolated_network: bool = False  # whether nobody else reaches the compute nodes' ports: what engines that span nodes
    # say to each other is open to whoever does
    multi_node: Literal["mp", "ray"] = "mp"  # how such engines are started: vLLM's own launch, or Ray


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployments:
    """How deployments are scaled and rolled out, where they do not say it themselves."""

    idle_timeout_s: float = field(
        default=900.0, metadata=_DURATION
    )  # since the last call, until one that may sleep does
    scale_up_every_s: float = field(default=30.0, metadata=_DURATION)  # between two steps up,
    scale_down_after_s: float = field(default=300.0, metadata=_DURATION)  # and for so long the load must ask for fewer
    max_step: int = field(default=4, metadata={"min": 1})  # replicas added at a time, at most
    target_wait_s: float = field(default=10.0, metadata=_DURATION)  # a request that waits for longer asks for a replica
    bake_s: float = field(default=300.0, metadata=_DURATION)  # that a new revision's first replica is watched
    bake_requests: int = field(default=20, metadata={"min": 0})  # that it must have answered; or twice `bake` is over
    margin_s: float = field(default=60.0, metadata=_DURATION)  # by which successors are early


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where a heavy program runs.

    `{python}` in `command`, `{state_dir}` and `{shared_dir}` in `mounts`, `command`, `env` and `args` are replaced.
    """

    kind: Literal["venv", "apptainer", "pyxis"]
    python: str = field(metadata={"unit": "program"})  # the interpreter, as seen inside the environment
    image: str | None = None  # .sif path or URI (apptainer), image URI or .sqsh path (pyxis)
    mounts: tuple[str, ...] = ()  # HOST:CONTAINER, containers only
    modules: tuple[str, ...] = ()  # what `module load` takes, loaded in the batch script; Slurm only
    command: tuple[str, ...] = ()  # engine only: argv that starts an OpenAI-compatible server
    env: dict[str, str] = field(default_factory=dict)  # added to the program's environment; no secrets
    args: tuple[str, ...] = ()  # engine only: arguments every deployment gets, before its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Environments:
    training: Environment | None = None
    engine: Environment | None = None
    evaluation: Environment | None = None  # one with lm_eval, for `headgate promote --tasks`; absent: the training one


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultResources:
    """What a job asks for when a person does not say; sbatch's words, the names of launchers.spec.Resources."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = field(default=1, metadata={"min": 1})
    tasks_per_node: int = field(default=1, metadata={"min": 1})
    cpus_per_task: int = field(default=1, metadata={"min": 1})
    gpus_per_node: int = field(default=0, metadata={"min": 0})
    mem_gb: float | None = field(default=None, metadata={"above": 0})  # GiB per node; absent: the partition's default
    time_limit_s: int = field(default=24 * 3600, metadata=_DURATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    train: DefaultResources = DefaultResources()
    serve: DefaultResources = DefaultResources()
    convert: DefaultResources = DefaultResources(time_limit_s=3600)
    evaluate: DefaultResources | None = None  # of a promotion's smoke test and evaluation; absent: as serve, for 2 h


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Credits per million tokens, which is micro-credits per token."""

    prompt: float = field(metadata={"min": 0})
    completion: float = field(metadata={"min": 0})
    cached: float | None = field(default=None, metadata={"min": 0})  # of a prompt's tokens found in the engine's cache;
    # absent: as any other token of the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantDefault:
    """What a new tenant may do until somebody says otherwise: registry.limits.Limits, whose words these are."""

    requests_per_minute: int | None = field(default=600, metadata={"min": 0})
    burst: int | None = field(default=None, metadata={"min": 1})
    tokens_per_minute: int | None = field(default=None, metadata={"min": 0})
    concurrent_requests: int | None = field(default=None, metadata={"min": 0})
    tokens_per_day: int | None = field(default=None, metadata={"min": 0})
    tokens_per_month: int | None = field(default=None, metadata={"min": 0})
    credits_per_day: float | None = field(default=None, metadata={"min": 0})
    credits_per_month: float | None = field(default=None, metadata={"min": 0})
    token_budget: int | None = field(default=None, metadata={"min": 0})  # in all
    spend_ceiling: float | None = field(default=None, metadata={"min": 0})  # credits, in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    default: TenantDefault = TenantDefault()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPrice:
    """Of a type of GPU, by the name that Slurm's gres has for it."""

    hour: float = field(metadata={"min": 0})  # credits per GPU-hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    login_lifetime_s: float = field(default=30 * 86400.0, metadata=_DURATION)  # of a key that `headgate login` got
    rotation_grace_s: float = field(default=86400.0, metadata={**_DURATION, "max": LONGEST_GRACE_S})  # for which a
    # rotated key goes on working


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The control API for other hosts, over HTTPS with a key; on this host the Unix socket serves without one."""

    host: str = "127.0.0.1"
    port: int | None = field(default=None, metadata={"min": 1, "max": 65535})  # absent: the Unix socket only
    tls: Tls | None = None  # required unless `host` is this machine's loopback


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How much of a replica's work one token is, where GPU time is split among tenants."""

    prompt: float = field(default=1.0, metadata={"min": 0})
    cached: float = field(default=0.1, metadata={"min": 0})  # of a prompt's tokens found in the engine's cache
    completion: float = field(default=4.0, metadata={"min": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Who is charged for the GPU time of replicas.

    "owner": the tenant of the account that the replica's job runs in; "pro-rata": the tenants that used it, by their
    work; "reservation": whoever holds the reservation the job ran in, the owner where it ran in none.
    """

    startup: Literal["owner", "pro-rata", "reservation"] = "owner"
    idle: Literal["owner", "pro-rata", "reservation"] = "owner"
    weights: Weights = Weights()
    reservations: dict[str, str] = field(default_factory=dict)  # reservation -> tenant; else Slurm's first account


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    keep_months: int | None = field(default=None, metadata={"min": 1})  # whole months whose single events are kept;
    # older ones are rolled up into monthly sums. Absent: every event is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """Through a relay that takes the site's mail. The password itself never stands in a file."""

    host: str
    port: int = field(default=25, metadata={"min": 1, "max": 65535})
    sender: str
    to: tuple[str, ...]
    starttls: bool = False
    user: str | None = None
    password_env: str | None = None  # the variable that holds it


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """Whoever is told that a limit is nearly used up. Each threshold once, until the limit or its window is new."""

    thresholds: tuple[int, ...] = (50, 80, 90, 100)  # percent
    every_s: float = field(default=60.0, metadata=_DURATION)  # between two looks
    webhook: str | None = None  # URL that gets a JSON object per alert, by POST
    mail: Mail | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """A model somebody else serves. The key itself never stands in a file: only the variable that holds it."""

    model: str  # LiteLLM's name for it: "anthropic/claude-..."
    api_base: str | None = None
    api_key_env: str | None = None
    # Where [prices] has none of its own for it: LiteLLM's price, which is in dollars, times this. Absent: "default".
    credits_per_usd: float | None = field(default=None, metadata={"above": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """What Slurm does not know of a partition; Slurm stays the authority on the rest."""

    gpu: str | None = None  # type name: "h100"
    gpus_per_node: int = field(default=0, metadata={"min": 0})
    peak_tflops: float | None = field(default=None, metadata={"above": 0})  # dense bf16 per GPU: the divisor of MFU
    max_time_s: int | None = field(default=None, metadata=_DURATION)
