"""Why a job waits, as one plain sentence: what Slurm says, and what the cluster looks like. Pure.

A sentence claims only what the picture shows. Reasons that are unknown here are given in Slurm's own word, and what
PrivateData hides is not guessed. Times stand as `amounts.moment` writes them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from itertools import accumulate

from slurm import amounts, limits, parse, room
from slurm.model import TRES, Job, JobState, Node, Partition, Reservation
from slurm.sight import Sight

# Reasons that say all there is to say.
_PLAIN = {
    "AccountNotAllowed": "its account may not use this partition",
    "BadConstraints": "no node can be what it asks for (constraints, memory, GPUs)",
    "BurstBufferOperation": "its burst buffer could not be set up",
    "BurstBufferResources": "waiting for burst buffer space",
    "BurstBufferStageIn": "its files are being staged in",
    "Cleaning": "its last attempt is still being cleaned up",
    "DependencyNeverSatisfied": "can never start: what it depends on did not end as it had to",
    "FrontEndDown": "the front-end node is down",
    "InvalidAccount": "its account does not exist any more",
    "InvalidQOS": "its QOS does not exist any more",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "requeued too often, and held",
    "NodeDown": "a node it needs is down",
    "PartitionConfig": "its partition does not allow what it asks for",
    "Prolog": "its nodes are being prepared",
    "QOSNotAllowed": "its QOS may not be used in this partition",
    "ReservationDeleted": "the reservation it asked for was deleted",
    "SchedDefer": "Slurm will look at it in its next round",
    "launch failed requeued held": "its launch failed; Slurm requeued and holds it",
    "job requeued in held state": "requeued, and held",
    "user env retrieval failed requeued held": "its user's environment could not be loaded; Slurm holds it",
    "MaxMemPerLimit": "asks for more memory per CPU or node than the cluster allows",
    "RequiresReservation": "its partition takes jobs of a reservation only",
}
_HELD = {"JobHeldUser", "JobHoldMaxRequeue", "launch failed requeued held", "job requeued in held state"}
_HELD |= {"user env retrieval failed requeued held"}
# Reasons of jobs that others of lower priority need not wait for.
_OUT_OF_LINE = re.compile(
    r"Dependency|BeginTime|JobHeld|JobHold|.*held|QOS|Assoc|Partition|Reservation|JobArrayTask|Bad"
)
_DEPENDS = {
    "after": "has begun",
    "afterany": "has ended",
    "afterburstbuffer": "has written its burst buffer",
    "aftercorr": "has completed, task by task",
    "afternotok": "has failed",
    "afterok": "has completed",
}


@dataclass
class Reasons:
    """Answers for every job of one sight; what is counted over the whole queue is counted once."""

    seen: Sight
    now: datetime
    _lines: dict[str, _Line] = field(default_factory=dict, init=False)
    _left: dict[tuple[str, str | None], _Left] = field(default_factory=dict, init=False)
    _shortages: dict[tuple[str, str | None, TRES, int], tuple[int, str]] = field(default_factory=dict, init=False)
    _closed: dict[tuple[str, str], str] = field(default_factory=dict, init=False)
    _maintenances: dict[str, list[Reservation]] = field(default_factory=dict, init=False)

    def why(self, job: Job) -> str | None:
        """Why a job waits, and when Slurm expects it to start. None for one that does not wait."""
        if not job.state.pending:
            return None
        # squeue writes the longer texts with spaces; where they passed through scontrol, they have underscores.
        word = (job.reason or "").replace("_", " ").strip("()")
        return self._sentence(job, word) + self._expected(job, word)

    def _expected(self, job: Job, word: str) -> str:
        at = job.expected_start_at
        if word == "BeginTime" or job.priority == 0 or limits.meets_one(job):
            return ""  # it is said already, or there is none: the estimate of a job at a limit was made without it
        if at is None:
            return "; no estimate yet" if word in ("Resources", "Priority") else ""
        return f"; Slurm expects {amounts.moment(at)}" if at > self.now else "; Slurm expects it any moment"

    def _sentence(self, job: Job, word: str) -> str:
        name, _, rest = word.partition(",")
        match name:
            case "":
                return "Slurm has not looked at it yet" if job.state is JobState.PENDING else "to be requeued"
            case "Resources":
                return self._resources(job)
            case "Priority":
                return self._priority(job)
            case "BeginTime":
                begins = f"not before {amounts.moment(job.starts_at)}" if job.starts_at else "not before its begin time"
                return begins + (" (it was requeued)" if job.restarts else "")
            case "Dependency":
                return self._dependency(job)
            case "DependencyNeverSatisfied":
                return f"{_PLAIN[name]} ({job.dependency})" if job.dependency else _PLAIN[name]
            case "JobHeldUser":
                return f"held by its user; `scontrol release {job.raw_id}` lets it start"
            case "ReqNodeNotAvail":
                return self._not_available(job, rest.strip())
            case "Reservation":
                return self._reservation(job)
            case "PartitionTimeLimit" | "PartitionNodeLimit":
                return self._partition_limit(job, name)
            case "PartitionDown" | "PartitionInactive":
                state = "down: nothing starts there" if name == "PartitionDown" else "inactive"
                return f"partition {job.partition} is {state}"
            case "JobArrayTaskLimit":
                most = (job.array_task or "").partition("%")[2]
                return f"its array runs {amounts.counted(int(most), 'task') if most else 'no more tasks'} at once"
            case "Licenses":
                asked = [amounts.tres(k, n) for k, n in job.tres.others if k.startswith("license/")]
                return f"waiting for {amounts.several(asked)}" if asked else "waiting for licenses"
        if word.startswith("Nodes required for job are DOWN"):
            return f"nodes it needs are down, drained or kept for partitions that come first{self._out(job)}"
        partition_qos = next((p.qos for p in self.seen.picture.partitions if p.name in job.partitions), None)
        known = _PLAIN.get(word) or limits.reached(job, name, self._rules, partition_qos)
        if known is None:
            return f"Slurm says {job.reason}"
        return known + (f"; `scontrol release {job.raw_id}` tries again" if word in _HELD else "")

    @cached_property
    def _rules(self) -> limits.Rules | None:
        return None if self.seen.limits is None else limits.Rules(self.seen.limits)

    # Resources: what the job asks for, against what is free.

    def _resources(self, job: Job) -> str:
        texts = []
        for partition in job.partitions:
            asked = partition, job.reservation, job.tres, job.node_count
            if asked not in self._shortages:
                self._shortages[asked] = self._short(job, partition)
            texts.append(self._shortages[asked])
        return min(texts)[1]  # of several partitions, the one where least is missing

    def _short(self, job: Job, partition: str) -> tuple[int, str]:
        """How much is missing, and the sentence. What is enough in all but not on the same nodes counts as little."""
        asked = {k: n for k, n in job.tres.gpus_of_each_type.items() if n}
        wanted = amounts.several(amounts.gpus(n, k) for k, n in asked.items())
        if not self.seen.picture.nodes:  # hidden, or not told yet
            what = wanted or amounts.counted(job.tres.cpus, "CPU")
            return 0, f"waiting for {what} in {partition}"
        left = self._left_for(job, partition)
        where = partition if job.reservation is None else f"{partition} (reservation {job.reservation})"
        for kind, count in asked.items():
            free = left.gpus(kind)
            if (more := count - sum(free)) > 0:
                return (
                    more,
                    f"waiting for {more:,} more {amounts.gpu(kind) if kind or more == 1 else 'GPUs'} in {where}",
                )
            if sum(n >= room.shares(count, job.node_count) for n in free) < job.node_count:
                spread = f" on {job.node_count} nodes of {where}" if job.node_count > 1 else f" in {where}"
                most = f"at most {max(free, default=0)} on one node"
                return 0, f"waiting for {amounts.gpus(count, kind)}{spread}; {sum(free)} {_are(sum(free))} free, {most}"
        return self._short_of_cpus(job, where, left, asked, wanted)

    def _left_for(self, job: Job, partition: str) -> _Left:
        key = partition, job.reservation
        if key not in self._left:
            self._left[key] = _Left(room.open_to(job, partition, self.seen.picture))
        return self._left[key]

    def _short_of_cpus(
        self, job: Job, where: str, left: _Left, asked: Mapping[str, int], wanted: str
    ) -> tuple[int, str]:
        cpus, memory = job.tres.cpus, job.tres.memory_bytes
        if not asked and (more := cpus - sum(left.cpus)) > 0:
            return more, f"waiting for {more:,} more {'CPU' if more == 1 else 'CPUs'} in {where}"
        if not asked and (more_bytes := memory - sum(left.memory_bytes)) > 0:
            return 0, f"waiting for {amounts.gib(more_bytes)} GiB more memory in {where}"
        count = job.node_count
        fits = list(range(len(left.cpus)))
        for kind, total in asked.items():
            fits = _enough(left.gpus(kind), room.shares(total, count), fits)
        free = f"{wanted} {_are(sum(asked.values()))} free in {where}"
        each = "each of " if count > 1 else ""
        fits = _enough(left.cpus, room.shares(cpus, count), fits)
        if len(fits) < count:
            beside = f"{amounts.counted(room.shares(cpus, count), 'CPU')} on {each}{amounts.counted(count, 'node')}"
            return 0, f"{free}, but not with {beside}" if asked else f"waiting for {beside} of {where}"
        fits = _enough(left.memory_bytes, room.shares(memory, count), fits)
        if len(fits) < count:
            beside = f"{amounts.tres('mem', room.shares(memory, count))} on {each}{amounts.counted(count, 'node')}"
            return 0, f"{free}, but not with {beside}" if asked else f"waiting for {beside} of {where}"
        return 0, f"waiting for room in {where}: enough is free, but not just as it asks, or it is kept for others"

    # Priority: who is ahead.

    def _priority(self, job: Job) -> str:
        if "jobs" in self.seen.hidden:
            return f"behind jobs of higher priority in {job.partition.replace(',', ' and ')}"
        counts = [(self._line(partition).ahead_of(job), partition) for partition in job.partitions]
        (jobs, gpus), partition = min(counts)
        if not jobs:
            return f"behind jobs of higher priority in {job.partition.replace(',', ' and ')}"
        asking = f" that {'asks' if jobs == 1 else 'ask'} for {amounts.counted(gpus, 'GPU')}" if gpus else ""
        return f"behind {amounts.counted(jobs, 'job')} in {partition}{asking}"

    def _line(self, partition: str) -> _Line:
        if partition not in self._lines:
            waiting = [j for j in self._eligible if partition in j.partitions]
            self._lines[partition] = _Line(waiting)
        return self._lines[partition]

    @cached_property
    def _eligible(self) -> list[Job]:
        return [
            j for j in self.seen.picture.jobs
            if j.state is JobState.PENDING and j.priority and not _OUT_OF_LINE.match(j.reason or "")
        ]  # fmt: skip

    # Everything else.

    def _dependency(self, job: Job) -> str:
        listed = job.dependency or ""
        parts = [text for item in re.split(r"[,?]", listed) if (text := _condition(item, job))]
        if not parts:
            return f"waits for other jobs ({listed})" if listed else "waits for other jobs"
        return "waits until " + (" or " if "?" in listed else " and ").join(parts)

    def _not_available(self, job: Job, rest: str) -> str:
        if rest.startswith("Reserved for maintenance"):
            return self._maintenance(job)
        if rest.startswith("May be reserved"):
            return "the nodes it needs may be reserved for other jobs"
        names = rest.removeprefix("UnavailableNodes:").strip()
        return f"nodes it needs are not available{self._out(job, names)}"

    def _out(self, job: Job, names: str = "") -> str:
        """The nodes that are closed, each with its state and why, as far as they may be seen."""
        asked = job.partition, names
        if asked not in self._closed:
            self._closed[asked] = self._closed_nodes(frozenset(job.partitions), names)
        return self._closed[asked]

    def _closed_nodes(self, partitions: frozenset[str], names: str) -> str:
        try:
            listed = set(parse.nodes(names))
        except ValueError:
            listed = set()
        nodes = [
            n for n in self.seen.picture.nodes
            if not n.available and (n.name in listed if listed else partitions.intersection(n.partitions))
        ]  # fmt: skip
        if not nodes:
            return f": {amounts.several(sorted(listed))}" if listed else ""
        return ": " + amounts.several((condition(n) for n in nodes), 3)

    def _maintenance(self, job: Job) -> str:
        end = self.now + timedelta(seconds=job.time_limit_s) if job.time_limit_s else None
        if job.partition not in self._maintenances:
            self._maintenances[job.partition] = self._maintenance_in(frozenset(job.partitions))
        coming = self._maintenances[job.partition]
        first = next((r for r in coming if end is None or r.starts_at < end), None)
        if first is None:
            return "its nodes are reserved for maintenance"
        return during(first, self.now) + (
            f"; a time limit below {amounts.duration((first.starts_at - self.now).total_seconds())} would end before it"
            if first.starts_at > self.now
            else ""
        )

    def _maintenance_in(self, partitions: frozenset[str]) -> list[Reservation]:
        """What is not over yet of the maintenance of any of their nodes (of any at all, where they are hidden)."""
        members = {n.name for n in self.seen.picture.nodes if not partitions.isdisjoint(n.partitions)}
        coming = [
            r for r in self.seen.picture.reservations
            if r.maintenance and r.ends_at > self.now and not (members and members.isdisjoint(r.nodes))
        ]  # fmt: skip
        return sorted(coming, key=lambda r: r.starts_at)

    def _reservation(self, job: Job) -> str:
        for reservation in self.seen.picture.reservations:
            if reservation.name == job.reservation:
                if reservation.active:
                    return f"waiting for room in its reservation {reservation.name}"
                return f"waiting for its reservation {reservation.name}, from {amounts.moment(reservation.starts_at)}"
        return f"waiting for its reservation {job.reservation}" if job.reservation else "waiting for a reservation"

    def _partition_limit(self, job: Job, name: str) -> str:
        for partition in self.seen.picture.partitions:
            if partition.name in job.partitions and (text := _beyond(job, partition)):
                return text
        what = "time limit" if name == "PartitionTimeLimit" else "number of nodes, or its time limit,"
        return f"its {what} is more than partition {job.partition} allows"


def _condition(item: str, job: Job) -> str | None:
    """`afterok:12(unfulfilled)`, `after:12+30`, `singleton` in plain words; None for what is unknown."""
    kind, _, target = re.sub(r"\(\w+\)$", "", item).partition(":")
    if kind == "singleton":
        return f"no other job of the name {job.name} runs"
    if kind not in _DEPENDS or not target:
        return None
    other, _, minutes = target.partition("+")
    return f"{f'{minutes} min after ' if minutes else ''}job {other} {_DEPENDS[kind]}"


def _beyond(job: Job, partition: Partition) -> str | None:
    if partition.max_time_s is not None and (job.time_limit_s is None or job.time_limit_s > partition.max_time_s):
        asked = "no time limit" if job.time_limit_s is None else amounts.duration(job.time_limit_s)
        return f"asks for {asked}, and partition {partition.name} allows {amounts.duration(partition.max_time_s)}"
    if partition.max_nodes is not None and job.node_count > partition.max_nodes:
        asked = amounts.counted(job.node_count, "node")
        return f"asks for {asked}, and partition {partition.name} allows {partition.max_nodes}"
    return None


def condition(node: Node) -> str:
    """ "g1 (drained: bad disk)"."""
    state = "drained" if "DRAIN" in node.flags else "in maintenance" if "MAINTENANCE" in node.flags else None
    state = state or ("not responding" if "NOT_RESPONDING" in node.flags else node.state.value.lower())
    return f"{node.name} ({state}{f': {node.reason}' if node.reason else ''})"


def during(reservation: Reservation, now: datetime) -> str:
    ends = amounts.moment(reservation.ends_at)
    if reservation.starts_at <= now:
        return f"maintenance ({reservation.name}) until {ends}"
    return f"maintenance ({reservation.name}) from {amounts.moment(reservation.starts_at)} to {ends}"


class _Left:
    """What nodes have left, node by node, counted once for all jobs that may start there."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._gpus: dict[str, list[int]] = {}
        self.cpus = [room.free_cpus(n) for n in nodes]
        self.memory_bytes = [room.free_memory_bytes(n) for n in nodes]

    def gpus(self, kind: str) -> list[int]:
        """Of one type; of "" all of them."""
        if kind not in self._gpus:
            self._gpus[kind] = room.free_gpus(self._nodes, kind)
        return self._gpus[kind]


def _enough(left: Sequence[int], share: int, of: Iterable[int]) -> list[int]:
    """The nodes that have a share left, by their place."""
    return [i for i in of if left[i] >= share]


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


class _Line:
    """The jobs that wait for one partition in the order of their priority, each array counted task by task."""

    def __init__(self, waiting: list[Job]) -> None:
        ordered = sorted(waiting, key=_place)
        self._places = [_place(j) for j in ordered]
        sizes = [tasks(j) for j in ordered]
        self._jobs = [0, *accumulate(sizes)]
        self._gpus = [0, *accumulate(n * j.tres.gpus for n, j in zip(sizes, ordered, strict=True))]

    def ahead_of(self, job: Job) -> tuple[int, int]:
        """How many jobs are ahead, and how many GPUs they ask for together."""
        at = bisect_left(self._places, _place(job))
        return self._jobs[at], self._gpus[at]


def _place(job: Job) -> tuple[int, int]:
    return -job.priority, job.raw_id


def tasks(job: Job) -> int:
    """How many tasks a record stands for: "12_[0-9:3,20%2]" for five. Of a list that Slurm cut short, those named."""
    if (listed := job.array_task) is None:
        return 1
    count = 0
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?(?=,|$)", listed.partition("%")[0]):
        count += (int(last or first) - int(first)) // int(step or 1) + 1
    return max(1, count)
