"""Who may do what: one pure function that guards every verb of the control API."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verb(enum.Enum):
    READ = "read"
    CREATE = "create"  # something of one's own
    CHANGE = "change"  # stop, move, revoke
    ADMINISTER = "administer"  # tenants, keys, limits


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever speaks to the control API: a user of this host, known by the socket's peer credentials."""

    name: str
    uid: int
    admin: bool  # the service's own account, or root


@dataclass(frozen=True, slots=True)
class Object:
    """What a verb is about: a kind ("deployment", "tenant", ...) and its owner's user name."""

    kind: str
    owner: str


class Forbidden(PermissionError):
    """The principal may not do this; the message says who may."""


def may(principal: Principal, verb: Verb, target: Object) -> bool:
    """Administrators may everything; everyone may read; owners may create and change what is theirs."""
    if principal.admin:
        return True
    match verb:
        case Verb.READ:
            return target.kind != "report" or target.owner == principal.name
        case Verb.CREATE | Verb.CHANGE:
            return target.kind not in ("tenant", "key") and target.owner == principal.name
        case Verb.ADMINISTER:
            return False


def require(principal: Principal, verb: Verb, target: Object) -> None:
    """Raise Forbidden unless `may` says yes."""
    if not may(principal, verb, target):
        who = (
            "an administrator"
            if verb is Verb.ADMINISTER or target.kind in ("tenant", "key", "report")
            else (f"its owner {target.owner} or an administrator")
        )
        raise Forbidden(f"{principal.name} may not {verb.value} this {target.kind}; {who} may")
