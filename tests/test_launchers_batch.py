"""The batch script's side of an attempt, where Slurm is scripted: what no real slurmctld can be made to do at will.

What it does on a real one is in test_survival.py.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import slurm_fixtures
from slurm_fixtures import NOON, ScriptedSlurm
from specs import folder_of, train

from launchers import announce, batch, claims, history
from launchers.announce import read
from launchers.batch import Batch, facts_of
from launchers.restart import Cause
from launchers.run_folder import RunFolder
from launchers.spec import Resources
from slurm.errors import SlurmError, SlurmUnavailable
from slurm.model import JobState


@dataclasses.dataclass
class Slurm(ScriptedSlurm):
    """`refuses`: its words when it is asked to requeue. `deaf`: how many more questions it does not hear."""

    refuses: str | None = None
    takes_jobs: bool = True
    deaf: int = 0

    def requeue(self, job_id: str) -> None:
        self.deaf -= 1
        if self.deaf >= 0:
            raise SlurmUnavailable("Unable to contact slurm controller")
        self._answer(f"requeue {job_id}")
        if self.refuses is not None:
            raise SlurmError(self.refuses)

    def update(self, job_id: str, *, starts_in_s: int) -> None:
        self._answer(f"update {job_id} {starts_in_s}")

    def submit(self, script: Path, comment: str, *, dependency: str) -> str:
        self._answer(f"submit {script.name} {comment} {dependency}")
        if not self.takes_jobs:
            raise SlurmError("Job violates accounting/QOS policy")
        return "8"

    def release(self, job_id: str) -> None:
        self._answer(f"release {job_id}")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return folder_of(train(), tmp_path)


@pytest.fixture(autouse=True)
def kept_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(batch, "srun", lambda folder: ["true"])
    monkeypatch.setattr(batch, "ASK_AGAIN_S", 0.01)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    kept = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, kept, strict=True):
        signal.signal(number, handler)


def job(**changed: Any) -> slurm_fixtures.Job:
    return slurm_fixtures.job(7, **changed)


def attempt(folder: RunFolder, slurm: Any, restarts: int = 0) -> Batch:
    return Batch(folder, train(), "7", restarts, slurm)


def says(folder: RunFolder, attempt: str, end: Cause) -> None:
    announce.announce(folder.announcements, "attempt-started", attempt=attempt, job_id="7")
    announce.announce(folder.announcements, "attempt-ended", attempt=attempt, end=end, exit_code=1, cause="")


def judgements(folder: RunFolder) -> list[dict[str, Any]]:
    found = sorted(folder.announcements.glob("*-attempt-judged.json"))
    return [read(path, os.getuid()).facts for path in found]


def test_a_crashed_attempt_requeues_its_job_and_has_it_start_soon(folder: RunFolder) -> None:
    slurm = Slurm([job()])
    says(folder, "7.0", Cause.CRASHED)
    assert attempt(folder, slurm).run() == 0
    assert slurm.asked[-2:] == ["requeue 7", "update 7 5"]
    (judged,) = judgements(folder)
    assert (judged["attempt"], judged["cause"], judged["action"]) == ("7.0", "crashed", "restart")


def test_where_slurm_does_not_requeue_a_successor_is_submitted_after_this_job(folder: RunFolder) -> None:
    slurm = Slurm([job()], refuses="Requested operation is presently disabled")
    says(folder, "7.0", Cause.TIME_LIMIT)
    assert attempt(folder, slurm).run() == 0
    assert slurm.asked[-2:] == [f"submit job.sh {folder.id} afterany:7", "update 8 5"]
    assert (judgements(folder)[-1]["successor"], judgements(folder)[-1]["action"]) == ("8", "restart")
    assert "presently disabled" in judgements(folder)[-1]["why"]


def test_where_slurm_takes_no_job_at_all_the_run_ends_with_both_of_its_reasons(folder: RunFolder) -> None:
    slurm = Slurm([job()], refuses="requeue is disabled", takes_jobs=False)
    says(folder, "7.0", Cause.TIME_LIMIT)
    assert attempt(folder, slurm).run() == 1
    last = judgements(folder)[-1]
    assert last["action"] == "stop"
    assert "requeue is disabled" in last["why"] and "QOS policy" in last["why"]


def test_a_slurmctld_that_is_silent_for_a_while_is_asked_again(folder: RunFolder) -> None:
    slurm = Slurm([job()], deaf=5)
    says(folder, "7.0", Cause.CRASHED)
    assert attempt(folder, slurm).run() == 0
    assert "requeue 7" in slurm.asked


def test_what_slurm_cancels_is_cancelled_unless_the_books_say_that_it_was_preempted(folder: RunFolder) -> None:
    cancelled = Slurm([job(state=JobState.COMPLETING)])
    says(folder, "7.0", Cause.CANCELLED)
    assert attempt(folder, cancelled).run() == 1
    assert not [q for q in cancelled.asked if q.startswith("requeue")]
    preempted = Slurm([job(state=JobState.COMPLETING)], [slurm_fixtures.record(job(), JobState.PREEMPTED)])
    says(folder, "7.1", Cause.CANCELLED)
    assert attempt(folder, preempted, restarts=1).run() == 0
    assert "requeue 7" in preempted.asked
    assert judgements(folder)[-1]["cause"] == "preempted"


def test_a_second_job_of_the_run_does_not_start_beside_one_that_lives(
    folder: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    claims.claim(folder, "6.0")
    ahead = os.stat(folder.root).st_mtime + 60
    claims.show_alive(folder, "6.0")
    os.utime(folder.alive("6.0"), (ahead, ahead))
    slurm = Slurm([job()])
    made = attempt(folder, slurm)
    ticks = iter(range(1000))
    made.clock = lambda: float(next(ticks))
    assert made.run() == 1
    assert "attempt 6.0 of this run is still running" in capfd.readouterr().err
    assert slurm.asked == []


def test_a_step_that_never_comes_to_its_supervisor_is_given_up_like_any_other(folder: RunFolder) -> None:
    slurm = Slurm([job()])
    for restarts in range(2):
        assert attempt(folder, slurm, restarts).run() == 0
    assert attempt(folder, slurm, restarts=2).run() == 1
    assert "restart.without_progress" in judgements(folder)[-1]["why"]


def test_a_run_whose_job_slurm_restarts_again_and_again_is_given_up_too(folder: RunFolder) -> None:
    made = Batch(folder, train(recipe={"restart": {"max_attempts": 2}}), "7", 2, Slurm([job(restarts=2)]))  # type: ignore[arg-type]
    for number in range(2):  # neither came to be judged: its node was lost
        announce.announce(folder.announcements, "attempt-started", attempt=f"7.{number}", job_id="7")
    assert made.run() == 1
    assert (judgements(folder)[-1]["action"], judgements(folder)[-1]["cause"]) == ("stop", "requeued")
    assert "restart.max_attempts = 2" in judgements(folder)[-1]["why"]


def test_a_requeue_whose_answer_was_lost_is_not_asked_for_twice(folder: RunFolder) -> None:
    class Lossy(Slurm):
        def requeue(self, job_id: str) -> None:
            self._answer(f"requeue {job_id}")
            self.queue = [job(restarts=1)]
            raise SlurmUnavailable("timed out")

    slurm = Lossy([job()])
    says(folder, "7.0", Cause.CRASHED)
    assert attempt(folder, slurm).run() == 0
    assert slurm.asked.count("requeue 7") == 1
    assert not [q for q in slurm.asked if q.startswith("submit")]


def test_a_successor_whose_answer_was_lost_is_not_submitted_twice(folder: RunFolder) -> None:
    class Lossy(Slurm):
        def submit(self, script: Path, comment: str, *, dependency: str) -> str:
            self._answer("submit")
            self.queue.append(slurm_fixtures.job(8, comment=comment, state=JobState.PENDING))
            self.silent = "slurmctld went away as it answered"
            raise SlurmUnavailable("timed out")

        def jobs(self, ids: Any = None, *, user: str | None = None) -> list[slurm_fixtures.Job]:
            try:
                return super().jobs(ids, user=user)
            finally:
                self.silent = None

    slurm = Lossy([job()], refuses="requeue is disabled")
    says(folder, "7.0", Cause.CRASHED)
    assert attempt(folder, slurm).run() == 0
    assert slurm.asked.count("submit") == 1
    assert judgements(folder)[-1]["successor"] == "8"


def test_a_job_of_the_run_that_has_ended_is_nobodys_successor(folder: RunFolder) -> None:
    class Deaf(Slurm):
        def submit(self, script: Path, comment: str, *, dependency: str) -> str:
            if "submit" not in self.asked:
                self._answer("submit")
                raise SlurmUnavailable("Unable to contact slurm controller")
            return super().submit(script, comment, dependency=dependency)

    earlier = slurm_fixtures.job(6, comment=folder.id, state=JobState.FAILED)
    slurm = Deaf([earlier, job()], refuses="requeue is disabled")
    says(folder, "7.0", Cause.CRASHED)
    assert attempt(folder, slurm).run() == 0
    assert judgements(folder)[-1]["successor"] == "8"


def test_the_successor_of_a_job_that_was_submitted_held_is_not_held(folder: RunFolder) -> None:
    slurm = Slurm([job()], refuses="requeue is disabled")
    says(folder, "7.0", Cause.TIME_LIMIT)
    spec = train(resources=Resources(options=("--hold",)))
    assert Batch(folder, spec, "7", 0, slurm).run() == 0  # type: ignore[arg-type]
    assert "release 8" in slurm.asked


def test_a_disk_that_does_not_answer_for_a_while_loses_no_run(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(folder, "7.0", Cause.CRASHED)
    answers, last_word = iter([OSError(116, "Stale file handle"), OSError(116, "Stale file handle")]), history.last_word

    def stale(*asked: Any) -> Cause | None:
        if (error := next(answers, None)) is not None:
            raise error
        return last_word(*asked)

    monkeypatch.setattr(history, "last_word", stale)
    slurm = Slurm([job()])
    assert attempt(folder, slurm).run() == 0
    assert "requeue 7" in slurm.asked


def test_a_verdict_that_cannot_be_written_keeps_no_run_from_going_on(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(folder, "7.0", Cause.CRASHED)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(batch, "announce", full)
    slurm = Slurm([job()])
    assert attempt(folder, slurm).run() == 0
    assert "requeue 7" in slurm.asked


def test_an_earlier_attempt_that_nobody_judged_was_requeued_by_slurm(folder: RunFolder) -> None:
    announce.announce(folder.announcements, "attempt-started", attempt="7.0", job_id="7")
    announce.announce(folder.announcements, "attempt-started", attempt="7.1", job_id="7")
    (first,) = history.past(folder, before="7.1")
    assert (first.attempt, first.cause) == ("7.0", Cause.REQUEUED)


def test_whoever_submits_a_run_again_after_it_was_given_up_begins_to_count_anew(folder: RunFolder) -> None:
    for number in ("5.0", "6.0"):
        says(folder, number, Cause.CRASHED)
        announce.announce(
            folder.announcements, "attempt-judged", attempt=number, cause=Cause.CRASHED, saved=3, action="stop", why=""
        )
    announce.announce(folder.announcements, "attempt-started", attempt="7.0", job_id="7")
    assert history.past(folder, before="7.0") == []


def test_an_end_that_was_moved_forward_is_a_preemption_and_one_at_the_limit_is_not() -> None:
    limit = NOON + timedelta(seconds=600)
    assert facts_of(job(ends_at=limit - timedelta(seconds=300))).preempted
    assert not facts_of(job(ends_at=limit)).preempted
    assert not facts_of(job(ends_at=limit + timedelta(seconds=60))).preempted
    assert not facts_of(job(state=JobState.COMPLETING, ends_at=NOON + timedelta(seconds=5))).preempted
    assert facts_of(job(state=JobState.COMPLETING, reason="TimeLimit")).at_time_limit
