"""Who may do what, as a table."""

from __future__ import annotations

import pytest

from registry.access import Forbidden, Object, Principal, Verb, may, require

ROOT = Principal("root", 0, admin=True)
ADA = Principal("ada", 1000, admin=False)

OWN, OTHERS = "ada", "bob"


@pytest.mark.parametrize(
    ("verb", "kind", "owner", "allowed"),
    [
        (Verb.READ, "deployment", OTHERS, True),
        (Verb.READ, "run", OTHERS, True),
        (Verb.READ, "report", OWN, True),
        (Verb.READ, "report", OTHERS, False),
        (Verb.READ, "report", "", False),
        (Verb.CREATE, "deployment", OWN, True),
        (Verb.CREATE, "deployment", OTHERS, False),
        (Verb.CHANGE, "deployment", OWN, True),
        (Verb.CHANGE, "deployment", OTHERS, False),
        (Verb.CHANGE, "model", OTHERS, False),
        (Verb.CREATE, "tenant", OWN, False),
        (Verb.CHANGE, "tenant", OWN, False),
        (Verb.CREATE, "key", OWN, False),
        (Verb.CHANGE, "key", OWN, False),
        (Verb.ADMINISTER, "tenant", OWN, False),
        (Verb.ADMINISTER, "key", OWN, False),
        (Verb.ADMINISTER, "deployment", OWN, False),
    ],
)
def test_a_user_may_read_and_change_what_is_theirs(verb: Verb, kind: str, owner: str, allowed: bool) -> None:
    assert may(ADA, verb, Object(kind, owner)) is allowed
    if allowed:
        require(ADA, verb, Object(kind, owner))
    else:
        with pytest.raises(Forbidden, match=f"ada may not {verb.value} this {kind}; .* may$"):
            require(ADA, verb, Object(kind, owner))


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize("kind", ["deployment", "tenant", "key", "report", "run", "model"])
def test_an_administrator_may_everything(verb: Verb, kind: str) -> None:
    assert may(ROOT, verb, Object(kind, "bob"))


def test_a_refusal_names_who_may() -> None:
    with pytest.raises(Forbidden, match="its owner bob or an administrator may"):
        require(ADA, Verb.CHANGE, Object("deployment", "bob"))
    with pytest.raises(Forbidden, match="this key; an administrator may"):
        require(ADA, Verb.ADMINISTER, Object("key", "ada"))
