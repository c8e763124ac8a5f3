"""An engine's life in its job: started, proven, watched, started again in place, drained."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from queue import Empty

from launchers import child, claims
from launchers import task as tasks
from launchers.child import Ending
from launchers.environment import child_env
from launchers.restart import Cause
from launchers.run_folder import RunFolder
from launchers.spec import ServeSpec
from launchers.task import Task
from launchers.told import Told
from launchers.vllm import adapters, multi_node, server, staging, weights
from launchers.vllm.endpoint import Endpoint
from launchers.vllm.failures import Failure, Kind, Policy, classify, policy
from launchers.vllm.watch import AdaptersChanged, Event, Hung, NotLoaded, Ready, Watch
from launchers.voice import Voice

POLL_S = 0.2
LOOK_S = 1.0  # between two looks into the run folder, which is on a shared file system
LOAD_S = 10.0  # between two reports of load
PROBES_S = 600.0  # between two reports of what probes took
BACK_OFF_S = (1.0, 5.0, 20.0)  # before the first, second, ... restart of late
LATE_S = 600.0  # of late: in these last seconds
HEARD_S = 2.0  # from the word of a coming end to its beginning, so that gateways hear of it: there is time for both
GRACE_S = 10.0  # beyond the engine's own shutdown timeout, before it is killed
LOG_LINES, LOG_BYTES = 1000, 256 << 10  # of an engine's output that is searched for a cause
# What the shared file system, or this node's view of it, is to blame for: elsewhere the same may work.
OF_THE_NODE = (
    *(errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EAGAIN),
    *(errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EREMOTEIO, errno.ENODEV),  # it is gone
)


class Life:
    """Of one task's engine, or of its part of one that spans nodes. The first task watches, and speaks for all."""

    def __init__(self, folder: RunFolder, spec: ServeSpec, task: Task, voice: Voice, told: Told) -> None:
        self.folder, self.spec, self.task, self.voice, self.told = folder, spec, task, voice, told
        self.log = folder.attempt_log(task.attempt, task.rank)
        self.endpoint: Endpoint | None = None
        self.restarts = 0
        self._of_late: deque[float] = deque()
        self.ready = self._was_ready = self._draining = False
        self._over_already: Ending | None = None  # before its engine was started
        self._forwarded = False
        self._seen_at = self._beat_at = self._load_at = -math.inf
        self._probes_at = time.monotonic()

    @property
    def first(self) -> bool:
        return self.task.rank == 0

    def run(self) -> Ending:
        """To its end. Raises OSError, ValueError, RendezvousError for what cannot be started at all."""
        try:
            _check_weights(self.spec)  # before a copy is made, which has no links
            with staging.staged(self.spec, self._note, self._gives_up) as path:
                over = self._over_already or (self._all_staged() if self.task.tasks > 1 else None)
                return over or self._live(dataclasses.replace(self.spec, model_path=path))
        except OSError as e:
            if e.errno not in OF_THE_NODE:
                raise
            return self._as_asked() or Ending(1, str(e), Cause.CRASHED, Kind.NODE)
        finally:
            if self.first:
                server.forget(self.folder, self.task.attempt)
                if self.task.tasks > 1:
                    with contextlib.suppress(OSError):
                        self._over.touch()

    def _live(self, spec: ServeSpec) -> Ending:
        while True:
            began = child.size(self.log)
            if (over := self._look() or self._as_asked()) is not None:
                return over
            found = self._once(spec, began)
            if isinstance(found, Ending):
                return found
            if (over := self._as_asked()) is not None:
                return over
            if (why_not := self._no_restart(found)) is not None:
                return Ending(found.exit_code, found.words + why_not, Cause.CRASHED, found.kind)
            if (over := self._restart(found)) is not None:
                return over

    def _no_restart(self, failure: Failure) -> str | None:
        """What to add to the cause of the end; None when the engine is to be started again in place."""
        if policy(failure.kind, self._was_ready) is not Policy.IN_PLACE or self.task.tasks > 1:
            return ""
        now = time.monotonic()
        while self._of_late and now - self._of_late[0] > LATE_S:
            self._of_late.popleft()
        if len(self._of_late) >= self.spec.max_restarts:
            times = f"{len(self._of_late)} times" if len(self._of_late) != 1 else "once"
            return f"; it was started again {times} in {LATE_S / 60:.0f} minutes" if self._of_late else ""
        return None

    def _restart(self, failure: Failure) -> Ending | None:
        pause_s = BACK_OFF_S[min(len(self._of_late), len(BACK_OFF_S) - 1)]
        self._of_late.append(time.monotonic())
        self.ready = False
        self.restarts += 1
        self.voice.say("engine-restarting", failure=failure.kind, cause=failure.words, restarts=self.restarts)
        self._note(f"{failure.words}: it is started again in {pause_s:.0f} s")
        if failure.kind is Kind.PORT:
            self.endpoint = None  # whoever took the port may have been told the key
        until = time.monotonic() + pause_s
        while time.monotonic() < until:
            time.sleep(POLL_S)
            if (over := self._look() or self._as_asked()) is not None:
                return over
        return None

    def _once(self, spec: ServeSpec, began: int) -> Ending | Failure:
        """One engine, from its start to its end; `began`: the size of the log at its start."""
        self.ready = False
        engine = self._start(spec)
        watch = None
        try:
            if self.endpoint is not None:
                watch = Watch(self.endpoint, spec, lambda: adapters.wanted(self.folder))
            found = self._watch(engine, watch, began)
        finally:
            if watch is not None:
                watch.stop()
            gone = child.kill_group(engine)
            if watch is not None:
                watch.join()  # the next engine is forked with no thread about
                self._tell_probes(watch)
        if gone or isinstance(found, Ending):
            return found
        return Failure(Kind.NODE, f"{found.words}; it cannot be killed, because it hangs in the kernel")

    def _start(self, spec: ServeSpec) -> subprocess.Popen[bytes]:
        task = self.task
        _check_weights(spec)
        spec = adapters.renewed(spec, self.folder)
        env = child_env(os.environ, spec.environment, self.folder.code, spec.resources.cpus_per_task)
        env.update(adapters.env(spec))
        port = tasks.free_port(spec.listen)
        if self.first:
            if self.endpoint is None:
                self.endpoint = server.mint_endpoint(self.folder, spec, task.attempt, port)
            port = self.endpoint.port
            env.update(server.closing_env(self.endpoint.key))
        if task.tasks > 1:
            place = tasks.meet(self.folder.rendezvous, task)
            env.update(multi_node.env(spec, task, place))
            command = multi_node.argv(spec, port, self.folder, task, place)
        else:
            command = server.argv(spec, port, self.folder, task)
        return child.start(command, env, self.log)

    def _watch(self, engine: subprocess.Popen[bytes], watch: Watch | None, began: int) -> Ending | Failure:
        until = time.monotonic() + self.spec.start_timeout_s
        while True:
            try:
                code = engine.wait(POLL_S)
            except subprocess.TimeoutExpired:
                code = None
            if code is not None:
                if (over := self._as_asked()) is not None:
                    return over
                return classify(code, child.tail(self.log, LOG_LINES, LOG_BYTES, began), self.ready)
            if (over := self._look()) is not None:
                return over
            if (over := self._pass_on(engine, watch)) is not None:
                return over
            if watch is None or self._draining:
                continue
            if (failure := self._hear(watch)) is not None:
                return failure
            if not self.ready and time.monotonic() > until:
                words = f"the engine was not ready after {self.spec.start_timeout_s} s"
                return Failure(Kind.NEVER_READY, words)
            self._report(watch)

    def _look(self) -> Ending | None:
        """Show that we live, and see what the run folder says: another task died, or we are to stop."""
        self.voice.retry()
        now = time.monotonic()
        if self.first and now - self._beat_at >= claims.BEAT_S:
            self._beat_at = now
            claims.show_alive(self.folder, self.task.attempt)
            if claims.superseded(self.folder, self.task.attempt):
                return Ending(1, "a later attempt of this run has taken over", Cause.LOST)
        if now - self._seen_at < LOOK_S:
            return None
        self._seen_at = now
        with contextlib.suppress(OSError):
            if tasks.read_failure(self.folder.failure(self.task.attempt)) is not None:
                return Ending(1, "another task of this job died")
            if self._switched_off():
                self.told.stop("cancelled", "asked")
        return None

    def _pass_on(self, engine: subprocess.Popen[bytes], watch: Watch | None) -> Ending | None:
        """A request to stop: said, then passed on to the engine, which finishes what it has; over after its grace."""
        since = self.told.stopping_since
        if since is None:
            return None
        if not self._draining:
            self._draining = True
            if watch is not None:
                watch.stop()  # what it finds now is a draining engine's
            if self.ready and self.first:
                self.voice.say("replica-draining", why=self.told.why)
        waited = time.monotonic() - since
        if not self._forwarded and self._may_end(waited):
            self._forwarded = True
            engine.terminate()
        return self._as_asked() if waited > self.spec.shutdown_timeout_s + GRACE_S else None

    def _may_end(self, waited: float) -> bool:
        """Whether the engine is to hear of it now, `waited` seconds after we did."""
        if self.first:
            return self.told.asked != "timeout" or not self.ready or waited >= HEARD_S
        # The parts of an engine that have no front are needed until the front has finished.
        return os.path.lexists(self._over) or waited > self.spec.shutdown_timeout_s

    def _hear(self, watch: Watch) -> Failure | None:
        with contextlib.suppress(Empty):
            while True:
                if (failure := self._take(watch.events.get_nowait())) is not None:
                    return failure
        return None

    def _take(self, event: Event) -> Failure | None:
        match event:
            case Ready():
                self._announce_ready(event)
            case AdaptersChanged():
                self.voice.say("adapters-loaded", adapters=list(event.names), problem=event.problem)
            case NotLoaded():
                kind = classify(1, event.problem, was_ready=False).kind
                return Failure(Kind.BAD_MODEL if kind is Kind.CRASHED else kind, event.problem)
            case Hung():
                return Failure(Kind.HUNG, f"the engine hangs: {event.problem}")
        return None

    def _announce_ready(self, ready: Ready) -> None:
        assert self.endpoint is not None
        if ready.adapters or ready.problem:  # before it gets calls for them
            self.voice.say("adapters-loaded", adapters=list(ready.adapters), problem=ready.problem)
        self.voice.say(
            "replica-ready",
            host=self.endpoint.host,
            port=self.endpoint.port,
            served_name=self.spec.name,
            start_s=round(ready.after_s, 1),
            context_tokens=ready.context_tokens,
            certificate=self.endpoint.certificate,
            probe=dataclasses.asdict(ready.probe),
        )
        self.ready = self._was_ready = True

    def _report(self, watch: Watch) -> None:
        now = time.monotonic()
        if now - self._probes_at >= PROBES_S:
            self._tell_probes(watch)
        if watch.load is None or now - self._load_at < LOAD_S:
            return
        self._load_at = now
        says = {
            "running": watch.load.running,
            "waiting": watch.load.waiting,
            "kv_cache_usage": watch.load.kv_cache_usage,
            "generated_tokens": watch.load.generated_tokens,
            "restarts": self.restarts,
            "at": time.time(),
        }
        with contextlib.suppress(OSError):  # the next report says more
            temporary = self.folder.load.with_name(f".{self.folder.load.name}.{os.getpid()}")
            temporary.write_text(json.dumps(says), encoding="utf-8")
            os.rename(temporary, self.folder.load)

    def _tell_probes(self, watch: Watch) -> None:
        self._probes_at = time.monotonic()
        took, count = watch.used()
        if count:
            self.voice.say("probes", probe=dataclasses.asdict(took), count=count)

    def _as_asked(self) -> Ending | None:
        """How it ended where somebody asked for it, whatever became of the engine meanwhile."""
        if (asked := self.told.asked) is None:
            return None
        return Ending(0, asked, Cause.TIME_LIMIT if asked == "timeout" else Cause.CANCELLED)

    def _gives_up(self) -> bool:
        self._over_already = self._look()
        return self._over_already is not None or self.told.asked is not None

    def _all_staged(self) -> Ending | None:
        """Wait for the other nodes' copies: where they meet, nobody waits for as long as a large one may take."""
        marks = [self.folder.rendezvous / f"{self.task.attempt}.staged-{rank}" for rank in range(self.task.tasks)]
        while not all(map(os.path.lexists, marks)):
            with contextlib.suppress(OSError):
                marks[self.task.rank].touch()
            if (over := self._look() or self._as_asked()) is not None:
                return over
            time.sleep(POLL_S)
        return None

    def _switched_off(self) -> bool:
        """By us: the folder may be open to a group, which may not stop what others are served by."""
        try:
            return (self.folder.switches / "stop").lstat().st_uid == os.getuid()
        except OSError:
            return False

    @property
    def _over(self) -> Path:
        """That the first task's engine has ended."""
        return self.folder.rendezvous / f"{self.task.attempt}.over"

    def _note(self, words: str) -> None:
        """For whoever reads the job's own output."""
        with contextlib.suppress(OSError):
            sys.stderr.write(f"supervisor: {words}\n")
            sys.stderr.flush()


def _check_weights(spec: ServeSpec) -> None:
    """Again: whoever published the model may have changed it since it was asked for. Raises as weights.check does."""
    if spec.safetensors_only:
        weights.check(Path(spec.model_path))
