"""Who may do what, as a table."""

from __future__ import annotations

import pytest

from registry.access import Forbidden, Object, Principal, Verb, may, require

ROOT = Principal("root", 0, admin=True)
ADA = Principal("ada", 1000, admin=False, tenants=frozenset({"physics", "maths"}))
NOBODY = Principal("nobody", 65534, admin=False)  # a member of nothing

OWN, OTHERS, NONE = "ada", "bob", ""

CASES = [
    # who, verb, kind, owner, tenant, whether
    (ADA, Verb.READ, "deployment", OTHERS, None, True),
    (ADA, Verb.READ, "run", OTHERS, None, True),
    (ADA, Verb.READ, "price", NONE, None, True),
    (ADA, Verb.CREATE, "deployment", OWN, None, True),
    (ADA, Verb.CREATE, "deployment", OTHERS, None, False),
    (ADA, Verb.CHANGE, "deployment", OWN, None, True),
    (ADA, Verb.CHANGE, "deployment", OTHERS, None, False),
    (ADA, Verb.CHANGE, "deployment", OTHERS, "physics", False),  # a deployment is its owner's alone
    (ADA, Verb.CHANGE, "model", OTHERS, None, False),
    (ADA, Verb.CHANGE, "alias", OWN, None, True),
    (ADA, Verb.CHANGE, "alias", OTHERS, None, False),  # it moves what others may follow
    (ADA, Verb.ADMINISTER, "adapter directory", OWN, None, False),
    (ADA, Verb.ADMINISTER, "deployment", OWN, None, False),
    # Reports and use: one's own, and one's tenants'.
    *(
        case
        for kind in ("report", "usage", "quota")
        for case in (
            (ADA, Verb.READ, kind, OWN, None, True),
            (ADA, Verb.READ, kind, OTHERS, None, False),
            (ADA, Verb.READ, kind, NONE, None, False),
            (ADA, Verb.READ, kind, NONE, "physics", True),
            (ADA, Verb.READ, kind, OTHERS, "maths", True),
            (ADA, Verb.READ, kind, NONE, "chemistry", False),
            (ADA, Verb.READ, kind, OTHERS, "chemistry", False),
            (NOBODY, Verb.READ, kind, NONE, None, False),
            (NOBODY, Verb.READ, kind, NONE, "physics", False),
        )
    ),
    # Tenants, limits and prices are administrators' to make and to change.
    *(
        case
        for kind in ("tenant", "quota", "price")
        for verb in (Verb.CREATE, Verb.CHANGE, Verb.ADMINISTER)
        for case in ((ADA, verb, kind, OWN, "physics", False), (NOBODY, verb, kind, NONE, None, False))
    ),
    (ADA, Verb.READ, "tenant", NONE, "physics", True),
    (ADA, Verb.READ, "tenant", NONE, "chemistry", False),
    (NOBODY, Verb.READ, "tenant", NONE, "physics", False),
    # Keys: for oneself, where one is a member.
    (ADA, Verb.CREATE, "key", OWN, "physics", True),
    (ADA, Verb.CREATE, "key", OTHERS, "physics", False),
    (ADA, Verb.CREATE, "key", "app:web", "physics", False),
    (ADA, Verb.CREATE, "key", OWN, "chemistry", False),
    (ADA, Verb.CREATE, "key", OWN, None, False),
    (ADA, Verb.READ, "key", OWN, "physics", True),
    (ADA, Verb.READ, "key", OWN, "chemistry", True),  # left since: still theirs to see and to give up
    (ADA, Verb.READ, "key", OTHERS, "physics", False),
    (ADA, Verb.READ, "key", "app:web", "physics", False),
    (ADA, Verb.CHANGE, "key", OWN, "physics", True),
    (ADA, Verb.CHANGE, "key", OWN, "chemistry", True),
    (ADA, Verb.CHANGE, "key", OTHERS, "physics", False),
    (ADA, Verb.CHANGE, "key", "app:web", "physics", False),
    (ADA, Verb.ADMINISTER, "key", OWN, "physics", False),
    (NOBODY, Verb.CREATE, "key", "nobody", "physics", False),
]


@pytest.mark.parametrize(("who", "verb", "kind", "owner", "tenant", "allowed"), CASES)
def test_who_may_do_what(who: Principal, verb: Verb, kind: str, owner: str, tenant: str | None, allowed: bool) -> None:
    target = Object(kind, owner, tenant)
    assert may(who, verb, target) is allowed
    if allowed:
        require(who, verb, target)
    else:
        with pytest.raises(Forbidden, match=f"{who.name} may not {verb.value} this {kind}; .* may$"):
            require(who, verb, target)


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize(
    "kind", ["deployment", "tenant", "key", "quota", "usage", "report", "run", "model", "price", "alias"]
)
def test_an_administrator_may_everything(verb: Verb, kind: str) -> None:
    assert may(ROOT, verb, Object(kind, "bob"))
    assert may(ROOT, verb, Object(kind, "bob", "chemistry"))


@pytest.mark.parametrize(
    ("verb", "target", "who"),
    [
        (Verb.CHANGE, Object("deployment", "bob"), "its owner bob or an administrator may"),
        (Verb.ADMINISTER, Object("key", "ada"), "this key; an administrator may"),
        (Verb.CHANGE, Object("price", ""), "this price; an administrator may"),
        (Verb.CHANGE, Object("key", "bob", "physics"), "its user or an administrator may"),
        (Verb.CREATE, Object("key", "ada", "x"), "a member of tenant x for themselves, or an administrator may"),
        (Verb.READ, Object("quota", "", "x"), "a member of tenant x or an administrator may"),
        (Verb.READ, Object("report", ""), "this report; an administrator may"),
    ],
)
def test_a_refusal_names_who_may(verb: Verb, target: Object, who: str) -> None:
    with pytest.raises(Forbidden, match=who):
        require(ADA, verb, target)
