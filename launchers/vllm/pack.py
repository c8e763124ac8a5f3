"""Several small replicas in one job: each task becomes the supervisor of one of them.

`python -m launchers.vllm.pack FOLDER...` runs once in each task, of which there are as many as folders. The members'
supervisors know nothing of each other: each has its run folder, its share of the job's GPUs, and its own end.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence

from launchers.environment import GPU_LISTS
from launchers.launch import program
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRequest
from launchers.spec import Resources
from launchers.vllm.arguments import last, ranks

MODULE = "launchers.vllm.pack"
MOST = 64  # replicas in one job


def check(resources: Resources, engine_args: Sequence[str], members: int) -> None:
    """Raises ValueError, naming the field and what is allowed, for replicas that cannot share a job.

    `resources` are the whole job's, but for `cpus_per_task`, which each member has.
    """
    if not 1 <= members <= MOST:
        raise ValueError(f"'pack' must be 1 ... {MOST}, not {members}")
    if members == 1:
        return
    if (resources.nodes, resources.tasks_per_node) != (1, 1):
        raise ValueError("'pack': replicas that share a job are on one node: 'nodes' and 'tasks_per_node' must be 1")
    gpus = resources.gpus_per_node
    if gpus >= members:
        if gpus % members:
            raise ValueError(f"'pack': {gpus} GPUs cannot be divided among {members} replicas evenly")
        if ranks(engine_args) != gpus // members:
            raise ValueError(
                f"'pack': each of {members} replicas has {gpus // members} of {gpus} GPUs, and its engine takes "
                f"{ranks(engine_args)} (--tensor-parallel-size x --pipeline-parallel-size)"
            )
        return
    if gpus == 0:
        return
    together = -(-members // gpus)  # on the fullest GPU
    if ranks(engine_args) != 1:
        raise ValueError("'pack': replicas that share a GPU have an engine of one worker each")
    given = last(engine_args, "--gpu-memory-utilization")
    try:
        share = float(given or "nan")
    except ValueError:
        share = float("nan")
    if not 0 < share * together <= 1:
        raise ValueError(
            f"'pack': {together} replicas share a GPU, so --gpu-memory-utilization must be given, and be at most "
            f"{int(100 / together) / 100:g}, not {given or 'left out'}"
        )


def resources(of_the_job: Resources, members: int) -> Resources:
    """What a pack's job asks for: one task for each member on one node."""
    return dataclasses.replace(of_the_job, tasks_per_node=members)


def part(of_the_job: Resources, members: int, pack: int) -> Resources:
    """What fewer replicas than share a job otherwise ask for: their part of it. `cpus_per_task` each has anyway."""
    if members >= pack:
        return of_the_job
    memory = of_the_job.mem_gb
    return dataclasses.replace(
        of_the_job,
        gpus_per_node=-(-of_the_job.gpus_per_node * members // pack),
        mem_gb=None if memory is None else memory * members / pack,
    )


def command(folders: Sequence[RunFolder]) -> tuple[str, ...]:
    """The job's command: of each of its tasks, in the order of the folders. The code is the first one's."""
    return (*program(folders[0], MODULE), *(str(folder.root) for folder in folders[1:]))


def request(first: JobRequest, folders: Sequence[RunFolder]) -> JobRequest:
    """The job of all members, from what the first one alone would ask for (its key is theirs, and its log directory).

    One replica is no pack: its request stays as it is.
    """
    if len(folders) == 1:
        return first
    asked = resources(first.resources, len(folders))
    return dataclasses.replace(first, command=command(folders), resources=asked, apart=True)


def member_env(environ: Mapping[str, str], number: int, members: int) -> dict[str, str]:
    """What task `number` of `members` changes in its environment, so that it is a job's only task with its own GPUs."""
    alone = {
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1",
        "SUBMITIT_LOCAL_GLOBALID": "0", "SUBMITIT_LOCAL_LOCALID": "0", "SUBMITIT_LOCAL_NTASKS": "1",
    }  # fmt: skip
    changed = {name: value for name, value in alone.items() if name in environ}
    for name in GPU_LISTS:
        if environ.get(name):
            changed[name] = ",".join(share(environ[name].split(","), number, members))
    return changed


def share(gpus: Sequence[str], number: int, members: int) -> Sequence[str]:
    """The GPUs of one member: its even part, or where there are fewer than members the one that it shares."""
    if len(gpus) < members:
        return [gpus[number * len(gpus) // members]]
    each = len(gpus) // members
    return gpus[number * each : (number + 1) * each]


def main(argv: Sequence[str] | None = None) -> int:
    from launchers import supervisor, task  # here: what submits a pack needs no supervisor

    folders = list(sys.argv[1:] if argv is None else argv)
    number = task.task_of(os.environ).rank
    if number >= len(folders):
        raise SystemExit(f"task {number} of a pack of {len(folders)} replicas has none to supervise")
    os.environ.update(member_env(os.environ, number, len(folders)))
    return supervisor.main([folders[number]])


if __name__ == "__main__":
    sys.exit(main())
