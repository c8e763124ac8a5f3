from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PrivateCluster
from specs import serve

from launchers import submit
from launchers.launch import request_for
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRequest
from launchers.spec import Resources

REQUEST = JobRequest(
    key="run-7f3a",
    name="pretrain 'tiny'",
    command=("/opt/venv/bin/python", "-m", "launchers.supervisor", "/shared/runs/a run"),
    log_dir=Path("/shared/runs/a run/logs"),
    resources=Resources(
        partition="gpu",
        account="research",
        qos="high",
        nodes=2,
        tasks_per_node=1,
        cpus_per_task=8,
        gpus_per_node=4,
        mem_gb=1.5,
        time_limit_s=90,
    ),
)


def options(script: str) -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE)
    return dict(lines)


def test_the_script_asks_for_what_the_request_asks_for() -> None:
    assert options(submit.script(REQUEST)) == {
        "job-name": "'pretrain '\"'\"'tiny'\"'\"''",
        "comment": "run-7f3a",
        "partition": "gpu",
        "account": "research",
        "qos": "high",
        "nodes": "2",
        "ntasks-per-node": "1",
        "cpus-per-task": "8",
        "gpus-per-node": "4",
        "mem": "1536M",
        "time": "2",  # Slurm counts minutes; less than was asked for would be wrong
        "signal": "USR2@1",
        "no-requeue": "",
        "output": "'/shared/runs/a run/logs/%j_0_log.out'",
        "error": "'/shared/runs/a run/logs/%j_0_log.err'",
        "open-mode": "append",
    }


def test_the_script_runs_our_command_in_every_task_and_no_pickle() -> None:
    script = submit.script(REQUEST)
    assert "export SRUN_CPUS_PER_TASK=8\n" in script
    (step,) = [line for line in script.splitlines() if line.startswith("srun ")]
    assert step.endswith(" /opt/venv/bin/python -m launchers.supervisor '/shared/runs/a run'")
    assert "submitit.core" not in script and ".pkl" not in script


def test_a_run_that_goes_on_by_itself_is_requeueable_and_its_batch_script_outlives_slurms_signals() -> None:
    script = submit.script(replace(REQUEST, batch=("python", "-m", "launchers.batch", "/shared/runs/a run")))
    assert "requeue" in options(script) and "no-requeue" not in options(script)
    assert script.splitlines()[-1] == "python -m launchers.batch '/shared/runs/a run'"
    assert "trap : TERM INT USR1 USR2\n" in script
    assert not re.search("^srun", script, re.MULTILINE)


def test_the_sites_modules_are_loaded_before_anything_is_started() -> None:
    lines = submit.script(replace(REQUEST, modules=("cuda/12.4", "nccl"))).splitlines()
    load = lines.index("module load cuda/12.4 nccl || exit 1")
    assert any(line.startswith("srun ") for line in lines[load:])
    assert not any(line.startswith("srun ") for line in lines[:load])
    assert "module load" not in submit.script(REQUEST)


def test_what_was_not_asked_for_is_left_to_the_cluster() -> None:
    script = submit.script(replace(REQUEST, resources=Resources()))
    assert not {"partition", "account", "qos", "mem", "gpus-per-node", "wckey"} & set(options(script))


@pytest.mark.parametrize(("limit_s", "lead_s"), [(24 * 3600, 90), (480, 90), (240, 30), (120, 1), (8, 1)])
def test_the_warning_comes_before_the_limit_however_short(limit_s: int, lead_s: int) -> None:
    assert submit.signal_lead_s(limit_s, 90) == lead_s


def test_a_replica_is_warned_when_its_shutdown_time_is_left_and_not_much_earlier(tmp_path: Path) -> None:
    spec = serve(shutdown_timeout_s=30, resources=Resources(time_limit_s=3600))
    assert "--signal=USR2@45" in submit.script(request_for(spec, RunFolder(tmp_path)))


@pytest.mark.slurm
def test_sbatch_accepts_the_script_as_a_person_would_submit_it(slurm_cluster: PrivateCluster, tmp_path: Path) -> None:
    request = replace(REQUEST, log_dir=tmp_path)
    path = tmp_path / "job.sh"
    path.write_text(submit.script(request))
    checked = subprocess.run(
        ["sbatch", "--test-only", path], env=slurm_cluster.env, text=True, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert re.search(r"to start at .* using 16 processors on nodes g\[1-2\] in partition gpu", checked.stderr)
