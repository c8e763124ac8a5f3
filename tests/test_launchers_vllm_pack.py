"""Several replicas in one job: what may share one, and what each member sees of it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from specs import folder_of, serve

from launchers import submit
from launchers.launch import freeze, request_for
from launchers.spec import Resources
from launchers.task import END_APART
from launchers.vllm import pack


@pytest.mark.parametrize(
    ("asked", "words", "members"),
    [
        ({}, (), 64),
        ({"gpus_per_node": 4}, (), 4),
        ({"gpus_per_node": 8}, ("--tensor-parallel-size", "2"), 4),
        ({"gpus_per_node": 1}, ("--gpu-memory-utilization", "0.3"), 3),
        ({"gpus_per_node": 2}, ("--gpu-memory-utilization=0.5",), 4),
        ({"nodes": 2}, (), 1),
    ],
)
def test_what_fits_may_share_a_job(asked: dict[str, Any], words: tuple[str, ...], members: int) -> None:
    pack.check(Resources(**asked), words, members)


@pytest.mark.parametrize(
    ("asked", "words", "members", "complaint"),
    [
        ({}, (), 0, "'pack' must be 1 ... 64, not 0"),
        ({"nodes": 2}, (), 2, "are on one node"),
        ({"gpus_per_node": 4}, (), 3, "4 GPUs cannot be divided among 3 replicas evenly"),
        ({"gpus_per_node": 4}, (), 2, "each of 2 replicas has 2 of 4 GPUs, and its engine takes 1"),
        ({"gpus_per_node": 4}, ("-tp", "4"), 4, "has 1 of 4 GPUs, and its engine takes 4"),
        ({"gpus_per_node": 1}, (), 3, "at most 0.33, not left out"),
        ({"gpus_per_node": 1}, ("--gpu-memory-utilization", "0.9"), 2, "at most 0.5, not 0.9"),
        ({"gpus_per_node": 1}, ("--gpu-memory-utilization", "much"), 2, "at most 0.5, not much"),
        ({"gpus_per_node": 1}, ("-tp", "2", "--gpu-memory-utilization", "0.5"), 2, "an engine of one worker each"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    asked: dict[str, Any], words: tuple[str, ...], members: int, complaint: str
) -> None:
    with pytest.raises(ValueError) as e:
        pack.check(Resources(**asked), words, members)
    assert complaint in str(e.value)


@pytest.mark.parametrize(("gpus", "members"), [(g, m) for g in (1, 2, 3, 4, 8) for m in (1, 2, 3, 4, 6, 8)])
def test_no_gpu_is_idle_and_none_has_more_members_than_it_must(gpus: int, members: int) -> None:
    there = [f"GPU-{n}" for n in range(gpus)]
    shares = [pack.share(there, number, members) for number in range(members)]
    if gpus >= members:
        assert len({len(s) for s in shares}) == 1
        used = list(itertools.chain(*shares))
        assert len(used) == len(set(used)) == gpus - gpus % members
    else:
        assert all(len(s) == 1 for s in shares)
        counts = [shares.count([gpu]) for gpu in there]
        assert sum(counts) == members
        assert max(counts) == -(-members // gpus)


def test_a_member_takes_itself_for_the_only_task_with_its_own_gpus() -> None:
    outside = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    assert pack.member_env(outside, 1, 2) == {
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": "1",
        "CUDA_VISIBLE_DEVICES": "6,7",
    }
    assert pack.member_env({"SUBMITIT_LOCAL_GLOBALID": "1", "CUDA_VISIBLE_DEVICES": ""}, 1, 2) == {
        "SUBMITIT_LOCAL_GLOBALID": "0"
    }


def test_one_job_has_a_task_for_each_member_and_none_ends_with_another(tmp_path: Path) -> None:
    specs = [serve(f"chat-{n}", resources=Resources(gpus_per_node=2, cpus_per_task=4)) for n in (1, 2)]
    folders = [folder_of(spec, tmp_path) for spec in specs]
    asked = pack.request(request_for(specs[0], folders[0]), folders)
    assert (asked.key, asked.log_dir) == ("chat-1", folders[0].logs)
    assert asked.command[-2:] == tuple(str(folder.root) for folder in folders)
    script = submit.script(asked)
    assert "#SBATCH --ntasks-per-node=2" in script
    assert "#SBATCH --gpus-per-node=2" in script
    assert " ".join(END_APART) in script
    alone = request_for(specs[0], folders[0])
    assert pack.request(alone, folders[:1]) is alone
    assert "--wait=0" not in submit.script(alone)


@pytest.mark.parametrize("number", [0, 1])
def test_each_task_supervises_the_folder_of_its_number(number: int, tmp_path: Path) -> None:
    folders = [folder_of(serve(f"chat-{n}", model_path="/nowhere"), tmp_path) for n in (1, 2)]
    freeze(folders[0].code)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    task = {"SUBMITIT_LOCAL_GLOBALID": str(number), "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_JOB_ID": "7"}
    # The engine is this interpreter, which has no vLLM: it ends at once.
    done = subprocess.run(
        pack.command(folders), env={**environ, **task}, timeout=60, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    said = [sorted(p.name.partition("-")[2] for p in folder.announcements.iterdir()) for folder in folders]
    assert "attempt-ended.json" in said[number]
    assert said[1 - number] == []
    assert (folders[number].attempt_log("7.0", 0)).exists()


def test_a_task_without_a_folder_says_so(tmp_path: Path) -> None:
    environ = {**os.environ, "SUBMITIT_LOCAL_GLOBALID": "3"}
    environ.pop("SLURM_PROCID", None)
    argv = [sys.executable, "-m", pack.MODULE, str(tmp_path)]
    done = subprocess.run(argv, env=environ, timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "task 3 of a pack of 1 replicas has none" in done.stderr


@pytest.mark.parametrize(
    ("gpus", "memory", "members", "asked"),
    [
        (4, 64.0, 1, (1, 16.0)),
        (8, None, 3, (6, None)),
        (2, 10.0, 1, (1, 2.5)),
        (0, 8.0, 2, (0, 4.0)),
        (4, 64.0, 4, (4, 64.0)),
    ],
)
def test_fewer_than_a_pack_ask_for_their_part_of_the_job(
    gpus: int, memory: float | None, members: int, asked: tuple[int, float | None]
) -> None:
    part = pack.part(Resources(gpus_per_node=gpus, mem_gb=memory, cpus_per_task=3), members, 4)
    assert (part.gpus_per_node, part.mem_gb) == asked and part.cpus_per_task == 3
