"""A promotion's steps: their specs, and their jobs, each of which starts when the one before has ended well.

They are submitted at once, as the person who asks, and need nobody afterwards: what they find out is in their run
folders, where the controller takes it up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers.evaluation.results import requirement
from launchers.evaluation.tasks import digest
from launchers.launch import Launched, launch, new_id
from launchers.resources import engine_environment, evaluation_environment, resources_from, training_environment
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, Scheduler
from launchers.spec import ConvertSpec, EvaluateSpec, Promotion, Resources, SmokeSpec
from launchers.submission import safe_name
from registry.site import Site
from registry.tenants import checked_name

SMOKE_S = 900  # for a smoke test, beside what its engine may take to start
EVALUATE_S = 2 * 3600  # for an evaluation, where nobody says otherwise
# Slurm ends a job whose dependency can never hold, instead of keeping it in the queue for good.
NEVER_SATISFIED = "--kill-on-invalid-dep=yes"
OF_EVERY_STEP = ("account", "qos")

StepOf = ConvertSpec | SmokeSpec | EvaluateSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a person asks for."""

    checkpoint_id: str  # RUN/ITERATION
    checkpoint: str  # its absolute path
    model: str
    alias: str
    owner: str
    canary: int | None = None
    tasks_dir: Path | None = None  # None: no evaluation
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    require: tuple[str, ...] = ()
    engine_args: tuple[str, ...] = ()
    # As `resources_from` takes them.
    resources: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # OF_EVERY_STEP of them: the conversion's too
    converting: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the conversion's alone


def steps(site: Site, asked: Asked, now: str) -> list[StepOf]:
    """The specs, in their order. `now`: as registry.clock has it. Raises ValueError, RegistryError for a mistake."""
    checked_name("model", asked.model)
    checked_name("alias", asked.alias)
    if asked.alias.isdigit():
        raise ValueError(f"alias {asked.alias!r} is not allowed: a number after '@' names a version")
    if (asked.tasks or asked.require or asked.limit) and asked.tasks_dir is None:
        raise ValueError("--task, --limit and --require are of an evaluation: say --tasks DIR")
    if asked.tasks_dir is not None and not any(asked.tasks_dir.rglob("*.y*ml")):
        raise ValueError(f"{asked.tasks_dir}: there is no task (*.yaml) in it")
    for text in asked.require:
        requirement(text)
    model = safe_name(asked.model)
    kinds = ("convert", "smoke", *(("evaluate",) if asked.tasks_dir else ()))
    ids = tuple(new_id(f"{kind}-{model}") for kind in kinds)
    promotion = Promotion(
        id=new_id(safe_name(f"{asked.model}-{asked.alias}")),
        source=asked.checkpoint_id,
        model=asked.model,
        alias=asked.alias,
        canary=asked.canary,
        steps=ids,
    )
    common: dict[str, Any] = {"owner": asked.owner, "created_at": now, "model": asked.model, "promotion": promotion}
    folders = [site.runs_dir.resolve() / run for run in ids]
    serving: dict[str, Any] = {
        "environment": engine_environment(site),
        "model_path": str(RunFolder(folders[0]).model),
        "engine_args": (*site.environment("engine").args, *asked.engine_args),
        "start_timeout_s": site.replicas.start_timeout_s,
    }
    named: list[dict[str, Any]] = [{"id": run, "name": f"{kind}-{model}"} for run, kind in zip(ids, kinds, strict=True)]
    shared = {k: asked.resources[k] for k in OF_EVERY_STEP if k in asked.resources}
    converting = resources_from(site.defaults.convert, {**shared, **asked.converting})
    found: list[StepOf] = [
        ConvertSpec(
            **named[0],
            **common,
            resources=converting,
            environment=training_environment(site),
            checkpoint=asked.checkpoint,
            checkpoint_id=asked.checkpoint_id,
        ),
        SmokeSpec(
            **named[1],
            **common,
            **serving,
            resources=_engine_resources(site, asked.resources, site.replicas.start_timeout_s + SMOKE_S),
            after=str(folders[0]),
        ),
    ]
    if asked.tasks_dir is not None:
        found.append(
            EvaluateSpec(
                **named[2],
                **common,
                **serving,
                resources=_engine_resources(site, asked.resources, EVALUATE_S),
                harness=evaluation_environment(site),
                tasks_dir=str(asked.tasks_dir),
                tasks_sha256=digest(asked.tasks_dir),
                tasks=asked.tasks,
                limit=asked.limit,
                require=asked.require,
                after=str(folders[1]),
            )
        )
    return found


def _engine_resources(site: Site, asked: Mapping[str, Any], time_limit_s: int) -> Resources:
    """What a step with an engine asks for: [defaults.evaluate], or what a replica would, for less time."""
    defaults = site.defaults.evaluate or dataclasses.replace(site.defaults.serve, time_limit_s=time_limit_s)
    found = resources_from(defaults, asked)
    if (found.nodes, found.tasks_per_node) != (1, 1):
        raise ValueError("a promotion's engine is one process on one node: --nodes and --ntasks-per-node must be 1")
    if any(option.startswith("--dependency=") for option in found.options):
        raise ValueError("--dependency is not for a promotion: its steps depend on each other")
    return dataclasses.replace(found, options=(*found.options, NEVER_SATISFIED))


def submit(specs: Sequence[StepOf], site: Site, scheduler: Scheduler) -> list[Launched]:
    """Submit every step. Raises as `launch` does; the steps that were submitted before are then cancelled."""
    launched: list[Launched] = []
    after: tuple[JobRef, ...] = ()
    try:
        for spec in specs:
            launched.append(launch(spec, site.runs_dir, scheduler, after))
            after = (launched[-1].job,)
    except BaseException:  # a Ctrl-C too: half of a promotion is none
        for one in reversed(launched):
            scheduler.cancel(one.job)
        raise
    return launched
