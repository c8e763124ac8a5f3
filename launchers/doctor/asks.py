"""Whether the cluster can give what this site's jobs ask for when nobody says otherwise. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from launchers.doctor.cluster import Cluster
from registry.site import DefaultResources, Site
from registry.strict_toml import did_you_mean
from slurm.checkup import span
from slurm.findings import Finding, ok, problem, warning
from slurm.model import QOS, Association, Node, Partition

GIB = 1 << 30


def asks(site: Site, cluster: Cluster, user: str) -> Iterator[Finding]:
    """One line for each of [defaults.*] that fits, or one for each reason why not; then [partitions.*]."""
    if cluster.partitions is None or cluster.nodes is None:
        return
    for use, wanted in _uses(site):
        where = f"defaults.{use}"
        partition = _partition(wanted.partition, cluster.partitions)
        if partition is None:
            yield _no_partition(where, wanted, cluster.partitions)
            continue
        wrong = [
            *_refused_by_partition(where, wanted, partition),
            *_refused_by_nodes(where, wanted, partition, cluster.nodes),
            *_refused_by_account(where, wanted, cluster.associations, user),
            *_refused_by_qos(where, wanted, cluster.qos),
        ]
        yield from wrong or [ok(where, _said(wanted, partition))]
    yield from _described_wrongly(site, cluster.partitions, cluster.nodes)


def _uses(site: Site) -> Iterator[tuple[str, DefaultResources]]:
    for field in dataclasses.fields(site.defaults):
        if (wanted := getattr(site.defaults, field.name)) is not None:  # it asks for what another one does
            yield field.name, wanted


def _said(wanted: DefaultResources, partition: Partition) -> str:
    nodes = "1 node" if wanted.nodes == 1 else f"{wanted.nodes} nodes"
    gpus = f" with {_gpus(wanted.gpus_per_node)}" if wanted.gpus_per_node else ""
    return f"{nodes} of {partition.name}{gpus}, for up to {span(wanted.time_limit_s)}: fits"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _partition(name: str | None, partitions: Sequence[Partition]) -> Partition | None:
    return next((p for p in partitions if (p.default if name is None else p.name == name)), None)


def _no_partition(where: str, wanted: DefaultResources, partitions: Sequence[Partition]) -> Finding:
    names = [p.name for p in partitions]
    known = f"there are: {', '.join(names) or 'none that we may see'}"
    if wanted.partition is None:
        return problem(where, f"names no partition, and the cluster has no default; {known}", f"{where}.partition")
    hint = did_you_mean(wanted.partition, names)
    return problem(where, f"there is no partition {wanted.partition};{hint} {known}", f"{where}.partition")


def _refused_by_partition(where: str, wanted: DefaultResources, partition: Partition) -> Iterator[Finding]:
    name = partition.name
    if partition.max_time_s is not None and wanted.time_limit_s > partition.max_time_s:
        says = (
            f"asks for {span(wanted.time_limit_s)}, and {name} allows {span(partition.max_time_s)}: refused, or waits "
            "for ever (PartitionTimeLimit)"
        )
        yield problem(where, says, f'{where}.time_limit = "{span(partition.max_time_s)}" or less')
    if partition.max_nodes is not None and wanted.nodes > partition.max_nodes:
        says = f"asks for {wanted.nodes} nodes, and a job in {name} may have {partition.max_nodes}"
        yield problem(where, says, f"{where}.nodes")
    for field, value, allowed in (
        ("account", wanted.account, partition.allow_accounts),
        ("qos", wanted.qos, partition.allow_qos),
    ):
        if value is not None and allowed is not None and value not in allowed:
            yield problem(where, f"{name} allows {field} {', '.join(allowed)} only, not {value}", f"{where}.{field}")


def _refused_by_nodes(
    where: str, wanted: DefaultResources, partition: Partition, nodes: Sequence[Node]
) -> Iterator[Finding]:
    mine = [node for node in nodes if partition.name in node.partitions]
    if not mine:
        return  # a partition whose nodes come and go, or are hidden from us
    cpus = wanted.tasks_per_node * wanted.cpus_per_task
    memory = round((wanted.mem_gb or 0) * GIB)
    largest = {
        "GPUs": (wanted.gpus_per_node, max(n.tres.gpus for n in mine)),
        "CPUs": (cpus, max(n.tres.cpus for n in mine)),
        "GiB of memory": (-(-memory // GIB), max(n.tres.memory_bytes for n in mine) // GIB),
    }
    too_much = [f"{asked} {what} (at most {most})" for what, (asked, most) in largest.items() if asked > most]
    if too_much:
        says = f"no node of {partition.name} has {' and '.join(too_much)}"
        yield problem(where, says, f"make [{where}] smaller, or name another partition")
        return
    fitting = [
        node
        for node in mine
        if node.tres.gpus >= wanted.gpus_per_node and node.tres.cpus >= cpus and node.tres.memory_bytes >= memory
    ]
    if len(fitting) < wanted.nodes:
        says = f"asks for {wanted.nodes} nodes, and {partition.name} has {len(fitting)} that are large enough"
        yield problem(where, says, f"make [{where}] smaller, or name another partition")
    elif (up := sum(node.available for node in fitting)) < wanted.nodes:
        says = f"needs {wanted.nodes} nodes of {partition.name}, of which {up} can take jobs now: such a job waits"
        yield warning(where, says, f"`sinfo -R -p {partition.name}` says why the others are out")


def _refused_by_account(
    where: str, wanted: DefaultResources, associations: Sequence[Association] | None, user: str
) -> Iterator[Finding]:
    """Only where we see anybody's accounts: PrivateData may hide them, and a cluster without accounting has none."""
    if wanted.account is None or not associations:
        return
    mine = sorted({a.account for a in associations if a.user == user})
    if wanted.account not in {a.account for a in associations}:
        says = f"there is no account {wanted.account}; {user} is in: {', '.join(mine) or 'none'}"
        yield problem(where, says, f"{where}.account")
    elif wanted.account not in mine:
        says = f"{user}, who asks, is not in account {wanted.account}, but in: {', '.join(mine) or 'none'}"
        remedy = f"sacctmgr add user {user} account={wanted.account}, unless others submit such jobs"
        yield warning(where, says, remedy)


def _refused_by_qos(where: str, wanted: DefaultResources, qos: Sequence[QOS] | None) -> Iterator[Finding]:
    if wanted.qos is None or qos is None:
        return
    chosen = next((q for q in qos if q.name == wanted.qos), None)
    if chosen is None:
        yield problem(
            where, f"there is no QOS {wanted.qos}; there are: {', '.join(q.name for q in qos)}", f"{where}.qos"
        )
        return
    for limit in chosen.limits:
        if limit.kind.startswith("MaxWall") and limit.allowed is not None and wanted.time_limit_s > limit.allowed:
            says = f"asks for {span(wanted.time_limit_s)}, and QOS {chosen.name} allows {span(limit.allowed)}"
            yield problem(where, says, f'{where}.time_limit = "{span(limit.allowed)}" or less')


def _described_wrongly(site: Site, partitions: Sequence[Partition], nodes: Sequence[Node]) -> Iterator[Finding]:
    """[partitions.NAME] says what Slurm does not know; what it does know should agree."""
    names = [p.name for p in partitions]
    for name, described in site.partitions.items():
        where = f"partitions.{name}"
        if name not in names:
            hint = did_you_mean(name, names)
            yield warning(where, f"Slurm has no partition {name};{hint} there are: {', '.join(names)}", f"[{where}]")
            continue
        most = max((node.tres.gpus for node in nodes if name in node.partitions), default=0)
        if described.gpus_per_node > most:
            says = f"says {described.gpus_per_node} GPUs per node, and Slurm knows of {most}"
            yield warning(where, says, f"{where}.gpus_per_node = {most}")
