"""A job request becomes a job: the only module that imports submitit.

submitit renders the sbatch script and controls local tasks. What runs in each task is the request's own command (our
supervisor), never submitit's pickle, which belongs to one job id: the script in a run folder can be submitted again.

As a program (`python -m launchers.submit SPOOL`, a request as JSON on stdin), it starts one local job and exits. That
detour gives the job a session of its own, which no Ctrl-C in the submitter's terminal reaches, and leaves a submitter
that lives on no child to reap.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from submitit.local.local import LocalExecutor
from submitit.slurm.slurm import SlurmExecutor, SlurmJob

from launchers import sbatch
from launchers.local_job import LocalJob
from launchers.scheduler import JobRequest, SchedulerError
from launchers.spec import Resources
from launchers.task import END_APART, END_TOGETHER
from slurm.client import SlurmClient
from slurm.process import clean_environment

START_TIMEOUT_S = 60.0
# A batch script is no login shell, and has `module` only where its submitter's environment brought it along.
FIND_MODULES = (
    "command -v module >/dev/null || "
    "for init in /etc/profile.d/lmod.sh /etc/profile.d/modules.sh; do [ ! -r $init ] || . $init; done"
)


def signal_lead_s(time_limit_s: int, notice_s: int) -> int:
    """How long before the time limit every task gets SIGUSR2: `notice_s`, or of a short limit a quarter.

    Slurm looks every 30 s, and signals those whose time would have come by its next look.
    """
    return max(1, min(notice_s, time_limit_s // 4 - 30))


def slurm_parameters(request: JobRequest) -> dict[str, Any]:
    """The request in submitit's words for Slurm, which are sbatch's; what is None is left out of the script."""
    r = request.resources
    return {
        "job_name": request.name,
        "comment": request.key,
        "partition": r.partition,
        "account": r.account,
        "qos": r.qos,
        "nodes": r.nodes,
        "ntasks_per_node": r.tasks_per_node,
        "cpus_per_task": r.cpus_per_task,
        "gpus_per_node": r.gpus_per_node or None,
        "mem": None if r.mem_gb is None else f"{math.ceil(r.mem_gb * 1024)}M",
        "time": math.ceil(r.time_limit_s / 60),  # minutes, which is all that Slurm counts
        "signal_delay_s": signal_lead_s(r.time_limit_s, request.notice_s),
        # Both said, because a cluster's JobRequeue and a person's SBATCH_REQUEUE would decide otherwise.
        "additional_parameters": {
            "no-requeue" if request.batch is None else "requeue": True,
            # What it comes after has failed: it would wait for ever.
            **({"kill-on-invalid-dep": "yes"} if request.after else {}),
        },
        "setup": [
            # srun has ignored sbatch's --cpus-per-task since 22.05.
            f"export SRUN_CPUS_PER_TASK={r.cpus_per_task}",
            # bash waits for what it started, whatever Slurm says to the whole job: that has still something to do.
            *([] if request.batch is None else ["trap : TERM INT USR1 USR2"]),
            *([FIND_MODULES, f"module load {shlex.join(request.modules)} || exit 1"] if request.modules else []),
        ],
        "use_srun": request.batch is None,
        "srun_args": list(END_APART if request.apart else END_TOGETHER),
        # submitit's default, "submitit", is refused by clusters that enforce wckeys; elsewhere a wckey means nothing.
        "wckey": None,
    }


def local_parameters(request: JobRequest) -> dict[str, Any]:
    """The request in submitit's words for this machine, which has no partitions and no limits but the time."""
    resources = request.resources
    return {
        "timeout_min": resources.time_limit_s / 60,
        "nodes": resources.nodes,
        "tasks_per_node": resources.tasks_per_node,
        "gpus_per_node": resources.gpus_per_node,
        "signal_delay_s": min(request.notice_s, resources.time_limit_s // 4),  # to the second
    }


class _ScriptExecutor(SlurmExecutor):  # type: ignore[misc]  # submitit ships no types
    """submitit's sbatch script around a command of ours, submitted through our client: bounded, clean environment."""

    def __init__(self, request: JobRequest, client: SlurmClient | None = None) -> None:
        super().__init__(folder=request.log_dir)
        self._request = request
        self._client = client
        self.update_parameters(**slurm_parameters(request))

    @classmethod
    def affinity(cls) -> int:
        return 1  # rendering a script needs no srun on this machine

    @property
    def _submitit_command_str(self) -> str:
        return shlex.join(self._request.batch or self._request.command)

    def script(self) -> str:
        return self._text(self._submitit_command_str)

    def _text(self, command: str) -> str:
        """submitit's text, and the options that it has no words for."""
        text = str(self._make_submission_file_text(command, uid=""))
        options = sbatch.parse(self._request.resources.options).components
        return sbatch.assembled(text.encode(), (), (), options, os.getcwd()).decode()

    def _submit_command(self, command: str) -> SlurmJob[Any]:
        assert self._client is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "submission.sh"
        path.write_text(self._text(command), encoding="utf-8")
        after = ":".join(["afterok", *(ref.job_id for ref in self._request.after)]) if self._request.after else None
        job_id = self._client.submit(path, comment=self._request.key, dependency=after)
        return SlurmJob(folder=self.folder, job_id=job_id, tasks=list(range(self._num_tasks())))


def script(request: JobRequest) -> str:
    """The sbatch script for a request."""
    return _ScriptExecutor(request).script()


def submit_to_slurm(request: JobRequest, client: SlurmClient) -> str:
    """Submit with sbatch; the job id. Raises SlurmError with sbatch's own words."""
    executor = _ScriptExecutor(request, client)
    return str(executor._submit_command(executor._submitit_command_str).job_id)


def submit_locally(request: JobRequest, spool: Path) -> LocalJob:
    """Start a local job, and its record in `spool`, through a short-lived process. Raises SchedulerError."""
    document = {**dataclasses.asdict(request), "log_dir": str(request.log_dir), "cwd": os.getcwd()}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "launchers.submit", str(spool)],
            env=clean_environment(os.environ),  # we may be in a Slurm job ourselves: its tasks are not this job's
            cwd=Path(__file__).parents[1],  # so that -m finds us; the job itself starts in our current directory
            input=json.dumps(document),
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise SchedulerError(f"the local job did not start within {START_TIMEOUT_S:g} s") from e
    if done.returncode != 0:
        raise SchedulerError(done.stderr.strip())
    return LocalJob.load(Path(done.stdout.strip()))


def start_locally(request: JobRequest, spool: Path) -> Path:
    """In the short-lived process: start submitit's local controller and write the job's record; the record's path.

    The record is written here, so that a submitter that dies in between leaves a job which can be found by its key.
    """
    request.log_dir.mkdir(parents=True, exist_ok=True)
    executor = LocalExecutor(folder=request.log_dir)
    executor.update_parameters(**local_parameters(request))
    job = executor._submit_command(shlex.join(request.command))
    pid = int(job.job_id)
    r = request.resources
    return LocalJob(
        key=request.key,
        name=request.name,
        pid=pid,
        created_at=psutil.Process(pid).create_time(),
        log_dir=str(request.log_dir),
        tasks=r.tasks_per_node,
        cpus=r.tasks_per_node * r.cpus_per_task,
        gpus=r.gpus_per_node,
        time_limit_s=r.time_limit_s,
    ).save(spool)


def main() -> int:
    document = json.load(sys.stdin)
    spool = Path(sys.argv[1])
    os.chdir(document.pop("cwd"))
    resources = document["resources"]
    document["resources"] = Resources(**{**resources, "options": tuple(resources["options"])})
    request = JobRequest(**{**document, "command": tuple(document["command"]), "log_dir": Path(document["log_dir"])})
    # The controller inherits our streams and outlives us: keep the submitter's pipes to ourselves.
    answer, complaint = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w")
    request.log_dir.mkdir(parents=True, exist_ok=True)
    log = os.open(request.log_dir / "controller.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, fd in ((0, nothing), (1, log), (2, log)):
        os.dup2(fd, number)
    try:
        answer.write(str(start_locally(request, spool)))
    except (ValueError, OSError) as e:
        complaint.write(f"{e}\n")
        return 1
    finally:
        answer.close()
        complaint.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
