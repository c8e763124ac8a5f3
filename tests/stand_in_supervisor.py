"""A supervisor in miniature, for tests of the schedulers: announces, does as told, drains on SIGTERM, announces.

    python tests/stand_in_supervisor.py RUN_FOLDER exit STATUS | exit-on NAME=VALUE | wait [SECONDS]

`exit-on` exits with status 3 in the task whose environment says so; other tasks wait.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from launchers.announce import announce
from launchers.run_folder import RunFolder


def main() -> int:
    announcements = RunFolder(Path(sys.argv[1])).announcements
    verb, *rest = sys.argv[2:]
    terminated: list[int] = []
    for signum in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(signum, lambda number, _: terminated.append(number))
    job_id = os.environ.get("SUBMITIT_LOCAL_JOB_ID") or os.environ["SLURM_JOB_ID"]
    announce(
        announcements,
        "attempt-started",
        host=socket.gethostname(),
        node=os.environ.get("SLURMD_NODENAME"),
        cpus=os.environ.get("SLURM_CPUS_PER_TASK"),
        cuda=os.environ.get("CUDA_VISIBLE_DEVICES"),
        pid=os.getpid(),
        session=os.getsid(0),
        job_id=job_id,
        attempt=1,
    )
    status, cause = 0, "completed"
    if verb == "exit-on":
        name, _, value = rest[0].partition("=")
        verb, rest = ("exit", ["3"]) if os.environ[name] == value else ("wait", [])
    if verb == "exit":
        status = int(rest[0])
        cause = "failed" if status else "completed"
    else:
        while not terminated:
            time.sleep(0.05)
        drained = time.monotonic() + (float(rest[0]) if rest else 1)  # draining takes a while
        while time.monotonic() < drained:
            time.sleep(0.05)
        cause = "cancelled" if terminated[0] == signal.SIGTERM else "timeout"
    announce(
        announcements,
        "attempt-ended",
        attempt=1,
        exit_code=status,
        cause=cause,
        tail="",
        elapsed_s=0.0,
        cpu_s=0.0,
        signals=len(terminated),
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
