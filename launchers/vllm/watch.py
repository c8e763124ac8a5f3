"""Whether an engine is ready, and afterwards whether it still works: asked in threads, so that signals are heard.

Ready means that /health answered, that the engine then did a little of what it is for, and that its adapters are
loaded: an engine with an unsupported attention shape answers /health and dies at the first token. It works while its
counters of tokens grow; while nobody uses it, a probe must be answered now and then.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launchers.spec import ServeSpec
from launchers.vllm import adapters, probes
from launchers.vllm.endpoint import Endpoint
from launchers.vllm.probes import NOTHING, Load, Probe

ASK_S = 0.5  # between two questions to an engine that starts
TURN_S = 1.0  # between two looks for changed adapters
LOOK_S = 5.0  # between two looks at /health and /metrics
ANSWER_S = 5.0  # for each of these
AGAIN_S = 60.0  # and twice the hang's timeout, before adapters that got no answer are tried again
PROBE_S = 30.0  # without a sign of work before a probe is sent
ASLEEP_S = 30.0  # a watch that slept for so much longer than it meant to was stopped, and its engine with it


@dataclass(frozen=True, slots=True)
class Ready:
    after_s: float
    context_tokens: int | None
    probe: Probe
    adapters: tuple[str, ...]  # that it has
    problem: str | None  # why those are not all that were asked for since it was launched


@dataclass(frozen=True, slots=True)
class AdaptersChanged:
    names: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """A new engine has refused the adapters that its deployment is made of; why, in words."""

    problem: str


@dataclass(frozen=True, slots=True)
class Hung:
    problem: str


Event = Ready | AdaptersChanged | NotLoaded | Hung
Wanted = Callable[[], Mapping[str, str] | None]  # launchers.vllm.adapters.wanted; raises ValueError, OSError


class Pulse:
    """When an engine is taken to hang. Pure: told what was seen, by a monotonic clock in seconds."""

    def __init__(self, now: float, hang_timeout_s: float) -> None:
        self._timeout_s = hang_timeout_s
        self._worked_at = self._healthy_at = now
        self._asked_at: float | None = None  # the first probe since it last worked
        self._counted: int | None = None
        self._cached: float | None = None
        self._looked_at = now

    def saw(self, now: float, healthy: bool, tokens: int | None, kv_cache_usage: float | None = None) -> None:
        """`tokens`: read and generated since the engine's start; None: it did not say.

        They count a prompt only when all of it is read; while a long one is, the cache fills.
        """
        if now - self._looked_at > ASLEEP_S + LOOK_S:
            self._healthy_at, self._asked_at = now, None  # the job was suspended, and the engine too
        self._looked_at = now
        if healthy:
            self._healthy_at = now
        if tokens is not None:
            if self._counted is not None and tokens > self._counted:
                self.worked(now)
            self._counted = tokens
        if kv_cache_usage is not None:
            if self._cached is not None and kv_cache_usage != self._cached:
                self.worked(now)
            self._cached = kv_cache_usage

    def worked(self, now: float) -> None:
        self._worked_at, self._asked_at = now, None

    def asked(self, now: float) -> None:
        """A probe was sent."""
        if self._asked_at is None:
            self._asked_at = now

    def wants_probe(self, now: float) -> bool:
        return now - self._worked_at >= PROBE_S

    def hangs(self, now: float) -> str | None:
        """Why it is taken to hang, in words."""
        if now - self._healthy_at >= self._timeout_s:
            return f"its /health has not answered for {now - self._healthy_at:.0f} s"
        if self._asked_at is not None and now - self._asked_at >= self._timeout_s:
            return f"a probe has waited for {now - self._asked_at:.0f} s, and nothing was generated meanwhile"
        return None


class Watch:
    """Watches one engine from its start on. What it finds is in `events`; `load` is the latest."""

    def __init__(
        self, endpoint: Endpoint, spec: ServeSpec, wanted: Wanted, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.load: Load | None = None
        self._endpoint, self._spec, self._wanted, self._clock = endpoint, spec, wanted, clock
        self._asked: Mapping[str, str] = {}  # adapters
        self._has = adapters.Loaded({})
        self._again_at = math.inf
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._used, self._count = NOTHING, 0
        self._probing: threading.Thread | None = None
        self._watching = threading.Thread(target=self._run, name="watch", daemon=True)
        self._watching.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self) -> None:
        """Wait for what was asked last. A dead engine's questions end at once; nothing else is waited for long."""
        for thread in (self._watching, self._probing):
            if thread is not None:
                thread.join(ANSWER_S)

    def used(self) -> tuple[Probe, int]:
        """What the probes took since the last time, and how many there were. Those before it was ready are Ready's."""
        with self._lock:
            taken, self._used, self._count = (self._used, self._count), NOTHING, 0
        return taken

    def _run(self) -> None:
        last: NotLoaded | Hung | None = Hung("it is not watched any more")  # a watch must not end unheard
        try:
            last = self._watch()
        finally:
            if last is not None and not self._stop.is_set():
                self.events.put(last)

    def _watch(self) -> NotLoaded | Hung | None:
        """The last that there is to say of this engine; None where it was told to stop."""
        if (refused := self._until_ready()) is not None:
            return refused
        pulse, looked = Pulse(self._clock(), self._spec.hang_timeout_s), 0.0
        while not self._stop.wait(TURN_S):
            wanted = self._asked if (told := self._asked_for()) is None else told
            if wanted != self._asked or self._clock() >= self._again_at:
                self._change_to(wanted)
                self.events.put(AdaptersChanged(tuple(sorted(self._has.adapters)), self._has.problem))
            if self._clock() - looked < LOOK_S:
                continue
            looked = self._clock()
            self._look(pulse)
            if (problem := pulse.hangs(self._clock())) is not None:
                return Hung(problem)
        return None

    def _until_ready(self) -> NotLoaded | None:
        began = self._clock()
        while not self._stop.wait(ASK_S):
            if not probes.healthy(self._endpoint):
                continue
            probe = probes.proven(self._endpoint, self._spec.runner, self._spec.name)
            if probe is None:
                continue
            asked = self._asked_for()
            self._change_to(self._spec.adapters if asked is None else asked)
            if (self._asked.keys() & self._spec.adapters.keys()) - self._has.adapters.keys():
                if self._has.again:
                    continue  # until its start has taken too long
                return NotLoaded(self._has.problem or "its adapters are not loaded")
            names = tuple(sorted(self._has.adapters))
            context = probes.context_tokens(self._endpoint)
            self.events.put(Ready(self._clock() - began, context, probe, names, self._has.problem))
            return None
        return None

    def _change_to(self, wanted: Mapping[str, str]) -> None:
        """What is refused is not tried again until others are wanted. What is not answered is: so much later that a
        hang is noticed meanwhile."""
        self._asked = dict(wanted)
        self._has = adapters.change(self._endpoint, self._has.adapters, wanted)
        self._again_at = self._clock() + AGAIN_S + 2 * self._spec.hang_timeout_s if self._has.again else math.inf

    def _look(self, pulse: Pulse) -> None:
        healthy, seen = probes.healthy(self._endpoint, ANSWER_S), probes.load(self._endpoint, ANSWER_S)
        self.load = seen or self.load
        now = self._clock()
        if seen is None:
            pulse.saw(now, healthy, None)
        else:
            pulse.saw(now, healthy, seen.prompt_tokens + seen.generated_tokens, seen.kv_cache_usage)
        if pulse.wants_probe(now) and (self._probing is None or not self._probing.is_alive()):
            pulse.asked(now)
            self._probing = threading.Thread(target=self._probe, args=(pulse,), name="probe", daemon=True)
            self._probing.start()

    def _probe(self, pulse: Pulse) -> None:
        """In a thread of its own: it may wait for long behind others, whose tokens are then the sign of life."""
        took = probes.proven(self._endpoint, self._spec.runner, self._spec.name, self._spec.hang_timeout_s)
        if took is not None:
            with self._lock:
                self._used, self._count = self._used + took, self._count + 1
            pulse.worked(self._clock())

    def _asked_for(self) -> Mapping[str, str] | None:
        try:
            return self._wanted()
        except (OSError, ValueError):
            return None  # not to be read now, or not ours: it is as it was
