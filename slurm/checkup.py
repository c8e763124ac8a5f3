"""Judges a cluster's configuration by what it means for jobs that save, drain and are counted. Pure.

Each function reads what a SlurmClient answered and says a line or two about it, with the remedy where one is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from slurm import versions
from slurm.findings import Finding, ok, problem, warning
from slurm.model import QOS, AccountingConfig, ClusterConfig, Node, Partition

DEFAULT_MAX_ARRAY_SIZE = 1001
GOOD_SKEW_S = 2.0  # Slurm tells whole seconds
TOLERABLE_SKEW_S = 120.0  # munge's credentials live for 300 s
SHORT_MEMORY_S = 60  # a watcher that looks this rarely must still meet a job that has ended
# PrivateData's words that hide something from a view of the cluster, and what they hide.
_HIDES = {
    "jobs": "other people's jobs",
    "usage": "other people's usage",
    "accounts": "accounts",
    "users": "users",
    "nodes": "nodes",
    "partitions": "partitions",
    "reservations": "reservations",
}


def span(seconds: int | None) -> str:
    """A length of time as sbatch takes it: `7-00:00:00`, `00:30:00`."""
    if seconds is None:
        return "unlimited"
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def release(config: ClusterConfig) -> Finding:
    says = f"{config.version_text}, cluster {config.name}"
    if versions.OLDEST <= config.version <= versions.NEWEST:
        return ok("release", says)
    tested = " to ".join(f"{major}.{minor:02}" for major, minor in (versions.OLDEST, versions.NEWEST))
    remedy = "compare what is shown here with Slurm's own commands before relying on it"
    return warning("release", f"{says}: outside of what is tested, {tested}", remedy)


def arrays(config: ClusterConfig) -> Finding:
    says = f"an array holds {config.max_array_size - 1:,} tasks at most, the queue {config.max_job_count:,} jobs"
    if config.max_array_size >= DEFAULT_MAX_ARRAY_SIZE:
        return ok("MaxArraySize", says)
    if config.max_array_size <= 1:
        return warning("MaxArraySize", "job arrays are switched off", f"MaxArraySize={DEFAULT_MAX_ARRAY_SIZE}")
    return warning(
        "MaxArraySize",
        f"{says}: a larger sweep takes several submissions",
        f"MaxArraySize={DEFAULT_MAX_ARRAY_SIZE}, which is Slurm's default, or more",
    )


def requeue(config: ClusterConfig) -> Finding:
    if config.job_requeue:
        return ok("JobRequeue", "1: a job that lost its node or was preempted waits again, unless it said --no-requeue")
    return warning(
        "JobRequeue",
        "0: a job that lost its node or was preempted does not come back, unless it was submitted with --requeue",
        "JobRequeue=1, or submit with --requeue",
    )


def memory(config: ClusterConfig) -> Finding:
    """How long the queue remembers a job that has ended."""
    age = config.min_job_age_s
    if age == 0:
        return ok("MinJobAge", "0: the queue remembers jobs that have ended until slurmctld restarts")
    says = f"the queue remembers a job for {age} s after its end"
    if not config.accounting:
        return warning(
            "MinJobAge",
            f"{says}, and nothing does after that, as there is no accounting: how it ended may go unseen",
            "AccountingStorageType=accounting_storage/slurmdbd, or at least a longer MinJobAge",
        )
    if age < SHORT_MEMORY_S:
        return warning(
            "MinJobAge",
            f"{says}: most ends are then read from accounting, which runs behind by seconds",
            "MinJobAge=300, which is Slurm's default",
        )
    return ok("MinJobAge", f"{says}; accounting after that")


def time_limits(partitions: Sequence[Partition]) -> list[Finding]:
    by_limit: dict[int | None, list[str]] = {}
    for partition in partitions:
        by_limit.setdefault(partition.max_time_s, []).append(partition.name)
    longest_first = sorted(by_limit.items(), key=lambda item: (item[0] is None, item[0] or 0), reverse=True)
    said = "; ".join(f"{', '.join(names)}: {span(limit)}" for limit, names in longest_first)
    closed = [f"{p.name} is {p.state}" for p in partitions if p.state != "UP"]
    findings = [ok("MaxTime", said or "there are no partitions that we may see")]
    if closed:
        remedy = "scontrol update PartitionName=NAME State=UP, once the reason is gone"
        findings.append(warning("partitions", f"{', '.join(closed)}: nothing starts there", remedy))
    return findings


# -- preemption -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Victim:
    """A QOS, or a partition, whose jobs may be preempted."""

    name: str
    modes: frozenset[str]  # CANCEL | REQUEUE | SUSPEND, GANG
    grace_s: int


def preemption(config: ClusterConfig, partitions: Sequence[Partition], qos: Sequence[QOS]) -> list[Finding]:
    """Whose jobs may be preempted, and whether they are told in time to save.

    A preempted job gets its signal (sbatch --signal) only where the cluster sends it and GraceTime is more than zero.
    """
    if config.preempt_type == "none":
        return [ok("preemption", "off: no job has to make room for another")]
    by_qos = config.preempt_type == "qos"
    kind = "QOS" if by_qos else "partition"
    victims = list(_preempted_qos(config, qos) if by_qos else _preempted_partitions(partitions))
    if not victims:
        return [ok("preemption", f"preempt/{config.preempt_type}, but no {kind} may be preempted")]
    ended = [v for v in victims if v.modes & {"CANCEL", "REQUEUE"}]
    warned = [v for v in ended if config.preempt_sends_signal and v.grace_s > 0]
    killed = [v for v in ended if v not in warned]
    findings = []
    for grace_s in sorted({v.grace_s for v in warned}):
        names = ", ".join(v.name for v in warned if v.grace_s == grace_s)
        says = f"jobs of {kind} {names} get the signal they asked for {grace_s} s before they are stopped"
        findings.append(ok("preemption", says))
    if killed:
        names = ", ".join(v.name for v in killed)
        remedies = [] if config.preempt_sends_signal else [versions.preempt_signal_setting(config.version)]
        remedies += [_grace_setting(by_qos, v.name) for v in killed if v.grace_s == 0]
        says = f"jobs of {kind} {names} are stopped without the signal they asked for: work since the last save is lost"
        findings.append(warning("preemption", says, " and ".join(remedies)))
    if suspended := [v.name for v in victims if "SUSPEND" in v.modes]:
        says = f"jobs of {kind} {', '.join(suspended)} are suspended in place, where they keep the memory of their GPUs"
        findings.append(warning("preemption", says, "PreemptMode=REQUEUE"))
    return findings


def _preempted_qos(config: ClusterConfig, qos: Sequence[QOS]) -> Iterator[_Victim]:
    preempted = {name for q in qos for name in q.preempts}
    for q in qos:
        if q.name in preempted:
            words = _modes(q.preempt_mode)
            yield _Victim(q.name, config.preempt_mode if words == {"CLUSTER"} else words, q.grace_time_s)


def _preempted_partitions(partitions: Sequence[Partition]) -> Iterator[_Victim]:
    """Those of a lower tier than another, unless they say OFF."""
    highest = max((p.priority_tier for p in partitions), default=0)
    for p in partitions:
        if p.priority_tier < highest and (modes := _modes(p.preempt_mode)) != {"OFF"}:
            yield _Victim(p.name, modes, p.grace_time_s)


def _modes(text: str) -> frozenset[str]:
    return frozenset(text.upper().split(","))


def _grace_setting(by_qos: bool, name: str) -> str:
    return f"sacctmgr modify qos {name} set GraceTime=120" if by_qos else f"GraceTime=120 for partition {name}"


# -- accounting -----------------------------------------------------------------------------------------------------


def enforcement(config: ClusterConfig) -> list[Finding]:
    """Whether limits hold, and whether reaching one kills what runs."""
    said = ", ".join(sorted(config.enforce)) or "nothing"
    whole = "AccountingStorageEnforce=associations,limits,qos,safe"
    if not config.enforce & {"associations", "limits", "safe"}:
        says = f"enforced: {said}. Anybody may submit to any account, and no limit of an account holds"
        return [problem("enforcement", says, whole)]
    if not config.enforce & {"limits", "safe"}:
        return [warning("enforcement", f"enforced: {said}. No limit of an account or QOS holds", whole)]
    if "safe" not in config.enforce:
        says = f"enforced: {said}, without safe: a job that runs is killed when its account reaches GrpTRESMins"
        return [warning("enforcement", says, whole)]
    if "qos" not in config.enforce and config.preempt_type == "qos":
        says = f"enforced: {said}, without qos: anybody may take the QOS that preempts the others"
        return [warning("enforcement", says, whole)]
    return [ok("enforcement", f"{said}: a job starts only when its account's limits let it finish")]


def tracked(config: ClusterConfig, nodes: Iterable[Node]) -> Finding:
    """Whether the books count GPUs at all, and their types apart."""
    words = config.settings.get("AccountingStorageTRES", "").split(",")
    types = sorted({kind for node in nodes for kind in node.tres.gpus_of_each_type})
    if not types:
        return ok("AccountingStorageTRES", "no node has GPUs")
    missing = [kind for kind in types if not kind or f"gres/gpu:{kind}" not in words]
    remedy = f"AccountingStorageTRES={','.join(['gres/gpu', *(f'gres/gpu:{kind}' for kind in types if kind)])}"
    if missing and "gres/gpu" not in words:
        says = f"the books do not count GPUs ({_kinds(missing)}): every report would say that none were used"
        return problem("AccountingStorageTRES", says, remedy)
    if missing and len(types) > 1:
        return warning("AccountingStorageTRES", f"the books do not tell apart {_kinds(types)}", remedy)
    return ok("AccountingStorageTRES", f"GPUs are counted ({_kinds(types)})")


def _kinds(types: Sequence[str]) -> str:
    return ", ".join(kind or "without a type" for kind in types)


def comments(config: ClusterConfig) -> Finding:
    if "job_comment" in config.store_flags:
        return ok("AccountingStoreFlags", "the books keep a job's comment")
    return ok("AccountingStoreFlags", "the books keep no comments: a lost submission is found by its submit line")


def books(accounting: AccountingConfig) -> Finding:
    purge = accounting.settings.get("PurgeJobAfter", "NONE")
    kept = "for ever" if purge == "NONE" else f"for {purge}"
    return ok("slurmdbd", f"{accounting.version_text}; jobs are kept {kept}")


def privacy(config: ClusterConfig, accounting: AccountingConfig | None, privileged: bool) -> Finding:
    """What PrivateData (slurm.conf's and slurmdbd.conf's) hides from us."""
    words = config.private_data | (accounting.private_data if accounting else frozenset())
    hidden = [said for word, said in _HIDES.items() if word in words]
    if not hidden:
        return ok("PrivateData", "nothing is hidden")
    if privileged:
        return ok("PrivateData", f"hides from ordinary users: {', '.join(hidden)}; this account sees all")
    return warning(
        "PrivateData",
        f"hidden from this account: {', '.join(hidden)}; what is shown of them is partial",
        "sacctmgr modify user NAME set AdminLevel=Operator, for the account that asks",
    )


# -- how we speak to it ---------------------------------------------------------------------------------------------


def munge_socket(settings: Mapping[str, str]) -> str | None:
    """The socket of the munged that this cluster uses (AuthInfo); None: munge's own default."""
    words = dict(word.split("=", 1) for word in settings.get("AuthInfo", "").split(",") if "=" in word)
    return words.get("socket")


def ahead_s(theirs_s: float, before_s: float, after_s: float) -> float:
    """How far a clock that showed this whole second, between two moments of ours, is ahead; 0 where they may agree."""
    if theirs_s > after_s:
        return theirs_s - after_s
    return min(0.0, theirs_s + 1 - before_s)


def clock_skew(skew_s: float, of: str, remedy: str) -> Finding:
    """`skew_s`: how far the clock of `of` is ahead of ours. Munge refuses credentials that are minutes apart."""
    direction = "ahead of" if skew_s > 0 else "behind"
    says = f"{of} is {abs(skew_s):.0f} s {direction} this host"
    if abs(skew_s) > TOLERABLE_SKEW_S:
        says += ": munge refuses credentials this old or this new"
        return problem("clock", says, remedy)
    if abs(skew_s) > GOOD_SKEW_S:
        return warning("clock", f"{says}: times of jobs and of requests do not agree", remedy)
    return ok("clock", f"{of} and this host agree within {GOOD_SKEW_S:g} s")
