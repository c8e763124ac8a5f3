"""Who may do what: one pure function that guards every verb of the control API."""

from __future__ import annotations

import enum
from dataclasses import dataclass

# What only its user, a member of its tenant and an administrator may read. Everything else, everyone may.
PRIVATE = frozenset({"tenant", "key", "quota", "usage", "report"})
ADMINISTERED = frozenset({"tenant", "quota", "price"})  # nobody else makes or changes one


class Verb(enum.Enum):
    READ = "read"
    CREATE = "create"  # something of one's own
    CHANGE = "change"  # stop, move, revoke
    ADMINISTER = "administer"  # tenants, limits, prices, others' keys


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever speaks to the control API: a user of this host, known by the socket's peer credentials."""

    name: str
    uid: int
    admin: bool  # the service's own account, or root
    tenants: frozenset[str] = frozenset()  # which it is a member of


@dataclass(frozen=True, slots=True)
class Object:
    """What a verb is about: a kind ("deployment", "tenant", ...), its owner's user name, and the tenant it is of.

    A key's owner is the user who calls with it, whoever made it. What is a tenant's has no owner: "".
    """

    kind: str
    owner: str
    tenant: str | None = None


class Forbidden(PermissionError):
    """The principal may not do this; the message says who may."""


def may(principal: Principal, verb: Verb, target: Object) -> bool:
    """Administrators may everything; owners may create and change what is theirs; what is not private, everyone reads.

    What is private, its owner reads, and a member what is of the tenant; but a key's user alone reads a key. To get a
    key one must be a member of its tenant at that time.
    """
    if principal.admin:
        return True
    owner, member = target.owner == principal.name, target.tenant in principal.tenants
    match verb, target.kind:
        case Verb.READ, "key":
            return owner
        case Verb.READ, kind:
            return kind not in PRIVATE or owner or member
        case Verb.CREATE, "key":
            return owner and member
        case Verb.CREATE | Verb.CHANGE, kind:
            return kind not in ADMINISTERED and owner
    return False


def require(principal: Principal, verb: Verb, target: Object) -> None:
    """Raise Forbidden unless `may` says yes."""
    if not may(principal, verb, target):
        raise Forbidden(f"{principal.name} may not {verb.value} this {target.kind}; {_who(verb, target)} may")


def _who(verb: Verb, target: Object) -> str:
    if verb is Verb.ADMINISTER or (verb is not Verb.READ and target.kind in ADMINISTERED):
        return "an administrator"
    if target.kind == "key":
        if verb is Verb.CREATE:
            return f"a member of tenant {target.tenant} for themselves, or an administrator"
        return "its user or an administrator"
    if target.kind in PRIVATE and verb is Verb.READ:
        return (
            "an administrator" if target.tenant is None else f"a member of tenant {target.tenant} or an administrator"
        )
    return f"its owner {target.owner} or an administrator"
