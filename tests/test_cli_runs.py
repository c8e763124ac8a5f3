"""What a researcher does with runs: list, follow, stop, save, resume. By run folders, and on local processes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import PrivateCluster
from platform_fixtures import Platform, platform
from specs import convert, serve, train
from told_runs import BEGAN, RECIPE, ToldRun, invoke, ok, restarted, site_of
from waiting import wait_for

from cli import logs, record, resume, scripts, stop
from cli.record import STATES, Story
from launchers.launch import write_job
from launchers.local_scheduler import LocalScheduler
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef, JobState, JobStatus, SchedulerUnavailable
from launchers.spec import Promotion, ScriptSpec, load
from registry.runs import RunState

SECOND = "second-20260102-000000-abcd"


def story(root: Path, *ends: tuple[str, str | None]) -> Story:
    """Of a run whose attempts ended like this: (cause, action); no action: nobody judged it."""
    run = ToldRun(root)
    for number, (end, action) in enumerate(ends):
        run.begins(number * 100, f"40.{number}")
        run.ends(number * 100 + 50, f"40.{number}", end, "it broke" if end == "crashed" else "")
        if action is not None:
            run.judged(number * 100 + 51, f"40.{number}", end, action, "because")
    return record.story(run.folder)


def test_the_states_are_the_registrys() -> None:
    assert set(STATES) == {s.value for s in RunState}


@pytest.mark.parametrize(
    ("ends", "state", "cause"),
    [
        ([], "pending", None),
        ([("completed", "stop")], "completed", None),
        ([("cancelled", "stop")], "stopped", None),
        ([("crashed", "restart")], "pending", "it broke; because"),
        ([("preempted", "wait")], "pending", "preempted; because"),
        ([("crashed", "stop")], "failed", "it broke; because"),
        ([("time-limit", None)], "running", None),  # about to be judged
        ([("crashed", "restart"), ("completed", "stop")], "completed", None),
    ],
)
def test_a_folder_tells_how_its_run_stands(
    tmp_path: Path, ends: list[tuple[str, str | None]], state: str, cause: str | None
) -> None:
    told = story(tmp_path, *ends)
    assert (told.state, told.cause) == (state, cause)
    assert told.goes_on == (state in ("pending", "running"))


def test_a_run_that_was_submitted_again_waits_until_it_begins(tmp_path: Path) -> None:
    run = ToldRun(tmp_path)
    run.begins(0, "40.0")
    run.ends(50, "40.0", "crashed", judged=False, exit_code=1)
    assert record.story(run.folder).state == "failed"
    write_job(run.folder, JobRef("local", "41", datetime.fromtimestamp(BEGAN + 60, UTC)))
    assert record.story(run.folder).state == "pending"
    run.begins(70, "41.0")
    assert record.story(run.folder).state == "running"


def test_runs_are_listed_with_how_far_they_are_newest_last(tmp_path: Path) -> None:
    restarted(tmp_path)
    second = ToldRun(tmp_path, train(SECOND, recipe=RECIPE, created_at="2026-01-02T00:00:00Z"))
    ToldRun(tmp_path, serve("chat-20260101-000000-abcd"))
    rows = json.loads(ok(tmp_path, "runs", "--json"))
    assert [r["state"] for r in rows] == ["running", "pending"] and rows[1]["id"] == second.id
    assert (rows[0]["iteration"], rows[0]["iterations"], rows[0]["loss"]) == (60, 100, 7.4)
    printed = ok(tmp_path, "runs")
    assert "60/100" in printed and "7.4000" in printed and "5,000" in printed


def test_runs_are_chosen_by_state_kind_and_owner(tmp_path: Path) -> None:
    first = restarted(tmp_path)
    ToldRun(tmp_path, convert("publish-20260101-000000-abcd"))

    def found(*words: str) -> list[str]:
        return [r["id"] for r in json.loads(ok(tmp_path, "runs", "--json", *words))]

    assert found("--state", "running") == [first.id]
    assert found("--kind", "convert", "--kind", "script") == ["publish-20260101-000000-abcd"]
    assert len(found("--mine")) == 2 and found("--user", "nobody") == []
    assert invoke(tmp_path, "runs", "--mine", "--user", "x").exit_code == 2


# -- logs -------------------------------------------------------------------------------------------------------------


def prints(run: ToldRun, attempt: str, text: str, task: int = 0) -> None:
    with open(run.folder.attempt_log(attempt, task), "a") as f:
        f.write(text)


def test_the_newest_attempt_is_printed_or_the_one_that_is_named(tmp_path: Path) -> None:
    run = restarted(tmp_path)
    prints(run, "40.0", "first\n")
    assert ok(tmp_path, "logs", "pretrain") == "first\n"  # the second has printed nothing yet
    prints(run, "40.1", "second\n")
    prints(run, "40.1", "task one\n", task=1)
    assert ok(tmp_path, "logs", "pretrain") == "second\n"
    assert ok(tmp_path, "logs", "pretrain", "--task", "1") == "task one\n"
    assert ok(tmp_path, "logs", "pretrain", "--attempt", "1") == "first\n"
    assert ok(tmp_path, "logs", "pretrain", "--attempt", "40.1") == "second\n"
    done = invoke(tmp_path, "logs", "pretrain", "--attempt", "3")
    assert done.exit_code == 1 and "no attempt '3'; there are: 1 (40.0), 2 (40.1)" in done.output


def test_a_character_on_the_edge_of_two_pieces_is_printed_whole(tmp_path: Path) -> None:
    run = restarted(tmp_path)
    text = "x" * ((1 << 16) - 1) + "é and half of one: "
    run.folder.attempt_log("40.1", 0).write_bytes(text.encode() + "é".encode()[:1])
    assert ok(tmp_path, "logs", "pretrain") == text + "�"


def test_following_goes_on_in_the_next_attempt_until_the_run_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LOOK_S", 0.01)
    run = ToldRun(tmp_path)
    run.begins(0, "40.0")
    prints(run, "40.0", "one\n")
    following = logs.Follower(site_of(tmp_path), run.folder, 0).pieces()  # no controller answers
    assert next(following) == b"one\n"
    prints(run, "40.0", "two\n")
    assert next(following) == b"two\n"
    run.ends(50, "40.0", "cancelled")
    run.judged(51, "40.0", "preempted", "restart", "it goes on from iteration 20")
    assert next(following) == b"--- attempt 1 ended: preempted; it goes on from iteration 20 ---\n"
    run.begins(100, "40.1", nodes="g2")
    assert next(following) == b"--- attempt 2: job 40 on g2 ---\n"
    prints(run, "40.1", "three\n")
    run.ends(150, "40.1", "completed")
    run.judged(151, "40.1", "completed", "stop", "the run is complete")
    assert list(following) == [b"three\n"]


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    run = restarted(tmp_path)
    (tmp_path / "secret").write_text("secret")
    run.folder.attempt_log("40.1", 0).symlink_to(tmp_path / "secret")
    done = invoke(tmp_path, "logs", "pretrain")
    assert done.exit_code == 1 and "secret" not in done.output


# -- stop, save, resume -----------------------------------------------------------------------------------------------


def test_a_running_run_is_asked_to_save_by_a_switch(tmp_path: Path) -> None:
    run = restarted(tmp_path)
    assert "asked to save" in ok(tmp_path, "save", "pretrain")
    assert (run.folder.switches / "save").exists()
    run.ends(200, "40.1", "completed", judged=False)
    done = invoke(tmp_path, "save", "pretrain")
    assert done.exit_code == 1 and "is completed; only a running one can save" in done.output


@pytest.mark.parametrize(("words", "switch"), [((), "stop"), (("--now",), "kill")])
def test_somebody_of_a_runs_group_stops_it_through_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], switch: str
) -> None:
    run = restarted(tmp_path)
    monkeypatch.setattr(stop.os, "getuid", lambda: 12345)
    assert "asked to stop at its next iteration" in ok(tmp_path, "stop", "pretrain", *words)
    assert [p.name for p in run.folder.switches.iterdir()] == [switch]


class Told(LocalScheduler):
    """Of one job it answers `state`, or nothing at all, and `found` by a run's key; it notes what it is to cancel."""

    def __init__(self, spool: Path, ref: JobRef, state: JobState | None, found: JobRef | None = None) -> None:
        super().__init__(spool)
        self.ref, self.state, self.found = ref, state, found
        self.cancelled: list[JobRef] = []

    def states(self, refs: Iterable[JobRef]) -> dict[JobRef, JobStatus]:
        return {ref: JobStatus(ref, self.state) for ref in refs if ref == self.ref and self.state is not None}

    def find(self, key: str) -> JobRef | None:
        return self.found

    def cancel(self, ref: JobRef) -> None:
        self.cancelled.append(ref)


def job(number: str) -> JobRef:
    return JobRef("test", number, datetime.fromtimestamp(BEGAN, UTC))


@pytest.mark.parametrize("own", [None, "4712", "4711"])
def test_root_cancels_no_job_that_only_a_strangers_folder_names(
    own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = restarted(tmp_path)
    write_job(run.folder, job("4711"))
    scheduler = Told(tmp_path / "spool", job("4711"), JobState.RUNNING, job(own) if own else None)
    monkeypatch.setattr(stop, "scheduler_for", lambda site: scheduler)
    monkeypatch.setattr(stop.os, "getuid", lambda: 0)
    monkeypatch.setattr(stop, "is_ours", lambda folder: False)
    done = invoke(tmp_path, "stop", "pretrain")
    if own == "4711":
        assert done.exit_code == 0 and scheduler.cancelled == [job("4711")]
    else:
        assert done.exit_code == 1 and "whether job 4711 is its own cannot be told" in done.output
        assert scheduler.cancelled == []


def test_whoever_is_not_in_a_runs_group_does_not_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = restarted(tmp_path)
    monkeypatch.setattr(stop.os, "getuid", lambda: 12345)
    monkeypatch.setattr(stop.os, "access", lambda path, mode: path != run.folder.switches)
    done = invoke(tmp_path, "stop", "pretrain")
    assert done.exit_code == 1 and "is not yours to write" in done.output


def test_a_run_that_is_not_to_save_is_told_so_before_its_job_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = restarted(tmp_path)
    told: list[bool] = []

    class Watching(LocalScheduler):
        def find(self, key: str) -> JobRef:
            return JobRef(self.cluster, "40", datetime.fromtimestamp(BEGAN, UTC))

        def cancel(self, ref: JobRef) -> None:
            told.append((run.folder.switches / "kill").exists())

    monkeypatch.setattr(stop, "TAKEN_S", 0.0)
    monkeypatch.setattr(stop, "scheduler_for", lambda site: Watching(tmp_path / "spool"))
    assert "asked to stop, without saving" in ok(tmp_path, "stop", "pretrain", "--now")
    assert told == [True]


def test_a_switch_that_somebody_made_a_link_of_is_refused(tmp_path: Path) -> None:
    run = restarted(tmp_path)
    (run.folder.switches / "save").symlink_to(tmp_path / "elsewhere")
    done = invoke(tmp_path, "save", "pretrain")
    assert done.exit_code == 1 and not (tmp_path / "elsewhere").exists()


def test_a_finished_run_and_one_of_somebody_else_are_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ToldRun(tmp_path)
    run.begins(0, "40.0")
    run.ends(50, "40.0", "completed")
    run.judged(51, "40.0", "completed", "stop", "the run is complete")
    done = invoke(tmp_path, "resume", "pretrain")
    assert done.exit_code == 1 and "has come to its end" in done.output
    monkeypatch.setattr(stop.os, "getuid", lambda: 12345)
    done = invoke(tmp_path, "resume", "pretrain")
    assert done.exit_code == 1 and "is not yours" in done.output


@pytest.mark.parametrize("leaves", [True, False])
def test_a_run_that_has_just_ended_is_resumed_once_its_job_has_ended_too(
    leaves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = restarted(tmp_path)
    run.ends(200, "40.1", "cancelled")
    run.judged(201, "40.1", "cancelled", "stop", "because")
    write_job(run.folder, job("40"))
    looks: list[int] = []

    class Leaving(Told):
        def states(self, refs: Iterable[JobRef]) -> dict[JobRef, JobStatus]:
            looks.append(1)
            self.state = JobState.CANCELLED if leaves and len(looks) > 2 else JobState.RUNNING
            return super().states(refs)

    scheduler = Leaving(tmp_path / "spool", job("40"), JobState.RUNNING)
    monkeypatch.setattr(resume, "scheduler_for", lambda site: scheduler)
    monkeypatch.setattr(resume, "launch_again", lambda spec, folder, scheduler: job("41"))
    monkeypatch.setattr(resume, "LOOK_S", 0.0)
    if leaves:
        assert "submitted again as job 41" in ok(tmp_path, "resume", "pretrain") and len(looks) == 3
        return
    monkeypatch.setattr(resume, "LEFT_S", 0.0)
    done = invoke(tmp_path, "resume", "pretrain")
    assert done.exit_code == 1 and "has ended, but its job 40 is RUNNING still" in done.output


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Its training program waits to be stopped."""
    program = tmp_path_factory.mktemp("program") / "sleeper"
    program.write_text("#!/bin/sh\necho waiting; exec sleep 300\n")
    program.chmod(0o755)
    with platform("laptop.toml", "environments.engine.python=/bin/sh", f"environments.training.python={program}") as p:
        yield p


def test_a_run_is_stopped_and_resumed_with_and_without_a_controller(laptop: Platform) -> None:
    def state(run: str) -> str:
        return next(r["state"] for r in laptop.json("runs") if r["id"] == run)

    submitted = laptop.json("train", "tests/recipes/tiny.toml", "-J", "again")
    run = submitted["run"]
    folder = RunFolder(Path(submitted["folder"]))
    wait_for(lambda: any("waiting" in p.read_text() for p in folder.logs.glob("*-0.log")))
    assert laptop.json("show", "again")["registry"] is False
    done = laptop.run("resume", "again")
    assert done.returncode == 1 and f"job {submitted['job']} is RUNNING" in done.stderr
    laptop.ok("stop", "again")
    wait_for(lambda: record.story(folder).state == "stopped")
    laptop.ok("up")
    (folder.switches / "stop").touch()
    again = laptop.json("resume", "again", "-c", "2")
    assert load(folder.spec).resources.cpus_per_task == 2
    assert again["run"] == run and again["job"] != submitted["job"]
    assert not (folder.switches / "stop").exists()
    wait_for(lambda: state(run) == "running")
    said = laptop.json("show", "again")
    assert said["registry"] is True and [a["cause"] for a in said["attempts"]] == ["cancelled", None]
    laptop.ok("stop", "again")
    wait_for(lambda: state(run) == "stopped")
    laptop.ok("down")


# -- scripts of people's own ------------------------------------------------------------------------------------------

SCRIPT: dict[str, Any] = {
    "id": "warm-20260101-000000-abcd", "name": "warm", "owner": "ada", "created_at": "2026-01-01T00:00:00Z",
    "argv": ("warm.sh", "1"), "args": ("1",), "cwd": "/home/ada", "script": "/home/ada/warm.sh", "job_name": "warm up",
}  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "job_id", "task", "path"),
    [
        ("/o/slurm-%j.out", "12", None, "/o/slurm-12.out"),
        ("/o/%x-%u_%6j-%%.log", "12", None, "/o/warm up-ada_000012-%.log"),
        ("/o/%A-%a-%t-%s", "12", None, "/o/12-*-0-batch"),
        ("/o/slurm-%A_%a.out", "12", None, "/o/slurm-12_*.out"),
        ("/o/slurm-%A_%3a.%b", "12", 14, "/o/slurm-12_014.4"),
        ("/o/%j-%a", "12_7", None, "/o/*-7"),
        ("/o/%N/[1].out", "12", None, "/o/*/[[]1].out"),
        ("/o/\\\\%j", "12", None, "/o/%j"),
    ],
)
def test_where_a_script_prints_is_known_by_sbatchs_patterns(
    pattern: str, job_id: str, task: int | None, path: str
) -> None:
    spec = ScriptSpec(**SCRIPT, output=pattern.replace("\\\\", "\\"))
    assert scripts.where(spec, job_id, "ada", task) == path


@pytest.mark.parametrize(
    ("noted", "state", "told", "over"),
    [
        (True, JobState.RUNNING, ("running", None), False),
        (True, JobState.COMPLETED, ("completed", None), True),
        (True, JobState.UNKNOWN, ("unknown", "Slurm does not know job 12 any more"), True),
        (True, None, ("unknown", "Slurm does not answer for job 12"), False),
        (False, None, ("unknown", "no job is noted in its folder"), False),
    ],
)
def test_a_scripts_state_is_what_slurm_says_and_its_log_ends_when_slurm_has_forgotten_it(
    noted: bool, state: JobState | None, told: tuple[str, str | None], over: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = ToldRun(tmp_path, ScriptSpec(**SCRIPT, output="/o/%j"))
    if noted:
        write_job(run.folder, job("12"))
    scheduler = Told(tmp_path / "spool", job("12"), state)
    monkeypatch.setattr(logs, "scheduler_for", lambda site: scheduler)
    monkeypatch.setattr(logs, "ASK_S", 0.0)
    assert scripts.states(scheduler, [run.folder]) == {run.id: told}
    assert logs.Follower(site_of(tmp_path), run.folder, 0).script_ended() == over


def test_a_scripts_log_is_followed_while_slurm_is_silent(tmp_path: Path) -> None:
    class Silent(Told):
        def states(self, refs: Iterable[JobRef]) -> dict[JobRef, JobStatus]:
            raise SchedulerUnavailable("no answer")

    run = ToldRun(tmp_path, ScriptSpec(**SCRIPT, output="/o/%j"))
    write_job(run.folder, job("12"))
    assert not scripts.is_over(Silent(tmp_path / "spool", job("12"), None), run.folder)


def test_a_step_of_a_promotion_is_not_resumed_but_its_owner_is_told_what_helps(tmp_path: Path) -> None:
    step = "convert-tiny-20260101-000000-abcd"
    whole = Promotion(id="tiny-prod-1", source="pretrain-1/10", model="tiny", alias="prod", steps=(step, "smoke-1"))
    run = ToldRun(tmp_path, convert(step, promotion=whole))
    run.begins(0, "40.0")
    run.ends(50, "40.0", "time-limit", judged=False)
    (told,) = json.loads(ok(tmp_path, "runs", "--json"))
    assert (told["state"], told["cause"]) == ("stopped", "time limit; promote again with more (--convert-time)")
    done = invoke(tmp_path, "resume", step)
    assert done.exit_code == 1
    assert f"run {step} is a step of promotion tiny-prod-1, which does not go on with it" in done.output
    assert (
        "`headgate promote pretrain-1/10 --to tiny@prod`, with the options that it had, does all of it again"
        in done.output
    )


def test_a_conversion_of_its_own_that_ran_out_of_time_is_resumed(tmp_path: Path) -> None:
    run = ToldRun(tmp_path, convert(SECOND))
    run.begins(0, "40.0")
    run.ends(50, "40.0", "time-limit", judged=False)
    (told,) = json.loads(ok(tmp_path, "runs", "--json"))
    assert told["cause"] == "time limit; `headgate resume` goes on"


def test_a_script_is_not_resumed_but_its_owner_is_told_how(tmp_path: Path) -> None:
    run = ToldRun(tmp_path, ScriptSpec(**SCRIPT, output="/o/%j"))
    done = invoke(tmp_path, "resume", "warm")
    assert done.exit_code == 1 and f"`sbatch {run.folder.script} 1` submits it again" in done.output


def test_scripts_differ_by_their_text_and_their_environment(tmp_path: Path) -> None:
    texts = ("#!/bin/sh\n#SBATCH --comment={id}\nhostname\n", "#!/bin/sh\n#SBATCH --comment={id}\nhostname -f\n")
    for run_id, text in zip(("a-20260101-000000-abcd", "b-20260101-000000-abcd"), texts, strict=True):
        folder = ToldRun(tmp_path, ScriptSpec(**SCRIPT | {"id": run_id}, output="/o/%j")).folder
        folder.script.write_text(text.format(id=run_id))
        folder.environment.write_text(json.dumps({"LANG": "C", "OMP_NUM_THREADS": str(len(text))}))
    printed = invoke(tmp_path, "diff", "a-20260101-000000-abcd", "b-20260101-000000-abcd").output
    assert "shell.OMP_NUM_THREADS: 42 -> 45" in printed and "LANG" not in printed
    assert "-hostname\n+hostname -f" in printed and "comment=RUN" in printed and "-#SBATCH" not in printed


def test_a_script_on_slurm_is_listed_shown_read_and_stopped(slurm_cluster: PrivateCluster, tmp_path: Path) -> None:
    conf = f"scheduler.slurm_conf={slurm_cluster.env['SLURM_CONF']}"
    with platform("private-cluster.toml", conf, env=slurm_cluster.env) as site:
        script = tmp_path / "hello.sh"
        script.write_text("#!/bin/sh\necho hello $1\nsleep 300\n")
        job = site.ok("submit", "--parsable", "-p", "cpu", "-o", f"{tmp_path}/%x-%j.out", str(script), "world").strip()
        wait_for(lambda: site.json("runs")[0]["state"] == "running")
        wait_for(lambda: "hello world" in site.run("logs", "hello.sh").stdout)
        printed = site.ok("show", "hello.sh")
        assert f"sbatch --parsable -p cpu -o {tmp_path}/%x-%j.out {script} world" in printed
        assert f"log: {tmp_path}/hello.sh-{job}.out" in printed
        assert "asked to stop" in site.ok("stop", "hello.sh")
        wait_for(lambda: site.json("runs", "--state", "stopped"))
        assert site.ok("stop", "hello.sh") == "hello.sh had ended already\n"
