"""What scontrol and sacctmgr print as `Key=Value` becomes records. Pure: no command is run here."""

from __future__ import annotations

import re
from collections.abc import Iterator

from slurm import parse, versions
from slurm.model import AccountingConfig, ClusterConfig, Partition, Reservation


def config(text: str) -> ClusterConfig:
    """`scontrol show config`."""
    said = dict(_settings(text))
    version = said["SLURM_VERSION"]
    # The first line is slurmctld's clock, not ours (seen with a client whose clock was 1000 s off, on 22.05).
    answered = re.match(r"Configuration data as of (\S+)$", text, re.MULTILINE)
    return ClusterConfig(
        name=said["ClusterName"],
        version=versions.release(version),
        version_text=version,
        answered_at=parse.some_time(answered[1] if answered else ""),
        accounting=said["AccountingStorageType"].endswith("slurmdbd"),
        enforce=parse.flags(said["AccountingStorageEnforce"]),
        store_flags=parse.flags(said["AccountingStoreFlags"]),
        auth=said["AuthType"].rpartition("/")[2],
        job_requeue=said["JobRequeue"] == "1",
        kill_wait_s=parse.some_duration_s(said["KillWait"]),
        max_array_size=int(said["MaxArraySize"]),
        max_job_count=int(said["MaxJobCount"]),
        min_job_age_s=parse.some_duration_s(said["MinJobAge"]),
        preempt_type=said["PreemptType"].rpartition("/")[2],
        preempt_mode=parse.flags(said["PreemptMode"]),
        preempt_sends_signal=versions.preempt_sends_signal(said),
        private_data=parse.flags(said["PrivateData"]),
        settings=said,
    )


def accounting_config(text: str) -> AccountingConfig:
    """The second half of `sacctmgr show config`, which is slurmdbd's own."""
    said = dict(_settings(text.partition("SlurmDBD configuration")[2]))
    return AccountingConfig(said["SLURMDBD_VERSION"], parse.flags(said["PrivateData"]), said)


def _settings(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if match := re.match(r"([A-Za-z_]\S*)\s+= ?(.*)", line):
            yield match[1], match[2].strip()


def partitions(text: str) -> list[Partition]:
    """`scontrol -o show partition`."""
    return [_partition(said) for said in _lines(text)]


def _partition(said: dict[str, str]) -> Partition:
    return Partition(
        name=said["PartitionName"],
        state=said["State"],
        default=said["Default"] == "YES",
        hidden=said["Hidden"] == "YES",
        nodes=parse.nodes(said["Nodes"]),
        tres=parse.tres(said.get("TRES", "")),
        max_time_s=parse.duration_s(said["MaxTime"]),
        default_time_s=parse.duration_s(said["DefaultTime"]),
        max_nodes=parse.number(said["MaxNodes"]),
        qos=parse.maybe(said["QoS"]),
        allow_accounts=_allowed(said.get("AllowAccounts")),
        allow_qos=_allowed(said.get("AllowQos")),
        allow_groups=_allowed(said.get("AllowGroups")),
        preempt_mode=said["PreemptMode"],
        grace_time_s=int(said["GraceTime"]),
        priority_tier=int(said["PriorityTier"]),
    )


def _allowed(text: str | None) -> tuple[str, ...] | None:
    """None is everybody. DenyAccounts=... stands in the place of AllowAccounts where a site has that."""
    return None if text in (None, "ALL") else parse.words(text)


def reservations(text: str) -> list[Reservation]:
    """`scontrol -o show reservation`."""
    return [
        Reservation(
            name=said["ReservationName"],
            starts_at=parse.some_time(said["StartTime"]),
            ends_at=parse.some_time(said["EndTime"]),
            nodes=parse.nodes(said["Nodes"]),
            flags=parse.flags(said["Flags"]),
            users=parse.words(said["Users"]),
            accounts=parse.words(said["Accounts"]),
            partition=parse.maybe(said["PartitionName"]),
            active=said["State"] == "ACTIVE",
            tres=parse.tres(said["TRES"]),
        )
        for said in _lines(text)
    ]


def _lines(text: str) -> Iterator[dict[str, str]]:
    """One record a line (scontrol -o), none of whose values holds a space."""
    for line in text.splitlines():
        if "=" in line:  # "No reservations in the system" has none
            yield dict(word.split("=", 1) for word in line.split() if "=" in word)
