"""Whose limits a job is subject to, and which of them keeps it waiting: Slurm's QOS* and Assoc* reasons. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from slurm import amounts
from slurm.model import Association, Job, Limit
from slurm.sight import Limits

# What a reason calls a TRES, as assoc_mgr writes it; GRES is any of gres/...
_TRES = {"cpu": "cpu", "mem": "mem", "memory": "mem", "node": "node", "billing": "billing", "gres": "gres/"}
_TRES |= {"license": "license/", "bb": "bb/", "energy": "energy"}
# What counts per account, or (26.05; 22.05 has no such reason) over running jobs, carries no QOS in front, though it is
# a QOS's.
_REASON = re.compile(
    r"(?P<owner>QOS|Assoc|(?=Max))(?P<scope>Grp|Max|Min)(?P<what>[A-Za-z]+?)(?P<mins>(?:Run)?Min(?:ute)?s)?"
    r"(?:Per(?P<per>User|Account|Job|Node))?(?:Limit|NotSatisfied)?"
)
_PER = {None: "", "User": "PU", "Account": "PA", "Job": "PJ", "Node": "PN"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a reason says of the limit: whose, of which kind in assoc_mgr's words, on which TRES ("gres/" is any)."""

    owner: str  # QOS | Assoc
    kind: str
    tres: str | None


def wanted(reason: str) -> Wanted | None:
    """`QOSMaxGRESPerUser` as (QOS, MaxTRESPU, gres/); None for a reason that names no such limit."""
    match = _REASON.fullmatch(reason)
    if match is None:
        return None
    owner, scope, per = match["owner"] or "QOS", match["scope"], _PER[match["per"]]
    what = match["what"].removesuffix("s")
    if what in ("Job", "SubmitJob"):
        return Wanted(owner, f"{scope}{what}s{per}", None)
    if scope != "Grp" and not per:
        per = "PJ"
    if what.startswith("Wall"):
        return Wanted(owner, f"{scope}Wall{per}", None)
    tres = _TRES.get(what.lower())
    mins = (match["mins"] or "").replace("Minutes", "Mins")
    return None if tres is None else Wanted(owner, f"{scope}TRES{mins}{per}", tres)


class Rules:
    """The limits of one moment, by whom they are for: every job that has met one asks."""

    def __init__(self, limits: Limits) -> None:
        self._accounts: dict[str, Association] = {}
        self._users: dict[tuple[str, str], list[Association]] = {}
        for a in limits.associations:
            if a.user is None:
                self._accounts[a.account] = a
            else:
                self._users.setdefault((a.user, a.account), []).append(a)
        self._qos: dict[str, dict[str | None, list[Limit]]] = {}  # by QOS, and by whose use a limit counts
        for qos in limits.qos:
            by_holder = self._qos.setdefault(qos.name, {})
            for limit in qos.limits:
                by_holder.setdefault(limit.holder, []).append(limit)

    def chain(self, user: str, account: str, partition: str | None) -> list[Association]:
        """The user's association in an account (of this partition, where it has one), then the accounts above it."""
        own = [a for a in self._users.get((user, account), ()) if a.partition in (partition, None)]
        found = sorted(own, key=lambda a: a.partition is None)[:1]
        name: str | None = account
        while name is not None and (above := self._accounts.get(name)) is not None and above not in found:
            found.append(above)
            name = above.parent
        return found

    def subject_to(self, job: Job, partition_qos: str | None) -> Iterator[tuple[str, Limit]]:
        """Every limit that counts for a job, with who allows it to whom. Slurm asks a partition's QOS first."""
        for name in dict.fromkeys(filter(None, (partition_qos, job.qos))):
            by_holder = self._qos.get(name, {})
            for holder in dict.fromkeys((None, job.account, job.user)):
                counting = (limit for limit in by_holder.get(holder, ()) if _counts_for(job, limit))
                yield from ((f"QOS {name} allows", limit) for limit in counting)
        for association in self.chain(job.user, job.account, job.partitions[0]):
            to = f" {association.user}" if association.user else ""
            yield from ((f"account {association.account} allows{to}", limit) for limit in association.limits)


def chain(limits: Limits, user: str, account: str, partition: str | None) -> list[Association]:
    """`Rules.chain`, for one question."""
    return Rules(limits).chain(user, account, partition)


def _counts_for(job: Job, limit: Limit) -> bool:
    return limit.holder in (None, job.user if limit.kind.endswith("PU") else job.account)


def whose(association: Association) -> str:
    if association.user is None:
        return f"account {association.account}"
    where = f" in partition {association.partition}" if association.partition else ""
    return f"{association.user} in account {association.account}{where}"


def meets_one(job: Job) -> bool:
    """Whether Slurm says that a limit keeps it waiting."""
    return job.state.pending and (wanted(job.reason or "") is not None or bool(re.match("QOS|Assoc", job.reason or "")))


def reached(job: Job, reason: str, rules: Rules | None, partition_qos: str | None) -> str | None:
    """The limit that a reason means, in plain words; None for a reason that means none."""
    asked = wanted(reason)
    if asked is None:
        return f"a limit of its account or its QOS is reached ({reason})" if re.match("QOS|Assoc", reason) else None
    candidates = [
        (allows, limit)
        for allows, limit in (rules.subject_to(job, partition_qos) if rules else ())
        if allows.startswith("QOS ") == (asked.owner == "QOS") and _fits(asked, limit)
    ]
    # Slurm names the kind alone. Where several are set, it is the one that this job would pass.
    for allows, limit in candidates if len(candidates) == 1 else [c for c in candidates if _would_pass(c[1], job)]:
        return sentence(allows, limit, job)
    owner = f"QOS {job.qos}" if asked.owner == "QOS" else f"account {job.account} or of one above it"
    return f"a limit of {owner} is reached ({reason})"


def _fits(asked: Wanted, limit: Limit) -> bool:
    if limit.kind != asked.kind or limit.allowed is None:
        return False
    return asked.tres is None or (limit.tres or "").startswith(asked.tres)


def _would_pass(limit: Limit, job: Job) -> bool:
    """Whether this job would pass it; how much of a limit on TRES-time it would use, its time limit says."""
    assert limit.allowed is not None
    more = asks(job, limit)
    if limit.kind.startswith("Min"):
        return more < limit.allowed
    if limit.used is None and limit.kind.endswith(("PJ", "PN")):
        return more > limit.allowed
    return limit.used is not None and limit.used + more > limit.allowed


def asks(job: Job, limit: Limit) -> int:
    """What the job would add to what is used, in the limit's own unit."""
    if "Jobs" in limit.kind:
        return 1
    time_s = job.time_limit_s or 0
    if "Wall" in limit.kind:
        return time_s
    amount = amount_of(job, limit.tres or "")
    if "Mins" in limit.kind:
        return amount * time_s
    return -(-amount // max(1, job.node_count)) if limit.kind.endswith("PN") else amount


def amount_of(job: Job, tres: str) -> int:
    t = job.tres
    known = {"cpu": t.cpus, "mem": t.memory_bytes, "node": t.nodes or job.node_count, "billing": t.billing}
    known |= {"gres/gpu": t.gpus} | {f"gres/gpu:{kind}": n for kind, n in t.gpus_by_type} | dict(t.others)
    return known.get(tres, 0)


def sentence(allows: str, limit: Limit, job: Job) -> str:
    """One limit that a job has met: who allows how much, how much is used, what the job asks for."""
    assert limit.allowed is not None
    kind, used = limit.kind, limit.used
    allowed, more = spell(limit, limit.allowed), spell(limit, asks(job, limit))
    allows += {"PU": " each user", "PA": " each account"}.get(kind[-2:], "")
    by = f" by {limit.holder}" if limit.holder else ""
    if "Jobs" in kind:
        what = "in the queue" if "Submit" in kind else "gaining age" if "Accrue" in kind else "at once"
        return f"{allows} {allowed} {what}" + ("" if used is None else f"; {spell(limit, used)}{by} now")
    if kind.endswith(("PJ", "PN")):
        bound = "at least" if kind.startswith("Min") else "at most"
        where = "on each node" if kind.endswith("PN") else "for one job"
        return f"{allows} {bound} {allowed} {where}; this one asks for {more}"
    how = " still to run" if "RunMins" in kind else " in all" if _is_time(kind) else " at once"
    state = ("taken" if "Run" in kind else "used") if _is_time(kind) else "in use"
    if asks(job, limit) > limit.allowed and not _is_time(kind):
        return f"{allows} {allowed}{how}; this job asks for {more}, so it can never start"
    could = "could use" if _is_time(kind) else "asks for"
    so_far = "" if used is None else f"; {spell(limit, used)} {state}{by}"
    return f"{allows} {allowed}{how}{so_far}; this job {could} {more}"


def _is_time(kind: str) -> bool:
    return "Mins" in kind or "Wall" in kind


def spell(limit: Limit, count: int) -> str:
    """An amount of what a limit limits."""
    if "Wall" in limit.kind:
        return amounts.duration(count)
    if "Jobs" in limit.kind:
        return amounts.counted(count, "job")
    return (amounts.tres_hours if "Mins" in limit.kind else amounts.tres)(limit.tres or "", count)


@dataclass(frozen=True, slots=True)
class Allowance:
    """One limit and its use, as a person reads it: in hours, GiB, jobs."""

    of: str  # whose limit: "account research", "QOS normal", "ada in account research"
    kind: str  # Slurm's word: GrpTRES, MaxJobsPU, ...
    what: str  # "GPU at once", "GPU-hours", "jobs in the queue"
    allowed: float | None  # None: no limit
    used: float | None  # None: Slurm does not count it, or hides it

    @property
    def left(self) -> float | None:
        return None if self.allowed is None or self.used is None else max(0.0, round(self.allowed - self.used, 2))


def allowances(owner: str, limits: Sequence[Limit], user: str, accounts: Iterable[str]) -> Iterator[Allowance]:
    """The limits that are set, and how many GPUs and jobs are in use where none is. Others' holdings are left out."""
    theirs = {"PU": {user, None}, "PA": {*accounts, None}}
    for limit in limits:
        if limit.holder not in theirs.get(limit.kind[-2:], {None}):
            continue
        if limit.allowed is None and (limit.kind, limit.tres) not in _ALWAYS:
            continue
        of = f"{owner}, {limit.holder}" if limit.holder else owner
        yield Allowance(of, limit.kind, _noun(limit), _plain(limit, limit.allowed), _plain(limit, limit.used))


_ALWAYS = {("GrpTRES", "gres/gpu"), ("GrpJobs", None)}


def _noun(limit: Limit) -> str:
    kind, tres = limit.kind, limit.tres or ""
    per = {"PJ": " per job", "PN": " per node"}.get(kind[-2:], "")
    if "Jobs" in kind:
        return "jobs in the queue" if "Submit" in kind else "jobs gaining age" if "Accrue" in kind else "jobs at once"
    if "Wall" in kind:
        return f"hours{per}" if per else "hours of jobs"
    if "Mins" in kind:
        return amounts.hours_of(tres) + (" still to run" if "Run" in kind else per)
    name = "GiB of memory" if tres == "mem" else amounts.tres(tres, 2).partition(" ")[2]
    return f"{'at least ' if kind.startswith('Min') else ''}{name}{per or ' at once'}"


def _plain(limit: Limit, count: int | None) -> float | None:
    if count is None:
        return None
    tres = limit.tres or ""
    if "Wall" in limit.kind:
        return round(count / 3600, 2)
    if "Mins" in limit.kind:
        return amounts.hours(tres, count)
    return round(count / 1024**3, 2) if tres == "mem" else count
