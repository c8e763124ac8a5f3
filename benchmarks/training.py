"""What training costs beside a plain loop around Hugging Face's Llama, and for how long a checkpoint stops it.

    make bench-training                          a model of 5 million parameters, one thread
    make bench-training ARGS="--rounds 3"        sooner
    make bench-training ARGS="--threads 2"

The figures are measured in one process of the training environment (benchmarks/training_loops.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import restarts

REPOSITORY = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    python = os.environ.get("HEADGATE_TRAINING_PYTHON", str(REPOSITORY / ".venvs" / "training" / "bin" / "python"))
    # OMP_WAIT_POLICY: as a run's environment has it. Threads that spin would be counted as work.
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "true"}
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as root:
        command = [python, "-W", "ignore", "-m", "benchmarks.training_loops", root, *arguments]
        loops = subprocess.run(command, cwd=REPOSITORY, env=env, check=False).returncode
    return loops or restarts.main()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
