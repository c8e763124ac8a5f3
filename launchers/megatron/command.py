"""The command line and the environment of a training or conversion process. Pure; nothing is started here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launchers import environment
from launchers.run_folder import RunFolder
from launchers.spec import ConvertSpec, TrainSpec

PROGRAMS = {TrainSpec: "launchers.megatron.pretrain", ConvertSpec: "launchers.megatron.convert"}


@dataclass(frozen=True, slots=True)
class Rank:
    """Where one task of a job stands."""

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int
    attempt: int = 1
    attempt_name: str = ""  # JOB.RESTART


def child_argv(spec: TrainSpec | ConvertSpec, run_folder: Path, node: str | None = None) -> list[str]:
    """What the supervisor starts. Raises SpecError for an environment that this program cannot run in."""
    program = ["{python}", "-m", PROGRAMS[type(spec)], str(run_folder)]
    places = [str(run_folder), *(_reads(spec) if isinstance(spec, TrainSpec) else [spec.checkpoint])]
    return environment.inside(spec.environment, program, spec.resources, node, places=places)


def _reads(spec: TrainSpec) -> list[str]:
    """What a container must see besides the run's own folder. (Text is the site's mounts' business.)"""
    init, data = spec.recipe.get("init") or {}, spec.recipe.get("data") or {}
    given = [init.get("hugging_face"), init.get("checkpoint"), data.get("tokenizer")]
    return [spec.dataset_dir, *(str(path) for path in given if path)]


def child_env(
    spec: TrainSpec | ConvertSpec, run_folder: Path, rank: Rank, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment of that process: `inherited`, what every rank needs, and the site's own on top."""
    ours = {
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads give their core back: on a shared machine, 40% less CPU time
        "TOKENIZERS_PARALLELISM": "true",
        "RANK": str(rank.rank),
        "WORLD_SIZE": str(rank.world_size),
        "LOCAL_RANK": str(rank.local_rank),
        "MASTER_ADDR": rank.master_addr,
        "MASTER_PORT": str(rank.master_port),
        "HEADGATE_ATTEMPT": str(rank.attempt),
        "HEADGATE_ATTEMPT_NAME": rank.attempt_name,
    }
    if isinstance(spec, TrainSpec) and spec.peak_tflops is not None:
        ours["HEADGATE_PEAK_TFLOPS"] = f"{spec.peak_tflops:g}"
    code = RunFolder(run_folder).code
    return environment.child_env({**inherited, **ours}, spec.environment, code, spec.resources.cpus_per_task)
