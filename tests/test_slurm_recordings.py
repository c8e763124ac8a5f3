"""Every question of the command client, answered by what each Slurm release printed (tests/recordings/record)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from slurm import versions
from slurm.commands import CommandClient
from slurm.errors import SlurmUnavailable
from slurm.model import TRES, Association, Job, JobState, Limit, NodeState
from slurm.process import Completed

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("slurm-*.json"))
GiB = 2**30


class Replay:
    """Runs no command: prints what was recorded for the same words, through `spoil`."""

    def __init__(self, path: Path) -> None:
        recorded = json.loads(path.read_text())
        self.release = path.stem.removeprefix("slurm-")
        self.at = datetime.fromtimestamp(recorded["at"], UTC)
        self.said = {tuple(one["argv"]): one["stdout"] for one in recorded["said"]}
        self.spoil: Callable[[str], str] = lambda text: text

    def __call__(self, argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Completed:
        return Completed(0, self.spoil(self.said[tuple(argv)]), "")


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
def replay(request: pytest.FixtureRequest) -> Replay:
    return Replay(request.param)


@pytest.fixture
def client(replay: Replay) -> CommandClient:
    return CommandClient(replay, separator="\x1f")


def job(client: CommandClient, job_id: str) -> Job:
    return next(j for j in client.jobs() if j.id == job_id)


def test_the_oldest_and_the_newest_release_are_recorded() -> None:
    releases = {versions.release(p.stem.removeprefix("slurm-")) for p in RECORDINGS}
    assert {versions.OLDEST, versions.NEWEST} <= releases


def test_the_configuration(client: CommandClient, replay: Replay) -> None:
    config = client.config()
    assert config.version_text.startswith(replay.release)
    assert (config.name, config.kill_wait_s, config.preempt_sends_signal) == ("headgate-test", 10, True)
    assert (config.max_array_size, config.private_data, config.store_flags) == (1001, frozenset(), frozenset())
    assert config.enforce == {"associations", "limits", "qos", "safe"}
    books = client.accounting_config()
    assert books is not None and books.version_text == config.version_text


def test_a_running_jobs_record(client: CommandClient) -> None:
    running = job(client, "1")
    assert (running.name, running.comment, running.nodes) == ('a|b "c" %j', "a,b=c", ("g1", "g2"))
    assert running.tres == TRES(
        cpus=2, memory_bytes=200 * 2**20, nodes=2, billing=2, gpus=4, gpus_by_type=(("h100", 4),)
    )
    assert (running.time_limit_s, running.restarts, running.reason) == (4 * 3600, 0, None)
    assert running.started_at and running.ends_at and running.ended_at is None
    assert running.ends_at - running.started_at == timedelta(hours=4)


def test_a_name_with_a_line_break_and_a_byte_that_is_no_utf_8(client: CommandClient) -> None:
    assert job(client, "2").name == "caf\ufffd\nau lait"
    (attempt,) = (a for a in client.accounting_between(*last_hour(client)) if a.id == "2")
    assert attempt.name == "caf?\nau lait"  # which is how slurmctld wrote it into the books


def last_hour(client: CommandClient) -> tuple[datetime, datetime]:
    replay: Any = client._runner
    return replay.at - timedelta(hours=1), replay.at


def test_what_waits_says_why_and_asks_for_what(client: CommandClient) -> None:
    held, later, rest = (job(client, i) for i in ("6", "9", "3_[1-30%1]"))
    assert (held.reason, held.partitions, held.time_limit_s) == ("JobHeldUser", ("gpu", "cpu"), None)
    assert held.dependency == "afterok:1(unfulfilled)"
    assert (later.reason, later.tres.gpus, later.tres.nodes, later.nodes) == ("BeginTime", 16, 2, ())
    assert later.expected_start_at is not None and later.started_at is None
    assert (rest.array_job_id, rest.array_task, rest.reason) == (3, "1-30%1", "JobArrayTaskLimit")


def test_parts_of_a_job_carry_its_number_and_their_own(client: CommandClient) -> None:
    assert {j.id: j.raw_id for j in client.jobs() if j.het_job_id == 4} == {"4+0": 4, "4+1": 5}
    assert job(client, "3_0").raw_id == 10


def test_a_requeued_job_has_another_submit_time(client: CommandClient) -> None:
    again = job(client, "7")
    assert (again.state, again.restarts) == (JobState.PENDING, 1)
    (first,) = (a for a in client.accounting_between(*last_hour(client)) if a.id == "7")
    assert (first.state, first.submitted_at < again.submitted_at) == (JobState.REQUEUED, True)


def test_nodes(client: CommandClient) -> None:
    nodes = {n.name: n for n in client.nodes()}
    c2, g1, g2 = nodes["c2"], nodes["g1"], nodes["g2"]
    assert (c2.flags, c2.available, c2.reason, c2.partitions) == ({"DRAIN"}, False, "bad disk, see #4", ("cpu",))
    assert (g1.state, g1.available, g1.features, g1.tres.gpus) == (NodeState.MIXED, True, ("h100",), 8)
    assert (g1.allocated.gpus_by_type, g1.free_gpus_by_type) == ((("h100", 8),), {"h100": 0})
    assert g2.free_gpus_by_type == {"h100": 6}
    assert g1.allocated.memory_bytes == 400 * 2**20 and g1.free_memory_bytes is not None


def test_partitions_and_reservations(client: CommandClient) -> None:
    gpu, cpu = client.partitions()
    assert (gpu.name, gpu.nodes, gpu.max_time_s, gpu.tres.memory_bytes) == ("gpu", ("g1", "g2"), None, 125 * GiB)
    assert (cpu.default, cpu.state, cpu.preempt_mode) == (True, "UP", "REQUEUE")
    (maint,) = client.reservations()
    assert (maint.name, maint.maintenance, maint.active, maint.nodes) == ("maint", True, False, ("g1",))


def account(client: CommandClient, name: str, user: str | None = None) -> Association:
    return next(a for a in client.associations() if (a.account, a.user) == (name, user))


def test_an_accounts_limits_and_what_is_used_of_them(client: CommandClient) -> None:
    limits = set(account(client, "research").limits)
    assert {Limit("GrpTRES", "gres/gpu", 12, 10), Limit("MaxJobs", None, 50, 5)} <= limits
    assert {(x.kind, x.tres, x.allowed) for x in limits} >= {("GrpTRES", "mem", 2**40), ("GrpWall", None, 36000)}
    assert next(x for x in limits if x.kind == "GrpTRESMins" and x.tres == "gres/gpu").allowed == 6000 * 60


def test_associations_know_who_is_above_them(client: CommandClient) -> None:
    assert (account(client, "research").parent, account(client, "root").parent) == ("root", None)
    root = account(client, "research", "root")
    assert (root.parent, root.default, root.fair_share is not None) == ("research", True, True)
    assert account(client, "teaching", "nobody").shares is None  # its parent's


def test_qos_with_limits_per_user(client: CommandClient) -> None:
    qos = {q.name: q for q in client.qos()}
    high = qos["high"]
    assert (high.priority, high.preempts, high.flags) == (1000, ("preemptible",), {"DenyOnLimit"})
    assert Limit("MaxTRESPU", "gres/gpu", 4, 1, holder="root") in high.limits
    assert Limit("MaxWallPJ", None, 2 * 86400, None) in high.limits
    assert (qos["preemptible"].grace_time_s, qos["preemptible"].preempt_mode) == (15, "requeue")


def test_the_books(client: CommandClient) -> None:
    by_id = {a.id: a for a in client.accounting(["1", "6", "8"])}
    assert (by_id["8"].exit_code, by_id["8"].state, by_id["8"].elapsed_s) == ("3:0", JobState.FAILED, 0)
    assert (by_id["6"].started_at, by_id["6"].nodes, by_id["6"].allocated) == (None, (), TRES())
    assert (by_id["1"].allocated.gpus, by_id["1"].carries("a,b=c"), by_id["1"].ended_at) == (4, True, None)
    steps = {s.id: s for s in client.steps(["1"])}
    assert (set(steps), steps["1.0"].tasks, steps["1.0"].nodes) == ({"1.batch", "1.0"}, 2, ("g1", "g2"))


def test_output_cut_anywhere_is_no_answer_and_never_a_shorter_one(client: CommandClient, replay: Replay) -> None:
    """A command killed while it prints says so by its status; this is for those that do not."""
    whole = {ask: len(ask()) for ask in (client.jobs, client.nodes, client.qos)}
    for ask, count in whole.items():
        for cut in (1, 2, 30):
            replay.spoil = lambda text, cut=cut: text[:-cut]
            with pytest.raises(SlurmUnavailable, match="printed what cannot be read here"):
                ask()
        replay.spoil = lambda text: text
        assert len(ask()) == count
    replay.spoil = lambda text: text[: len(text) // 2]
    for other in (client.config, client.accounting_config):
        with pytest.raises(SlurmUnavailable, match=r"says nothing of|did not answer"):
            other()
