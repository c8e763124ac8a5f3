"""GPU time of a window, attributed: whose it was, line by line, in parts that add up to Slurm's own total. Pure.

A replica starts up until it is ready; after that it is idle in every second in which no request ran. The rest is split
among those who used it by their tokens, weighted. What Headgate asked of it itself (probes, shadows) is nobody's use,
and idle time too; so are busy seconds of which no work is known, because its request ended after the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from registry.settings import Attribution, Weights
from registry.steps import PLATFORM

HOUR_S = 3600


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
    began_at: int  # of the attempt itself, which may be before the window
    waited_s: int | None  # from its submission to its start; None where it did not start in the window
    gpus_by_type: tuple[tuple[str, int], ...]  # "" for those without a type; they add up to all its GPUs
    gpu_s: int
    cpu_s: int
    purpose: str | None  # train | convert | smoke | evaluate | serve | script; None: a job that Headgate did not launch
    subject: str | None  # the run, or the replica


@dataclass(frozen=True, slots=True)
class Books:
    """Every allocation of a window, and the scheduler's own total of them."""

    allocations: tuple[Allocation, ...]
    gpu_s: int
    cpu_s: int
    partial: str | None  # why this may not be all, in words
    holders: tuple[tuple[str, str], ...] = ()  # (reservation, the first account that may use it), as they are now


@dataclass(frozen=True, slots=True)
class Busy:
    """In which seconds a replica had a request."""

    hours: Mapping[int, int] = field(default_factory=dict)  # an hour's first Unix second -> a bit for each of its
    # seconds, the first one's the lowest

    def seconds(self, start: int, end: int) -> int:
        """How many there are in [start, end)."""
        found = 0
        for hour, bits in self.hours.items():
            first, last = max(start - hour, 0), min(end - hour, HOUR_S)
            if first < last:
                found += (bits >> first & (1 << last - first) - 1).bit_count()
        return found

    def first(self, start: int, end: int) -> int:
        """The first one in [start, end); `end` where there is none."""
        for hour, bits in sorted(self.hours.items()):
            later = bits >> (skipped := max(start - hour, 0))
            if later:
                return min(hour + skipped + (later & -later).bit_length() - 1, end)
        return end


WholeWeights = tuple[int, int, int]  # of a token of the prompt, of one that was cached, of a completion's


def whole(weights: Weights) -> WholeWeights:
    """The same proportions in whole numbers: exact, and a hundred times as fast as fractions."""
    prompt, cached, completion = (Fraction(w) for w in (weights.prompt, weights.cached, weights.completion))
    unit = math.lcm(prompt.denominator, cached.denominator, completion.denominator)
    return int(prompt * unit), int(cached * unit), int(completion * unit)


@dataclass(frozen=True, slots=True)
class Share:
    """What somebody used of a replica: tokens of requests that ended in the window, be they corrected since."""

    tenant: str
    user: str
    model: str
    prompt_tokens: int
    cached_tokens: int  # of the prompt's
    completion_tokens: int

    def weight(self, of_a_token: WholeWeights) -> int:
        prompt, cached, completion = of_a_token
        fresh = max(0, self.prompt_tokens - self.cached_tokens)
        return prompt * fresh + cached * self.cached_tokens + completion * self.completion_tokens


@dataclass(frozen=True, slots=True)
class ReplicaWork:
    deployment: str
    ready_at: int | None  # Unix seconds; None: it never was
    busy: Busy = Busy()
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True)
class Payers:
    """Who is charged for a job: the tenant of its account, or its user's only tenant where it ran in no account."""

    accounts: Mapping[str, str]  # account -> tenant
    homes: Mapping[str, str]  # user -> tenant, of those who belong to exactly one

    def of(self, job: Allocation) -> str | None:
        return self.accounts.get(job.account) if job.account else self.homes.get(job.user)


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
    began_at: int  # the allocation, in Unix seconds: what it costs is what was in force then
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


def attribute(books: Books, replicas: Mapping[str, ReplicaWork], payers: Payers, policy: Attribution) -> Attributed:
    """Every allocation of the books in lines, none of which is empty. `replicas` are by id."""
    weights = whole(policy.weights)
    return Attributed(
        tuple(
            line
            for job in books.allocations
            for line in _lines(job, _parts(job, books, replicas, payers, policy, weights))
        ),
        books,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """Of an allocation: in proportion to the others."""

    what: str
    tenant: str | None
    user: str
    model: str
    proportion: int


def _parts(
    job: Allocation,
    books: Books,
    replicas: Mapping[str, ReplicaWork],
    payers: Payers,
    policy: Attribution,
    weights: WholeWeights,
) -> list[_Part]:
    if job.purpose != "serve":
        what = "training" if job.purpose in ("train", "convert", "smoke", "evaluate") else "batch"
        return [_Part(what, payers.of(job), job.user, "", 1)]
    work = replicas.get(job.subject or "", ReplicaWork("", None))
    ready = min(max(_ready(job, work), job.start), job.end)
    weighed = [(share, weight) for share in work.shares if (weight := share.weight(weights))]
    theirs = [(share, weight) for share, weight in weighed if share.tenant != PLATFORM]
    # A second is as many parts as everybody's weight, and each of these as many as the tenants': then all are whole.
    second, part = sum(weight for _, weight in weighed) or 1, sum(weight for _, weight in theirs) or 1
    busy = work.busy.seconds(ready, job.end)
    serving = [
        _Part("serving", share.tenant, share.user, share.model, busy * weight * part) for share, weight in theirs
    ]
    idle = (job.end - ready) * second - (busy * part if theirs else 0)

    def charged(what: str, parts: int, to: Literal["owner", "pro-rata", "reservation"]) -> Iterator[_Part]:
        if to == "pro-rata" and theirs:
            by_tenant: dict[str, int] = {}
            for share, weight in theirs:
                by_tenant[share.tenant] = by_tenant.get(share.tenant, 0) + weight
            for tenant, weight in by_tenant.items():
                yield _Part(what, tenant, "", work.deployment, parts * weight)
            return
        holder = _holder(job, books, payers, policy) if to == "reservation" else None
        yield _Part(what, holder or payers.of(job), job.user, work.deployment, parts * part)

    return [
        *charged("startup", (ready - job.start) * second, policy.startup),
        *charged("idle", idle, policy.idle),
        *serving,
    ]


def _ready(job: Allocation, work: ReplicaWork) -> int:
    """When an engine was ready, which is known of a job's first attempt. If it is requeued, its next starts up until
    somebody asks it something; one that began before the window is taken to be ready."""
    if work.ready_at is None:
        return job.end
    again = job.began_at > work.ready_at and job.began_at == job.start
    return work.busy.first(job.start, job.end) if again else work.ready_at


def _holder(job: Allocation, books: Books, payers: Payers, policy: Attribution) -> str | None:
    """The tenant that holds the reservation a job ran in."""
    if job.reservation is None:
        return None
    account = dict(books.holders).get(job.reservation, "")
    return policy.reservations.get(job.reservation) or payers.accounts.get(account)


def _lines(job: Allocation, parts: Sequence[_Part]) -> Iterator[Line]:
    types = job.gpus_by_type or (("", 0),)
    counts = [count for _, count in types]
    amounts = zip(split(job.gpu_s, counts), split(job.cpu_s, counts), strict=True)
    proportions = [part.proportion for part in parts]
    for (gpu_type, _), (gpu_s, cpu_s) in zip(types, amounts, strict=True):
        divided = zip(parts, split(gpu_s, proportions), split(cpu_s, proportions), strict=True)
        for part, part_gpu_s, part_cpu_s in divided:
            if part_gpu_s or part_cpu_s:
                yield Line(
                    what=part.what,
                    tenant=part.tenant,
                    user=part.user,
                    account=job.account,
                    partition=job.partition,
                    qos=job.qos,
                    model=part.model,
                    subject=job.subject or job.job,
                    gpu_type=gpu_type,
                    began_at=job.began_at,
                    gpu_s=part_gpu_s,
                    cpu_s=part_cpu_s,
                )


def split(total: int, proportions: Sequence[int]) -> list[int]:
    """A whole number in whole parts that add up to it, each within 1 of its exact share (largest remainders first).

    Where all proportions are 0, the first part is all.
    """
    whole = sum(proportions)
    if not whole:
        return [total, *[0] * (len(proportions) - 1)]
    exact = [divmod(total * p, whole) for p in proportions]
    parts = [n for n, _ in exact]
    left = total - sum(parts)
    if left:
        for n in sorted(range(len(parts)), key=lambda n: -exact[n][1])[:left]:
            parts[n] += 1
    return parts
