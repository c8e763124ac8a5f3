"""Runs Slurm's commands: in an environment of their own, for a bounded time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# SQUEUE_FORMAT, SACCT_FORMAT, SLURM_TIME_FORMAT, SLURM_CLUSTERS, SBATCH_PARTITION (which beats the script's own
# #SBATCH line), and everything that a job we might be running in was told about itself.
_SETTINGS = (
    *("SLURM_", "SLURMD_", "SBATCH_", "SQUEUE_", "SACCT_", "SACCTMGR_", "SINFO_", "SCONTROL_", "SSHARE_", "SCANCEL_"),
    *("SRUN_", "SALLOC_", "SUBMITIT_"),
)
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})


@dataclass(frozen=True, slots=True)
class Completed:
    returncode: int
    stdout: str
    stderr: str


# argv, environment, time-out in seconds. Raises TimeoutError when it is over, OSError when the program cannot start.
Runner = Callable[[Sequence[str], Mapping[str, str], float], Completed]


def run_process(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
    """Run a command to its end. Bytes that are no UTF-8 (job names may hold any) become U+FFFD."""
    try:
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise TimeoutError from e
    # Not subprocess's own text mode, which would turn a carriage return in a name into a line break.
    return Completed(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the settings that change what Slurm's commands print or ask for."""
    return {k: v for k, v in environment.items() if k in _KEPT or not k.startswith(_SETTINGS)}
