"""The command line and the environment of a training or conversion process. Pure; nothing is started here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launchers.run_folder import RunFolder
from launchers.spec import ConvertSpec, SpecError, TrainSpec

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


def child_argv(spec: TrainSpec | ConvertSpec, run_folder: Path) -> list[str]:
    """What the supervisor starts. Raises SpecError for an environment that this program cannot run in."""
    environment = spec.environment
    program = [environment.python, "-m", PROGRAMS[type(spec)], str(run_folder)]
    match environment.kind:
        case "venv" | "pyxis":  # pyxis: srun's own flags put the task into the container
            return program
        case "apptainer":
            if not environment.image:
                raise SpecError("environment.image is missing: kind 'apptainer' needs the path of a .sif file")
            gpus = ["--nv"] if spec.resources.gpus_per_node else []
            # Seen inside at the same paths: the run itself, and what it reads and writes elsewhere.
            places = [str(run_folder), *_other_places(spec), *environment.mounts]
            mounts = [word for place in dict.fromkeys(places) for word in ("-B", place)]
            return ["apptainer", "exec", *gpus, *mounts, environment.image, *program]
        case kind:
            raise SpecError(f"environment.kind {kind!r} is none of apptainer, pyxis, venv")


def child_env(
    spec: TrainSpec | ConvertSpec, run_folder: Path, rank: Rank, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment of that process: `inherited`, what every rank needs, and the site's own on top."""
    ours = {
        "PYTHONPATH": str(RunFolder(run_folder).code),  # the code as it was at submission, and nothing else
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(spec.resources.cpus_per_task),
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads give their core back: on a shared machine, 40% less CPU time
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "RANK": str(rank.rank),
        "WORLD_SIZE": str(rank.world_size),
        "LOCAL_RANK": str(rank.local_rank),
        "MASTER_ADDR": rank.master_addr,
        "MASTER_PORT": str(rank.master_port),
        "HEADGATE_ATTEMPT": str(rank.attempt),
    }
    # Without compiled files every start would compile torch and its family again.
    kept = {k: v for k, v in inherited.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | ours | spec.environment.env


def _other_places(spec: TrainSpec | ConvertSpec) -> list[str]:
    return [spec.dataset_dir] if isinstance(spec, TrainSpec) else [spec.checkpoint]
