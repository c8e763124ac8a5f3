"""The command client: faults through an injected runner, behaviour against a real private Slurm."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import PrivateCluster
from waiting import wait_for

from slurm.commands import IDS_PER_CALL, CommandClient
from slurm.errors import SlurmError, SlurmUnavailable
from slurm.model import JobState
from slurm.process import Completed, Runner, clean_environment, run_process


def failing(stderr: str, returncode: int = 1) -> Runner:
    return lambda argv, environment, timeout_s: Completed(returncode, "", stderr)


# -- faults ---------------------------------------------------------------------------------------------------------


def test_a_command_that_hangs_is_no_answer_and_is_ended(tmp_path: Path) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\nexec sleep 60\n")
    squeue.chmod(0o755)

    def run(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        return run_process([str(tmp_path / argv[0]), *argv[1:]], environment, timeout_s)

    with pytest.raises(SlurmUnavailable, match=r"squeue did not answer within 0\.2 s"):
        CommandClient(run, timeout_s=0.2).jobs(["1"])


def test_a_command_that_is_not_there_is_no_answer() -> None:
    with pytest.raises(SlurmUnavailable, match="squeue cannot be run"):
        CommandClient(environment={"PATH": "/nonexistent"}).jobs(["1"])


@pytest.mark.parametrize(
    "stderr",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sacct: error: Problem talking to the database: Connection refused",
        "squeue: fatal: Unable to process configuration file",
        "something that no release has said yet",
        "",
    ],
)
def test_a_question_that_fails_is_no_answer_whatever_it_says(stderr: str) -> None:
    for ask in (CommandClient(failing(stderr)).jobs, CommandClient(failing(stderr)).accounting):
        with pytest.raises(SlurmUnavailable):
            ask(["1", "2"])


def test_text_that_cannot_be_read_is_no_answer() -> None:
    client = CommandClient(lambda argv, environment, timeout_s: Completed(0, "1\x1fhalf a rec", ""))
    with pytest.raises(SlurmUnavailable, match="squeue printed what cannot be read"):
        client.jobs(["1"])


def test_a_refusal_is_told_from_silence(tmp_path: Path) -> None:
    refused = "sbatch: error: Batch job submission failed: Invalid partition name specified"
    with pytest.raises(SlurmError, match="Invalid partition name") as e:
        CommandClient(failing(refused)).submit(tmp_path / "job.sh", "key")
    assert not isinstance(e.value, SlurmUnavailable)
    silent = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    with pytest.raises(SlurmUnavailable):
        CommandClient(failing(silent)).submit(tmp_path / "job.sh", "key")


@pytest.mark.parametrize(
    "stderr",
    [
        "sacct: error: Invalid user id: nosuch",
        "sacct: error: Too wide of a date range in query",
        "slurm_load_partitions: Access/permission denied",
    ],
)
def test_a_question_that_slurm_will_not_answer_is_refused_and_not_silence(stderr: str) -> None:
    now = datetime.now(UTC)
    with pytest.raises(SlurmError) as e:
        CommandClient(failing(stderr)).accounting_between(now - timedelta(days=1), now, user="nosuch")
    assert (not isinstance(e.value, SlurmUnavailable), str(e.value)) == (True, stderr)


def test_cancelling_a_job_that_is_gone_is_not_an_error_and_a_refusal_is() -> None:
    CommandClient(
        failing("scancel: error: Kill job error on job id 1: Job/step already completing or completed")
    ).cancel("1")
    with pytest.raises(SlurmError, match="Access/permission denied"):
        CommandClient(failing("scancel: error: Kill job error on job id 1: Access/permission denied")).cancel("1")


def test_a_cluster_without_accounting_has_no_books() -> None:
    assert CommandClient(failing("Slurm accounting storage is disabled")).accounting(["1"]) == []


def test_no_ids_no_question() -> None:
    def never(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        raise AssertionError(argv)

    assert CommandClient(never).jobs([]) == []
    assert CommandClient(never).accounting([]) == []


def test_many_ids_are_asked_in_few_questions() -> None:
    asked: list[int] = []

    def count(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        asked.append(len(argv[argv.index("-j") + 1].split(",")))
        return Completed(0, "", "")

    CommandClient(count).jobs(str(i) for i in range(IDS_PER_CALL + 1))
    assert asked == [IDS_PER_CALL, 1]


def test_settings_that_change_what_commands_print_or_ask_for_do_not_reach_them() -> None:
    ours = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "HOME": "/home/me", "SLURM_JWT": "x"}
    theirs = {
        "SQUEUE_FORMAT": "%i", "SACCT_FORMAT": "jobid", "SLURM_TIME_FORMAT": "relative", "SBATCH_PARTITION": "other",
        "SLURM_JOB_ID": "7", "SLURM_CLUSTERS": "all", "SRUN_CPUS_PER_TASK": "9", "SUBMITIT_EXECUTOR": "slurm",
    }  # fmt: skip
    assert clean_environment({**ours, **theirs}) == ours


# -- behaviour ------------------------------------------------------------------------------------------------------

HOSTILE = {
    "SQUEUE_FORMAT": "%i", "SQUEUE_STATES": "PENDING", "SQUEUE_ALL": "1", "SACCT_FORMAT": "jobid",
    "SLURM_CLUSTERS": "x", "SLURM_TIME_FORMAT": "relative",
    "SBATCH_PARTITION": "nowhere", "SBATCH_JOB_NAME": "wrong", "TZ": "Asia/Kolkata",
}  # fmt: skip


@pytest.mark.slurm
def test_a_jobs_whole_life_in_an_environment_full_of_traps(slurm_cluster: PrivateCluster, tmp_path: Path) -> None:
    client = CommandClient(environment={**slurm_cluster.env, **HOSTILE})
    seen = tmp_path / "seen.json"
    script = tmp_path / "a script.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --partition=gpu --gpus-per-node=1 --output=/dev/null --time=7-00:00:00\n"
        "#SBATCH --job-name='a|b, \"c\" %j'\n"
        f"{sys.executable} -c 'import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], \"w\"))' {seen}\n"
        "exit 3\n"
    )
    before = datetime.now(UTC)
    comment = f"life-{os.getpid()}"
    job_id = client.submit(script, comment)

    (job,) = client.jobs([job_id])
    assert (job.id, job.name, job.partition, job.account) == (job_id, 'a|b, "c" %j', "gpu", "research")
    assert abs(job.submitted_at - before) < timedelta(seconds=5)
    assert job.time_limit_s == 7 * 86400
    wait_for(lambda: [j for j in client.jobs([job_id]) if j.state is JobState.FAILED])
    (attempt,) = wait_for(lambda: [a for a in client.accounting([job_id]) if a.ended_at])
    assert (attempt.submitted_at, attempt.comment) == (job.submitted_at, "")  # this cluster does not store comments
    assert attempt.carries(comment)  # so the submit line must do

    inside = json.loads(seen.read_text())
    assert "SQUEUE_FORMAT" not in inside and "SLURM_TIME_FORMAT" not in inside


@pytest.mark.slurm
def test_a_job_that_slurm_never_saw_is_in_no_answer(slurm_cluster: PrivateCluster) -> None:
    client = CommandClient(environment=slurm_cluster.env)
    assert client.jobs(["4000000"]) == client.jobs(["4000000", "4000001"]) == []
    assert client.accounting(["4000000"]) == []
    client.cancel("4000000")
