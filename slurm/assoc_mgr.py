"""Associations and QOS with their limits and live use: `scontrol -o show assoc_mgr`. Pure: no command is run here.

slurmctld's own view, so it is what limits are enforced by. An amount reads `limit(used)`, where N is no limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from slurm import versions
from slurm.model import Association, Limit

_MIB = 1024**2


def associations(
    text: str, fair_shares: Mapping[tuple[str, str | None, str | None], float | None]
) -> list[Association]:
    """`fair_shares` come from sshare (`tables.fair_shares`); associations that it leaves out have none."""
    found = []
    for line in text.splitlines():
        if not line.startswith("ClusterName="):
            continue
        said = _words(line)
        account, user = said["Account"], _name(said["UserName"])
        partition = said["Partition"] or None
        shares = said.get("SharesRaw/Norm/Level/Factor", "").partition("/")[0]
        found.append(
            Association(
                cluster=said["ClusterName"],
                account=account,
                user=user,
                partition=partition,
                parent=account if user else _name(said["ParentAccount"]),
                default=said.get("DefAssoc") == "Yes",
                limits=tuple(_limits(said)),
                shares=int(shares) if shares.isdigit() and int(shares) != 0x7FFFFFFF else None,  # SLURMDB_FS_USE_PARENT
                usage_raw=float(said["UsageRaw/Norm/Efctv"].partition("/")[0]),
                fair_share=fair_shares.get((account, user, partition)),
            )
        )
    return found


def qos_limits(text: str) -> dict[str, tuple[Limit, ...]]:
    """Each QOS's limits by its name, those per user and per account included where somebody uses it."""
    users = {uid: name for name, uid in re.findall(r"^UserName=(\S+)\((\d+)\)", text, re.MULTILINE)}
    found = {}
    for line in text.splitlines():
        if line.startswith("QOS="):
            whole, _, rest = line.partition("Account Limits=")
            by_account, _, by_user = rest.partition("User Limits=")
            limits = [*_limits(_words(whole)), *_held(by_account, {}), *_held(by_user, users)]
            found[re.sub(r"\(\d+\)$", "", _words(whole)["QOS"])] = tuple(limits)
    return found


def admin_levels(text: str) -> dict[str, str]:
    """Each user's level: None, Operator or Administrator."""
    return dict(re.findall(r"^UserName=(\S+)\(\d+\) .*AdminLevel=(\w+)", text, re.MULTILINE))


def _held(text: str, names: Mapping[str, str]) -> Iterator[Limit]:
    """`research={MaxJobsPA=N(1) ...} ...`, or users in the same way."""
    for holder, inside in re.findall(r"(\S+)=\{([^}]*)\}", text):
        yield from _limits(_words(inside), versions.user_name(holder, names))


def _words(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _name(text: str) -> str | None:
    """`root(0)` is root; nothing is None."""
    return re.sub(r"\(\d+\)$", "", text) or None


def _limits(said: Mapping[str, str], holder: str | None = None) -> Iterator[Limit]:
    """Those that limit something, or that count something in use."""
    for kind, text in said.items():
        if not re.match(r"(Grp|Max|Min)[A-Z]", kind) or not text:
            continue
        for item in text.split(",") if "TRES" in kind else [text]:
            tres, _, amounts = item.rpartition("=")
            allowed, used = _amounts(amounts, _unit(kind, tres))
            if allowed is not None or used:
                yield Limit(kind, tres or None, allowed, used, holder)


def _unit(kind: str, tres: str) -> int:
    return (60 if "Mins" in kind or "Wall" in kind else 1) * (_MIB if tres == "mem" else 1)


def _amounts(text: str, unit: int) -> tuple[int | None, int | None]:
    """`16(8)`, `N(8)` or `16`: what is allowed, and what is used."""
    match = re.fullmatch(r"(N|[\d.]+)?(?:\(([\d.]+)\))?", text)
    if match is None:
        raise ValueError(f"not an amount of assoc_mgr's: {text!r}")
    allowed, used = match.groups()
    return (
        None if allowed in (None, "N") else round(float(allowed) * unit),
        None if used is None else round(float(used) * unit),
    )
