"""In a task of a sweep's job array: find out which run this task is, and become its batch script.

`python -m launchers.array_task SWEEP_FOLDER`. A task that is requeued keeps its number, and so its run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launchers.launch import program
from launchers.run_folder import RunFolder
from launchers.task import task_of
from slurm.backend import connect
from slurm.errors import SlurmError

NAME = "sweep.json"  # in the sweep's folder: its runs, in the order of the array's indices


def run_of(sweep: Path, index: int) -> RunFolder:
    """Raises OSError, ValueError or LookupError for a folder that is no sweep's, or another one's task."""
    told = json.loads((sweep / NAME).read_text(encoding="utf-8"))
    return RunFolder(sweep.parent / told["runs"][index]["run"])


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1 or "SLURM_ARRAY_TASK_ID" not in os.environ:
        sys.stderr.write("usage, in a task of a job array: python -m launchers.array_task SWEEP_FOLDER\n")
        return 2
    run = run_of(Path(argv[0]), int(os.environ["SLURM_ARRAY_TASK_ID"]))
    try:
        # All tasks of an array are submitted with one comment. From here on this one's is the run's, as any run's is.
        connect(backend="commands").update(task_of(os.environ).job_id, comment=run.id)
    except SlurmError as e:
        sys.stderr.write(f"array task: the queue does not show that this is run {run.id}: {e}\n")
    command = program(run, "launchers.batch")
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
