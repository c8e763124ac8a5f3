"""sbatch's options beside a command's own: which go where, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import PrivateCluster
from platform_fixtures import ROOT
from told_runs import site_of

from cli.resources import WithSbatchOptions, asked, resource_options
from cli.train import train_spec
from launchers import submit
from launchers.resources import BREAKS_A_RUN, REPLICA_OPTIONS, changed, resources_from
from launchers.scheduler import JobRequest
from launchers.spec import Resources
from registry.site import DefaultResources


@click.command(cls=WithSbatchOptions)
@click.argument("recipe")
@click.option("-J", "--job-name", "name")
@click.option("--dry-run", is_flag=True)
@resource_options
def command(recipe: str, name: str | None, dry_run: bool, **options: Any) -> None:
    environ = {k: v for k, v in click.get_current_context().obj.items()}
    click.echo(json.dumps({"recipe": recipe, "name": name, "dry_run": dry_run, **asked(options, environ)}))


def typed(line: str, **environ: str) -> dict[str, Any]:
    """What a command makes of the words after it; only what is not nothing."""
    done = CliRunner().invoke(command, line.split(), obj=environ)
    assert done.exit_code == 0, done.output
    return {k: v for k, v in json.loads(done.output).items() if v}


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("r.toml -p gpu -t 1:00:00", {"partition": "gpu", "time_limit_s": 3600}),
        ("--part=gpu r.toml --mem=2G", {"partition": "gpu", "mem_gb": 2.0}),
        ("r.toml -C h100 --exclusive -wg1", {"options": ["--constraint=h100", "--exclusive", "--nodelist=g1"]}),
        ("--begin now+1hour -Hpgpu r.toml", {"partition": "gpu", "options": ["--begin=now+1hour", "--hold"]}),
        ("r.toml --dry-run -J x -d afterok:7", {"dry_run": True, "name": "x", "options": ["--dependency=afterok:7"]}),
        ("r.toml --gpus-per-node 2", {"gpus_per_node": 2}),
        ("r.toml --gpus-per-node=h100:2", {"gpus_per_node": 2, "options": ["--gpus-per-node=h100:2"]}),
        ("-H -- r.toml", {"options": ["--hold"]}),
    ],
)
def test_a_command_takes_sbatchs_options_beside_its_own(line: str, made: dict[str, Any]) -> None:
    assert typed(line) == {"recipe": "r.toml", **made}


def test_a_file_that_sbatch_reads_is_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed("r.toml -F nodes")["options"] == [f"--nodefile={tmp_path}/nodes"]


@pytest.mark.parametrize(
    ("line", "environ", "made"),
    [
        ("", {"SBATCH_PARTITION": "gpu", "SBATCH_TIMELIMIT": "5"}, {"partition": "gpu", "time_limit_s": 300}),
        ("-p cpu", {"SBATCH_PARTITION": "gpu"}, {"partition": "cpu"}),
        ("", {"SBATCH_CONSTRAINT": "h100", "SBATCH_EXCLUSIVE": ""}, {"options": ["--exclusive", "--constraint=h100"]}),
        ("-C a100", {"SBATCH_CONSTRAINT": "h100"}, {"options": ["--constraint=a100"]}),
        ("", {"SBATCH_GPUS_PER_NODE": "h100:2"}, {"gpus_per_node": 2, "options": ["--gpus-per-node=h100:2"]}),
        ("--mem=1G", {"SBATCH_MEM_PER_CPU": "500"}, {"mem_gb": 1.0}),
        ("--mem-per-cpu=500", {"SBATCH_MEM_PER_NODE": "1G"}, {"options": ["--mem-per-cpu=500"]}),
        ("", {"SBATCH_OUTPUT": "x", "SBATCH_REQUEUE": "1", "SBATCH_JOB_NAME": "mine", "SBATCH_WAIT": "1"}, {}),
    ],
)
def test_variables_count_below_the_command_line_unless_they_are_for_scripts(
    line: str, environ: dict[str, str], made: dict[str, Any]
) -> None:
    assert typed(f"r.toml {line}", **environ) == {"recipe": "r.toml", **made}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("r.toml --no-such-option", "No such option"),
        ("r.toml -w", "option requires an argument -- 'w'"),
        ("r.toml --gpus-per-node=many", "'many' is no number of GPUs; allowed: 2, h100:2"),
    ],
)
def test_what_neither_knows_is_refused(line: str, says: str) -> None:
    done = CliRunner().invoke(command, line.split(), obj={})
    assert done.exit_code == 2
    assert says in done.output


@pytest.mark.parametrize("name", sorted(BREAKS_A_RUN))
def test_what_would_break_a_run_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ValueError, match=f"--{name} is not for a run: "):
        resources_from(DefaultResources(), {"options": [f"--{name}=1"]})


@pytest.mark.parametrize("option", ["--output=x", "--comment=x", "--uid=0", "--export=ALL", "--chdir=/", "--prefer=x"])
def test_a_deployment_takes_only_what_is_harmless_under_the_services_account(option: str) -> None:
    with pytest.raises(ValueError, match=r"is not for a deployment's jobs; allowed: begin, constraint, "):
        resources_from(DefaultResources(), {"options": [option]}, REPLICA_OPTIONS)
    taken = resources_from(DefaultResources(), {"options": ["--constraint=h100"]}, REPLICA_OPTIONS)
    assert taken.options == ("--constraint=h100",)


@pytest.mark.parametrize(
    "options", ["--begin=x", [1], ["begin=x"], ["--begin=x\nid"], ["--begin=x\rid"], ["--Begin=x"], ["--a b"]]
)
def test_what_is_no_option_on_one_line_is_refused(options: object) -> None:
    with pytest.raises(ValueError, match=r"resources\.options: "):
        resources_from(DefaultResources(), {"options": options}, REPLICA_OPTIONS)


@pytest.mark.parametrize(
    ("tasks", "gpus", "options"),
    [(1, 8, []), (2, 1, []), (1, 0, ["--gres=gpu:8"]), (1, 0, ["--gres=disk:1,gpu:h100:4"]), (2, 0, ["--gres=gpu"])],
)
def test_a_run_whose_tasks_are_not_as_many_as_its_gpus_is_refused_with_both_ways_out(
    tasks: int, gpus: int, options: list[str], tmp_path: Path
) -> None:
    asked = {"tasks_per_node": tasks, "gpus_per_node": gpus, "options": options}
    recipe = ROOT / "tests" / "recipes" / "tiny.toml"
    with pytest.raises(click.ClickException) as e:
        train_spec(site_of(tmp_path), recipe, None, asked)
    assert f"is not --ntasks-per-node {tasks}" in e.value.message and f"--gpus-per-node={tasks}" in e.value.message


@pytest.mark.parametrize(("tasks", "gpus"), [(1, 0), (2, 0), (2, 2)])
def test_a_run_has_a_gpu_for_each_task_or_none(tasks: int, gpus: int, tmp_path: Path) -> None:
    recipe = ROOT / "tests" / "recipes" / "tiny.toml"
    asked = {"tasks_per_node": tasks, "gpus_per_node": gpus, "options": ("--gres=scratch:8",)}
    assert train_spec(site_of(tmp_path), recipe, None, asked).resources.gpus_per_node == gpus


def test_memory_per_cpu_takes_the_place_of_the_sites_memory_per_node() -> None:
    assert resources_from(DefaultResources(mem_gb=8), {"options": ["--mem-per-cpu=1G"]}).mem_gb is None


def test_what_is_asked_for_now_takes_the_place_of_what_a_run_asked_for() -> None:
    typed = ("--gpus-per-node=h100:2", "--constraint=nvlink", "--nice=7", "--hold")
    before = Resources(partition="gpu", nodes=2, gpus_per_node=2, tasks_per_node=2, mem_gb=16, options=typed)
    typed = tuple(option for option in typed if option != "--hold")
    before = changed(before, {})
    assert before.options == typed  # the first job was held, and then released
    less = {"gpus_per_node": 1, "tasks_per_node": 1, "time_limit_s": 60}
    left = ("--constraint=nvlink", "--nice=9")
    assert changed(before, {**less, "options": ["--nice=9"]}) == dataclasses.replace(before, **less, options=left)
    by_cpu = changed(before, {"options": ["--mem-per-cpu=2G"]})
    assert by_cpu.mem_gb is None and by_cpu.options == (*typed, "--mem-per-cpu=2G")
    assert changed(by_cpu, {"mem_gb": 32.0}) == dataclasses.replace(before, mem_gb=32.0)
    with pytest.raises(ValueError, match="--requeue is not for a run"):
        changed(before, {"options": ["--requeue"]})


@pytest.mark.slurm
def test_options_become_lines_of_the_script_as_sbatch_reads_them(slurm_cluster: PrivateCluster, tmp_path: Path) -> None:
    options = ('--wckey=a "b" \\ #c', "--gpus-per-node=h100:1", "--nice=7", "--dependency=singleton", "--hold")
    resources = Resources(partition="gpu", gpus_per_node=1, time_limit_s=300, options=options)
    path = tmp_path / "job.sh"
    path.write_text(submit.script(JobRequest("key-1", "named", ("true",), tmp_path, resources)))
    job = slurm_cluster.run("sbatch", "--parsable", str(path)).strip()
    shown = slurm_cluster.run("scontrol", "show", "job", job)
    slurm_cluster.run("scancel", job)
    for said in ("Nice=7", "Dependency=singleton", "TresPerNode=gres:gpu:h100:1", "JobName=named", "Priority=0"):
        assert said in shown
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
