"""Where a heavy program runs: the same command line, wrapped for a virtual environment or a container. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from launchers.spec import Environment, Resources


def inside(environment: Environment, argv: Sequence[str], resources: Resources, node: str | None = None) -> list[str]:
    """The command line that runs `argv` in `environment`; `{python}` stands for the environment's interpreter."""
    command = [word.replace("{python}", environment.python) for word in argv]
    match environment.kind:
        case "venv":
            return command
        case "apptainer":
            assert environment.image
            gpus = ["--nv"] if resources.gpus_per_node else []
            binds = [word for mount in environment.mounts for word in ("--bind", mount)]
            return ["apptainer", "exec", *gpus, *binds, environment.image, *command]
        case "pyxis":
            # The supervisor is outside the container, so the container gets a step of its own on the same node.
            assert environment.image
            place = ["--nodelist", node] if node else []
            mounts = ["--container-mounts", ",".join(environment.mounts)] if environment.mounts else []
            step = ["srun", "--overlap", "--nodes=1", "--ntasks=1", *place]
            return [*step, "--container-image", environment.image, *mounts, *command]
    raise ValueError(f"environment kind {environment.kind!r} is none of venv, apptainer, pyxis")


def child_env(inherited: Mapping[str, str], environment: Environment, code: Path, cpus: int) -> dict[str, str]:
    """The environment of a child process: the job's own, the site's settings for this environment, our frozen code."""
    env = {k: v for k, v in inherited.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "VIRTUAL_ENV")}
    env.update(
        PYTHONPATH=str(code),
        PYTHONUNBUFFERED="1",
        OMP_NUM_THREADS=str(cpus),
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
    )
    env.update(environment.env)
    return env
