"""An engine's life over real processes: watched, started again in place, drained, and what is said of it meanwhile."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from specs import folder_of, serve
from waiting import wait_for

from launchers import announce, child
from launchers import task as tasks
from launchers.announce import Announcement
from launchers.child import Ending
from launchers.restart import Cause
from launchers.run_folder import RunFolder
from launchers.spec import Environment
from launchers.task import Task
from launchers.told import Told
from launchers.vllm import adapters, life, probes, server, staging, watch, weights
from launchers.vllm.arguments import last
from launchers.vllm.endpoint import Endpoint
from launchers.vllm.life import Life
from launchers.voice import Voice

ENGINE = str(Path(__file__).with_name("stand_in_engine.py"))
RESOLVE = socket.getaddrinfo
ALONE = Task(0, 1, 0, "7", 0, "c1")
SECOND = Task(1, 2, 0, "7", 0, "c2")  # of two nodes


class Living:
    """One engine's life, in a thread."""

    def __init__(self, runs: Path, words: tuple[str, ...], task: Task, changed: dict[str, Any]) -> None:
        environment = Environment(kind="venv", python=sys.executable, command=("{python}", ENGINE))
        spec = serve(**{"shutdown_timeout_s": 1, "environment": environment, "engine_args": words, **changed})
        self.folder: RunFolder = folder_of(spec, runs)
        (self.folder.root / "code").symlink_to(ROOT)
        self.folder.rendezvous.mkdir()
        self.told = Told()
        self.voice = Voice(self.folder.announcements)
        self.life = Life(self.folder, spec, task, self.voice, self.told)
        self.ending: Ending | None = None
        self.raised: Exception | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.ending = self.life.run()
        except (OSError, ValueError, tasks.RendezvousError) as e:
            self.raised = e

    def said(self, kind: str) -> list[Announcement]:
        names = announce.names(self.folder.announcements)
        read = (announce.read(self.folder.announcements / name, os.getuid()) for name in names)
        return [a for a in read if a.kind == kind]

    def ready(self, times: int = 1) -> Announcement:
        return wait_for(lambda: (found := self.said("replica-ready"))[times - 1 :] and found)[times - 1]

    def end(self) -> Ending:
        self.thread.join(30)
        assert self.ending is not None
        return self.ending

    def refused(self) -> str:
        """Why it was not started, or not again."""
        self.thread.join(30)
        assert self.raised is not None
        return str(self.raised)

    def endpoint(self) -> Endpoint:
        assert self.life.endpoint is not None
        return self.life.endpoint


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Living]]:
    """Everything that takes its time takes less."""
    monkeypatch.setattr(life, "BACK_OFF_S", (0.1,))
    monkeypatch.setattr(life, "LOAD_S", 0.0)
    for name, seconds in (("TURN_S", 0.05), ("LOOK_S", 0.1), ("ANSWER_S", 1.0), ("PROBE_S", 0.2)):
        monkeypatch.setattr(watch, name, seconds)
    begun: list[Living] = []

    def live(*words: str, runs: Path = tmp_path, task: Task = ALONE, **changed: Any) -> Living:
        begun.append(Living(runs, words, task, changed))
        return begun[-1]

    yield live
    for one in begun:
        one.told.stop("cancelled", "the test is over")
        one.thread.join(30)
        assert not one.thread.is_alive()


def test_a_crashed_engine_is_started_again_behind_the_same_door(live: Callable[..., Living], tmp_path: Path) -> None:
    one = live("--leave-once", str(tmp_path / "leave"))
    first = one.ready()
    (tmp_path / "leave").touch()
    again = one.ready(2)
    (said,) = one.said("engine-restarting")
    assert said.facts == {
        "failure": "crashed", "cause": "the engine ended by itself with exit code 0: done here", "restarts": 1
    }  # fmt: skip
    assert first.name < said.name < again.name
    assert all(again.facts[name] == first.facts[name] for name in ("host", "port", "certificate"))
    assert probes.healthy(one.endpoint()) and one.endpoint().key == one.folder.secret.read_text()
    one.told.stop("cancelled", "cancelled")
    assert one.end() == Ending(0, "cancelled", Cause.CANCELLED)


def test_an_engine_that_keeps_crashing_is_given_up(live: Callable[..., Living], tmp_path: Path) -> None:
    one = live("--leave-when", str(tmp_path / "leave"), max_restarts=2)
    one.ready()
    (tmp_path / "leave").touch()
    ended = one.end()
    assert (ended.exit_code, ended.kind, ended.failure) == (1, Cause.CRASHED, "crashed")
    assert ended.cause.endswith(": done here; it was started again 2 times in 10 minutes")
    assert [a.facts["restarts"] for a in one.said("engine-restarting")] == [1, 2]


def test_an_engine_that_hangs_is_started_again(live: Callable[..., Living], tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    one = live("--hang-when", str(hang), hang_timeout_s=1)
    one.ready()
    hang.touch()
    (said,) = wait_for(lambda: one.said("engine-restarting"))
    assert said.facts["failure"] == "hung" and said.facts["cause"].startswith("the engine hangs: ")
    hang.unlink()
    one.ready(2)
    assert probes.proven(one.endpoint(), "generate", "chat") is not None


@pytest.fixture
def immortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Engines that no signal ends, as one that hangs in the kernel."""
    begin, begun = child.start, list[subprocess.Popen[bytes]]()

    def start(*asked: Any) -> subprocess.Popen[bytes]:
        begun.append(begin(*asked))
        return begun[-1]

    with monkeypatch.context() as m:
        m.setattr(child, "start", start)
        m.setattr(child, "KILLED_S", 0.5)
        m.setattr(os, "killpg", lambda *_: None)
        yield begun
    for engine in begun:
        engine.kill()
        engine.wait()


def test_an_engine_that_cannot_be_killed_is_its_nodes_failure_and_not_started_again(
    immortal: list[subprocess.Popen[bytes]], live: Callable[..., Living], tmp_path: Path
) -> None:
    hang = tmp_path / "hang"
    one = live("--hang-when", str(hang), hang_timeout_s=1)
    one.ready()
    hang.touch()
    ended = one.end()
    assert (ended.exit_code, ended.kind, ended.failure) == (1, Cause.CRASHED, "node")
    assert ended.cause.startswith("the engine hangs: ") and "cannot be killed" in ended.cause
    assert len(immortal) == 1 and one.said("engine-restarting") == []


def test_a_stop_is_heard_where_the_engine_cannot_be_killed(
    immortal: list[subprocess.Popen[bytes]], live: Callable[..., Living], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "GRACE_S", 0.0)
    one = live("--deaf", shutdown_timeout_s=0)
    one.ready()
    one.told.stop("cancelled", "cancelled")
    assert one.end() == Ending(0, "cancelled", Cause.CANCELLED)


@pytest.mark.parametrize(
    ("words", "kind"),
    [("CUDA out of memory", "out-of-memory"), ("CUDA error: misaligned address", "cuda"), ("what is it?", "crashed")],
)
def test_an_engine_that_never_was_ready_is_not_started_again(
    live: Callable[..., Living], words: str, kind: str
) -> None:
    one = live("--die", words)
    ended = one.end()
    assert ended.failure == kind and ended.cause == f"the engine ended with exit code 3: RuntimeError: {words}"
    assert one.said("engine-restarting") == []


def test_a_port_that_was_taken_meanwhile_is_changed(
    live: Callable[..., Living], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = tasks.free_port
    with socket.socket() as strangers:
        strangers.bind(("127.0.0.1", 0))
        strangers.listen()
        taken = int(strangers.getsockname()[1])
        ports = iter([taken])
        monkeypatch.setattr(tasks, "free_port", lambda host="": next(ports, None) or free(host))
        mint, minted = server.mint_endpoint, list[Endpoint]()

        def noted(*asked: Any) -> Endpoint:
            minted.append(mint(*asked))
            return minted[-1]

        monkeypatch.setattr(server, "mint_endpoint", noted)
        one = live()
        ready = one.ready()
    assert ready.facts["port"] != taken
    told, now = (endpoint.key for endpoint in minted)  # whoever has the port may have been told the first one
    assert one.folder.secret.read_text() == now != told
    assert [a.facts["failure"] for a in one.said("engine-restarting")] == ["port"]


def test_what_probes_took_is_said_at_the_end(live: Callable[..., Living]) -> None:
    one = live()
    one.ready()
    wait_for(lambda: one.folder.attempt_log("7.0", 0).read_text().count("asked for a token") >= 3)
    one.told.stop("cancelled", "cancelled")
    one.end()
    (told,) = one.said("probes")
    count = told.facts["count"]
    assert count >= 1
    assert told.facts["probe"] == {"prompt_tokens": 2 * count, "completion_tokens": count, "cached_tokens": 0}


def test_the_load_is_reported(live: Callable[..., Living]) -> None:
    one = live()
    says = json.loads(wait_for(lambda: one.folder.load.exists() and one.folder.load.read_text()))
    assert {k: says[k] for k in ("running", "waiting", "restarts")} == {"running": 2, "waiting": 0, "restarts": 0}
    assert {"kv_cache_usage", "generated_tokens", "at"} <= says.keys()


@pytest.mark.parametrize(
    ("asked", "why", "cause"),
    [("cancelled", "cancelled", Cause.CANCELLED), ("timeout", "time limit", Cause.TIME_LIMIT)],
)
def test_a_replica_says_that_it_drains_and_why(live: Callable[..., Living], asked: str, why: str, cause: Cause) -> None:
    one = live()
    one.ready()
    one.told.stop(asked, why)
    assert one.end() == Ending(0, asked, cause)
    assert [a.facts for a in one.said("replica-draining")] == [{"why": why}]


def test_at_its_time_limit_a_replica_says_that_it_drains_before_it_refuses_anybody(
    live: Callable[..., Living], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "HEARD_S", 600.0)
    one = live(shutdown_timeout_s=600)
    one.ready()
    one.told.stop("timeout", "time limit")
    wait_for(lambda: one.said("replica-draining"))
    assert probes.proven(one.endpoint(), "generate", "chat") is not None
    monkeypatch.setattr(life, "HEARD_S", 0.0)
    assert one.end() == Ending(0, "timeout", Cause.TIME_LIMIT)


def test_a_replica_is_stopped_alone_by_a_file(live: Callable[..., Living]) -> None:
    one = live()
    one.ready()
    (one.folder.switches / "stop").touch()
    assert one.end() == Ending(0, "cancelled", Cause.CANCELLED)
    assert [a.facts for a in one.said("replica-draining")] == [{"why": "asked"}]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a file to somebody else")
def test_a_replica_is_not_stopped_by_somebody_elses_file(live: Callable[..., Living], tmp_path: Path) -> None:
    one = live("--leave-once", str(tmp_path / "leave"))
    one.ready()
    theirs = one.folder.root / "theirs"
    theirs.touch()
    os.chown(theirs, 31337, -1)
    theirs.rename(one.folder.switches / "stop")
    (tmp_path / "leave").touch()
    one.ready(2)  # it was looked for before each start
    assert one.told.asked is None


def test_a_stop_is_heard_while_an_engine_is_about_to_be_started_again(
    live: Callable[..., Living], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "BACK_OFF_S", (600.0,))
    one = live("--leave-when", str(tmp_path / "leave"))
    one.ready()
    (tmp_path / "leave").touch()
    wait_for(lambda: one.said("engine-restarting"))
    one.told.stop("cancelled", "cancelled")
    assert one.end() == Ending(0, "cancelled", Cause.CANCELLED)


def test_a_disk_that_takes_nothing_does_not_end_an_engine(live: Callable[..., Living], tmp_path: Path) -> None:
    one = live("--leave-once", str(tmp_path / "leave"))
    one.ready()
    log = one.folder.attempt_log("7.0", 0)
    away = [(place, place.with_name(f"{place.name}-away")) for place in (one.folder.announcements, one.folder.logs)]
    for place, elsewhere in away:
        place.rename(elsewhere)
    (tmp_path / "leave").touch()
    wait_for(lambda: one.life.restarts == 1 and one.life.ready)  # it serves again, and cannot say so
    assert probes.healthy(one.endpoint())
    for place, elsewhere in away:
        elsewhere.rename(place)
    one.ready(2)
    assert [a.facts["restarts"] for a in one.said("engine-restarting")] == [1] and "done here" in log.read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no file system of our own to fill (needs root): {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_does_not_end_an_engine_and_what_happened_is_said_later(
    small_disk: Path, live: Callable[..., Living], tmp_path: Path
) -> None:
    one = live("--leave-once", str(tmp_path / "leave"), runs=small_disk)
    one.ready()
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as f:
        while True:
            f.write(bytes(4096))
    (tmp_path / "leave").touch()
    wait_for(lambda: one.life.restarts == 1 and one.life.ready)
    assert probes.proven(one.endpoint(), "generate", "chat") is not None
    assert len(one.said("replica-ready")) == 1
    filler.unlink()
    one.ready(2)
    one.told.stop("cancelled", "cancelled")
    assert one.end() == Ending(0, "cancelled", Cause.CANCELLED)
    assert [a.facts["restarts"] for a in one.said("engine-restarting")] == [1]


@pytest.mark.parametrize("runner", ["embed", "score"])
def test_an_engine_that_does_not_generate_is_proven_by_what_it_does(live: Callable[..., Living], runner: str) -> None:
    ready = live(runner=runner).ready()
    assert ready.facts["probe"] == {"prompt_tokens": 3, "completion_tokens": 0, "cached_tokens": 0}


def adapter(root: Path, name: str = "polite", rank: int = 8) -> str:
    """The directory of an adapter."""
    place = root / name
    place.mkdir()
    (place / "adapter_model.safetensors").touch()
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
    return str(place)


def test_adapters_are_there_before_a_replica_is_ready_and_follow_what_is_asked(
    live: Callable[..., Living], tmp_path: Path
) -> None:
    places = {name: adapter(tmp_path, name) for name in ("polite", "terse")}
    one = live(adapters={"polite": places["polite"]})
    ready = one.ready()
    (loaded,) = one.said("adapters-loaded")
    assert loaded.name < ready.name and loaded.facts == {"adapters": ["polite"], "problem": None}
    adapters.ask(one.folder, places | {"rude": "/nowhere"})
    wait_for(lambda: len(one.said("adapters-loaded")) == 2)
    told = one.said("adapters-loaded")[1].facts
    assert told["adapters"] == ["polite", "terse"] and "/nowhere" in told["problem"]
    adapters.ask(one.folder, {"terse": places["terse"]})
    wait_for(lambda: len(one.said("adapters-loaded")) == 3)
    assert one.said("adapters-loaded")[2].facts == {"adapters": ["terse"], "problem": None}


def test_an_engine_that_is_started_again_needs_only_the_adapters_that_are_wanted_by_then(
    live: Callable[..., Living], tmp_path: Path
) -> None:
    kept, dropped, large = (
        adapter(tmp_path, name, rank) for name, rank in (("kept", 8), ("dropped", 8), ("large", 64))
    )
    one = live("--leave-once", str(tmp_path / "leave"), adapters={"kept": kept, "dropped": dropped})
    one.ready()
    adapters.ask(one.folder, {"kept": kept, "large": large, "broken": "/nowhere"})
    wait_for(lambda: one.said("adapters-loaded")[-1].facts["adapters"] == ["kept", "large"])
    (Path(dropped) / "adapter_model.safetensors").unlink()
    (tmp_path / "leave").touch()
    one.ready(2)
    assert one.said("adapters-loaded")[-1].facts["adapters"] == ["kept", "large"]
    ours = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline", "ppid"]) if p.info["ppid"] == os.getpid()]
    (words,) = [words for words in ours if any(str(tmp_path) in word for word in words)]
    assert last(words, "--max-lora-rank") == "64"


def test_a_new_engine_without_its_adapters_is_no_replica(
    live: Callable[..., Living], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "engine_args", lambda _: ())
    ended = live(adapters={"rude": "/nowhere"}).end()
    assert ended.failure == "bad-model" and "/nowhere" in ended.cause


def test_a_model_that_nobody_vouched_for_is_looked_at_again_before_each_start(
    live: Callable[..., Living], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").touch()
    (model / "config.json").write_text("{}")
    one = live("--leave-once", str(tmp_path / "leave"), model_path=str(model), safetensors_only=True)
    one.ready()
    (model / "config.json").write_text('{"speculators_config": {"verifier": {"name_or_path": "/models/bobs"}}}')
    (tmp_path / "leave").touch()
    assert "has speculators_config" in one.refused() and len(one.said("replica-ready")) == 1
    again = live(runs=tmp_path / "again", model_path=str(model), safetensors_only=True)
    assert "has speculators_config" in again.refused() and not again.said("replica-ready")


@pytest.mark.parametrize("lost", [errno.ESTALE, errno.ESHUTDOWN, errno.ENOTCONN])
def test_a_file_system_that_its_node_has_lost_is_the_nodes_failure_from_the_start(
    live: Callable[..., Living], monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    def away(path: Path) -> None:
        raise OSError(lost, os.strerror(lost), str(path))

    monkeypatch.setattr(weights, "check", away)
    ended = live(safetensors_only=True).end()
    assert (ended.exit_code, ended.kind, ended.failure) == (1, Cause.CRASHED, "node")
    assert os.strerror(lost) in ended.cause


def away(host: str, *asked: Any, **more: Any) -> Any:
    """A name service that knows no name."""
    if host[0].isdigit():
        return RESOLVE(host, *asked, **more)
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def test_a_host_whose_own_name_does_not_resolve_announces_an_address_that_others_reach(
    live: Callable[..., Living], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", away)
    monkeypatch.setattr(tasks, "_address_towards", lambda _: "10.0.0.7")
    assert live(listen="0.0.0.0").ready().facts["host"] == "10.0.0.7"


def test_a_host_that_nobody_else_reaches_is_the_nodes_failure(
    live: Callable[..., Living], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", away)
    monkeypatch.setattr(tasks, "_address_towards", lambda _: "127.0.0.1")
    ended = live(listen="0.0.0.0").end()
    assert ended.failure == "node" and "does not resolve" in ended.cause


@pytest.mark.parametrize("tls", [True, False])
def test_a_name_service_that_is_away_does_not_make_an_engine_hang(
    live: Callable[..., Living], monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    one = live(listen="0.0.0.0", tls=tls, hang_timeout_s=1)
    assert one.ready().facts["host"] == "localhost"
    monkeypatch.setattr(socket, "getaddrinfo", away)

    def proven() -> int:
        return one.folder.attempt_log("7.0", 0).read_text().count("asked for a token")

    before = proven()
    wait_for(lambda: proven() >= before + 3)
    assert one.said("engine-restarting") == []


def test_a_new_engine_whose_adapters_cannot_be_read_now_is_ready_once_they_can(
    live: Callable[..., Living], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, tries = adapters.rank_of, list[Path]()

    def away(directory: Path) -> int:
        tries.append(directory)
        if len(tries) < 4:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(directory)

    monkeypatch.setattr(adapters, "engine_args", lambda _: ())
    monkeypatch.setattr(adapters, "rank_of", away)
    one = live(adapters={"polite": adapter(tmp_path)})
    one.ready()
    assert one.said("adapters-loaded")[0].facts == {"adapters": ["polite"], "problem": None}


def test_a_ready_engine_is_given_later_what_cannot_be_read_now(
    live: Callable[..., Living], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = live(hang_timeout_s=30)
    one.ready()
    read = adapters.rank_of

    def away(directory: Path) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(watch, "AGAIN_S", -60.0)
    monkeypatch.setattr(adapters, "rank_of", away)
    adapters.ask(one.folder, {"polite": adapter(tmp_path)})
    wait_for(lambda: one.said("adapters-loaded"))
    monkeypatch.setattr(adapters, "rank_of", read)
    wait_for(lambda: one.said("adapters-loaded")[-1].facts == {"adapters": ["polite"], "problem": None})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_watch_that_dies_is_noticed(
    live: Callable[..., Living], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("nobody thought of this")

    one = live(max_restarts=0)
    one.ready()
    monkeypatch.setattr(adapters, "change", broken)
    adapters.ask(one.folder, {"polite": adapter(tmp_path)})
    ended = one.end()
    assert ended.failure == "hung" and "not watched any more" in ended.cause


def test_nodes_meet_when_each_has_its_copy(live: Callable[..., Living], monkeypatch: pytest.MonkeyPatch) -> None:
    def meet(*_: object) -> tuple[str, int]:
        raise tasks.RendezvousError("they would meet now")

    monkeypatch.setattr(tasks, "meet", meet)
    one = live(task=SECOND)
    wait_for((one.folder.rendezvous / "7.0.staged-1").exists)
    assert one.thread.is_alive()
    (one.folder.rendezvous / "7.0.staged-0").touch()
    assert one.refused() == "they would meet now"


def test_a_node_that_waits_for_anothers_copy_hears_that_it_is_to_stop(live: Callable[..., Living]) -> None:
    one = live(task=SECOND)
    wait_for((one.folder.rendezvous / "7.0.staged-1").exists)
    one.told.stop("cancelled", "cancelled")
    assert one.end() == Ending(0, "cancelled", Cause.CANCELLED)


def test_a_node_that_copies_gives_up_when_another_one_has_failed(live: Callable[..., Living], tmp_path: Path) -> None:
    model, stage = tmp_path / "model", tmp_path / "stage"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    stage.mkdir(mode=0o700)
    with (stage / staging.MAKING).open("w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)  # somebody else copies, for long
        one = live(task=SECOND, model_path=str(model), stage_dir=str(stage))
        tasks.mark_failed(one.folder.failure("7.0"), tasks.Failure(0, "c1", "its GPU is gone", ""))
        assert one.end() == Ending(1, "another task of this job died")
