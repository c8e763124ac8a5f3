"""Doctor on a site: what its jobs ask for, where its directories stand, what its environments can import."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from slurm_fixtures import config

from launchers.doctor import cluster, programs, storage
from launchers.doctor.asks import asks
from launchers.doctor.cluster import Cluster
from launchers.doctor.examine import begin, found
from launchers.doctor.programs import Runtimes
from launchers.doctor.storage import Directory
from registry import site as settings
from registry.site import DefaultResources, Defaults, Environment, Environments, Site
from slurm.errors import SlurmError, SlurmUnavailable
from slurm.findings import Finding, Level, worst
from slurm.model import QOS, TRES, Association, Limit, Node, NodeState, Partition
from slurm.process import Completed

GIB = 1 << 30
DAY = 86400


def site_with(**changes: Any) -> Site:
    made = Site(
        name="test",
        state_dir=Path("/state"),
        shared_dir=Path("/shared"),
        scheduler=settings.Scheduler(kind="slurm"),
        defaults=Defaults(
            train=DefaultResources(partition="gpu", nodes=2, gpus_per_node=8, cpus_per_task=8, mem_gb=100),
            serve=DefaultResources(partition="gpu", account="serving", qos="high", gpus_per_node=1),
            convert=DefaultResources(time_limit_s=3600),
        ),
    )
    return dataclasses.replace(made, **changes)


def partition(name: str, **changes: Any) -> Partition:
    made = Partition(
        name, "UP", name == "cpu", False, (), TRES(), 7 * DAY, None, None, None, None, None, None, "OFF", 0, 1
    )
    return dataclasses.replace(made, **changes)


def node(name: str, part: str, gpus: int = 0, *flags: str) -> Node:
    tres = TRES(cpus=64, memory_bytes=500 * GIB, nodes=1, gpus=gpus)
    return Node(name, NodeState.IDLE, frozenset(flags), None, (part,), tres, TRES(), (), None, None, None)


def in_account(account: str, user: str) -> Association:
    return Association("c", account, user, None, account, True, ())


def cluster_with(**changes: Any) -> Cluster:
    made = Cluster(
        partitions=[partition("gpu"), partition("cpu")],
        nodes=[node("g1", "gpu", 8), node("g2", "gpu", 8), node("c1", "cpu")],
        qos=[QOS("high", 1, (), "cluster", 0, 1.0, frozenset(), (Limit("MaxWallPJ", None, 2 * DAY, None),))],
        associations=[in_account("serving", "alice"), in_account("research", "bob")],
    )
    return dataclasses.replace(made, **changes)


def judged(site: Site, answers: Cluster, user: str = "alice") -> dict[str, Finding]:
    found = list(asks(site, answers, user))
    assert len({f.subject for f in found}) == len(found), found
    return {f.subject: f for f in found}


# -- what jobs ask for ----------------------------------------------------------------------------------------------


def test_defaults_that_fit_are_said_in_one_line_each() -> None:
    said = judged(site_with(), cluster_with())
    assert worst(said.values()) is Level.OK
    assert said["defaults.train"].says == "2 nodes of gpu with 8 GPUs, for up to 1-00:00:00: fits"
    assert said["defaults.convert"].says == "1 node of cpu, for up to 01:00:00: fits"


@pytest.mark.parametrize(
    ("use", "changes", "words"),
    [
        ("train", {"partition": "gpus"}, ["no partition gpus", "did you mean 'gpu'", "gpu, cpu"]),
        ("train", {"time_limit_s": 30 * DAY}, ["30-00:00:00", "allows 7-00:00:00", "PartitionTimeLimit"]),
        ("train", {"gpus_per_node": 16}, ["no node of gpu has 16 GPUs (at most 8)"]),
        ("train", {"tasks_per_node": 16}, ["128 CPUs (at most 64)"]),
        ("train", {"mem_gb": 2000}, ["2000 GiB of memory (at most 500)"]),
        ("train", {"nodes": 3}, ["asks for 3 nodes", "has 2"]),
        ("serve", {"account": "nobody"}, ["no account nobody", "alice is in: serving"]),
        ("serve", {"qos": "fast"}, ["no QOS fast; there are: high"]),
        ("serve", {"time_limit_s": 3 * DAY}, ["QOS high allows 2-00:00:00"]),
    ],
)
def test_what_slurm_would_refuse_is_a_problem_before_a_job_is(
    use: str, changes: dict[str, Any], words: list[str]
) -> None:
    defaults = site_with().defaults
    wanted = dataclasses.replace(getattr(defaults, use), **changes)
    site = site_with(defaults=dataclasses.replace(defaults, **{use: wanted}))
    finding = judged(site, cluster_with())[f"defaults.{use}"]
    assert finding.level is Level.PROBLEM
    assert finding.remedy
    assert all(word in finding.says for word in words), finding


def test_a_partition_that_is_not_for_this_account_is_a_problem() -> None:
    closed = [partition("gpu", allow_accounts=("serving",), allow_qos=("high",)), partition("cpu")]
    said = judged(site_with(), cluster_with(partitions=closed))
    assert said["defaults.serve"].level is Level.OK
    closed[0] = partition("gpu", allow_accounts=("research", "teaching"))
    said = judged(site_with(), cluster_with(partitions=closed))
    assert said["defaults.serve"].says == "gpu allows account research, teaching only, not serving"


def test_a_cluster_without_a_default_partition_needs_one_named() -> None:
    said = judged(site_with(), cluster_with(partitions=[partition("gpu")]))
    assert said["defaults.convert"].level is Level.PROBLEM
    assert "no default" in said["defaults.convert"].says


def test_nodes_that_are_out_make_a_job_wait_which_is_a_warning() -> None:
    out = [node("g1", "gpu", 8, "DRAIN"), node("g2", "gpu", 8), node("c1", "cpu")]
    finding = judged(site_with(), cluster_with(nodes=out))["defaults.train"]
    assert finding.level is Level.WARNING
    assert "needs 2 nodes of gpu, of which 1 can take jobs now" in finding.says


def test_an_account_of_others_is_a_warning_only_as_others_may_submit() -> None:
    finding = judged(site_with(), cluster_with(), user="bob")["defaults.serve"]
    assert (finding.level, "but in: research" in finding.says) == (Level.WARNING, True)


def test_nothing_is_said_of_accounts_that_nobody_shows_us() -> None:
    for hidden in (None, []):
        said = judged(site_with(), cluster_with(associations=hidden, qos=None))
        assert worst(said.values()) is Level.OK


def test_what_the_site_says_of_partitions_is_held_against_slurm() -> None:
    described = {"gpu": settings.Partition(gpu="h100", gpus_per_node=16), "gpv": settings.Partition()}
    said = judged(site_with(partitions=described), cluster_with())
    assert "16 GPUs per node, and Slurm knows of 8" in said["partitions.gpu"].says
    assert "did you mean 'gpu'" in said["partitions.gpv"].says
    assert worst(said.values()) is Level.WARNING


# -- a Slurm that is silent -----------------------------------------------------------------------------------------


class Silent:
    """A SlurmClient none of whose questions is answered; counts them."""

    def __init__(self) -> None:
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        def question() -> None:
            self.asked += 1
            raise SlurmUnavailable("scontrol did not answer within 30 s")

        return question


def test_a_silent_slurmctld_is_asked_once_and_is_a_problem() -> None:
    client = Silent()
    answers = cluster.ask(client)  # type: ignore[arg-type]
    assert client.asked == 1
    (finding,) = cluster.slurm_findings(answers, site_with())
    assert (finding.level, finding.subject) == (Level.PROBLEM, "slurmctld")
    assert "did not answer within 30 s" in finding.says and finding.remedy
    (finding,) = cluster.accounting_findings(answers)
    assert (finding.level, "not asked for" in finding.says) == (Level.PROBLEM, True)
    assert list(asks(site_with(), answers, "alice")) == []


class Discreet(Silent):
    """Answers nothing but refusals, as a slurmctld with PrivateData=nodes does where it is asked for nodes."""

    def __getattr__(self, name: str) -> Any:
        def question() -> Any:
            if name == "nodes":
                raise SlurmError("slurm_load_node: Access/permission denied")
            return {"config": config(accounting=False), "privileged": False}.get(name, [])

        return question


def test_a_question_that_slurm_refuses_is_a_warning_and_the_rest_is_judged() -> None:
    answers = cluster.ask(Discreet())  # type: ignore[arg-type]
    said = {f.subject: f for f in cluster.slurm_findings(answers, site_with())}
    assert (said["hidden"].level, said["hidden"].says) == (
        Level.WARNING, "refused: slurm_load_node: Access/permission denied",
    )  # fmt: skip
    assert "slurmctld" not in said and "release" in said and answers.partitions == []


# -- directories ----------------------------------------------------------------------------------------------------

LOCAL = Directory(Path("/state"), True, "ext4", "/", 100 * GIB, None, None, 0.0)


def looks(**changes: Any) -> Directory:
    return dataclasses.replace(LOCAL, **changes)


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "gpfs", "fuse.sshfs", "beegfs"])
def test_a_registry_on_a_network_file_system_is_refused_and_shared_files_belong_there(kind: str) -> None:
    (state,) = storage.judge_state(looks(kind=kind, point="/scratch"))
    assert (state.level, state.remedy) == (Level.PROBLEM, storage.OWN_DISK)
    assert f"{kind} (mounted at /scratch)" in state.says
    (shared,) = storage.judge_shared(looks(kind=kind), spread=True)
    assert shared.level is Level.OK


def test_a_shared_directory_on_a_local_disk_is_well_only_where_jobs_run_here() -> None:
    assert worst(storage.judge_shared(looks(), spread=False)) is Level.OK
    *_, spread = storage.judge_shared(looks(), spread=True)
    assert spread.level is Level.WARNING and "nodes do not see" in spread.says


def test_a_python_that_other_nodes_do_not_see_is_a_warning_only_where_jobs_run_there() -> None:
    engine = Environment(kind="venv", python="/sw/engine/bin/python")
    site = site_with(environments=Environments(engine=engine))
    mounted = "/dev/vda / ext4 rw 0 0\nserver:/sw /sw nfs4 rw 0 0\n"
    (own,) = storage.judge_interpreters(site, mounted, spread=True)
    assert (own.subject, own.level) == ("control Python", Level.WARNING)
    assert "ext4 of this host" in own.says
    assert worst(storage.judge_interpreters(site, mounted, spread=False)) is Level.OK
    local = storage.judge_interpreters(site, "/dev/vda / ext4 rw 0 0\n", spread=True)
    assert [f.subject for f in local] == ["control Python", "engine Python"]


def test_the_file_systems_that_may_not_hold_the_registry_are_listed() -> None:
    mounted = "/dev/vda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\nmds:/s /scratch\\040space lustre rw 0 0\n"
    assert storage.network(mounted).says.endswith("never state_dir: /home (nfs4), /scratch space (lustre)")
    assert storage.network("/dev/vda / ext4 rw 0 0\n").says == "none on this host"
    many = storage.network("".join(f"server:/{i} /home/{i} nfs4 rw 0 0\n" for i in range(20)))
    assert many.says.endswith("/home/7 (nfs4) and 12 more")


def test_a_registry_in_memory_is_a_warning() -> None:
    *_, finding = storage.judge_state(looks(kind="tmpfs"))
    assert finding.level is Level.WARNING and "after a reboot" in finding.says


@pytest.mark.parametrize(("free_bytes", "level"), [(1 << 20, "PROBLEM"), (500 << 20, "WARNING"), (50 * GIB, "OK")])
def test_room_that_runs_out(free_bytes: int, level: str) -> None:
    for findings in (
        storage.judge_state(looks(free_bytes=free_bytes)),
        storage.judge_shared(looks(free_bytes=free_bytes), False),
    ):
        (finding,) = findings
        assert finding.level.name == level, finding


def test_a_file_server_whose_clock_differs_is_a_warning() -> None:
    *_, finding = storage.judge_shared(looks(kind="nfs4", ahead_s=-90.0), spread=True)
    assert finding.level is Level.WARNING and "-90 s" in finding.says


def test_looking_at_a_directory_leaves_nothing_in_it_and_makes_none(tmp_path: Path) -> None:
    seen = storage.look(tmp_path, storage.mounts())
    assert (seen.there, seen.refusal) == (True, None)
    assert seen.free_bytes > 0 and seen.ahead_s is not None and abs(seen.ahead_s) < 1
    assert list(tmp_path.iterdir()) == []
    below = storage.look(tmp_path / "a" / "b", storage.mounts())
    assert (below.there, below.kind, below.refusal) == (False, seen.kind, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_is_a_problem(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for path in (tmp_path, tmp_path / "new"):
        (finding,) = storage.judge_state(storage.look(path, storage.mounts()))
        assert finding.level is Level.PROBLEM


def test_a_directory_that_cannot_be_written_says_why() -> None:
    (finding,) = storage.judge_shared(storage.look(Path("/proc"), storage.mounts()), spread=False)
    assert finding.level is Level.PROBLEM and "cannot be written" in finding.says


def test_a_state_dir_of_the_services_account_is_well_for_everybody_else() -> None:
    theirs = looks(refusal="cannot be written: Permission denied", owner="headgate")
    (finding,) = storage.judge_state(theirs)
    assert (finding.level, "belongs to headgate" in finding.says) == (Level.OK, True)
    (finding,) = storage.judge_state(dataclasses.replace(theirs, owner=None))
    assert finding.level is Level.PROBLEM


# -- environments ---------------------------------------------------------------------------------------------------

VENV = Environment(kind="venv", python=sys.executable)
SIF = Environment(kind="apptainer", python="python3", image="/images/vllm.sif", mounts=("/nowhere:/data",))


def environment_findings(
    engine: Environment | None, here: Mapping[str, str], program: Path | None = None
) -> list[Finding]:
    site = site_with(environments=Environments(engine=engine))
    environ = dict(os.environ)
    if program is not None:
        environ["PATH"] = f"{program}:{environ['PATH']}"
    return programs.check(site, "engine", Runtimes(here), environ)


def test_a_site_without_an_engine_cannot_serve() -> None:
    (finding,) = environment_findings(None, {})
    assert finding.level is Level.WARNING and "cannot serve" in finding.says


def test_an_environment_without_its_library_is_a_problem_in_pythons_words() -> None:
    (finding,) = environment_findings(VENV, {})  # the control plane's own: no vLLM, no torch
    assert finding.level is Level.PROBLEM
    assert "vllm: ModuleNotFoundError: No module named 'vllm'" in finding.says
    assert "torch" in finding.says and "launchers.vllm.guard" not in finding.says


def test_an_engine_of_the_sites_own_needs_no_vllm() -> None:
    own = dataclasses.replace(VENV, command=(sys.executable, "server.py"))
    (finding,) = environment_findings(own, {})
    assert finding.level is Level.OK and finding.says.startswith("Python 3.")


def test_an_engine_command_that_is_not_there_is_named() -> None:
    (finding,) = environment_findings(dataclasses.replace(VENV, command=("/sw/vllm", "serve")), {})
    assert (finding.level, finding.remedy) == (Level.PROBLEM, "environments.engine.command")
    assert "/sw/vllm" in finding.says


def test_an_interpreter_that_is_none_is_a_problem() -> None:
    (finding,) = environment_findings(Environment(kind="venv", python="/bin/false"), {})
    assert (finding.level, "no Python that works" in finding.says) == (Level.PROBLEM, True)


def test_a_container_needs_its_runtime_its_image_and_its_mounts() -> None:
    runtime, image, mounts = environment_findings(SIF, {"singularity": "3.11"})
    assert (runtime.level, runtime.remedy) == (Level.PROBLEM, "Singularity is here: link its program as `apptainer`")
    assert (image.level, image.says) == (Level.PROBLEM, "there is no image /images/vllm.sif")
    assert (mounts.level, mounts.subject) == (Level.WARNING, "engine mounts")


def test_a_pyxis_image_is_not_looked_into_as_that_takes_a_job() -> None:
    pyxis = Environment(kind="pyxis", python="python3", image="nvcr.io#nvidia/pytorch:25.09-py3")
    (finding,) = environment_findings(pyxis, {"pyxis": "--container-image"})
    assert finding.level is Level.OK and "would take a job" in finding.says
    (finding,) = environment_findings(pyxis, {})
    assert finding.level is Level.PROBLEM and "Pyxis" in (finding.remedy or "")


def test_an_apptainer_image_is_asked_what_it_can_import(tmp_path: Path) -> None:
    """Through a stand-in for Apptainer, which this machine need not have: runs what follows the image's name."""
    asked: list[Sequence[str]] = []
    image = tmp_path / "vllm.sif"
    image.touch()

    def run(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        asked.append(argv)
        said = '{"python": "3.12.3", "versions": {"vllm": "0.11", "torch": "2.8"}, "errors": {}, "gpu_build": true}'
        return Completed(0, f"a banner\n{programs.MARK}{said}\n", "INFO: a warning\n")

    site = site_with(environments=Environments(engine=dataclasses.replace(SIF, image=str(image), mounts=())))
    (finding,) = programs.check(site, "engine", Runtimes({"apptainer": "1.3"}), {}, run)
    assert finding.says == f"Python 3.12.3, vllm 0.11, torch 2.8 (apptainer {image})"
    (argv,) = asked
    assert argv[:2] == ["apptainer", "exec"] and str(image) in argv


def test_torch_for_cpus_is_a_warning_where_jobs_ask_for_gpus() -> None:
    said: dict[str, object] = {"python": "3.11", "versions": {"torch": "2.8+cpu"}, "errors": {}, "gpu_build": False}
    environment = programs.engine_environment(site_with(environments=Environments(engine=VENV)))
    assert worst(programs.judge("engine", environment, said, 0, "x")) is Level.OK
    *_, finding = programs.judge("engine", environment, said, 2, "x")
    assert (finding.level, "2 per node" in finding.says) == (Level.WARNING, True)


def test_an_environment_that_takes_for_ever_is_given_up() -> None:
    def run(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        raise TimeoutError

    site = site_with(environments=Environments(training=VENV))
    (finding,) = programs.check(site, "training", Runtimes({}), {}, run)
    assert (finding.level, f"after {programs.IMPORT_TIMEOUT_S:g} s" in finding.says) == (Level.PROBLEM, True)


def test_runtimes_are_told_with_their_versions(tmp_path: Path) -> None:
    for name, said in (
        ("apptainer", "apptainer version 1.3.4"),
        ("srun", "  --container-image=PATH"),
        ("enroot", "3.4.1"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{said}'\n")
        (tmp_path / name).chmod(0o755)
    here = programs.runtimes({"PATH": str(tmp_path)})
    assert here.found == {"apptainer": "1.3.4", "pyxis": "--container-image", "enroot": "3.4.1"}
    assert programs.runtimes_finding(here).says == "apptainer 1.3.4, enroot 3.4.1, pyxis"


# -- probes that do not come back -----------------------------------------------------------------------------------


def test_a_probe_that_hangs_is_a_finding_within_its_time() -> None:
    never = threading.Event()
    (finding,) = found("shared_dir", 0.05, begin(never.wait), lambda seen: [])
    never.set()
    assert (finding.level, finding.says) == (Level.PROBLEM, "did not answer within 0.05 s")


def test_a_probe_that_is_not_let_in_is_a_finding() -> None:
    def refused() -> None:
        raise PermissionError(13, "Permission denied", "/secret")

    (finding,) = found("state_dir", 5, begin(refused), lambda seen: [])
    assert finding.level is Level.PROBLEM and "/secret" in finding.says
