"""The supervisor over real processes: ready after a token, drained by SIGTERM, dead with a cause, nothing left."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from certificates import minted
from conftest import ROOT
from specs import convert, folder_of, serve, train
from waiting import wait_for

from launchers import announce, child, claims
from launchers import supervisor as supervisor_module
from launchers import task as tasks
from launchers.announce import Announcement
from launchers.child import Ending, last_words, tail
from launchers.megatron import command as megatron
from launchers.restart import Cause
from launchers.run_folder import RunFolder
from launchers.spec import ConvertSpec, Environment, TrainSpec
from launchers.supervisor import Supervisor, ending_of, training_stage
from launchers.task import Task
from launchers.vllm import probes, server
from launchers.vllm.endpoint import Endpoint

ENGINE = str(Path(__file__).with_name("stand_in_engine.py"))


class Job:
    """One supervisor in a process of its own, as a scheduler starts it."""

    def __init__(self, runs: Path, *engine_args: str, command: tuple[str, ...] = ("{python}", ENGINE), **spec: Any):
        environment = Environment(kind="venv", python=sys.executable, command=command, env={"FROM_SITE": "yes"})
        changed = {"shutdown_timeout_s": 1, "environment": environment, "engine_args": engine_args, **spec}
        self.folder = folder_of(serve(**changed), runs)
        (self.folder.root / "code").symlink_to(ROOT)
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SUBMITIT_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launchers.supervisor", str(self.folder.root)],
            cwd=ROOT, env={**outside, "SUBMITIT_LOCAL_JOB_ID": "77"}, text=True, stderr=subprocess.PIPE,
        )  # fmt: skip

    def said(self, kind: str) -> list[Announcement]:
        names = announce.names(self.folder.announcements)
        read = (announce.read(self.folder.announcements / name, os.getuid()) for name in names)
        return [a for a in read if a.kind == kind]

    def ready(self) -> Announcement:
        return wait_for(lambda: self.said("replica-ready"))[0]

    def end(self) -> dict[str, Any]:
        """The exit code, and the facts of the last announcement."""
        _, stderr = self.process.communicate(timeout=30)
        (last,) = self.said("attempt-ended")
        assert last.facts["exit_code"] == self.process.returncode, stderr
        return last.facts

    def log(self) -> str:
        path = self.folder.attempt_log("77.0", 0)
        return path.read_text() if path.exists() else ""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start(*words: str, **changed: Any) -> Job:
        jobs.append(Job(tmp_path, *words, **changed))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.process.poll() is None:
            job.process.terminate()
        job.process.communicate(timeout=30)
    # One that was killed, or whose supervisor was, may be ending.
    wait_for(lambda: not any(str(tmp_path) in " ".join(_cmdline(p)) for p in psutil.process_iter()), 10)


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.NoSuchProcess:
        return []


def test_a_replica_is_ready_after_a_generated_token_and_drained_by_sigterm(start: Callable[..., Job]) -> None:
    job = start()
    ready = job.ready()
    (started,) = job.said("attempt-started")
    assert (started.facts["job_id"], started.facts["attempt"], started.facts["tasks"]) == ("77", "77.0", 1)
    assert "asked for a token" in job.log()
    assert (ready.facts["host"], ready.facts["served_name"]) == ("127.0.0.1", "chat")
    # The endpoint that was announced, with the key beside it, is the engine's.
    key, certificate = job.folder.secret.read_text(), ready.facts["certificate"]
    endpoint = Endpoint("127.0.0.1", ready.facts["port"], key, certificate)
    assert probes.healthy(endpoint)
    assert not probes.healthy(Endpoint("127.0.0.1", endpoint.port, "another key", certificate))
    assert not probes.healthy(Endpoint("127.0.0.1", endpoint.port, key, minted().certificate))
    assert not probes.healthy(Endpoint("127.0.0.1", endpoint.port, key))  # plain HTTP
    (engine,) = psutil.Process(job.process.pid).children()
    assert endpoint.key not in " ".join(engine.cmdline())

    job.process.send_signal(signal.SIGTERM)
    ended = job.end()
    assert (ended["exit_code"], ended["cause"]) == (0, "cancelled")
    assert ended["tail"].splitlines()[-1] == "got SIGTERM"
    assert not engine.is_running() and len(job.said("replica-ready")) == 1
    assert not probes.healthy(endpoint)


def test_the_keys_of_a_replica_are_their_owners_alone_and_the_certificates_goes_with_the_attempt(
    start: Callable[..., Job],
) -> None:
    job = start()
    job.ready()
    folder = job.folder
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in (folder.secret, folder.tls("77.0"), folder.tls_key("77.0"))}
    assert list(modes.values()) == [0o600, 0o700, 0o600]
    secrets = (folder.secret.read_text(), "".join(folder.tls_key("77.0").read_text().splitlines()[1:-1]))
    others = [Path(place, name) for place, _, names in os.walk(folder.root) for name in names]
    others = [path for path in others if path not in modes]
    assert {"spec.json", "77.0-0.log", "certificate.pem"} <= {path.name for path in others}
    for path in others:
        text = path.read_text().replace("\n", "")
        assert not any(secret in text for secret in secrets), path
    job.process.send_signal(signal.SIGTERM)
    job.end()
    assert folder.secret.exists() and folder.former_tls == []


def test_what_a_killed_attempt_left_is_replaced_by_the_next(start: Callable[..., Job], tmp_path: Path) -> None:
    job = start("--no-tokens-until", str(tmp_path / "never"))
    wait_for(lambda: "asked for a token" in job.log())
    job.process.kill()
    job.process.wait()
    folder, spec = job.folder, serve()
    (left,) = folder.former_tls
    key = folder.secret.read_text()
    folder.secret.chmod(0o644)
    endpoint = server.mint_endpoint(folder, spec, "77.1", 8000)
    assert folder.former_tls == [folder.tls("77.1")] and not left.exists()
    assert endpoint.key == folder.secret.read_text() != key
    assert stat.S_IMODE(folder.secret.stat().st_mode) == 0o600
    assert endpoint.certificate == folder.tls_certificate("77.1").read_text()


def test_keys_are_not_written_through_a_link(tmp_path: Path) -> None:
    folder = folder_of(serve(), tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "file").write_text("kept")
    folder.secret.symlink_to(tmp_path / "file")
    folder.tls("7.0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        server.mint_endpoint(folder, serve(), "7.0", 8000)
    assert (tmp_path / "file").read_text() == "kept" and not folder.secret.is_symlink()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_engine_without_tls_is_ready_and_announces_no_certificate(start: Callable[..., Job]) -> None:
    job = start(tls=False)
    ready = job.ready()
    assert ready.facts["certificate"] is None and job.folder.former_tls == []
    assert probes.healthy(Endpoint("127.0.0.1", ready.facts["port"], job.folder.secret.read_text()))


def test_health_alone_is_not_readiness(start: Callable[..., Job], tmp_path: Path) -> None:
    job = start("--no-tokens-until", str(tmp_path / "go"))
    wait_for(lambda: job.log().count("asked for a token") >= 2)
    assert job.said("replica-ready") == []
    (tmp_path / "go").touch()
    assert job.ready().facts["start_s"] > 0


def test_an_engine_that_dies_at_its_start_is_a_failure_with_its_own_words(start: Callable[..., Job]) -> None:
    ended = start("--die", "no kernel image is available").end()
    assert ended["exit_code"] == 3
    assert ended["cause"] == "the engine ended with exit code 3: RuntimeError: no kernel image is available"
    assert ended["tail"].splitlines() == ["loading", "RuntimeError: no kernel image is available", "bye"]


def test_an_engine_that_cannot_be_started_says_which(start: Callable[..., Job]) -> None:
    ended = start(command=("/nowhere/python",)).end()
    assert ended["exit_code"] == 1 and "No such file or directory: '/nowhere/python'" in ended["cause"]


def test_an_engine_that_leaves_by_itself_with_status_0_is_a_failure(start: Callable[..., Job], tmp_path: Path) -> None:
    job = start("--leave-when", str(tmp_path / "leave"), max_restarts=0)
    job.ready()
    (tmp_path / "leave").touch()
    ended = job.end()
    assert (ended["exit_code"], ended["cause"]) == (1, "the engine ended by itself with exit code 0: done here")


def test_an_engine_that_is_killed_is_a_failure_that_names_the_signal(start: Callable[..., Job]) -> None:
    job = start(max_restarts=0)
    job.ready()
    (engine,) = psutil.Process(job.process.pid).children()
    engine.kill()
    ended = job.end()
    assert ended["exit_code"] == 128 + signal.SIGKILL
    assert ended["cause"].startswith("the engine was killed by SIGKILL: ")


def test_an_engine_that_never_generates_is_given_up_after_the_start_timeout(
    start: Callable[..., Job], tmp_path: Path
) -> None:
    ended = start("--no-tokens-until", str(tmp_path / "never"), start_timeout_s=1).end()
    assert (ended["exit_code"], ended["cause"]) == (1, "the engine was not ready after 1 s")


def test_an_engine_that_is_deaf_to_sigterm_is_killed_after_its_grace(start: Callable[..., Job]) -> None:
    job = start("--deaf", shutdown_timeout_s=-9)  # the grace is ten seconds longer
    job.ready()
    job.process.send_signal(signal.SIGTERM)
    assert job.end()["cause"] == "cancelled"


def test_what_the_engine_started_ends_with_it(start: Callable[..., Job], tmp_path: Path) -> None:
    job = start("--worker", str(tmp_path / "worker"), "--leave-when", str(tmp_path / "leave"), max_restarts=0)
    job.ready()
    worker = psutil.Process(int((tmp_path / "worker").read_text()))
    (tmp_path / "leave").touch()
    assert job.end()["exit_code"] == 1
    wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_an_engine_does_not_outlive_a_supervisor_that_was_killed(start: Callable[..., Job]) -> None:
    job = start()
    job.ready()
    (engine,) = psutil.Process(job.process.pid).children()
    job.process.kill()
    wait_for(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


def test_a_stop_before_the_engine_is_ready_is_a_stop_and_not_a_failure(
    start: Callable[..., Job], tmp_path: Path
) -> None:
    job = start("--no-tokens-until", str(tmp_path / "never"))
    wait_for(lambda: "asked for a token" in job.log())
    job.process.send_signal(signal.SIGTERM)
    assert job.end()["cause"] == "cancelled"
    assert job.said("replica-ready") == []


def test_an_engine_at_its_time_limit_is_drained_and_says_so(start: Callable[..., Job]) -> None:
    job = start()
    job.ready()
    job.process.send_signal(signal.SIGUSR2)
    ended = job.end()
    assert (ended["exit_code"], ended["cause"]) == (0, "timeout")
    assert ended["tail"].splitlines()[-1] == "got SIGTERM"


def test_training_at_its_time_limit_is_told_and_ends_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = _training(
        tmp_path, monkeypatch, "trap 'echo saved; exit 0' USR2; echo up; while :; do sleep 0.1; done"
    )
    log = supervisor.folder.attempt_log("7.0", 0)
    told = threading.Thread(
        target=lambda: (wait_for(lambda: "up" in tail(log)), os.kill(os.getpid(), signal.SIGUSR2)), daemon=True
    )
    told.start()
    assert supervisor.run() == 0
    ended = _ended(supervisor.folder)
    assert (ended["cause"], ended["tail"]) == ("timeout", "up\nsaved")


def test_training_that_stopped_before_its_supervisor_was_told_was_told_by_another_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal reaches the nodes of a job one after the other."""
    supervisor = _training(tmp_path, monkeypatch, "echo up")
    supervisor.folder.metrics.write_text('{"stage": "stopped"}\n')

    def late() -> None:
        wait_for(lambda: "up" in tail(supervisor.log))
        os.kill(os.getpid(), signal.SIGUSR2)

    told = threading.Thread(target=late, daemon=True)
    told.start()
    assert supervisor.run() == 0
    assert _ended(supervisor.folder)["end"] == Cause.TIME_LIMIT


def test_training_that_cannot_be_killed_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "left"
    with monkeypatch.context() as m:
        m.setattr(os, "killpg", lambda *_: None)
        m.setattr(child, "KILLED_S", 0.2)
        m.setattr(supervisor_module, "KILL_AFTER_S", 0.2)
        supervisor = _training(tmp_path, m, f"trap '' TERM; echo $$ > {left}.new; mv {left}.new {left}; exec sleep 60")
        told = threading.Thread(target=lambda: (wait_for(left.exists), os.kill(os.getpid(), signal.SIGTERM)))
        told.start()
        assert supervisor.run() == 0
        told.join()
    os.killpg(int(left.read_text()), signal.SIGKILL)
    assert _ended(supervisor.folder)["end"] == Cause.CANCELLED


def test_what_a_child_leaves_behind_ends_with_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = child.start(["sh", "-c", "sleep 60 &"], os.environ, tmp_path / "log")
    parent.wait()
    with monkeypatch.context() as m:
        m.setattr(os, "killpg", lambda *_: None)
        m.setattr(child, "KILLED_S", 0.0)
        assert not child.kill_group(parent)
    assert child.kill_group(parent)


# -- several tasks ----------------------------------------------------------------------------------------------------


def test_the_first_task_says_which_task_failed_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _training(tmp_path, monkeypatch, "echo waiting; exec sleep 60", tasks=2)
    why = "training ended with exit code 1: torch.OutOfMemoryError: CUDA out of memory"
    tail = "loading\ntorch.OutOfMemoryError: CUDA out of memory"
    theirs = tasks.Failure(1, "c2", why, tail, engine="out-of-memory")
    tasks.mark_failed(first.folder.failure("7.0"), theirs)
    assert first.run() == 1
    ended = _ended(first.folder)
    assert (ended["cause"], ended["failure"]) == (f"task 1 on c2: {why}", "out-of-memory")
    assert ended["failed_task"] == {"rank": 1, "node": "c2"}
    assert ended["tail"].splitlines()[:3] == [
        "task 1 on c2:", "loading", "torch.OutOfMemoryError: CUDA out of memory"
    ]  # fmt: skip


def test_a_task_that_dies_of_another_ones_death_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _training(tmp_path, monkeypatch, "echo 'Error: the other side is gone'; exit 5", tasks=2)
    first.folder.rendezvous.mkdir()
    tasks.mark_failed(first.folder.failure("7.0"), tasks.Failure(1, "c2", "MemoryError", "theirs"))
    monkeypatch.setattr(Supervisor, "_watch", lambda self, child, _: Ending(child.wait(), "the other side is gone"))
    assert first.run() == 5
    ended = _ended(first.folder)
    assert ended["cause"] == "task 1 on c2: MemoryError"
    assert ended["tail"].splitlines() == [
        "task 1 on c2:", "theirs", "task 0 on c1:", "Error: the other side is gone"
    ]  # fmt: skip


def test_a_task_that_fails_alone_speaks_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _training(tmp_path, monkeypatch, "echo 'ValueError: mine'; exit 5", tasks=2)
    assert first.run() == 5
    ended = _ended(first.folder)
    assert ended["cause"] == "training ended with exit code 5: ValueError: mine"
    assert ended["failed_task"] == {"rank": 0, "node": "c1"} and ended["tail"] == "ValueError: mine"


def test_an_attempt_whose_job_slurm_started_again_elsewhere_ends_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtaken = _training(tmp_path, monkeypatch, "exec sleep 60")
    for attempt in ("7.0", "7.1"):  # of a node that was given up and still computes
        claims.claim(overtaken.folder, attempt)
    assert overtaken.run() == 1
    ended = _ended(overtaken.folder)
    assert (ended["end"], ended["cause"]) == ("lost", "a later attempt of this run has taken over")


def _training(runs: Path, monkeypatch: pytest.MonkeyPatch, shell: str, tasks: int = 1) -> Supervisor:
    """The first task's supervisor in this process, over a shell in place of Megatron."""
    monkeypatch.setattr(megatron, "child_argv", lambda *_: ["sh", "-c", shell])
    monkeypatch.setattr(megatron, "child_env", lambda *_: dict(os.environ))
    kept = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)}
    folder = folder_of(train(), runs)
    made = Supervisor(folder, train(), Task(0, tasks, 0, "7", 0, "c1"))
    run = made.run

    def and_put_back() -> int:
        try:
            return run()
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    monkeypatch.setattr(made, "run", and_put_back)
    return made


def _ended(folder: RunFolder) -> dict[str, Any]:
    (name,) = (n for n in announce.names(folder.announcements) if n.endswith("attempt-ended.json"))
    return announce.read(folder.announcements / name, os.getuid()).facts


# -- what an exit means -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "code", "asked", "ending"),
    [
        (train(), 0, None, Ending(0, "completed", Cause.COMPLETED)),
        (convert(), 0, None, Ending(0, "completed", Cause.COMPLETED)),
        (train(), 0, "cancelled", Ending(0, "cancelled", Cause.CANCELLED)),
        (train(), -signal.SIGTERM, "cancelled", Ending(0, "cancelled", Cause.CANCELLED)),
        (train(), -signal.SIGKILL, "cancelled", Ending(0, "cancelled", Cause.CANCELLED)),
        (train(), 1, "cancelled", Ending(1, "training ended with exit code 1: last words")),
        (train(), -signal.SIGSEGV, None, Ending(139, "training was killed by SIGSEGV: last words")),
        (train(), -signal.SIGTERM, None, Ending(143, "training was killed by SIGTERM: last words")),
        (train(), 78, None, Ending(78, "training ended with exit code 78: last words", Cause.REFUSED)),
        (convert(), 2, None, Ending(2, "the conversion ended with exit code 2: last words")),
        # Its time limit: it has saved, and is not done. SIGTERM comes too when it takes longer than it has.
        (train(), 0, "timeout", Ending(0, "timeout", Cause.TIME_LIMIT)),
        (train(), -signal.SIGUSR2, "timeout", Ending(0, "timeout", Cause.TIME_LIMIT)),
        (train(), -signal.SIGTERM, "timeout", Ending(0, "timeout", Cause.TIME_LIMIT)),
        (train(), 1, "timeout", Ending(1, "training ended with exit code 1: last words")),
        (convert(), -signal.SIGTERM, "timeout", Ending(0, "timeout", Cause.TIME_LIMIT)),
    ],
)
def test_an_exit_code_means_what_the_kind_of_work_makes_of_it(
    spec: TrainSpec | ConvertSpec, code: int, asked: str | None, ending: Ending
) -> None:
    assert ending_of(spec, code, asked=asked, stage=None, log="some\nlast words\n") == ending


@pytest.mark.parametrize("asked", [None, "cancelled", "timeout"])
def test_training_that_got_done_is_completed_whatever_was_asked_meanwhile(asked: str | None) -> None:
    assert ending_of(train(), 0, asked=asked, stage="done", log="") == Ending(0, "completed", Cause.COMPLETED)


@pytest.mark.parametrize(
    ("lines", "stage"),
    [
        ("", None),
        ('{"iteration": 1}\n{"stage": "done"}\n', "done"),
        ('{"stage": "done"}\n{"stage": "data"}\n', "data"),
        ('{"stage": "stopped"}\n', "stopped"),
        ('{"stage": "done"}\n{"sta', None),
        ('["done"]\n', None),
    ],
)
def test_the_stage_of_training_is_what_its_last_metrics_say(lines: str, stage: str | None, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert training_stage(folder, "7.0") is None
    folder.metrics.write_text("x" * 100_000 + "\n" + lines)
    assert training_stage(folder, "7.0") == stage


@pytest.mark.parametrize(
    ("progress", "stage"),
    [
        ({"attempt": "7.0", "phase": "stopped"}, "stopped"),
        ({"attempt": "7.0", "phase": "done"}, "done"),
        ({"attempt": "7.0", "phase": "training"}, "model"),
        ({"attempt": "6.0", "phase": "done"}, "model"),
    ],
)
def test_an_end_that_the_first_rank_has_seen_counts_when_the_metrics_come_late(
    progress: dict[str, str], stage: str, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"stage": "model"}\n')  # another node's last lines are not visible here yet
    folder.progress.write_text(json.dumps(progress))
    assert training_stage(folder, "7.0") == stage


def test_training_that_was_stopped_by_a_switch_was_cancelled() -> None:
    assert ending_of(train(), 0, asked=None, stage="stopped", log="") == Ending(0, "cancelled", Cause.CANCELLED)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ("a\n\n  b  \n\n", "b"),
        ("x\nValueError: wrong\nsee above\n", "ValueError: wrong"),
        ("error: one\nOSError: two\nbye", "OSError: two"),
        ("x" * 1000, "x" * 500),
    ],
)
def test_the_last_words_are_the_last_line_that_names_an_error(log: str, words: str) -> None:
    assert last_words(log) == words


def test_a_tail_is_bounded_and_survives_what_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(path) == ""
    path.write_bytes(b"\xff\n" + b"".join(b"line %d\n" % n for n in range(100)))
    assert tail(path).splitlines() == [f"line {n}" for n in range(75, 100)]
    path.write_bytes(b"\xe9" * 100_000)
    assert len(tail(path)) == 6000


def test_a_supervisor_without_a_readable_spec_ends_with_its_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launchers.supervisor", str(tmp_path)], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode != 0 and str(RunFolder(tmp_path).spec) in done.stderr
