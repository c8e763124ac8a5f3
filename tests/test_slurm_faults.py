"""A watch of a real Slurm whose daemons and commands fail: what it then says, and what it must not conclude."""

from __future__ import annotations

import asyncio
import shutil
import stat
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import PrivateCluster, private_cluster
from slurm_daemons import Daemon
from waiting import eventually, wait_for

from slurm import accounting
from slurm import watch as watches
from slurm.changes import Answered, Change, JobAppeared, JobChange, JobChanged, JobEnded, JobUnaccounted, Silent
from slurm.commands import CommandClient
from slurm.errors import SlurmUnavailable
from slurm.model import Job, JobState
from slurm.watch import Watch

pytestmark = pytest.mark.slurm

# A few job ids, and ends that the queue soon forgets.
FORGETFUL = "FirstJobId=101\nMaxJobId=112\nMinJobAge=2\n"
PROBLEMS = (JobEnded, JobUnaccounted)


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateCluster]:
    """One of our own: nobody else's jobs suffer."""
    with private_cluster() as made:
        slurmctld = Daemon(made, "slurmctld")
        with slurmctld.down(), open(made.root / "etc" / "slurm.conf", "a") as conf:
            conf.write(FORGETFUL)
        wait_for(lambda: "idle" in made.run("sinfo", "-h", "-p", "cpu", "-o", "%T"), 60)
        yield made


# A squeue that does as `mode` says. The real one is asked all the same, so that nothing but its answer differs.
SQUEUE = """\
#!/bin/sh
case "$(cat {folder}/mode)" in
    real) exec {real} "$@" ;;
    hang) exec sleep 60 ;;
    exit) echo "squeue: error: something went wrong" >&2; exit 1 ;;
    cut) {real} "$@" | head -c 40 ;;
    short) {real} "$@" | head -n 0 ;;
esac
"""


@dataclass
class Watched:
    """A watch over the cluster, all that it told, and a squeue that can be made to fail."""

    cluster: PrivateCluster
    client: CommandClient
    watch: Watch
    folder: Path
    told: list[Change] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def submit(self, body: str, *options: str) -> str:
        script = self.folder / f"{uuid.uuid4().hex}.sh"
        head = "".join(f"#SBATCH {option}\n" for option in ("-o /dev/null", "-t 10", *options))
        script.write_text(f"#!/bin/bash\n{head}{body}\n")
        self.ids.append(self.client.submit(script, "faults"))
        self.watch.hurry()
        return self.ids[-1]

    def squeue(self, mode: str) -> None:
        (self.folder / "mode").write_text(mode)

    def job(self, job_id: str) -> Job | None:
        """As the latest picture has it."""
        latest = self.watch.latest
        return next((j for j in latest.jobs if j.id == job_id), None) if latest else None

    async def reaches(self, job_id: str, state: JobState) -> Job:
        async def reached() -> Job | None:
            return job if (job := self.job(job_id)) is not None and job.state is state else None

        return await eventually(reached, 60)

    async def hears(self, kind: type[Any], of: Callable[[Any], bool] = lambda change: True) -> Any:
        async def heard() -> Any:
            return next((c for c in self.told if isinstance(c, kind) and of(c)), None)

        return await eventually(heard, 60)

    def heard(self, job_id: str, *kinds: type[Any]) -> list[JobChange]:
        return [c for c in self.told if isinstance(c, kinds) and isinstance(c, JobChange) and c.job.id == job_id]


@asynccontextmanager
async def watching(cluster: PrivateCluster, folder: Path, timeout_s: float = 3) -> AsyncIterator[Watched]:
    real = shutil.which("squeue")
    (folder / "bin").mkdir()
    fake = folder / "bin" / "squeue"
    fake.write_text(SQUEUE.format(folder=folder, real=real))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    env = {**cluster.env, "PATH": f"{fake.parent}:{cluster.env['PATH']}"}
    watch = Watch(CommandClient(environment=env, timeout_s=timeout_s), least_s=0.2, most_s=1, cluster_every_s=5)
    made = Watched(cluster, CommandClient(environment=cluster.env), watch, folder)
    made.squeue("real")

    async def read() -> None:
        async for change in watch.changes():
            made.told.append(change)

    tasks = [asyncio.create_task(watch.run()), asyncio.create_task(read())]
    try:
        await watch.look()
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if made.ids:
            cluster.run("scancel", *dict.fromkeys(made.ids))
        wait_for(lambda: not cluster.run("squeue", "-h", "-o", "%i"), 60)


@pytest.fixture
async def watched(cluster: PrivateCluster, tmp_path: Path) -> AsyncIterator[Watched]:
    async with watching(cluster, tmp_path) as made:
        yield made


async def in_thread(function: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(function)


def as_told(job: Job | None) -> Job | None:
    """What stays the same from one second to the next."""
    return job and replace(job, time_left_s=None)


async def test_slurmctld_is_stopped_and_restarted_while_a_job_runs(watched: Watched, cluster: PrivateCluster) -> None:
    beats = watched.folder / "beats"
    job_id = watched.submit(f"while true; do echo >> {beats}; sleep 0.2; done")
    running = await watched.reaches(job_id, JobState.RUNNING)
    await eventually(lambda: in_thread(beats.exists))
    slurmctld = Daemon(cluster, "slurmctld")
    before = datetime.now(UTC)
    await in_thread(slurmctld.stop)
    silent = await watched.hears(Silent)
    assert silent.silence.since >= before and as_told(watched.job(job_id)) == as_told(running)
    beaten = beats.stat().st_size
    await eventually(lambda: in_thread(lambda: beats.stat().st_size > beaten + 5))
    slurmctld.start()
    answered = await watched.hears(Answered)
    assert answered.silence.since == silent.silence.since and watched.watch.silence is None
    await watched.watch.look(newer_than=datetime.now(UTC))
    job = watched.job(job_id)
    assert job is not None and (job.state, job.submitted_at) == (JobState.RUNNING, running.submitted_at)
    assert watched.heard(job_id, *PROBLEMS) == []
    cluster.run("scancel", job_id)
    watched.watch.hurry()
    ended = await watched.hears(JobEnded, lambda c: c.job.id == job_id)
    assert (ended.job.state, ended.record) == (JobState.CANCELLED, None)


async def test_a_slurmctld_that_hangs_is_silence_and_ends_no_job(watched: Watched, cluster: PrivateCluster) -> None:
    job_id = watched.submit("sleep 300")
    running = await watched.reaches(job_id, JobState.RUNNING)
    with Daemon(cluster, "slurmctld").frozen():
        silent = await watched.hears(Silent)
        assert silent.silence.words == "squeue did not answer within 3 s"
        assert as_told(watched.job(job_id)) == as_told(running)
    await watched.hears(Answered)
    assert watched.heard(job_id, *PROBLEMS) == []


def test_the_books_are_read_while_slurmctld_is_silent(cluster: PrivateCluster) -> None:
    client, now = CommandClient(environment=cluster.env, timeout_s=10), datetime.now(UTC)
    with Daemon(cluster, "slurmctld").frozen():
        found = accounting.usage(client, now - timedelta(hours=1), now)
        with pytest.raises(SlurmUnavailable):
            client.config()
    assert found.partial is None


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("hang", "squeue did not answer within 3 s"),
        ("exit", "squeue: error: something went wrong"),
        ("cut", "squeue printed what cannot be read here: the text ends within a record"),
    ],
)
async def test_a_squeue_that_fails_is_silence_and_ends_no_job(watched: Watched, mode: str, words: str) -> None:
    job_id = watched.submit("sleep 300")
    running = await watched.reaches(job_id, JobState.RUNNING)
    watched.squeue(mode)
    silent = await watched.hears(Silent)
    assert silent.silence.words.startswith(words)
    assert as_told(watched.job(job_id)) == as_told(running)
    watched.squeue("real")
    await watched.hears(Answered)
    assert watched.heard(job_id, *PROBLEMS) == []


async def test_a_squeue_that_leaves_out_a_job_does_not_end_it(watched: Watched) -> None:
    job_id = watched.submit("sleep 300")
    await watched.reaches(job_id, JobState.RUNNING)
    watched.squeue("short")
    lost = await watched.hears(JobUnaccounted, lambda c: c.job.id == job_id)
    assert lost.words in ("accounting says RUNNING", "accounting does not know it", "accounting says PENDING")
    watched.squeue("real")
    await watched.reaches(job_id, JobState.RUNNING)
    assert watched.heard(job_id, JobEnded) == [] and watched.watch.unaccounted == ()


async def test_a_job_that_vanishes_while_slurmdbd_is_down_ends_when_the_books_say_so(
    watched: Watched, cluster: PrivateCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "ASK_AGAIN_MOST_S", 2)
    go = watched.folder / "go"
    job_id = watched.submit(f"until [ -e {go} ]; do sleep 0.1; done; exit 3")
    await watched.reaches(job_id, JobState.RUNNING)
    slurmdbd = Daemon(cluster, "slurmdbd")
    await in_thread(slurmdbd.stop)
    try:
        watched.squeue("exit")  # nobody looks while it ends, and is forgotten
        await watched.hears(Silent)
        go.touch()

        def forgotten() -> bool:
            return job_id not in cluster.run("squeue", "-h", "-t", "all", "-o", "%i").split()

        await eventually(lambda: in_thread(forgotten), 60, 0.3)
        watched.squeue("real")
        lost = await watched.hears(JobUnaccounted, lambda c: c.job.id == job_id)
        assert lost.words.startswith("accounting gives no answer: ")
        assert [u.job.id for u in watched.watch.unaccounted] == [job_id]
        assert watched.heard(job_id, JobEnded) == [] and watched.watch.silence is None
    finally:
        slurmdbd.start()
    ended = await watched.hears(JobEnded, lambda c: c.job.id == job_id)
    assert (ended.record.state, ended.record.exit_code) == (JobState.FAILED, "3:0")
    assert watched.watch.unaccounted == ()


async def test_a_requeued_job_is_the_same_job(watched: Watched, cluster: PrivateCluster) -> None:
    job_id = watched.submit("sleep 300", "--requeue")
    running = await watched.reaches(job_id, JobState.RUNNING)
    cluster.run("scontrol", "requeue", job_id)
    watched.watch.hurry()
    changed = await watched.hears(JobChanged, lambda c: c.job.id == job_id and c.after.restarts == 1)
    assert changed.before.restarts == 0 and changed.after.submitted_at >= running.submitted_at
    await watched.reaches(job_id, JobState.PENDING)
    assert watched.heard(job_id, *PROBLEMS) == []
    assert len(watched.heard(job_id, JobAppeared)) == 1


async def test_a_recycled_id_is_another_job(watched: Watched) -> None:
    """The cluster has eleven job ids: the twelfth job has the first one's."""
    go = watched.folder / "go"
    first = watched.submit(f"until [ -e {go} ]; do sleep 0.1; done; exit 3")
    old = await watched.reaches(first, JobState.RUNNING)
    watched.squeue("exit")  # nobody looks while it ends, and its id comes round
    await watched.hears(Silent)
    go.touch()
    for _ in range(40):
        if await in_thread(lambda: watched.submit("true")) == first:
            break
    else:
        pytest.fail(f"the id {first} did not come round: {watched.ids}")
    watched.squeue("real")
    await watched.hears(JobAppeared, lambda c: c.job.id == first and c.job.submitted_at > old.submitted_at)
    ended = await watched.hears(JobEnded, lambda c: c.job.submitted_at == old.submitted_at)
    assert (as_told(ended.job), ended.record.exit_code) == (as_told(old), "3:0")
    assert ended.record.submitted_at == old.submitted_at
