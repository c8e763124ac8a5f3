"""What a person asks of a deployment: the words of `headgate serve` and of a file for `headgate apply`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from launchers.resources import REPLICA_OPTIONS, resources_from
from launchers.spec import built
from registry import canary as percent
from registry.db import RegistryError
from registry.settings import DefaultResources
from registry.tenants import checked_name

if typing.TYPE_CHECKING:
    from registry.deployments import Deployment  # whose import takes the command line a tenth of a second

MAX_REPLICAS = 256  # of one deployment
_DURATION: dict[str, Any] = {"unit": "duration", "above": 0, "max": 366 * 86400}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What stands in a file as it is held.

    A field's metadata is what registry.strict_toml reads files by; `checked` holds what comes from elsewhere to it.
    """

    min: int = field(default=1, metadata={"min": 0, "max": MAX_REPLICAS})  # 0: it sleeps while nobody calls it
    max: int | None = field(default=None, metadata={"min": 1, "max": MAX_REPLICAS})  # None: `min`, at least `pack`
    # Queued and running tokens that one replica is to have; None: no scaling by load.
    target_tokens: int | None = field(default=None, metadata={"min": 1})
    # None, here and below: as the site's [deployments] has it.
    target_wait_s: float | None = field(default=None, metadata=_DURATION)
    idle_timeout_s: float | None = field(default=None, metadata=_DURATION)
    # registry.deployments.ROUTING, whose first is the default; a test holds them equal.
    routing: Literal["least-work", "least-outstanding", "round-robin"] | None = None
    runner: Literal["generate", "embed", "score"] = "generate"
    engine_args: tuple[str, ...] = ()
    stage: bool = False  # copy the weights to the site's replicas.stage_dir first
    pack: int = field(default=1, metadata={"min": 1, "max": MAX_REPLICAS})  # replicas that share one job
    canary: int | None = field(
        default=None, metadata={"min": percent.LEAST, "max": percent.MOST}
    )  # percent of the calls for a new
    # revision's first replica; None: its share
    bake_s: float | None = field(default=None, metadata=_DURATION)
    bake_requests: int | None = field(default=None, metadata={"min": 0})

    @property
    def most(self) -> int:
        """Replicas at most."""
        return max(self.min, self.pack) if self.max is None else self.max


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec(Wishes):
    """`resources` is what launchers.resources.resources_from takes, over the site's defaults.serve; `overflow` the
    same, over `resources`.
    """

    name: str
    model: str  # NAME, NAME@VERSION, NAME@ALIAS (whose moves it follows), RUN/ITERATION or an absolute directory
    resources: dict[str, Any] = field(default_factory=dict)
    overflow: dict[str, Any] | None = None  # other resources (a preemptible QOS, say) for replicas above `min`
    adapters: dict[str, str] = field(default_factory=dict)  # LoRA: the name that clients call -> absolute directory


_IN_COLUMNS = ("name", "model", "min", "max")  # of a deployment's row, and not in its `request`


def from_document(document: Mapping[str, Any]) -> DeploymentSpec:
    """A body of the control API, strictly. Raises ValueError, naming the field and what is allowed."""
    given = {key: value for key, value in document.items() if value is not None}
    return checked(built(DeploymentSpec, given))


def to_document(spec: DeploymentSpec) -> dict[str, Any]:
    """What from_document reads again: JSON, without what is left to the site."""
    plain = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in plain.items() if v is not None}


def to_request(spec: DeploymentSpec) -> dict[str, Any]:
    """What a deployment's `request` keeps: all but what has a column of its own."""
    return {key: value for key, value in to_document(spec).items() if key not in _IN_COLUMNS}


def spec_of(deployment: Deployment) -> DeploymentSpec:
    """What is asked of a deployment now. A field that is not known here is another release's, and passed over; a value
    that is out of bounds is shown as it is: whoever asked was refused, or another release took it."""
    known = {f.name for f in dataclasses.fields(DeploymentSpec)}.difference(_IN_COLUMNS)
    kept: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in deployment.request.items()
        if key in known and value is not None
    }
    return DeploymentSpec(
        name=deployment.name,
        model=deployment.follows or f"{deployment.model}@{deployment.version}",
        min=deployment.min_replicas,
        max=deployment.max_replicas,
        **kept,
    )


def checked(spec: DeploymentSpec) -> DeploymentSpec:
    """The same one; an overflow that asks for nothing is none. Raises ValueError, naming the field, for what is out of
    bounds, and for names, resources and adapters that no site could take."""
    _require_bounds(spec)
    try:
        checked_name("deployment", spec.name)
        for name in spec.adapters:
            checked_name("adapter", name)
    except RegistryError as e:
        raise ValueError(str(e)) from e
    if not spec.model.strip() or not spec.model.isprintable():
        raise ValueError(f"model: {spec.model!r} names no model")
    for part, asked in (("resources", spec.resources), ("overflow", spec.overflow)):
        try:
            resources_from(DefaultResources(), asked or {}, REPLICA_OPTIONS)
        except ValueError as e:
            raise ValueError(str(e) if part == "resources" else f"{part}: {e}") from e
    for name, directory in spec.adapters.items():
        if not directory.startswith("/") or not directory.isprintable():
            raise ValueError(f"adapters.{name}: {directory!r} is not an absolute directory")
    return dataclasses.replace(spec, overflow=spec.overflow or None)


def _require_bounds(wishes: Wishes) -> None:
    for f in dataclasses.fields(wishes):
        value, bounds = getattr(wishes, f.name), f.metadata
        if value is None:
            continue
        if ("min" in bounds and value < bounds["min"]) or ("above" in bounds and not value > bounds["above"]):
            least = f"at least {bounds['min']}" if "min" in bounds else f"above {bounds['above']}"
            raise ValueError(f"{f.name}: must be {least}, not {value}")
        if "max" in bounds and not value <= bounds["max"]:
            raise ValueError(f"{f.name}: must be at most {bounds['max']}, not {value}")
    if wishes.max is not None and wishes.max < wishes.min:
        raise ValueError(f"max: must be at least min ({wishes.min}), not {wishes.max}")
