"""Slurm's associations -> tenants and their members. What Slurm does not say any more is only taken away when asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from launchers.scheduler import SchedulerError, SchedulerUnavailable
from registry import keys, tenants
from registry.db import Database, RegistryError, transaction
from registry.keys import Key
from registry.limits import Limits
from registry.tenants import Member, Source, Tenant
from slurm.client import SlurmClient
from slurm.errors import SlurmError
from slurm.model import Association

ROOT = ("root", "root")  # the account and its user that every Slurm has; nobody's project


@dataclass(frozen=True, slots=True)
class Changes:
    create: tuple[tuple[str, str], ...]  # (tenant, the account it stands for)
    add: tuple[tuple[str, str], ...]  # (tenant, user)
    gone: tuple[tuple[str, str], ...]  # members by Slurm's word, which it says no more: (tenant, user)
    revoke: tuple[Key, ...]  # what those have of these tenants' keys
    skipped: tuple[tuple[str, str], ...]  # (account, why it gets no tenant, or a user of it no place there)
    prune: bool  # whether `gone` and `revoke` are to be done; else they are only told


def associations(client: SlurmClient, *, whole: bool) -> list[Association]:
    """What Slurm answers. `whole`: refuse what may be a part, as PrivateData may make it. Raises SchedulerError."""
    try:
        found = client.associations()
        private = client.config().private_data if whole else frozenset()
        hidden = bool(private) and not client.privileged()
    except SlurmError as e:
        raise SchedulerUnavailable(f"Slurm's associations cannot be read, nothing was changed: {e}") from e
    if not any(a.user for a in found):
        raise SchedulerError(
            "Slurm shows no association of any user: it has no accounting, or hides it; nothing changed"
        )
    if hidden:
        raise SchedulerError(
            f"Slurm may hide associations from this controller (PrivateData={','.join(sorted(private))}), and so "
            "nothing is pruned: make its user an operator of Slurm's (sacctmgr modify user X set adminlevel=operator)"
        )
    return found


def plan(
    associations: Iterable[Association],
    known: Iterable[Tenant],
    members: Iterable[Member],
    live: Iterable[Key],
    *,
    prune: bool,
) -> Changes:
    """A tenant for every account that has users, a member for every user. Pure.

    A tenant that stands for the account already is used, whatever it is called. `live`: the keys nobody revoked.
    """
    known, members = list(known), list(members)
    users = defaultdict(set)
    odd = {}
    for a in associations:
        if a.user is None or (a.account, a.user) == ROOT:
            continue
        try:
            users[a.account].add(tenants.checked_user(a.user))
        except RegistryError as e:
            odd[a.account, a.user] = (a.account, f"its user {a.user!r}: {e}")
    standing = defaultdict(list)
    for tenant in known:
        if tenant.account is not None:
            standing[tenant.account].append(tenant.name)
    create, skipped = [], list(odd.values())
    for account in sorted(users.keys() - standing.keys()):
        if why := _no_tenant(account, known):
            skipped.append((account, why))
        else:
            create.append((account, account))
            standing[account].append(account)
    wanted = {(name, user) for account, names in standing.items() for name in names for user in users[account]}
    present = {(m.tenant, m.user) for m in members}
    gone = {(m.tenant, m.user) for m in members if m.source is Source.SLURM} - wanted
    return Changes(
        create=tuple(create),
        add=tuple(sorted(wanted - present)),
        gone=tuple(sorted(gone)),
        revoke=tuple(k for k in live if (k.tenant, k.user) in gone),
        skipped=tuple(sorted(skipped)),
        prune=prune,
    )


def _no_tenant(account: str, known: Iterable[Tenant]) -> str | None:
    """Why no tenant of its name can be made for an account."""
    try:
        tenants.checked_name("tenant", account)
    except RegistryError as e:
        return str(e)
    for tenant in known:
        if tenant.name == account:
            stands = f"stands for account {tenant.account}" if tenant.account else "stands for no account"
            return f"tenant {account} exists and {stands}; `headgate tenant account` changes that"
    return None


def look(db: Database, associations: Iterable[Association], *, prune: bool) -> Changes:
    """`plan` on what the registry says."""
    live = [k for k in keys.everything(db) if k.revoked_at is None]
    return plan(associations, tenants.everyone(db), tenants.members(db), live, prune=prune)


def apply(db: Database, changes: Changes, by: str, limited: Limits) -> None:
    """All of it or nothing. `limited`: what a new tenant may do."""
    with transaction(db):
        for name, account in changes.create:
            tenants.create(db, name, by, account=account, limited=limited)
        for tenant, user in changes.add:
            tenants.add_member(db, tenant, user, Source.SLURM)
        for tenant, user in changes.gone if changes.prune else ():
            remove_member(db, tenant, user)


def remove_member(db: Database, tenant: str, user: str) -> list[Key]:
    """A user who leaves a tenant leaves its keys: those that are revoked with it are returned. Raises NotFound."""
    with transaction(db):
        tenants.remove_member(db, tenant, user)
        return keys.revoke_of(db, tenant, user)
