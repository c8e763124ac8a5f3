"""GPU time of a window, attributed: whose it was, line by line, in parts that add up to Slurm's own total."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allocation:
    """One attempt of one job in a window, from the scheduler's books, clipped to the window. Seconds are whole."""

    cluster: str
    job: str  # what commands take: "12", "12_3"
    submitted_at: str
    user: str
    account: str
    partition: str
    qos: str
    name: str
    state: str  # Slurm's word
    reservation: str | None
    start: int  # Unix seconds: of what it held in the window
    end: int
    waited_s: int | None  # from its submission to its start; None where it did not start in the window
    gpus_by_type: tuple[tuple[str, int], ...]  # "" for those without a type; they add up to all its GPUs
    gpu_s: int
    cpu_s: int
    purpose: str | None  # train | convert | serve | script; None: a job that Headgate did not launch
    subject: str | None  # the run, or the replica


@dataclass(frozen=True, slots=True)
class Books:
    """Every allocation of a window, and the scheduler's own total of them."""

    allocations: tuple[Allocation, ...]
    gpu_s: int
    cpu_s: int
    partial: str | None  # why this may not be all, in words


@dataclass(frozen=True, slots=True)
class Line:
    """A part of an allocation. `tenant` is None where no tenant stands for the account."""

    what: str  # serving | startup | idle | training | batch
    tenant: str | None
    user: str
    account: str
    partition: str
    qos: str
    model: str  # a deployment's or an adapter's name; "" where the job served none
    subject: str  # the replica, the run, else the job
    gpu_type: str
    gpu_s: int
    cpu_s: int


@dataclass(frozen=True, slots=True)
class Attributed:
    lines: tuple[Line, ...]
    books: Books

    @property
    def adds_up(self) -> bool:
        return (sum(x.gpu_s for x in self.lines), sum(x.cpu_s for x in self.lines)) == (
            self.books.gpu_s,
            self.books.cpu_s,
        )
