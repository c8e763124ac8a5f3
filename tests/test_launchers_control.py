"""The controller and its API over a real Unix socket, a real registry, real local jobs and stand-in engines."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web
from conftest import ROOT
from specs import folder_of, serve, train
from waiting import eventually, wait_for

from launchers import control_http, ended_runs, replica_jobs
from launchers import controller as controllers
from launchers.announce import announce
from launchers.control import CONTROLLER, make_app, principal_of
from launchers.controller import Controller
from launchers.launch import launch, read_job, request_for, write_job
from launchers.local_job import LocalJob, records
from launchers.local_scheduler import LocalScheduler
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobRequest, JobState, JobStatus, JobUsage, SchedulerError, SchedulerUnavailable
from launchers.spec import Environment
from registry import accounting, clock, deployments, ledger, reports, runs
from registry import site as settings
from registry.access import Forbidden, Object, Principal, Verb
from registry.db import open_writer
from registry.demand import Demand, note_demand
from registry.deployments import DeploymentState, ReplicaState
from registry.ledger_migrations import MIGRATIONS as LEDGER_MIGRATIONS
from registry.own_steps import JOURNALS
from registry.projection import Projection
from registry.report import Report
from registry.runs import RunState
from registry.site import Environments, Replicas, Site

ENGINE = str(Path(__file__).with_name("stand_in_engine.py"))
BRIEF_S = 0.2  # how long a submission may take before it is looked for, in these tests


class Cluster(LocalScheduler):
    """This machine, whose scheduler can be told to fall silent: a fault that cannot be produced otherwise."""

    def __init__(self, spool: Path) -> None:
        super().__init__(spool)
        self.silent = False
        self.silent_after_submit = False
        self.refusal: str | None = None
        self.queued: tuple[str, datetime | None] | None = None  # why its jobs wait, and until when
        self.cancelled: list[JobRef] = []
        self.drained: list[JobRef] = []  # those of them that had begun

    def _answer(self) -> None:
        if self.silent:
            raise SchedulerUnavailable("squeue did not answer within 30 s")
        if self.refusal:
            raise SchedulerError(self.refusal)

    def submit(self, request: JobRequest) -> JobRef:
        self._answer()
        ref = super().submit(request)
        if self.silent_after_submit:
            self.silent = True
            self._answer()
        return ref

    def find(self, key: str) -> JobRef | None:
        self._answer()
        return super().find(key)

    def states(self, refs: Iterable[JobRef]) -> Mapping[JobRef, JobStatus]:
        self._answer()
        if self.queued is not None:
            reason, start = self.queued
            return {ref: JobStatus(ref, JobState.PENDING, reason, expected_start_at=start) for ref in refs}
        return super().states(refs)

    def cancel(self, ref: JobRef) -> None:
        self._answer()
        self.cancelled.append(ref)
        super().cancel(ref)

    def drain(self, ref: JobRef) -> None:
        self.drained.append(ref)
        super().drain(ref)

    def usage(self, refs: Iterable[JobRef]) -> Mapping[JobRef, JobUsage]:
        self._answer()
        return super().usage(refs)


@dataclass
class Answer:
    status: int
    body: Any

    @property
    def message(self) -> str:
        return str(self.body["error"]["message"])


@dataclass
class Platform:
    """A running controller, seen through its socket."""

    site: Site
    cluster: Cluster
    controller: Controller
    session: aiohttp.ClientSession

    async def get(self, path: str) -> Any:
        async with self.session.get(f"http://control/v1/{path}") as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def post(self, path: str, body: Any = None, data: bytes | None = None) -> Answer:
        async with self.session.post(f"http://control/v1/{path}", json=body, data=data) as response:
            return Answer(response.status, await response.json())

    async def deploy(self, *engine_args: str, name: str = "chat", replicas: int = 1, routing: str | None = None) -> Any:
        model = self.site.shared_dir / "tiny"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")
        body = {"model": str(model), "name": name, "engine_args": list(engine_args), "min": replicas}
        body |= {"routing": routing} if routing else {}
        made = await self.post("deployments", body)
        assert made.status == 201, made.body
        return made.body

    async def reaches(self, state: str, name: str = "chat") -> Any:
        async def described() -> Any:
            found = await self.get(f"deployments/{name}")
            return found if found["deployment"]["state"] == state else None

        return await eventually(described)

    async def settled(self, name: str = "chat") -> list[Any]:
        """The jobs of a deployment's replicas, once the books of each are closed."""

        async def closed() -> list[Any] | None:
            jobs = [job for r in (await self.get(f"deployments/{name}"))["replicas"] for job in r["jobs"]]
            return jobs if jobs and all(job["settled"] for job in jobs) else None

        return await eventually(closed)

    async def stopped(self, name: str = "chat") -> Any:
        assert (await self.post(f"deployments/{name}/stop")).status == 200
        return await self.reaches("stopped", name)

    async def turns(self, count: int = 2) -> None:
        """Until the controller has looked around so many times."""
        goal = self.controller._turns + count

        async def reached() -> bool:
            return self.controller._turns >= goal

        await eventually(reached)

    def jobs(self) -> list[LocalJob]:
        return list(records(self.site.shared_dir / "local-jobs"))


@pytest.fixture
def site() -> Iterator[Site]:
    # Not pytest's own temporary directory: its path is long, and Unix sockets' are not; and nobody else may enter it.
    root = Path(tempfile.mkdtemp(prefix="headgate-"))
    root.chmod(0o755)
    engine = settings.Environment(kind="venv", python=sys.executable, command=(sys.executable, ENGINE))
    (root / "shared").mkdir()
    (root / "state").mkdir()
    yield Site(
        name="test",
        state_dir=root / "state",
        shared_dir=root / "shared",
        controller=settings.Controller(poll_s=0.05),
        scheduler=settings.Scheduler(kind="local", command_timeout_s=BRIEF_S / 2),
        replicas=Replicas(shutdown_timeout_s=1, start_timeout_s=30),
        environments=Environments(engine=engine),
    )
    spool = root / "shared" / "local-jobs"
    for job in records(spool):
        job.terminate(spool)
    for job in records(spool):
        wait_for(lambda job=job: job.process() is None)  # type: ignore[misc]

    def none_left() -> bool:
        return not any(f"{root}/" in " ".join(_cmdline(p)) for p in psutil.process_iter())

    wait_for(none_left, 10)  # the last of them may be ending
    shutil.rmtree(root)


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.NoSuchProcess:
        return []


@asynccontextmanager
async def running(site: Site, cluster: Cluster | None = None) -> AsyncIterator[Platform]:
    cluster = cluster or Cluster(site.shared_dir / "local-jobs")
    app = make_app(site, cluster)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(site.control_socket)).start()
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(site.control_socket))) as session:
            yield Platform(site, cluster, app[CONTROLLER], session)
    finally:
        await runner.cleanup()


@pytest.fixture
async def platform(site: Site) -> AsyncIterator[Platform]:
    async with running(site) as made:
        yield made


# -- deployments ------------------------------------------------------------------------------------------------------


async def test_a_model_directory_is_deployed_stopped_and_its_job_is_in_the_books(platform: Platform) -> None:
    made = await platform.deploy(routing="round-robin")
    assert made["deployment"]["state"] == "starting"
    assert made["deployment"]["request"]["routing"] == "round-robin"
    described = await platform.reaches("ready")
    (replica,) = described["replicas"]
    assert replica["replica"]["state"] == "ready" and replica["replica"]["port"]
    assert "upstream_key" not in replica["replica"]
    assert replica["replica"]["certificate"].startswith("-----BEGIN CERTIFICATE-----\n")
    (model,) = await platform.get("models")
    assert (model["name"], model["version"], model["state"]) == ("chat", 1, "servable")

    (replica,) = (await platform.stopped())["replicas"]
    assert replica["replica"]["state"] == "stopped"
    (job,) = await platform.settled()
    assert (job["state"], job["purpose"], job["subject"]) == ("CANCELLED", "serve", replica["replica"]["id"])
    assert (job["cpus"], job["gpus"]) == (1, 0) and job["ended_at"] >= job["started_at"]
    assert platform.cluster.cancelled == []  # its supervisor was told through its folder


async def test_what_a_starting_replica_was_asked_is_in_the_platforms_books(platform: Platform) -> None:
    await platform.deploy()
    (replica,) = (await platform.reaches("ready"))["replicas"]
    with closing(ledger.open_ledger(platform.site.ledger_db)) as db:
        Projection(db, platform.site.state_dir / JOURNALS).turn()
        (event,) = ledger.usage_events(db)
        assert (ledger.check(db), ledger.open_holds(db)) == ([], 0)
    attempt = event.attempt
    assert (attempt.tenant, attempt.kind, attempt.model) == ("(platform)", "probe", "chat")
    assert attempt.replica == replica["replica"]["id"]
    assert (event.prompt_tokens, event.completion_tokens, event.microcredits) == (2, 1, 0)


async def test_an_engine_that_fails_fails_its_deployment_with_its_words(platform: Platform) -> None:
    await platform.deploy("--die", "size mismatch for lm_head", replicas=2)
    described = await platform.reaches("failed")
    cause = "the engine ended with exit code 3: RuntimeError: size mismatch for lm_head"
    assert described["deployment"]["cause"] == cause
    assert {r["replica"]["failure"] for r in described["replicas"]} <= {"bad-model", None}
    jobs = await platform.settled()
    assert "FAILED" in {job["state"] for job in jobs}
    assert len(platform.jobs()) == 2


async def test_an_engine_that_is_killed_is_started_again_in_its_replicas_job(platform: Platform) -> None:
    await platform.deploy()
    (old,) = (await platform.reaches("ready"))["replicas"]
    _kill_engine(platform.site)

    async def ready_again() -> Any:
        (found,) = (await platform.get("deployments/chat"))["replicas"]
        replica = found["replica"]
        return replica["restarts"] == 1 and replica["state"] == "ready" and found

    again = await eventually(ready_again)
    assert again["replica"]["id"] == old["replica"]["id"]
    assert [job["job_id"] for job in again["jobs"]] == [job["job_id"] for job in old["jobs"]]
    await platform.reaches("ready")  # a turn later
    await platform.stopped()


async def test_a_replica_whose_supervisor_vanished_is_not_ready_for_ever(platform: Platform) -> None:
    await platform.deploy()
    await platform.reaches("ready")
    (job,) = platform.jobs()
    _kill(_tree(job))

    async def replaced() -> Any:
        replicas = (await platform.get("deployments/chat"))["replicas"]
        return len(replicas) == 2 and replicas

    first, _ = await eventually(replaced)
    assert first["replica"]["state"] == "lost"
    assert first["replica"]["cause"].endswith("without a word from its supervisor")
    await platform.stopped()


@pytest.mark.parametrize("state", [JobState.NODE_FAIL, JobState.PREEMPTED])
async def test_an_attempt_that_the_books_ended_and_slurm_may_requeue_does_not_end_the_job(
    platform: Platform, state: JobState
) -> None:
    """For some seconds the books have the attempt that ended, and nothing yet of the one that follows."""
    controller = platform.controller
    await platform.deploy("--no-tokens-until", str(platform.site.shared_dir / "never"))
    await _begun(platform)  # it says no more now: it never gets ready
    await platform.turns()
    platform.cluster.silent = True  # what follows is all that is heard of the job
    await platform.turns()
    (ref,) = _refs(platform)

    def known() -> tuple[str, bool, ReplicaState]:
        job, replica = accounting.everything(controller.db)[0], deployments.replicas(controller.db)[0]
        return job.state, job.settled, replica.state

    before = known()
    assert before[:2] == ("RUNNING", False)
    ended = dataclasses.replace(
        LocalScheduler.usage(platform.cluster, [ref])[ref], state=state, ended_at=clock.parse(clock.now())
    )
    await controller.write(controller._settle, accounting.unsettled(controller.db), {ref: ended})
    assert known() == before
    await controller.write(controller._observe, {ref: JobStatus(ref, state)})  # nobody requeued it
    await controller.write(controller._settle, accounting.unsettled(controller.db), {ref: ended})
    assert known() == (state.value, True, ReplicaState.LOST)


async def test_books_closed_by_a_report_do_not_hide_that_a_job_is_over(platform: Platform) -> None:
    """The report asks for usage between two turns: what it learns of an ended job must not be lost on the turn."""
    spec = serve("chat-1")
    db = platform.controller.db
    await platform.deploy("--no-tokens-until", str(platform.site.shared_dir / "never"))
    (job,) = await _until_jobs(platform, 1)

    async def complete() -> bool:
        return bool(_engines(platform.site))

    await eventually(complete)  # or what the job starts next would outlive it
    platform.cluster.silent = True
    await platform.turns()
    _kill(_tree(job))
    _kill(_engines(platform.site))
    wait_for(lambda: job.process() is None)
    usage = LocalScheduler.usage(platform.cluster, _refs(platform))
    open_jobs = accounting.unsettled(db)
    await platform.controller.write(platform.controller._settle, open_jobs, usage)
    assert accounting.unsettled(db) == []
    (replica,) = deployments.replicas(db)
    assert replica.state is ReplicaState.LOST and spec.id != replica.id


async def test_a_drain_that_does_not_end_is_cut_by_a_cancel(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_jobs, "CANCEL_AGAIN_S", -0.9)  # a tenth of a second after the first
    await platform.deploy("--deaf")
    await platform.reaches("ready")
    assert (await platform.post("deployments/chat/stop")).status == 200

    async def asked_again() -> bool:
        return len(platform.cluster.cancelled) >= 1

    await eventually(asked_again)
    assert platform.cluster.drained == []  # its supervisor was told through its folder first
    os.kill(_engines(platform.site)[0], signal.SIGKILL)
    await platform.reaches("stopped")


async def test_a_job_that_has_not_begun_is_cancelled_at_once(platform: Platform) -> None:
    await platform.deploy("--no-tokens-until", str(platform.site.shared_dir / "never"))
    await _begun(platform)  # or it would end for want of the folder below
    (replica,) = deployments.replicas(platform.controller.db)
    announcements = platform.controller._folder(replica.id).announcements
    announcements.rename(announcements.with_name("elsewhere"))
    await platform.stopped()
    assert platform.cluster.cancelled and platform.cluster.drained == []


async def test_a_deployment_stopped_before_it_is_ready_stops(platform: Platform) -> None:
    await platform.deploy("--no-tokens-until", str(platform.site.shared_dir / "never"))
    await _until_jobs(platform, 1)
    assert (await platform.post("deployments/chat/stop")).body["deployment"]["state"] == "stopping"
    await platform.reaches("stopped")
    (job,) = await platform.settled()
    assert job["state"] == "CANCELLED"


async def test_a_replicas_row_says_what_it_waits_for_and_until_when_its_job_may_run(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controllers, "RUNNING_USAGE_TURNS", 10**9)  # a job's usage grows, and is written

    async def row(**said: Any) -> Any:
        async def found() -> Any:
            described = await platform.get("deployments/chat")
            shown = described["replicas"][0]["replica"] if described["replicas"] else {}
            return shown if {k: shown.get(k) for k in said} == said else None

        return await eventually(found)

    cluster, controller = platform.cluster, platform.controller
    cluster.queued = ("Resources", datetime(2030, 1, 2, 14, 4, 30, tzinfo=UTC))
    await platform.deploy("--no-tokens-until", str(platform.site.shared_dir / "never"))
    waits = await row(waiting_reason="Resources", expected_start_at="2030-01-02T14:05:00.000000Z", ends_at=None)
    (job,) = await _until_jobs(platform, 1)
    assert waits["job_id"] == str(job.pid)
    await row(state="starting")  # its job's first word was taken in, which is written too
    # The same again, some seconds apart, is not written again: the gateway reads the registry after every change.
    await platform.turns()
    before = await controller.write(lambda: controller.db.conn.total_changes)
    cluster.queued = ("Resources", datetime(2030, 1, 2, 14, 4, 50, tzinfo=UTC))
    await platform.turns(4)
    assert await controller.write(lambda: controller.db.conn.total_changes) == before
    cluster.queued = ("None", None)
    await row(waiting_reason=None, expected_start_at=None)
    cluster.queued = None
    day = platform.site.defaults.serve.time_limit_s
    ends = datetime.fromtimestamp(int(job.created_at + day), UTC)
    await row(waiting_reason=None, expected_start_at=None, ends_at=clock.text(ends))
    await platform.stopped()


async def test_a_deployment_of_no_replicas_sleeps_is_wakened_by_a_call_and_goes_to_sleep_again(
    platform: Platform,
) -> None:
    ledger = open_writer(platform.site.ledger_db, LEDGER_MIGRATIONS)  # the gateway's
    await platform.deploy(replicas=0)
    assert (await platform.reaches("asleep"))["replicas"] == []
    await platform.turns()
    assert platform.jobs() == []
    note_demand(ledger, [Demand("another", clock.now(), 1)])
    await platform.turns()
    assert platform.jobs() == []

    note_demand(ledger, [Demand("chat", clock.now(), 1)])
    (first,) = (await platform.reaches("ready"))["replicas"]
    await platform.turns(4)
    assert len(platform.jobs()) == 1

    async def sleeps_after(seconds: float) -> None:
        spec = {**(await platform.get("deployments/chat"))["spec"], "idle_timeout_s": seconds}
        applied = await platform.post("deployments/chat/apply", {"spec": spec})
        assert (applied.status, applied.body["done"]) == (200, "scaled")

    await sleeps_after(0.001)  # it is as if nobody had called for that long
    (same,) = (await platform.reaches("asleep"))["replicas"]
    assert same["replica"]["id"] == first["replica"]["id"]
    await platform.settled()
    assert (await platform.get("deployments/chat"))["replicas"][0]["replica"]["state"] == "stopped"
    assert (await platform.get("deployments/chat"))["deployment"]["state"] == "asleep"

    await sleeps_after(900)
    note_demand(ledger, [Demand("chat", clock.now(), 1)])
    _, second = (await platform.reaches("ready"))["replicas"]
    assert second["replica"]["state"] == "ready"
    await platform.stopped()
    ledger.close()


async def test_a_deployment_that_is_asleep_stops_at_once(platform: Platform) -> None:
    await platform.deploy(replicas=0)
    await platform.reaches("asleep")
    assert (await platform.stopped())["replicas"] == []


async def test_a_name_is_free_again_after_its_deployment_ended_and_nothing_of_the_old_one_stays(
    platform: Platform,
) -> None:
    go = platform.site.shared_dir / "leave"
    await platform.deploy("--leave-when", str(go))
    (old,) = (await platform.reaches("ready"))["replicas"]
    assert (
        await platform.post("deployments", {"model": str(platform.site.shared_dir / "tiny"), "name": "chat"})
    ).status == 409
    # Declared failed while its replica still serves, and created anew before the next turn could cancel that.
    db = platform.controller.db
    await platform.controller.write(deployments.set_state, db, "chat", DeploymentState.FAILED, "by hand")
    await platform.deploy()
    described = await platform.reaches("ready")
    assert [r["replica"]["id"] for r in described["replicas"]] != [old["replica"]["id"]]

    async def gone() -> bool:
        return next(r for r in deployments.replicas(db) if r.id == old["replica"]["id"]).state.ended

    await eventually(gone)
    assert platform.cluster.cancelled == []
    await platform.stopped()


async def test_resources_that_the_scheduler_refuses_fail_the_deployment_with_its_words(platform: Platform) -> None:
    platform.cluster.refusal = "Invalid account or account/partition combination specified"
    await platform.deploy()
    described = await platform.reaches("failed")
    assert described["deployment"]["cause"].endswith("Invalid account or account/partition combination specified")
    assert platform.jobs() == [] and os.listdir(platform.site.runs_dir) == []
    assert (await platform.get("status"))["pid"] == os.getpid()  # the controller still answers


# -- when the scheduler is silent -------------------------------------------------------------------------------------


async def test_a_silent_scheduler_changes_nothing(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "RUNNING_USAGE_TURNS", 10**9)  # or the last answer may be a job's grown usage
    await platform.deploy()
    before = await platform.reaches("ready")
    platform.cluster.silent = True
    await platform.turns(3)
    assert (await platform.get("status"))["scheduler_error"] == "squeue did not answer within 30 s"
    assert await platform.get("deployments/chat") == before
    assert len(platform.jobs()) == 1
    # A stop that cannot be carried out yet is carried out later.
    await platform.post("deployments/chat/stop")
    await platform.turns(3)
    assert (await platform.get("deployments/chat"))["deployment"]["state"] == "stopping"
    platform.cluster.silent = False
    await platform.reaches("stopped")
    assert (await platform.get("status"))["scheduler_error"] is None


class Unnamed(Cluster):
    """A scheduler that does not even say its cluster's name: it keeps whoever asks waiting, and then gives up."""

    name = ""

    def __init__(self, spool: Path) -> None:
        self.gives_up = threading.Event()
        super().__init__(spool)

    @property
    def cluster(self) -> str:
        if self.silent:
            self.gives_up.wait(30)
            raise SchedulerUnavailable("scontrol did not answer within 1 s")
        return self.name

    @cluster.setter
    def cluster(self, name: str) -> None:
        self.name = name


async def test_the_control_plane_starts_and_answers_while_the_scheduler_is_down(site: Site) -> None:
    cluster = Unnamed(site.shared_dir / "local-jobs")
    cluster.silent = True
    async with running(site, cluster) as platform:
        assert (await platform.get("status"))["scheduler"] == {"kind": "local", "cluster": None}
        cluster.gives_up.set()  # only now: nobody waited for the scheduler
        await platform.turns(1)
        assert (await platform.get("status"))["scheduler_error"] == "scontrol did not answer within 1 s"
        cluster.silent = False
        await platform.turns(2)
        said = await platform.get("status")
        assert said["scheduler"]["cluster"] == cluster.name and said["scheduler_error"] is None
        cluster.silent = True
        assert (await platform.get("status"))["scheduler"]["cluster"] == cluster.name  # as last known


async def test_a_long_report_does_not_keep_the_registrys_writer(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_writer(platform.site.ledger_db, LEDGER_MIGRATIONS).close()
    began, go = threading.Event(), threading.Event()
    make = reports.make

    def slow(*args: Any) -> Report:
        began.set()
        assert go.wait(20)
        return make(*args)

    monkeypatch.setattr(reports, "make", slow)
    asked = asyncio.create_task(platform.get("report/usage"))
    await asyncio.to_thread(began.wait, 20)
    await platform.turns(3)
    assert not asked.done()
    go.set()
    assert (await asked)["kind"] == "usage"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("status", "status"),
        ("runs", "run"),
        ("runs/x", "run"),
        ("checkpoints", "checkpoint"),
        ("checkpoints/x", "checkpoint"),
        ("models", "model"),
        ("deployments", "deployment"),
        ("deployments/x", "deployment"),
        ("report/usage", "report"),
    ],
)
async def test_whoever_reads_must_be_allowed_to(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, path: str, kind: str
) -> None:
    def refuse(principal: Principal, verb: Verb, target: Object) -> None:
        assert (principal.uid, verb, target.kind) == (os.getuid(), Verb.READ, kind)
        raise Forbidden("not today")

    monkeypatch.setattr(control_http, "require", refuse)
    async with platform.session.get(f"http://control/v1/{path}") as response:
        assert (response.status, "not today" in await response.text()) == (403, True)


async def test_a_submission_whose_answer_was_lost_is_found_by_its_key(platform: Platform) -> None:
    platform.cluster.silent_after_submit = True
    go = platform.site.shared_dir / "go"
    await platform.deploy("--no-tokens-until", str(go))
    await _until_jobs(platform, 1)
    await platform.turns(3)
    assert (await platform.get("deployments/chat"))["deployment"]["state"] == "starting"
    go.touch()
    platform.cluster.silent_after_submit = platform.cluster.silent = False
    (replica,) = (await platform.reaches("ready"))["replicas"]

    async def found() -> Any:
        return (await platform.get("deployments/chat"))["replicas"][0]["jobs"]

    (job,) = await eventually(found)
    assert job["job_id"] == str(platform.jobs()[0].pid) and len(platform.jobs()) == 1
    assert json.loads((Path(replica["replica"]["folder"]) / "job.json").read_text())["job_id"] == job["job_id"]
    await platform.stopped()


async def test_a_submission_whose_answer_was_lost_is_cancelled_by_a_stop(site: Site) -> None:
    patient = dataclasses.replace(site, scheduler=settings.Scheduler(kind="local"))  # it would be looked for much later
    async with running(patient) as platform:
        platform.cluster.silent_after_submit = True
        await platform.deploy()
        (job,) = await _until_jobs(platform, 1)
        await platform.turns()
        platform.cluster.silent_after_submit = platform.cluster.silent = False
        await platform.stopped()
        wait_for(lambda: job.process() is None)


async def test_a_scheduler_that_refuses_a_question_ends_nothing(platform: Platform) -> None:
    await platform.deploy()
    await platform.reaches("ready")
    platform.cluster.refusal = "Access/permission denied"
    await platform.turns(3)
    assert (await platform.get("status"))["scheduler_error"] == "Access/permission denied"
    platform.cluster.refusal = None
    await platform.turns()
    assert (await platform.get("deployments/chat"))["deployment"]["state"] == "ready"
    await platform.stopped()


async def test_a_submission_that_never_arrived_is_made_again(platform: Platform) -> None:
    platform.cluster.silent = True
    await platform.deploy()
    await platform.turns(2)
    assert platform.jobs() == []
    platform.cluster.silent = False
    first, second = (await platform.reaches("ready"))["replicas"]
    assert first["replica"]["cause"] == "its submission was lost: the scheduler knows no job of this key"
    assert len(platform.jobs()) == len(second["jobs"]) == 1
    await platform.stopped()


async def test_a_sweeps_run_whose_note_was_lost_is_found_as_a_task_of_the_array(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = JobRef("cluster", "12", datetime(2026, 3, 1, tzinfo=UTC))
    asked: list[str] = []

    def find(key: str) -> JobRef | None:
        if silent:
            raise SchedulerUnavailable("slurmctld does not answer")
        asked.append(key)
        return {"sweep-1": array}.get(key)

    silent = True
    monkeypatch.setattr(platform.cluster, "find", find)
    other = folder_of(train("other-20260101-000000-abcd", sweep="sweep-1", sweep_index=2), platform.site.runs_dir)
    folder = folder_of(train(sweep="sweep-1", sweep_index=3), platform.site.runs_dir)

    async def both() -> bool:
        async with platform.session.get("http://control/v1/runs") as response:
            return {r["id"] for r in await response.json()} == {folder.id, other.id}

    await eventually(both)
    due = time.monotonic() + BRIEF_S  # when both are looked for
    wait_for(lambda: time.monotonic() > due)
    silent = False

    async def found() -> Any:
        async with platform.session.get(f"http://control/v1/runs/{folder.id}") as response:
            return (await response.json()).get("jobs")

    (job,) = await eventually(found)
    assert job["job_id"] == "12_3"
    assert json.loads(folder.job.read_text())["job_id"] == "12_3"
    assert json.loads(other.job.read_text())["job_id"] == "12_2"
    assert asked == ["sweep-1"]  # once for all of its runs


# -- restarts ---------------------------------------------------------------------------------------------------------


def test_a_controller_that_was_killed_finds_its_replicas_again_and_starts_no_second_one(site: Site) -> None:
    with service(site) as (process, call):
        model = site.shared_dir / "tiny"
        model.mkdir()
        (model / "config.json").write_text("{}")
        call("POST", "deployments", {"model": str(model), "name": "chat"})
        ready = wait_for(lambda: _in_state(call, "ready"))
        process.kill()
        process.wait()
    with service(site) as (_, call):
        wait_for(lambda: call("GET", "status"))
        found = _in_state(call, "ready")
        assert [r["replica"] for r in found["replicas"]] == [r["replica"] for r in ready["replicas"]]
        assert [r["jobs"][0]["job_id"] for r in found["replicas"]] == [
            r["jobs"][0]["job_id"] for r in ready["replicas"]
        ]
        call("POST", "poke")
        assert len(list(records(site.shared_dir / "local-jobs"))) == 1
        call("POST", "deployments/chat/stop")
        wait_for(lambda: _in_state(call, "stopped"))


async def test_replicas_are_found_again_on_a_machine_that_was_given_another_name(site: Site) -> None:
    async with running(site) as platform:
        await platform.deploy()
        await platform.reaches("ready")
    renamed = Cluster(site.shared_dir / "local-jobs")
    renamed.cluster = "local:another-name"
    async with running(site, renamed) as platform:
        await platform.turns()
        await platform.reaches("ready")
        await platform.stopped()
        (job,) = await platform.settled()
        assert job["state"] == "CANCELLED" and job["cluster"] != renamed.cluster


async def test_a_site_may_have_its_engines_speak_plain_http(site: Site) -> None:
    plain = dataclasses.replace(site, replicas=dataclasses.replace(site.replicas, tls=False))
    async with running(plain) as platform:
        await platform.deploy()
        (replica,) = (await platform.reaches("ready"))["replicas"]
        assert replica["replica"]["certificate"] is None
        await platform.stopped()


async def test_a_second_controller_on_the_same_state_is_refused(platform: Platform) -> None:
    with pytest.raises(Exception, match="another process is its writer already"):
        make_app(platform.site, platform.cluster)


async def test_a_replica_that_was_noted_and_never_launched_is_replaced(site: Site) -> None:
    async with running(site) as platform:
        db = platform.controller.db
        platform.cluster.silent = True  # so that nothing is submitted before it dies
        await platform.deploy()
        await platform.turns(2)
        (noted,) = deployments.replicas(db)
    shutil.rmtree(noted.folder)  # it died before it made the folder
    async with running(site) as platform:
        described = await platform.reaches("ready")
        assert [r["replica"]["state"] for r in described["replicas"]] == ["lost", "ready"]
        await platform.stopped()


async def test_a_replica_whose_folder_was_deleted_ends_with_its_job(site: Site) -> None:
    async with running(site) as platform:
        await platform.deploy()
        (replica,) = (await platform.reaches("ready"))["replicas"]
    _kill(_tree(platform.jobs()[0]))
    _kill(_engines(site))
    shutil.rmtree(replica["replica"]["folder"])
    async with running(site) as platform:

        async def replaced() -> Any:
            found = (await platform.get("deployments/chat"))["replicas"]
            return len(found) == 2 and found[1]["replica"]["state"] == "ready" and found

        first, _ = await eventually(replaced)
        assert first["replica"]["state"] == "lost"
        await platform.stopped()


# -- run folders made without us --------------------------------------------------------------------------------------


def ended_run(site: Site, run_id: str = "pretrain-1") -> None:
    folder = folder_of(train(run_id), site.runs_dir)
    announce(folder.announcements, "attempt-started", attempt="1.0", job_id="1")
    announce(folder.announcements, "attempt-ended", attempt="1.0", exit_code=1, cause="ValueError: wrong")


async def test_a_run_made_while_the_controller_was_down_is_adopted_with_all_that_it_said(site: Site) -> None:
    scheduler = LocalScheduler(site.shared_dir / "local-jobs")
    environment = Environment(kind="venv", python="/nowhere/python")
    launched = launch(train(environment=environment, recipe={}), site.runs_dir, scheduler)
    wait_for(lambda: scheduler.states([launched.job])[launched.job].state.ended)
    async with running(site) as platform:

        async def settled() -> Any:
            found = [r["id"] for r in await platform.get("runs")]
            described = await platform.get("runs/pretrain-1") if found else {"jobs": []}
            return described if any(job["settled"] for job in described["jobs"]) else None

        described = await eventually(settled)
        assert described["run"]["state"] == "failed" and described["run"]["cause"]
        assert [job["job_id"] for job in described["jobs"]] == [launched.job.job_id]


async def test_a_run_that_is_over_before_its_job_was_noted_is_in_the_books(platform: Platform) -> None:
    """Between its spec and the note of its job a folder may be adopted, and looked for in vain."""
    ended_run(platform.site)
    db = platform.controller.db

    async def over() -> bool:
        return [r.state for r in runs.everything(db)] == [RunState.FAILED]

    await eventually(over)
    ref = JobRef(platform.cluster.cluster, "4000000", clock.parse("2026-01-01T00:00:00Z"))
    write_job(platform.controller._folder("pretrain-1"), ref)

    async def recorded() -> Any:
        return accounting.of_subject(db, "pretrain-1")

    (job,) = await eventually(recorded)
    assert (job.job_id, job.purpose) == ("4000000", "train")


async def test_a_run_that_its_owner_submits_again_runs_again_and_is_in_the_books(site: Site) -> None:
    """By hand, with the folder's own script: the control plane hears of it from the folder."""
    scheduler = LocalScheduler(site.shared_dir / "local-jobs")
    spec = train(environment=Environment(kind="venv", python="/nowhere/python"), recipe={})
    launched = launch(spec, site.runs_dir, scheduler)
    async with running(site) as platform:
        db = platform.controller.db

        async def jobs(count: int) -> Any:
            found = accounting.of_subject(db, "pretrain-1")
            return found if len(found) == count and all(j.settled for j in found) else None

        await eventually(lambda: jobs(1))
        assert runs.get(db, "pretrain-1").state is RunState.FAILED
        again = scheduler.submit(request_for(spec, launched.folder))
        booked = await eventually(lambda: jobs(2))
        assert {j.job_id for j in booked} == {launched.job.job_id, again.job_id}
        assert {j.key for j in booked} == {"pretrain-1"} and read_job(launched.folder) == again
        assert runs.get(db, "pretrain-1").state is RunState.FAILED


async def test_what_a_run_says_after_it_ended_is_heard(platform: Platform) -> None:
    """Even when no scheduler knows of its new attempt, as when the supervisor is started by hand."""
    ended_run(platform.site)
    db, folder = platform.controller.db, platform.controller._folder("pretrain-1")

    async def state(wanted: RunState) -> bool:
        return [r.state for r in runs.everything(db)] == [wanted]

    await eventually(lambda: state(RunState.FAILED))
    await platform.turns(2)
    announce(folder.announcements, "attempt-started", attempt="2.0", job_id="2")
    await eventually(lambda: state(RunState.RUNNING))
    assert runs.get(db, "pretrain-1").ended_at is None and runs.get(db, "pretrain-1").cause is None
    await platform.turns(3)
    (folder.checkpoints / "10").mkdir(parents=True)
    facts = {"iteration": 10, "path": "checkpoints/10", "bytes": 5, "manifest_sha256": "abc"}
    announce(folder.announcements, "checkpoint", **facts)
    announce(folder.announcements, "attempt-ended", attempt="2.0", exit_code=0, cause="completed")
    await eventually(lambda: state(RunState.COMPLETED))
    assert [c["iteration"] for c in await platform.get("checkpoints")] == [10]


async def test_the_end_of_an_earlier_job_does_not_end_a_run_that_runs_again(platform: Platform) -> None:
    ended_run(platform.site)
    db, controller = platform.controller.db, platform.controller
    folder = controller._folder("pretrain-1")
    write_job(folder, JobRef(platform.cluster.cluster, "1", clock.parse("2026-01-01T00:00:00Z")))

    async def recorded() -> Any:
        return accounting.of_subject(db, "pretrain-1")

    (old,) = await eventually(recorded)
    announce(folder.announcements, "attempt-started", attempt="2.0", job_id="2")
    await controller.write(controller._job_is_over, old, JobState.FAILED, None)
    assert runs.get(db, "pretrain-1").state is RunState.RUNNING


async def test_a_few_of_many_ended_runs_are_looked_at_in_each_turn(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended_runs, "LOOKS", 2)
    for number in range(5):
        ended_run(site, f"run-{number}")
    async with running(site) as platform:
        await platform.turns(4)
        looked: list[str] = []
        listen = platform.controller._listen
        monkeypatch.setattr(platform.controller, "_listen", lambda subject: (looked.append(subject), listen(subject)))
        await platform.turns(6)
        assert looked == []  # nothing changed in them
        announce(RunFolder(site.runs_dir / "run-3").announcements, "attempt-started", attempt="2.0", job_id="2")

        async def running_again() -> bool:
            return runs.get(platform.controller.db, "run-3").state is RunState.RUNNING

        await eventually(running_again)
        assert set(looked) == {"run-3"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder.spec.unlink(), os.mkfifo(folder.spec)),
        lambda folder: folder.spec.write_text(folder.spec.read_text().replace('"name": "pretrain"', '"name": {}')),
        lambda folder: folder.spec.write_text(folder.spec.read_text().replace("T00:00:00.000000Z", "")),
        lambda folder: folder.spec.write_text("[" * 100_000),
        lambda folder: folder.root.rename(folder.root.with_name("another")),
    ],
)
async def test_a_folder_that_cannot_be_believed_is_passed_over_and_the_next_one_adopted(
    site: Site, spoil: Callable[[Any], Any]
) -> None:
    spoil(folder_of(train("a-first"), site.runs_dir))
    ended_run(site, "b-second")
    async with running(site) as platform:

        async def adopted() -> Any:
            return await platform.get("runs")

        (run,) = await eventually(adopted)
        assert run["id"] == "b-second"
        await platform.turns()


async def test_a_replicas_folder_that_somebody_else_made_is_passed_over(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Or whoever guesses a replica's id could note any job there, which the controller would cancel one day."""
    stranger = os.getuid() + 1
    monkeypatch.setattr(controllers.facts, "owner_of", lambda folder: ("mallory", stranger))
    folder_of(serve("chat-1"), site.runs_dir)
    folder_of(train("a-run"), site.runs_dir)
    async with running(site) as platform:

        async def adopted() -> Any:
            return await platform.get("runs")

        (run,) = await eventually(adopted)
        await platform.turns()
        assert (run["id"], run["owner"], list(platform.controller.specs)) == ("a-run", "mallory", ["a-run"])
    assert "chat-1: not adopted: a replica's folder is the service's own, and this one is mallory's" in caplog.text


async def test_a_run_folder_deleted_while_it_is_watched_disturbs_nothing_else(platform: Platform) -> None:
    folder = folder_of(train("a-first"), platform.site.runs_dir)
    db = platform.controller.db

    async def adopted() -> Any:
        return runs.everything(db)

    await eventually(adopted)
    shutil.rmtree(folder.root)
    await platform.turns(3)
    ended_run(platform.site, "b-second")

    async def over() -> bool:
        return {r.id: r.state for r in runs.everything(db)}.get("b-second") is RunState.FAILED

    await eventually(over)


# -- what is asked wrongly, and by whom -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("deployments", {"model": "absent"}, 404, "no model is called 'absent'; there are: none yet"),
        ("deployments", {"model": "/absent", "name": "x"}, 404, "there is no config.json in it"),
        ("deployments", {}, 400, "model is missing"),
        ("deployments", {"model": 3}, 400, "model: 3 is not of type str"),
        ("deployments", {"model": "m", "name": "x", "min": -1}, 400, "min: must be at least 0, not -1"),
        ("deployments", {"model": "m", "name": "x", "max": 10**9}, 400, "max: must be at most 256"),
        ("deployments", {"model": "m", "name": "x", "min": True}, 400, "min: True is not of type int"),
        ("deployments", {"model": "m", "name": "x", "engine_args": [1]}, 400, "engine_args: [1] is not of type"),
        (
            "deployments",
            {"model": "m", "name": "x", "resources": {"gpus": 1}},
            400,
            "resources.gpus: unknown; allowed: ",
        ),
        ("deployments", {"model": "m", "name": "x", "resources": {"partition": "a\nid"}}, 400, "resources.partition: "),
        (
            "deployments",
            {"model": "m", "name": "x", "resources": {"options": ["--uid=0"]}},
            400,
            "--uid is not for a deployment",
        ),
        ("deployments", {"model": "m", "name": "x", "modle": 1}, 400, "unknown field 'modle'; allowed: "),
        ("deployments", [], 400, "the body must be a JSON object"),
        ("deployments/absent/stop", {}, 404, "no deployment is called 'absent'"),
        ("tenants", {"name": "A B"}, 400, "tenant name 'A B' is not allowed"),
        ("keys", {"tenant": "absent"}, 404, "no tenant is called 'absent'"),
        ("keys/absent/revoke", {}, 404, "no key has the id 'absent'"),
    ],
)
async def test_what_is_asked_wrongly_is_refused_by_its_field(
    platform: Platform, path: str, body: Any, status: int, words: str
) -> None:
    refused = await platform.post(path, body)
    assert (refused.status, words in refused.message) == (status, True), refused.body
    assert await platform.get("deployments") == await platform.get("tenants") == []


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"nul"])
async def test_a_body_that_is_not_json_is_refused(platform: Platform, data: bytes) -> None:
    assert (await platform.post("tenants", data=data)).status == 400


def test_the_kernel_says_who_calls_and_that_decides_who_is_an_administrator() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        me = principal_of(ours, os.getuid())
        assert (me.uid, me.admin) == (os.getuid(), True)
        assert principal_of(ours, os.getuid() + 1).admin is (os.getuid() == 0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
async def test_a_user_reads_what_is_not_private_and_administers_nothing(platform: Platform) -> None:
    await platform.deploy()
    await platform.reaches("ready")
    os.chmod(platform.site.state_dir, 0o755)
    os.chmod(platform.site.control_socket, 0o666)

    async def as_nobody(method: str, path: str, body: str = "{}") -> int:
        return await asyncio.to_thread(_as_nobody, platform.site.control_socket, method, path, body)

    assert await as_nobody("GET", "deployments") == 200
    assert await as_nobody("POST", "tenants", '{"name": "mine"}') == 403
    assert await as_nobody("POST", "keys", '{"tenant": "mine"}') == 403
    assert await as_nobody("GET", "report/usage") == 403
    assert await as_nobody("POST", "ledger/reversals", '{"event_id": "x:1", "reason": "none"}') == 403
    for tenant in ("mine", "others"):
        assert (await platform.post("tenants", {"name": tenant})).status == 201
    nobody = pwd.getpwuid(65534).pw_name
    assert (await platform.post("tenants/mine/members", {"user": nobody})).status == 200
    assert await as_nobody("POST", "keys", '{"tenant": "mine"}') == 201
    assert await as_nobody("POST", "keys", '{"tenant": "others"}') == 403
    assert (await as_nobody("GET", "tenants/mine"), await as_nobody("GET", "tenants/others")) == (200, 403)
    assert [key["user"] for key in await platform.get("keys")] == [nobody]
    assert await as_nobody("GET", "report/usage?tenant=others") == 403
    assert await as_nobody("POST", "deployments/chat/stop") == 403
    assert (await platform.get("deployments/chat"))["deployment"]["state"] == "ready"
    await platform.stopped()
    assert await as_nobody("POST", "deployments", '{"model": "chat"}') == 403  # its name is another's
    mine = {"model": "chat", "name": "mine", "engine_args": ["--trust-remote-code"]}
    assert await as_nobody("POST", "deployments", json.dumps(mine)) == 400
    directory = {"model": str(platform.site.shared_dir / "tiny"), "name": "mine"}
    assert await as_nobody("POST", "deployments", json.dumps(directory)) == 403


def _as_nobody(path: Path, method: str, route: str, body: str) -> int:
    """The status of a request made by another user, in a process that has become them."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            os.setgroups([])
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(str(path))
                head = f"{method} /v1/{route} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}"
                s.sendall(f"{head}\r\n\r\n{body}".encode())
                status = int(s.recv(65536).split()[1])
        finally:
            os.write(writer, str(status).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as f:
        answer = f.read()
    os.waitpid(pid, 0)
    return int(answer)


# -- parts ------------------------------------------------------------------------------------------------------------


def _refs(platform: Platform) -> list[JobRef]:
    return [
        JobRef(j.cluster, j.job_id, clock.parse(j.submitted_at))
        for j in accounting.everything(platform.controller.db)
    ]  # fmt: skip


async def _until_jobs(platform: Platform, count: int) -> list[LocalJob]:
    async def jobs() -> list[LocalJob] | None:
        return found if len(found := platform.jobs()) == count else None

    return await eventually(jobs)


async def _begun(platform: Platform) -> None:
    """Until the one replica's job has said its first word, and that was taken in."""

    async def starting() -> bool:
        return [r.state for r in deployments.replicas(platform.controller.db)] == [ReplicaState.STARTING]

    await eventually(starting)


def _tree(job: LocalJob) -> list[int]:
    controller = job.process()
    assert controller is not None
    return [process.pid for process in (controller, *controller.children(recursive=True))]


def _engines(site: Site) -> list[int]:
    return [
        p.pid for p in psutil.process_iter() if ENGINE in (line := _cmdline(p)) and f"{site.shared_dir}" in str(line)
    ]


def _kill(pids: Iterable[int]) -> None:
    """Those that ended with another of them are not missed."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _kill_engine(site: Site) -> None:
    (pid,) = _engines(site)
    os.kill(pid, signal.SIGKILL)


Call = Callable[..., Any]


def _in_state(call: Call, state: str) -> Any:
    found = call("GET", "deployments/chat")
    return found if found and found["deployment"]["state"] == state else None


class service:
    """A controller in a process of its own, and a way to call it that answers None while nobody does."""

    def __init__(self, site: Site) -> None:
        self.site = site
        path = site.state_dir / "site.toml"
        path.write_text(f"""
name = "test"
state_dir = "{site.state_dir}"
shared_dir = "{site.shared_dir}"
[controller]
poll = "100ms"
[scheduler]
kind = "local"
[replicas]
shutdown_timeout = "1s"
[environments.engine]
kind = "venv"
python = "{sys.executable}"
command = ["{{python}}", "{ENGINE}"]
""")
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self.log = site.state_dir / "log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "--site", str(path), "controller"],
                cwd=ROOT, env=env, stdout=log, stderr=log,
            )  # fmt: skip

    def __enter__(self) -> tuple[subprocess.Popen[bytes], Call]:
        from cli.client import Control, Unreachable

        control = Control(self.site.control_socket, timeout_s=10)

        def call(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
            try:
                return control.get(f"/v1/{path}") if method == "GET" else control.post(f"/v1/{path}", **(body or {}))
            except Unreachable:
                return None

        deadline = time.monotonic() + 20
        while call("GET", "status") is None:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return self.process, call

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)
