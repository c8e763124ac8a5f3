"""The queue, the nodes and the limits: over the control API, and asked directly, on a real Slurm of this file's own."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from conftest import PrivateCluster, private_cluster
from slurm_fixtures import ScriptedSlurm, record
from slurm_fixtures import job as queued
from specs import folder_of, serve, train
from waiting import eventually, wait_for

from cli.sight import look
from launchers import direct, subjects
from launchers.control import make_app
from launchers.control_http import CONTROLLER
from launchers.controller import Controller
from launchers.direct import DirectSlurm
from launchers.local_scheduler import LocalScheduler
from launchers.scheduler import JobRequest
from launchers.slurm_scheduler import SlurmScheduler
from launchers.spec import Resources
from launchers.this_machine import ThisMachine
from registry import accounting, deployments, models
from registry import site as settings
from registry.site import Site
from slurm.backend import connect
from slurm.commands import CommandClient
from slurm.model import JobState
from slurm.process import Completed, run_process

NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateCluster]:
    with private_cluster() as made:
        made.root.chmod(0o755)  # others have to find the configuration and the socket in it
        yield made


@pytest.fixture
def jobs(cluster: PrivateCluster) -> Iterator[Callable[..., str]]:
    """Submits; whatever waits or runs at the end of the test is cancelled."""

    def submit(*options: str, as_uid: int | None = None) -> str:
        become = [] if as_uid is None else ["setpriv", f"--reuid={as_uid}", "--clear-groups"]
        argv = ["sbatch", "--parsable", "--chdir=/", "--output=/dev/null", *options, "--wrap", "sleep 300"]
        return cluster.run(*become, *argv).strip()

    yield submit
    for user in ("root", "nobody") if os.getuid() == 0 else (subjects.user_name(os.getuid()),):
        cluster.run("scancel", "-u", user)
    wait_for(lambda: not cluster.run("squeue", "-h", "-t", "PD,R,CG"))


@pytest.fixture
def folder() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="headgate-"))
    root.chmod(0o755)
    for name in ("state", "shared"):
        (root / name).mkdir(mode=0o755)
    yield root
    shutil.rmtree(root)


def site_at(root: Path, kind: str = "slurm") -> Site:
    return Site(
        name="test",
        state_dir=root / "state",
        shared_dir=root / "shared",
        controller=settings.Controller(poll_s=0.2),
        scheduler=settings.Scheduler(kind=kind, command_timeout_s=2, min_poll_s=0.2, max_poll_s=1),  # type: ignore[arg-type]
    )


class Asking:
    """The control API, and the controller behind it."""

    def __init__(self, site: Site, controller: Controller, session: aiohttp.ClientSession) -> None:
        self.site, self.controller, self.session = site, controller, session

    async def get(self, path: str, status: int = 200) -> Any:
        async with self.session.get(f"http://control/v1/{path}") as response:
            said = await response.json()
            assert response.status == status, said
            return said if status == 200 else said["error"]["message"]

    async def row(self, job_id: str, reason: str, path: str = "queue") -> dict[str, Any]:
        """A job's row, once Slurm gives this reason for it."""

        async def found() -> Any:
            watch = self.controller.watch
            assert watch is not None
            watch.hurry()
            picture = await watch.look()
            rows = (await self.get(path))["jobs"]
            known = any(j.id == job_id and (j.reason or "").startswith(reason) for j in picture.jobs)
            return next((r for r in rows if r["job"] == job_id), None) if known else None

        return await eventually(found)


@asynccontextmanager
async def asking(site: Site, scheduler: Any) -> AsyncIterator[Asking]:
    app = make_app(site, scheduler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(site.control_socket)).start()
    os.chmod(site.control_socket, 0o666)
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(site.control_socket))) as session:
            yield Asking(site, app[CONTROLLER], session)
    finally:
        await runner.cleanup()


class Counted(CommandClient):
    """Slurm's commands, counted by name."""

    def __init__(self, cluster: PrivateCluster) -> None:
        self.asked: list[str] = []
        super().__init__(self._counted, cluster.env, timeout_s=2)

    def _counted(self, argv: Any, environment: Any, timeout_s: float) -> Completed:
        self.asked.append(f"{argv[0]} {argv[-1]}")
        return run_process(argv, environment, timeout_s)


@pytest.fixture
async def control(cluster: PrivateCluster, folder: Path) -> AsyncIterator[Asking]:
    client = connect(cluster.env, timeout_s=2, backend="commands")
    async with asking(site_at(folder), SlurmScheduler(client)) as made:
        yield made


def free_h100(cluster: PrivateCluster) -> dict[str, int]:
    """By node, as sinfo says."""
    text = cluster.run("sinfo", "-h", "-N", "-p", "gpu", "-O", "NodeList:20,Gres:40,GresUsed:40")
    found = {}
    for name, has, used in (line.split() for line in text.splitlines()):
        amounts = [int(m[1]) if (m := re.search(r"h100:(\d+)", t)) else 0 for t in (has, used)]
        found[name] = amounts[0] - amounts[1]
    return found


# -- the queue --------------------------------------------------------------------------------------------------------


async def test_a_job_says_how_many_more_gpus_it_waits_for_and_when_slurm_expects_it(
    control: Asking, cluster: PrivateCluster, jobs: Callable[..., str]
) -> None:
    jobs("-p", "gpu", "--gpus-per-node=h100:6", "-N2", "-t", "20")
    wait_for(lambda: sum(free_h100(cluster).values()) == 4)
    waiting = jobs("-p", "gpu", "--gpus-per-node=h100:8", "-N1", "-t", "30")
    row = await control.row(waiting, "Resources")
    more = 8 - sum(free_h100(cluster).values())
    assert row["why"].startswith(f"waiting for {more} more H100 in gpu; ")
    assert (row["asks"], row["state"], row["what"]) == ("8 H100", "PENDING", "job")

    async def estimated() -> Any:
        found = await control.row(waiting, "Resources")
        return found if found["expected_start_at"] else None

    row = await eventually(estimated)
    expected = datetime.fromtimestamp(
        int(cluster.run("env", "SLURM_TIME_FORMAT=%s", "squeue", "-h", "-j", waiting, "-o", "%S")), UTC
    )
    assert abs((datetime.fromisoformat(row["expected_start_at"]) - expected).total_seconds()) <= 60
    assert row["why"].endswith(f"; Slurm expects {row['expected_start_at']}")

    spread = jobs("-p", "gpu", "--gpus=h100:4", "-N1", "-t", "30")
    behind = await control.row(spread, "Priority")
    assert behind["why"].startswith("behind 1 job in gpu that asks for 8 GPUs; ")
    cluster.run("scancel", waiting)
    row = await control.row(spread, "Resources")
    most = max(free_h100(cluster).values())
    assert row["why"].startswith(f"waiting for 4 H100 in gpu; 4 are free, at most {most} on one node; ")


async def test_a_limit_names_whose_it_is_and_slurm_is_asked_for_limits_once_for_everyone(
    cluster: PrivateCluster, folder: Path, jobs: Callable[..., str]
) -> None:
    client = Counted(cluster)
    cluster.run("sacctmgr", "-i", "-Q", "modify", "account", "teaching", "set", "GrpTRES=gres/gpu=4")
    try:
        async with asking(site_at(folder), SlurmScheduler(client)) as control:
            jobs("-p", "gpu", "-A", "teaching", "--gpus=3", "-t", "20")
            waiting = jobs("-p", "gpu", "-A", "teaching", "--gpus=2", "-t", "20")

            async def told() -> Any:
                row = await control.row(waiting, "AssocGrpGRES")
                return row if "3 GPUs in use" in row["why"] else None

            control.controller.watch.hurry()  # type: ignore[union-attr]  # on Slurm there is one
            row = await control.row(waiting, "AssocGrpGRES")
            assert row["why"] == "account teaching allows 4 GPUs at once; 3 GPUs in use; this job asks for 2 GPUs"
            said = await control.get("limits?account=teaching")
            (limit,) = [r for r in said["limits"] if (r["of"], r["kind"]) == ("account teaching", "GrpTRES")]
            assert (limit["what"], limit["allowed"], limit["used"], limit["left"]) == ("GPUs at once", 4, 3, 1)
            for _ in range(20):
                await asyncio.gather(control.get("queue"), control.get("limits"), control.get("nodes"))
            assert client.asked.count("scontrol flags=assoc") == 1
    finally:
        cluster.run("sacctmgr", "-i", "-Q", "modify", "account", "teaching", "set", "GrpTRES=gres/gpu=-1")


async def test_runs_and_replicas_are_told_from_other_jobs(control: Asking, jobs: Callable[..., str]) -> None:
    run = train("pretrain-7", owner="root")
    folder_of(run, control.site.runs_dir)
    replica = "chat-20260101-000000-beef"
    db = control.controller.db

    def deploy() -> None:
        models.register(db, "chat", "ada", "/m")
        deployments.create(
            db,
            "chat",
            "ada",
            model="chat",
            version=1,
            model_path="/m",
            min_replicas=0,
            max_replicas=1,
            request={},
            by="ada",
            why="served",
        )
        deployments.add_replica(db, replica, "chat", "ada", "/f")

    await control.controller.write(deploy)
    job_ids = {
        name: jobs("-p", "cpu", f"--comment={comment}")
        for name, comment in (("run", run.id), ("replica", replica), ("job", "something"))
    }

    async def all_there() -> Any:
        control.controller.watch.hurry()  # type: ignore[union-attr]  # on Slurm there is one
        rows = {r["job"]: r for r in (await control.get("queue"))["jobs"]}
        known = job_ids["run"] in rows and rows[job_ids["run"]]["what"] == "run"
        return rows if known and set(job_ids.values()) <= set(rows) else None

    rows = await eventually(all_there)
    assert {name: (rows[i]["what"], rows[i]["of"]) for name, i in job_ids.items()} == {
        "run": ("run", "pretrain"),
        "replica": ("replica", "chat"),
        "job": ("job", None),
    }
    # The replica is ada's too, who asked for it.
    assert [r["job"] for r in (await control.get("queue?user=ada"))["jobs"]] == [job_ids["replica"]]


async def test_a_run_that_another_process_submitted_and_told_of_is_shown_soon(
    cluster: PrivateCluster, folder: Path, jobs: Callable[..., str]
) -> None:
    """As `headgate train` does. Nobody looks before an hour is over, otherwise."""
    client = Counted(cluster)
    site = site_at(folder)
    site = dataclasses.replace(site, scheduler=dataclasses.replace(site.scheduler, max_poll_s=3600))
    async with asking(site, SlurmScheduler(client)) as control:
        watch = control.controller.watch
        assert watch is not None
        await watch.look()
        job_id = jobs("-p", "cpu", "-H")
        async with control.session.post("http://control/v1/poke") as response:
            assert response.status == 200

        async def shown() -> bool:
            return job_id in {row["job"] for row in (await control.get("queue"))["jobs"]}

        await eventually(shown)


async def test_pokes_make_nobody_ask_a_slurm_that_is_silent(folder: Path) -> None:
    slurm = ScriptedSlurm(silent="Unable to contact slurm controller")
    async with asking(site_at(folder), SlurmScheduler(slurm)) as control:  # type: ignore[arg-type]
        watch = control.controller.watch
        assert watch is not None

        async def often_enough() -> bool:
            async with control.session.post("http://control/v1/poke") as response:
                assert response.status == 200
            return watch.silence is not None and watch.silence.failures >= 4

        began = time.monotonic()
        await eventually(often_enough, every=0.005)
        # Backed off: after 0.4, 0.8 and 1.6 s, or half of that by chance, and not at each of some hundred pokes.
        assert time.monotonic() - began >= 0.2 + 0.4 + 0.8
        assert slurm.asked.count("jobs") <= 5


async def test_a_job_that_the_queue_lost_is_shown_until_the_books_know_its_end(folder: Path) -> None:
    lost = queued(7, user="root")
    slurm = ScriptedSlurm([lost])
    async with asking(site_at(folder), SlurmScheduler(slurm)) as control:  # type: ignore[arg-type]

        async def told(why: str) -> bool:
            rows = (await control.get("queue?all=1"))["jobs"]
            return [row["why"] for row in rows if row["job"] == lost.id and row["state"] == "UNKNOWN"] == [why]

        assert control.controller.watch is not None
        await control.controller.watch.look()
        slurm.queue = []
        await eventually(lambda: told("not in the queue any more; accounting does not know it"))
        slurm.books = [record(lost)]

        async def gone() -> bool:
            return (await control.get("queue?all=1"))["jobs"] == []

        await eventually(gone)


async def test_what_is_asked_wrongly_is_refused(control: Asking) -> None:
    assert await control.get("queue?who=x", 400) == "parameter 'who' is unknown; allowed: user, all"
    assert await control.get("nodes?partition=gpus", 400) == "no partition is called 'gpus'; there are: gpu, cpu"
    assert (await control.get("limits?account=x", 400)).startswith("no account is called 'x'; there are: ")


# -- nodes ------------------------------------------------------------------------------------------------------------


async def test_nodes_say_what_is_free_what_is_out_and_what_is_planned(
    cluster: PrivateCluster, folder: Path, jobs: Callable[..., str]
) -> None:
    jobs("-p", "gpu", "--gpus=h100:3", "-t", "20")
    cluster.run("scontrol", "update", "node=c2", "state=drain", "reason=bad disk, see #4")
    cluster.run(
        "scontrol", "create", "reservation", "ReservationName=maint-7", "StartTime=now+1day", "Duration=60", "Nodes=c1",
        "Flags=MAINT", "Users=root",
    )  # fmt: skip
    wait_for(lambda: sum(free_h100(cluster).values()) == 13)
    try:
        async with asking(site_at(folder), SlurmScheduler(connect(cluster.env, backend="commands"))) as control:
            said = await control.get("nodes")
    finally:
        cluster.run("scontrol", "delete", "reservation", "maint-7")
        cluster.run("scontrol", "update", "node=c2", "state=resume")
    gpu, cpu = said["partitions"]
    free = free_h100(cluster)
    assert (gpu["partition"], gpu["gpu"], gpu["gpus"], gpu["gpus_free"]) == ("gpu", "h100", 16, sum(free.values()))
    assert (gpu["most_on_one_node"], gpu["nodes_free"], gpu["nodes_out"]) == (max(free.values()), 2, 0)
    assert (cpu["partition"], cpu["gpu"], cpu["nodes_out"], cpu["cpus_free"]) == ("cpu", None, 1, 16)
    assert [out["text"] for out in said["out"]] == ["c2 (drained: bad disk, see #4)"]
    assert [(r["name"], r["maintenance"], r["nodes"]) for r in said["reservations"]] == [("maint-7", True, ["c1"])]
    assert said["silence"] is None and said["age_s"] < 60


# -- silence ----------------------------------------------------------------------------------------------------------


async def test_while_slurm_is_silent_the_last_picture_is_shown_with_its_age_and_slurms_words(
    control: Asking, cluster: PrivateCluster, jobs: Callable[..., str]
) -> None:
    job_id = jobs("-p", "cpu", "-H")
    await control.row(job_id, "JobHeldUser")
    pid = int((cluster.root / "run" / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:

        async def silent() -> Any:
            said = await control.get("queue")
            return said if said["silence"] else None

        said = await eventually(silent)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert job_id in {r["job"] for r in said["jobs"]}
    assert said["age_s"] >= 2 and said["at"] <= said["silent_since"]
    assert "did not answer within 2 s" in said["silence"]

    async def answered() -> bool:
        return (await control.get("queue"))["silence"] is None

    await eventually(answered)


async def test_a_silence_in_which_limits_were_never_told_hides_no_queue(folder: Path) -> None:
    slurm = ScriptedSlurm([queued(7, JobState.PENDING, user="root", reason="AssocGrpGRES")])
    async with asking(site_at(folder), SlurmScheduler(slurm)) as control:  # type: ignore[arg-type]
        assert control.controller.watch is not None
        await control.controller.watch.look()
        slurm.silent = "Unable to contact slurm controller"

        async def silent() -> Any:
            return control.controller.watch.silence  # type: ignore[union-attr]  # on Slurm there is one

        await eventually(silent)
        (row,) = (await control.get("queue?all=1"))["jobs"]
        assert row["state"] == "PENDING" and row["why"]
        assert await control.get("limits", 503) == slurm.silent


async def test_a_slurm_that_never_answered_is_an_error_not_an_empty_queue(folder: Path) -> None:
    nowhere = connect({"PATH": str(folder)}, backend="commands")
    async with asking(site_at(folder), SlurmScheduler(nowhere)) as control:
        assert "squeue cannot be run" in await control.get("queue", 503)


# -- PrivateData ------------------------------------------------------------------------------------------------------


def as_nobody(work: Callable[[], Any]) -> Any:
    """What `work` returns, as JSON, in a process that has become nobody. Everything it imports is imported already."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer: Any = "nothing"
        try:
            os.closerange(3, writer)  # among them the pipes of commands that other threads are waiting for
            os.closerange(writer + 1, 4096)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer = work()
        except BaseException as e:  # noqa: BLE001  # a child must not go on as the test; the parent sees the words
            answer = {"error": f"{type(e).__name__}: {e}"}
        finally:
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as f:
        said = json.loads(f.read())
    os.waitpid(pid, 0)
    return said


@pytest.fixture
def private_data(cluster: PrivateCluster) -> Iterator[Callable[[str], None]]:
    """Sets PrivateData of the running slurmctld."""
    conf = cluster.root / "etc" / "slurm.conf"
    before = conf.read_text()

    def reconfigure(text: str, shown: str) -> None:
        conf.write_text(text)
        cluster.run("scontrol", "reconfigure")
        wait_for(lambda: re.search(rf"PrivateData\s+= {shown}\n", cluster.run("scontrol", "show", "config")))

    yield lambda flags: reconfigure(f"{before}PrivateData={flags}\n", flags)
    reconfigure(before, "none")


@pytest.fixture
def nobody(cluster: PrivateCluster) -> None:
    if "nobody" not in cluster.run("sacctmgr", "-n", "-P", "show", "user", "format=user"):
        cluster.run("sacctmgr", "-i", "-Q", "add", "user", "nobody", "account=teaching")


@needs_root
@pytest.mark.parametrize("asked", ["the controller", "Slurm"])
async def test_what_private_data_hides_from_the_caller_is_hidden(
    cluster: PrivateCluster,
    folder: Path,
    jobs: Callable[..., str],
    private_data: Callable[[str], None],
    nobody: None,
    asked: str,
) -> None:
    private_data("jobs,nodes,usage")
    first = jobs("-p", "gpu", "--gpus=h100:8", "-N1", "-t", "30")
    jobs("-p", "gpu", "--gpus=h100:8", "-N1", "-t", "30")
    ahead = jobs("-p", "gpu", "--gpus=h100:8", "-N1", "-t", "30")
    theirs = jobs("-p", "gpu", "--gpus=h100:1", "-t", "30", "--nice=1000", as_uid=NOBODY)
    wait_for(lambda: "Priority" in cluster.run("squeue", "-h", "-j", theirs, "-o", "%r"))
    client = connect(cluster.env, backend="commands")
    async with asking(site_at(folder), SlurmScheduler(client)) as control:

        def directly() -> dict[str, Any]:
            source = DirectSlurm(client)
            return {
                "mine": direct.queue(source, folder, "nobody"),
                "all": direct.queue(source, folder, None),
                "nodes": direct.nodes(source, None),
                "limits": direct.usage(source, None),
            }

        def through_the_controller() -> dict[str, Any]:
            from cli.client import Control

            api = Control(control.site.control_socket)
            return {
                "mine": api.get("/v1/queue"),
                "all": api.get("/v1/queue", all="1"),
                "nodes": api.get("/v1/nodes"),
                "limits": api.get("/v1/limits"),
            }

        work = through_the_controller if asked == "the controller" else directly
        said = await asyncio.to_thread(as_nobody, work)
        assert "error" not in said, said
        for which in ("mine", "all"):
            assert [r["job"] for r in said[which]["jobs"]] == [theirs]
            assert said[which]["jobs"][0]["why"].startswith("behind jobs of higher priority in gpu; ")
        assert said["all"]["hidden"] == ["jobs", "nodes", "usage"]
        assert said["nodes"]["partitions"] == [] or all(r["nodes"] == 0 for r in said["nodes"]["partitions"])
        assert {r["of"] for r in said["limits"]["limits"] if "account" in r["of"]} <= {"nobody in account teaching"}
        # Root, through the same door, sees everything.
        everything = await control.get("queue?all=1")
        assert {first, ahead, theirs} <= {r["job"] for r in everything["jobs"]} and everything["hidden"] == []


@needs_root
async def test_a_job_that_a_run_folder_claims_is_not_thereby_its_owners(
    cluster: PrivateCluster,
    folder: Path,
    jobs: Callable[..., str],
    private_data: Callable[[str], None],
    nobody: None,
) -> None:
    """Whoever owns a folder writes its note; a job's comment is written by whoever submits it."""
    private_data("jobs")
    secret = jobs("-p", "gpu", "--gpus=h100:1", "-t", "30", "-J", "secret-project")
    run_id = "mine-20261124-000000-0001"
    own = jobs("-p", "cpu", f"--comment={run_id}", as_uid=NOBODY)
    async with asking(site_at(folder), SlurmScheduler(connect(cluster.env, backend="commands"))) as control:
        run = folder_of(train(id=run_id, name="mine", owner="nobody"), control.site.runs_dir)
        note = {"cluster": "headgate-test", "job_id": secret, "submitted_at": "2026-01-01T00:00:00+00:00"}
        (run.root / "job.json").write_text(json.dumps(note))
        for path in (run.root, *run.root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        run.root.chmod(0o755)

        async def taken_up() -> Any:
            return await control.controller.write(accounting.of_subject, control.controller.db, run_id)

        assert [job.job_id for job in await eventually(taken_up)] == [secret]
        assert control.controller.watch is not None
        picture = await control.controller.watch.look(newer_than=datetime.now(UTC))
        assert {secret, own} <= {job.id for job in picture.jobs}

        def ask() -> Any:
            from cli.client import Control

            return Control(control.site.control_socket).get("/v1/queue", all="1")

        said = await asyncio.to_thread(as_nobody, ask)
        assert [(row["job"], row["what"]) for row in said["jobs"]] == [(own, "run")]


@needs_root
def test_a_user_without_an_association_is_told_what_is_hidden_and_no_error(
    cluster: PrivateCluster, folder: Path, private_data: Callable[[str], None]
) -> None:
    cluster.run("sacctmgr", "-i", "-Q", "delete", "user", "nobody")
    private_data("partitions,usage")
    client = connect(cluster.env, backend="commands")
    said = as_nobody(
        lambda: {"usage": direct.usage(DirectSlurm(client), None), "nodes": direct.nodes(DirectSlurm(client), None)}
    )
    assert "error" not in said, said
    assert said["usage"]["limits"] == [] and said["nodes"]["partitions"] == []
    assert said["usage"]["hidden"] == said["nodes"]["hidden"] == ["nodes", "partitions", "usage"]


@needs_root
async def test_a_controller_from_which_slurm_hides_things_sends_others_to_slurm(
    cluster: PrivateCluster, folder: Path, private_data: Callable[[str], None]
) -> None:
    private_data("jobs")

    class Ordinary(CommandClient):
        """As an ordinary service account's would answer; these processes are root's."""

        def privileged(self) -> bool:
            return False

    async with asking(site_at(folder), SlurmScheduler(Ordinary(environment=cluster.env))) as control:
        await control.get("queue")  # its own user asks

        def ask() -> Any:
            from cli.client import Control, Refused

            try:
                return Control(control.site.control_socket).get("/v1/queue")
            except Refused as e:
                return [e.status, e.message]

        status, words = await asyncio.to_thread(as_nobody, ask)
        assert (status, words) == (421, "Slurm hides your part from this controller (PrivateData=jobs)")
        told = await asyncio.to_thread(
            as_nobody, lambda: look(control.site, "/v1/queue", lambda source: {"from": type(source).__name__})
        )
        assert told == {"asked": "slurm", "not_the_controller": words, "from": "DirectSlurm"}


# -- a machine without Slurm ------------------------------------------------------------------------------------------


def local_job(site: Site) -> LocalScheduler:
    spec = serve("chat-1")
    folder = folder_of(spec, site.runs_dir)
    scheduler = LocalScheduler(site.shared_dir / "local-jobs")
    request = JobRequest(
        key=spec.id, name=spec.id, command=("sleep", "60"), log_dir=folder.logs, resources=Resources(cpus_per_task=2)
    )
    ref = scheduler.submit(request)
    assert ref.job_id
    return scheduler


async def test_a_laptop_shows_its_own_jobs_with_and_without_a_controller(folder: Path) -> None:
    site = site_at(folder, "local")
    scheduler = local_job(site)
    ref = scheduler.find("chat-1")
    assert ref is not None
    try:
        me = subjects.user_name(os.getuid())
        found = direct.queue(ThisMachine(site.shared_dir / "local-jobs"), site.runs_dir, me)
        (row,) = found["jobs"]
        assert (row["job"], row["what"], row["of"], row["state"]) == (ref.job_id, "replica", "chat", "RUNNING")
        assert (row["asks"], row["time_limit_s"]) == ("2 CPUs", 86400) and row["left_s"] > 86000
        (room,) = direct.nodes(ThisMachine(site.shared_dir / "local-jobs"), None)["partitions"]
        assert (room["partition"], room["cpus"]) == ("local", os.cpu_count())
        async with asking(site, scheduler) as control:
            said = await control.get("queue")
            assert [r["job"] for r in said["jobs"]] == [ref.job_id] and said["age_s"] < 5
            assert (await control.get("limits"))["limits"] == []
    finally:
        scheduler.cancel(ref)
    wait_for(lambda: scheduler.states([ref])[ref].state.ended)
    assert direct.queue(ThisMachine(site.shared_dir / "local-jobs"), site.runs_dir, me)["jobs"] == []
