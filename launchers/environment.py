"""Where a heavy program runs: the same command line, wrapped for a virtual environment or a container. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from launchers.spec import Environment, Resources, SpecError

# In which the GPUs of a process stand, NVIDIA's and AMD's. Slurm sets them anew in each step.
GPU_LISTS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


def inside(
    environment: Environment,
    argv: Sequence[str],
    resources: Resources,
    node: str | None = None,
    places: Sequence[str] = (),
    kept: Mapping[str, str] | None = None,
) -> list[str]:
    """The command line that runs `argv` in `environment`; `{python}` stands for the environment's interpreter.

    A container sees `places` (absolute paths) where they are outside, and the site's own mounts. `kept`: variables that
    are so inside, too, whatever Slurm sets in a step of its own. Raises SpecError for an environment that cannot be.
    """
    command = [word.replace("{python}", environment.python) for word in argv]
    if environment.kind == "venv":
        return command
    if environment.kind not in ("apptainer", "pyxis"):
        raise SpecError(f"environment.kind {environment.kind!r} is none of apptainer, pyxis, venv")
    if not environment.image:
        raise SpecError(f"environment.image is missing: kind {environment.kind!r} needs one")
    mounts = list(dict.fromkeys([*(f"{place}:{place}" for place in places), *environment.mounts]))
    if environment.kind == "apptainer":
        gpus = ["--nv"] if resources.gpus_per_node else []
        return ["apptainer", "exec", *gpus, *(w for m in mounts for w in ("--bind", m)), environment.image, *command]
    # The supervisor is outside the container, so the container gets a step of its own on the same node.
    where = ["--nodelist", node] if node else []
    seen = ["--container-mounts", ",".join(mounts)] if mounts else []
    step = ["srun", "--overlap", "--nodes=1", "--ntasks=1", *where]
    again = ["env", *(f"{name}={value}" for name, value in kept.items())] if kept else []
    return [*step, "--container-image", environment.image, *seen, *again, *command]


def child_env(inherited: Mapping[str, str], environment: Environment, code: Path, cpus: int) -> dict[str, str]:
    """The environment of a child process: the job's own, our frozen code, and the site's settings on top."""
    # Without compiled files every start would compile torch and its family again.
    foreign = ("PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "VIRTUAL_ENV")
    ours = {
        "PYTHONPATH": str(code),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(cpus),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    return {k: v for k, v in inherited.items() if k not in foreign} | ours | environment.env
