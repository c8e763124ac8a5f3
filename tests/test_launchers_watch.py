"""The scheduler and the controller on a watch: what a turn costs slurmctld, and what is believed when it is silent."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
from aiohttp import web
from conftest import PrivateCluster
from slurm_fixtures import NOON, ScriptedSlurm, job, record, watching
from waiting import eventually, wait_for

from launchers.control import CONTROLLER, make_app
from launchers.controller import Controller
from launchers.scheduler import JobRef, JobState, SchedulerUnavailable
from launchers.schedulers import watch_for
from launchers.slurm_scheduler import SlurmScheduler
from registry import accounting, deployments
from registry import site as settings
from registry.deployments import DeploymentState, ReplicaState
from registry.site import DefaultResources, Defaults, Environments, Replicas, Site
from slurm.client import SlurmClient
from slurm.commands import CommandClient
from slurm.model import JobState as SlurmState
from slurm.process import Completed, run_process

ENGINE = str(Path(__file__).with_name("stand_in_engine.py"))
LATER = NOON + timedelta(hours=1)


def ref(raw_id: int = 1, cluster: str = "test") -> JobRef:
    return JobRef(cluster, str(raw_id), NOON)


@asynccontextmanager
async def scheduling(slurm: ScriptedSlurm) -> AsyncIterator[SlurmScheduler]:
    """A scheduler over a watch that has looked once, and looks again when it is hurried."""
    scheduler = SlurmScheduler(cast(SlurmClient, slurm))
    async with watching(slurm, least_s=0.05, most_s=3600) as watch:
        scheduler.watch = watch
        await watch.look()
        assert scheduler.cluster == "test"
        slurm.asked.clear()
        yield scheduler


async def looks_again(scheduler: SlurmScheduler) -> None:
    watch = scheduler.watch
    assert watch is not None and watch.latest is not None
    await asyncio.wait_for(watch.look(newer_than=watch.latest.at), 10)


# -- the scheduler ----------------------------------------------------------------------------------------------------


async def test_however_often_states_are_asked_for_slurmctld_is_not_asked() -> None:
    slurm = ScriptedSlurm([job(1), job(2, SlurmState.PENDING, reason="Priority", starts_at=None)])
    async with scheduling(slurm) as scheduler:
        for _ in range(100):
            states = scheduler.states([ref(1), ref(2)])
        assert [states[ref(n)].state for n in (1, 2)] == [JobState.RUNNING, JobState.PENDING]
        assert states[ref(2)].reason == "Priority" and slurm.asked == []


async def test_a_requeued_job_of_which_the_books_know_the_first_end_only_has_not_ended() -> None:
    again = job(1, SlurmState.PENDING, submitted_at=LATER, starts_at=None, restarts=1)
    slurm = ScriptedSlurm([again], [record(job(1), SlurmState.PREEMPTED)])
    async with scheduling(slurm) as scheduler:
        assert scheduler.states([ref(1)])[ref(1)].state is JobState.PENDING
        slurm.queue = [dataclasses.replace(again, restarts=0)]  # not requeued: it has only our job's id
        await looks_again(scheduler)
        slurm.queue = [dataclasses.replace(again, user="somebody else")]
    async with scheduling(slurm) as scheduler:
        assert scheduler.states([ref(1)])[ref(1)].state is JobState.PREEMPTED


async def test_accounting_is_asked_once_for_each_picture_about_what_it_does_not_show() -> None:
    slurm = ScriptedSlurm([job(3)], [record(job(1))])
    async with scheduling(slurm) as scheduler:
        for _ in range(10):
            states = scheduler.states([ref(1), ref(2), ref(3)])
        assert [states[ref(n)].state for n in (1, 2, 3)] == [JobState.COMPLETED, JobState.UNKNOWN, JobState.RUNNING]
        assert slurm.asked == ["accounting 1,2"]
        slurm.books.append(record(job(2), SlurmState.FAILED))
        await looks_again(scheduler)
        assert scheduler.states([ref(1), ref(2)])[ref(2)].state is JobState.FAILED


async def test_accounting_is_not_asked_about_a_requeued_job_at_every_picture() -> None:
    again = job(1, submitted_at=LATER, restarts=1)
    slurm = ScriptedSlurm([again], [record(job(1), SlurmState.PREEMPTED), record(again, SlurmState.RUNNING)])
    async with scheduling(slurm) as scheduler:
        assert scheduler.states([ref(1)])[ref(1)].state is JobState.RUNNING
        for _ in range(3):
            await looks_again(scheduler)
            assert scheduler.states([ref(1)])[ref(1)].state is JobState.RUNNING
        assert slurm.asked.count("accounting 1") == 1


async def test_what_we_did_ourselves_is_asked_about_until_a_picture_shows_it() -> None:
    slurm = ScriptedSlurm([job(1)])
    async with scheduling(slurm) as scheduler:
        await asyncio.to_thread(scheduler.cancel, ref(1))  # as the controller does, on another thread
        slurm.queue = [job(1, SlurmState.CANCELLED)]
        assert scheduler.states([ref(1)])[ref(1)].state is JobState.CANCELLED
        await looks_again(scheduler)
        slurm.asked.clear()
        assert scheduler.states([ref(1)])[ref(1)].state is JobState.CANCELLED and slurm.asked == []


async def test_before_a_job_is_cancelled_or_drained_slurmctld_is_asked_whose_it_is() -> None:
    """The picture may be older than the id."""
    slurm = ScriptedSlurm([job(1)])
    async with scheduling(slurm) as scheduler:
        slurm.queue = [job(1, submitted_at=LATER)]
        scheduler.cancel(ref(1))
        scheduler.drain(ref(1))
        assert not [question for question in slurm.asked if question.startswith(("cancel", "signal"))]


async def test_while_the_watch_hears_nothing_nobody_else_asks() -> None:
    slurm = ScriptedSlurm([job(1)])
    async with scheduling(slurm) as scheduler:
        slurm.silent = "squeue did not answer within 30 s"
        with pytest.raises(Exception, match="within 30 s"):
            await looks_again(scheduler)
        slurm.asked.clear()
        for _ in range(10):
            with pytest.raises(SchedulerUnavailable, match="squeue did not answer within 30 s"):
                scheduler.states([ref(1)])
            with pytest.raises(SchedulerUnavailable):
                scheduler.find("a-key")
        assert slurm.asked == []
    with pytest.raises(SchedulerUnavailable):  # no watch runs any more: asked itself
        scheduler.states([ref(1)])
    assert slurm.asked[-1:] == ["jobs"]


async def test_accounting_that_is_silent_leaves_the_queues_word_alone() -> None:
    slurm = ScriptedSlurm([job(1)], books_silent="sacct: error: Connection refused")
    async with scheduling(slurm) as scheduler:
        states = scheduler.states([ref(1), ref(2)])
        assert states[ref(1)].state is JobState.RUNNING and ref(2) not in states
        with pytest.raises(SchedulerUnavailable, match="Connection refused"):
            scheduler.states([ref(2)])


async def test_another_clusters_job_is_unknown_whatever_its_id() -> None:
    async with scheduling(ScriptedSlurm([job(1)])) as scheduler:
        assert scheduler.states([ref(1, "elsewhere")])[ref(1, "elsewhere")].state is JobState.UNKNOWN


async def test_a_job_that_the_picture_shows_is_found_by_its_key_and_another_users_is_not() -> None:
    import pwd

    us = pwd.getpwuid(os.getuid()).pw_name
    slurm = ScriptedSlurm([job(1, user=us, comment="ours-1"), job(2, user=f"not-{us}", comment="ours-1")])
    async with scheduling(slurm) as scheduler:
        assert scheduler.find("ours-1") == ref(1) and slurm.asked == []


def test_where_jobs_are_local_there_is_no_watch(tmp_path: Path) -> None:
    from launchers.local_scheduler import LocalScheduler

    assert watch_for(cast(Site, None), LocalScheduler(tmp_path)) is None


# -- the controller, on a real Slurm ----------------------------------------------------------------------------------


@dataclass
class Counting:
    """Runs Slurm's commands, and counts them."""

    calls: Counter[str] = field(default_factory=Counter)
    broken: str | None = None  # this one fails

    def __call__(self, argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        self.calls[argv[0]] += 1
        if argv[0] == self.broken:
            return Completed(1, "", f"{argv[0]}: error: something went wrong")
        return run_process(argv, environment, timeout_s)


@dataclass
class Running:
    controller: Controller
    commands: Counting

    async def deploy(self, name: str, replicas: int) -> None:
        model = self.controller.site.shared_dir / "tiny"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")

        def create() -> None:
            deployments.create(
                self.controller.db,
                name,
                "root",
                model=name,
                version=1,
                model_path=str(model),
                min_replicas=replicas,
                max_replicas=max(replicas, 1),
                request={"resources": {}, "engine_args": []},
                by="root",
                why="served",
            )

        await self.controller.write(create)
        self.controller.poke()

    async def ready(self, count: int) -> list[deployments.Replica]:
        async def found() -> list[deployments.Replica] | None:
            replicas = await self.controller.write(deployments.replicas, self.controller.db)
            return r if len(r := [r for r in replicas if r.state is ReplicaState.READY]) == count else None

        return await eventually(found, 90, 0.1)

    async def stop(self, name: str) -> None:
        def stop() -> None:
            deployments.set_state(self.controller.db, name, DeploymentState.STOPPING)

        await self.controller.write(stop)
        self.controller.poke()

        async def stopped() -> bool:
            found = await self.controller.write(deployments.get, self.controller.db, name)
            return bool(found.state.ended)

        await eventually(stopped, 90, 0.1)

    async def turns(self, count: int) -> None:
        goal = self.controller._turns + count

        async def reached() -> bool:
            return self.controller._turns >= goal

        await eventually(reached, 90)


@pytest.fixture
def site() -> Iterator[Site]:
    root = Path(tempfile.mkdtemp(prefix="headgate-"))
    for name in ("shared", "state"):
        (root / name).mkdir()
    engine = settings.Environment(kind="venv", python=sys.executable, command=(sys.executable, ENGINE))
    yield Site(
        name="test",
        state_dir=root / "state",
        shared_dir=root / "shared",
        controller=settings.Controller(poll_s=0.1),
        scheduler=settings.Scheduler(kind="slurm", command_timeout_s=10, min_poll_s=0.5, max_poll_s=2),
        replicas=Replicas(shutdown_timeout_s=1, start_timeout_s=60),
        environments=Environments(engine=engine),
        defaults=Defaults(serve=DefaultResources(time_limit_s=600)),
    )
    shutil.rmtree(root)


@pytest.fixture
async def running(site: Site, slurm_cluster: PrivateCluster) -> AsyncIterator[Running]:
    commands = Counting()
    app = make_app(site, SlurmScheduler(CommandClient(commands, slurm_cluster.env)))
    site.runs_dir.mkdir()
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        yield Running(app[CONTROLLER], commands)
    finally:
        await runner.cleanup()
        names = ",".join(folder.name for folder in site.runs_dir.iterdir())
        if names:
            slurm_cluster.run("scancel", "--name", names)
            wait_for(lambda: not slurm_cluster.run("squeue", "-h", "--name", names, "-o", "%i"), 60)


async def test_turns_cost_slurmctld_nothing_however_many_replicas_there_are(running: Running) -> None:
    async def cost_of(turns: int) -> tuple[Counter[str], float]:
        loop = asyncio.get_running_loop()
        before, began = Counter(running.commands.calls), loop.time()
        await running.turns(turns)
        return running.commands.calls - before, loop.time() - began

    await running.deploy("one", 1)
    await running.ready(1)
    for replicas in (1, 4):
        calls, took_s = await cost_of(40)
        assert calls["squeue"] <= took_s / 0.5 + 1 < 40, (replicas, calls, took_s)
        if replicas == 1:
            await running.deploy("more", 3)
            await running.ready(4)
            watch = running.controller.watch
            assert watch is not None and watch.latest is not None
            await watch.look(newer_than=watch.latest.at)
    await running.stop("one")
    await running.stop("more")


async def test_what_the_watch_sees_of_our_jobs_begins_a_turn(running: Running, slurm_cluster: PrivateCluster) -> None:
    await running.deploy("chat", 1)
    (replica,) = await running.ready(1)
    controller = running.controller
    site = controller.site
    # From here on no turn but those that something begins.
    controller.site = dataclasses.replace(site, controller=settings.Controller(poll_s=3600))
    await running.turns(1)
    (ours,) = await controller.write(accounting.of_subject, controller.db, replica.id)
    slurm_cluster.run("scancel", ours.job_id)

    async def over() -> bool:
        replicas = await controller.write(deployments.replicas, controller.db)
        return next(r for r in replicas if r.id == replica.id).state.ended

    await eventually(over, 60, 0.1)
    controller.site = site
    controller.poke()
    await running.ready(1)  # another one
    await running.stop("chat")


async def test_replicas_live_through_a_silence_of_slurm(running: Running) -> None:
    await running.deploy("chat", 1)
    (replica,) = await running.ready(1)
    controller = running.controller
    running.commands.broken = "squeue"

    async def silent() -> bool:
        return controller.scheduler_error == "squeue: error: something went wrong"

    await eventually(silent, 30)
    before, began = Counter(running.commands.calls), time.monotonic()
    await running.turns(20)
    most = 2 + (time.monotonic() - began) / 2
    assert (running.commands.calls - before)["squeue"] <= most  # the watch backs off, and nobody else asks
    assert await running.ready(1) == [replica]
    running.commands.broken = None

    async def heard() -> bool:
        return controller.scheduler_error is None

    await eventually(heard, 30)
    assert await running.ready(1) == [replica]
    await running.stop("chat")
