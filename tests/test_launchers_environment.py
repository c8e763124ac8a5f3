"""The same command line, wrapped for where it runs; and what of the job's environment a child inherits."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.environment import child_env, inside
from launchers.spec import Environment, Resources

ARGV = ("{python}", "-m", "engine", "--path", "/m/{python}")


def test_a_virtual_environment_is_its_own_interpreter() -> None:
    environment = Environment(kind="venv", python="/venv/bin/python")
    assert inside(environment, ARGV, Resources(gpus_per_node=1), "g1") == [
        "/venv/bin/python", "-m", "engine", "--path", "/m//venv/bin/python"
    ]  # fmt: skip


def test_apptainer_binds_the_mounts_and_shows_gpus_only_when_there_are_some() -> None:
    environment = Environment(kind="apptainer", python="python3", image="/i.sif", mounts=("/a:/b", "/c"))
    assert inside(environment, ["{python}", "x"], Resources()) == [
        "apptainer", "exec", "--bind", "/a:/b", "--bind", "/c", "/i.sif", "python3", "x"
    ]  # fmt: skip
    assert inside(environment, ["x"], Resources(gpus_per_node=1))[:3] == ["apptainer", "exec", "--nv"]


def test_pyxis_is_a_step_of_one_task_on_the_supervisors_own_node() -> None:
    environment = Environment(kind="pyxis", python="python3", image="nvcr.io#x:1", mounts=("/a:/b", "/c:/d"))
    step = ["srun", "--overlap", "--nodes=1", "--ntasks=1"]
    container = ["--container-image", "nvcr.io#x:1", "--container-mounts", "/a:/b,/c:/d"]
    assert inside(environment, ["{python}"], Resources(), "g1") == [*step, "--nodelist", "g1", *container, "python3"]
    bare = Environment(kind="pyxis", python="python3", image="i")
    assert inside(bare, ["x"], Resources()) == [*step, "--container-image", "i", "x"]


def test_an_unknown_kind_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"environment\.kind 'conda' is none of apptainer, pyxis, venv"):
        inside(Environment(kind="conda", python="p"), ["x"], Resources())


def test_a_child_runs_the_frozen_code_with_the_sites_settings_and_without_ours() -> None:
    ours = {"PYTHONDONTWRITEBYTECODE": "1", "VIRTUAL_ENV": "/v", "PYTHONHOME": "/h", "PYTHONPATH": "/ours"}
    environment = Environment(kind="venv", python="p", env={"OMP_NUM_THREADS": "7", "EXTRA": "x"})
    env = child_env({**ours, "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "3"}, environment, Path("/runs/r/code"), cpus=4)
    assert not {"PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "PYTHONHOME"} & set(env)
    assert (env["PYTHONPATH"], env["PATH"], env["CUDA_VISIBLE_DEVICES"]) == ("/runs/r/code", "/bin", "3")
    assert (env["OMP_NUM_THREADS"], env["EXTRA"]) == ("7", "x")  # what the site says wins
    assert child_env({}, Environment(kind="venv", python="p"), Path("/c"), cpus=4)["OMP_NUM_THREADS"] == "4"
