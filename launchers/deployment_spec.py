"""What a person asks of a deployment: the words of `headgate serve` and of a file for `headgate apply`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec:
    """`resources` and `overflow` are what launchers.resources.resources_from takes, over the site's defaults.serve."""

    name: str
    model: str  # NAME, NAME@VERSION, NAME@ALIAS (whose moves it follows), RUN/ITERATION or an absolute directory
    min: int = 1  # 0: it sleeps while nobody calls it
    max: int | None = None  # None: the larger of `min` and 1
    target_tokens: int | None = None  # queued and running tokens that one replica is to have; None: no scaling by load
    target_wait_s: float | None = None  # None, here and below: as the site's [deployments] has it
    idle_timeout_s: float | None = None
    routing: str | None = None
    runner: Literal["generate", "embed", "score"] = "generate"
    resources: dict[str, Any] = field(default_factory=dict)
    overflow: dict[str, Any] | None = None  # other resources (a preemptible QOS, say) for replicas above `min`
    engine_args: tuple[str, ...] = ()
    adapters: dict[str, str] = field(default_factory=dict)  # LoRA: the name that clients call -> absolute directory
    stage: bool = False  # copy the weights to the site's replicas.stage_dir first
    pack: int = 1  # replicas that share one job
    canary: int | None = None  # percent of the calls for a new revision's first replica; None: its share
    bake_s: float | None = None
    bake_requests: int | None = None
