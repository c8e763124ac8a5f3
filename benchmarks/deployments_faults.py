"""What is done to deployments while clients stream: rollovers by time limit, preemptions, and kill -9 of each part."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from benchmarks.deployments_platform import (
    PARTITION,
    Late,
    Platform,
    kill,
    until,
)
from registry.deployments import Replica, ReplicaState

SETTLED_S = 120.0  # after a fault, as many replicas are had as are wanted, at the latest
FIRST_S = 90.0  # and after a deployment was asked for
SERVES_S = 60.0  # until at least one replica serves, for the next fault
PARTS = ("engine", "supervisor", "gateway", "controller")


Meets = Callable[[], object]  # returns once streams run, for a fault to meet


@dataclass(slots=True)
class Fault:
    what: str
    began: float
    settled_s: float | None = None  # until replicas, jobs and GPUs were as wanted; None: they were not in time
    wrong: list[str] = field(default_factory=list)  # what did not add up then


def rollovers(on: Platform, names: list[str], count: int, minutes: int) -> list[Fault]:
    """Deployments of one replica each, whose jobs end after so many minutes, until so many were succeeded. They are
    asked for one after the other, so that their jobs do not end together. The old one must have stopped as it was asked
    to. As others always roll over meanwhile, the books are looked at once, after the last.
    """
    for name in names:
        on.serve(name, 1, "-t", str(minutes))
        on.settles(FIRST_S)
        time.sleep(minutes * 60 / len(names) / 2)
    seen: dict[str, Fault] = {}
    done: list[Fault] = []  # also those that went wrong, which do not count
    deadline = time.monotonic() + minutes * 60 * (2 + 2 * count / len(names))
    while (good := sum(not fault.wrong for fault in done)) < count:
        if time.monotonic() > deadline:
            raise Late(f"{good} of {count} rollovers happened; {on.astray() or 'all is as wanted'}")
        mine = [r for r in on.replicas() if r.deployment in names]
        for old, new in successions(mine):
            fault = seen.setdefault(old.id, Fault(f"rollover of {old.deployment}", time.time()))
            if fault.settled_s is None and old.state.ended and new.state is ReplicaState.READY:
                fault.settled_s = time.time() - fault.began
                if old.state is not ReplicaState.STOPPED:
                    fault.wrong.append(f"{old.id} is {old.state}: {old.cause}")
                done.append(fault)
        time.sleep(1.0)
    return done


def successions(replicas: list[Replica]) -> Iterator[tuple[Replica, Replica]]:
    """Each replica that was to be succeeded, and its successor."""
    by_id = {r.id: r for r in replicas}
    for replica in replicas:
        if replica.replaces in by_id:
            yield by_id[replica.replaces], replica


def preemptions(on: Platform, name: str, count: int, meets: Meets) -> Iterator[Fault]:
    """Of one replica after the other of a preemptible deployment, by a job that outranks it; then all is looked at.

    Two replicas do not fit one node, so that the other goes on.
    """
    on.serve(name, 2, "-t", "60", "--qos", "preemptible", gpus=5)
    on.settles(FIRST_S)
    for n in range(count):
        meets()
        victim = serving(on, name, n)
        fault = Fault(f"preemption of {victim.id}", time.time())
        take = ("-p", PARTITION, "-w", victim.nodes, "--gres=gpu:5", "--qos=high", "-t", "1", "-J", "outranks")
        job = on.slurm("sbatch", "--parsable", "-o", "/dev/null", *take, "--wrap", "sleep 3").strip()
        until(partial(has_begun, on, job), f"job {job} preempting", SETTLED_S)
        yield looked_at(on, fault)


def kills(on: Platform, name: str, count: int, meets: Meets) -> Iterator[Fault]:
    """-9: an engine, a supervisor, the gateway, the controller, in turn."""
    on.serve(name, 2, "-t", "60")
    on.settles(FIRST_S)
    for n, part in enumerate(itertools.islice(itertools.cycle(PARTS), count)):
        meets()
        fault = Fault(f"kill -9 of the {part}", time.time())
        if part in ("gateway", "controller"):
            kill(on.service(part))
            on.headgate("up")
        else:
            kill(on.of_replica(serving(on, name, n), part))
            until(lambda: bool(on.astray()), "what was killed being missed", 60)
        yield looked_at(on, fault)


def serving(on: Platform, name: str, n: int) -> Replica:
    """One after the other. Raises Late."""
    until(lambda: bool(on.ready(name)), f"a replica of {name} serving", SERVES_S)
    ready = on.ready(name)
    return ready[n % len(ready)]


def looked_at(on: Platform, fault: Fault) -> Fault:
    """Whether all is as wanted again, and the books are right."""
    try:
        on.settles(SETTLED_S)
        fault.settled_s = time.time() - fault.began
    except Late as e:
        fault.wrong.append(str(e))
    fault.wrong += on.books()
    return fault


def has_begun(on: Platform, job: str) -> bool:
    return "PENDING" not in on.slurm("squeue", "-h", "-t", "all", "-o", "%T", "-j", job)
