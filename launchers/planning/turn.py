"""One decision in the making: what is left of the replicas as actions are decided on, one concern after another."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

from launchers.planning import crashes, maintenance, rollover, scale
from launchers.planning.crashes import Losses
from launchers.planning.explain import whole_outage
from launchers.planning.facts import (
    Action,
    Cluster,
    Drain,
    EndTrial,
    Had,
    Maintenance,
    Scale,
    SetState,
    Settle,
    Shorten,
    Situation,
    StartReplica,
    Stop,
    Warn,
)
from launchers.planning.fleet import DRAINING, PENDING, READY, Fleet
from launchers.planning.rollout import Course
from launchers.planning.scale import Size
from registry.deployments import DeploymentState


class Turn:
    """`slots` are the replicas that come or serve and are to stay, each with its successor as one."""

    def __init__(
        self,
        s: Situation,
        cluster: Cluster,
        fleet: Fleet,
        size: Size,
        course: Course,
        newest: Losses,
        base: Losses,
        spare: Losses,
    ) -> None:
        self.s, self.cluster, self.fleet = s, cluster, fleet
        self.size, self.course = size, course
        # Losses of the revision wanted, of the one that fills up, and of that one's preemptible replicas.
        self.newest, self.base, self.spare = newest, base, spare
        self.actions: list[Action] = []
        self.slots = fleet.slots
        self.ready = len(fleet.ready)
        self.preemptible = s.wanted.rules.overflow and s.wanted.least == 0  # the kind that is started first
        self.windows = maintenance.ahead(s, cluster, self.preemptible)
        self.spare_windows = self.windows
        if s.wanted.rules.overflow and not self.preemptible:
            self.spare_windows = maintenance.ahead(s, cluster, True)
        self.ending: list[tuple[Had, str]] = []  # replicas that need a successor, and why
        self.missing = 0  # replicas that are wanted and not started now,
        self.short_of = self.preemptible  # and whether the next of them is a preemptible one
        self.started = 0
        self.stopped: set[str] = set()

    def waits(self, overflow: bool) -> Had | None:
        """A replica of this kind that Slurm cannot start now, and says why: it would not start another one either. The
        one on trial may ask for something else."""
        return next(
            (
                r
                for r in self.fleet.pending
                if r.waiting_reason and r.overflow == overflow and r.id not in self.stopped and not self._on_trial(r)
            ),
            None,
        )

    def losses(self, overflow: bool) -> Losses:
        return self.spare if overflow else self.base

    def note_size(self) -> None:
        w, size = self.s.wanted, self.size
        if size.count != (w.least if w.desired is None else w.desired):
            self.actions.append(Scale(w.name, size.count, size.low_since, scale.words(self.s, size)))
        elif size.low_since != w.low_since:
            self.actions.append(Scale(w.name, size.count, size.low_since, ""))

    def wind_down(self) -> None:
        """What belongs to a former deployment, drains already, or would serve a revision that nobody wants."""
        s, fleet = self.s, self.fleet
        if fleet.former or fleet.draining:
            self.actions += wind_down(s, fleet.former, "it is a former deployment's")
            self.actions += wind_down(s, fleet.draining, "")
        if self._outdated():
            for r in [r for r in self._outdated() if r.state is not READY]:
                self._take_away(r, f"revision {r.revision} is not wanted any more")

    def hand_over(self) -> None:
        """A replica whose successor serves drains; one whose job ends drains in any case while there is time."""
        s, successors, soon = self.s, self.fleet.successors, rollover.soon(self.s)
        if not (successors or self.cluster.leaving or any(r.ends_at and r.ends_at < soon for r in self.slots)):
            return
        looked_at = list(self.slots)
        for r in looked_at:
            successor = successors.get(r.id)
            if successor is not None and successor.state is READY:
                self._take_away(r, f"succeeded by {successor.id}")
                looked_at.append(successor)
                continue
            if r.ends_at is not None and r.state is READY and s.now >= (rollover.last_moment(s, r) or 0.0):
                self._take_away(r, "its job ends before another replica is ready", keep_successor=True)
            elif successor is None and (why := rollover.ending(s, self.cluster, r)):
                self.ending.append((r, why))
            elif successor is not None and successor.state is PENDING and rollover.unneeded(s, self.cluster, r):
                self._stop(successor, f"{r.id} need not be succeeded any more")
                del self.fleet.successors[r.id]

    def let_go(self) -> None:
        """What is more than wanted: old revisions first, then preemptible ones, and never below what is wanted."""
        count = self.size.count
        if count == 0:
            # What still comes up when nobody calls any more goes on: it is not asked to queue a second time.
            for r in [r for r in self.slots if r.state is READY]:
                self._take_away(r, scale.words(self.s, self.size))
            return
        allowed = count + self._beside()
        if len(self.slots) <= allowed:
            return
        outdated = self._outdated()
        for r in _expendable(outdated)[: len(self.slots) - allowed]:
            if self.ready > count:
                self._take_away(r, f"revision {self.course.base} serves in its place")
        kept = [r for r in self.slots if r.revision in self.course.kept or self.s.wanted.paused]
        for _, job in itertools.groupby(_expendable(kept), key=_job):
            going = list(job)[: max(len(kept) - allowed, 0)]
            serve = sum(r.state is READY for r in going)
            if serve and self.ready - serve < count:
                continue  # until others of the job that stays do
            for r in filter(self._may_go, going):
                self._take_away(r, f"{count} {_are(count)} wanted")
                kept.remove(r)

    def fill_up(self) -> None:
        """What is missing, and one beyond while a revision takes over or a guaranteed replica is to replace another."""
        count = self.size.count
        kept = [r for r in self.slots if not self._on_trial(r)]
        places = count - len(self.slots) + self._beside()
        self.missing = max(places, 0)
        while self.missing > 0:
            guaranteed = self._guaranteed(kept)
            self.short_of = self.s.wanted.rules.overflow and not guaranteed
            losses, least = self.losses(self.short_of), guaranteed or not (kept or self.started)
            if self.s.now < losses.retry_at or (losses.too_many and self.started):
                break
            if self.waits(self.short_of) is not None and not least:
                break
            self._start(self.course.base, f"{count} {_are(count)} wanted", guaranteed)
            self.missing -= 1
        if count and (places == 0 or (self._trial_place() and (self.started or not self.ready))):
            self._surge()
        elif self.started and not self._outdated():
            self._guarantee()

    def replace_in_time(self) -> None:
        """Successors of what ends or must leave, one each, in the queue early enough to serve by then."""
        if not self.size.count:
            return
        stays = {r.id for r in self.slots}
        for r, why in self.ending:
            if r.id in stays and self.s.now >= self.losses(r.overflow).succeed_at:
                revision = r.revision if r.revision in self.course.kept else self.course.base
                self._start(revision, f"{r.id} is succeeded: {why}", not r.overflow, replaces=r.id)

    def make_way(self) -> None:
        """Jobs that wait get shorter where that lets them start before maintenance; tenants are told of an outage."""
        s = self.s
        for window in self.windows:
            if self.size.count and s.now < window.starts_at:
                self.actions.append(Warn(s.wanted.name, whole_outage(s, window, self.preemptible)))
        if self.windows or self.spare_windows:
            for r in self.fleet.pending:
                if r.id in self.stopped:
                    continue
                windows = self.windows_of(r.overflow)
                if limit := maintenance.shorter_s(s, windows, r):
                    why = f"it starts before maintenance {windows[0].name} if it ends before it"
                    self.actions.append(Shorten(r.id, limit, why))

    def conclude(self) -> None:
        """Whether the revision has proven itself, and what the deployment is now."""
        s, w = self.s, self.s.wanted
        serves = w.revision != w.stable and any(r.revision == w.revision for r in self.fleet.ready)
        if serves and w.stable is None:
            self.actions.append(Settle(w.name, w.revision, True, "its first replica is ready"))
        elif serves and not (self.course.trial or w.paused or self._outdated()):
            self.actions.append(Settle(w.name, w.revision, True, "its replicas serve, and it is no worse"))
        elif self.course.rolling and not (self.course.trial or w.paused) and w.canary is not None:
            self.actions.append(EndTrial(w.name, w.revision))
        if self.ready:
            state = DeploymentState.READY
        elif self.size.count or any(r.id not in self.stopped for r in self.fleet.coming):
            state = DeploymentState.STARTING
        else:
            state = DeploymentState.ASLEEP
        if state is not w.state:
            self.actions.append(SetState(s.wanted.name, state))

    def _surge(self) -> None:
        w, course = self.s.wanted, self.course
        if self._trial_place():
            tried = any(self._on_trial(r) for r in self.slots)
            # Where nothing serves, it may be what puts that right.
            waits = self.ready and self.waits(self.preemptible)
            if self.s.now >= self.newest.retry_at and not tried and not waits:
                for _ in range(self._trial_place()):
                    self._start(w.revision, f"revision {w.revision} is tried beside revision {w.stable}", w.least > 0)
        elif self._outdated():
            kept = [r for r in self.slots if r.revision in course.kept]
            if all(r.state is READY for r in kept) and self._may(w.rules.overflow and not self._guaranteed(kept)):
                for _ in range(min(w.rules.pack, len(self._outdated()))):
                    self._start(course.base, f"revision {course.base} takes over", self._guaranteed(kept))
        else:
            self._guarantee()

    def _guarantee(self) -> None:
        """Guaranteed replicas instead of preemptible ones: of those that do not serve yet, at once; of those that do,
        one job beyond what is wanted at a time."""
        w = self.s.wanted
        if not w.rules.overflow:
            return
        lacking = min(w.least, self.size.count) - sum(not r.overflow for r in self.slots) - self.started
        if lacking <= 0 or not self._may(False):
            return
        why = f"{w.least} that {_are(w.least)} not preemptible {_are(w.least)} wanted"
        early = _expendable(r for r in self.slots if r.overflow and r.state is not READY)[:lacking]
        for r in early:
            self._take_away(r, why)
        for _ in range(min(lacking, len(early) + w.rules.pack)):
            self._start(self.course.base, why, True)

    def _may(self, overflow: bool) -> bool:
        return self.s.now >= self.losses(overflow).retry_at and self.waits(overflow) is None

    def windows_of(self, overflow: bool) -> list[Maintenance]:
        return self.spare_windows if overflow else self.windows

    def _start(self, revision: int, why: str, guaranteed: bool, replaces: str | None = None) -> None:
        """Its place counts among the slots from the next plan on; `started` tells this one."""
        s, overflow = self.s, self.s.wanted.rules.overflow and not guaranteed
        windows = self.windows_of(overflow)
        self.started += 1
        self.actions.append(
            StartReplica(
                deployment=s.wanted.name,
                revision=revision,
                why=why,
                replaces=replaces,
                overflow=overflow,
                time_limit_s=maintenance.fitting_s(s, windows, overflow) if windows else None,
                exclude=crashes.avoided(s, self.fleet, self.cluster, overflow) if self.fleet.ended else (),
            )
        )

    def _take_away(self, r: Had, why: str, *, keep_successor: bool = False) -> None:
        """Its successor takes its place if that serves or is to come all the same; otherwise it goes, too."""
        self.slots = [one for one in self.slots if one is not r]
        if r.state is READY:
            self.ready -= 1
            self.actions.append(Drain(r.id, why))
        else:
            self._stop(r, why)
        if (successor := self.fleet.successors.get(r.id)) is None:
            return
        if keep_successor or successor.state is READY:
            self.slots.append(successor)
        else:
            self._stop(successor, why)

    def _stop(self, r: Had, why: str) -> None:
        self.stopped.add(r.id)
        self.actions.append(Stop(r.id, why))

    def _outdated(self) -> list[Had]:
        """Nothing is, while the deployment is paused."""
        kept = self.course.kept
        return [] if self.s.wanted.paused else [r for r in self.slots if r.revision not in kept]

    def _trial_place(self) -> int:
        """How many more than wanted there are for the revision on trial, which is one job: not before what is older has
        gone, and while the deployment is paused only for what is there."""
        w = self.s.wanted
        if not self.course.trial or self._outdated() or (w.paused and not any(map(self._on_trial, self.slots))):
            return 0
        return min(w.rules.pack, self.size.count)

    def _beside(self) -> int:
        """How many are on trial beside those that are wanted: one job of them at most."""
        return min(self.s.wanted.rules.pack, sum(map(self._on_trial, self.slots))) if self._trial_place() else 0

    def _on_trial(self, r: Had) -> bool:
        return self.course.trial and r.revision == self.s.wanted.revision

    def _guaranteed(self, among: Iterable[Had]) -> bool:
        """Whether the next one is to be guaranteed. Those that this plan starts count."""
        return sum(not r.overflow for r in among) + self.started < self.s.wanted.least

    def _may_go(self, r: Had) -> bool:
        """Not the one on trial, and not a guaranteed one that the least consists of."""
        w = self.s.wanted
        if self._on_trial(r):
            return False
        guaranteed = sum(not one.overflow for one in self.slots)
        return r.overflow or not w.rules.overflow or guaranteed > w.least


def wind_down(s: Situation, live: Iterable[Had], why: str) -> list[Action]:
    """Drain what serves; stop what never served, and what has drained."""
    actions: list[Action] = []
    for r in live:
        if r.state is READY:
            actions.append(Drain(r.id, why))
        elif r.state is not DRAINING:
            actions.append(Stop(r.id, why))
        elif drained := rollover.drained(s, r):
            actions.append(Stop(r.id, drained))
    return actions


def _expendable(some: Iterable[Had]) -> list[Had]:
    """In the order in which they may go: preemptible ones first, then what has come the least far, then the newest. Of
    those that share jobs one job goes after the other, the smallest first: it holds what it holds until all have gone.
    """
    some = list(some)
    jobs = Counter(_job(r) for r in some)
    newest: dict[str, float] = {}
    came: dict[str, int] = {}
    for r in some:
        newest[_job(r)] = max(newest.get(_job(r), 0.0), r.created_at)
        came[_job(r)] = max(came.get(_job(r), 0), 0 if r.state is PENDING else 2 if r.state is READY else 1)

    def order(r: Had) -> tuple[bool, int, int, float, str, float]:
        return not r.overflow, came[_job(r)], jobs[_job(r)], -newest[_job(r)], _job(r), -r.created_at

    return sorted(some, key=order)


def _job(r: Had) -> str:
    return r.job or r.id


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
