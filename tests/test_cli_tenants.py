"""`headgate tenant`, `key`, `limit` and `price`: typed as a person does, against a controller that runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from platform_fixtures import platform

from cli.keys import shown
from cli.limits import Amount, amounts_of, in_words
from cli.main import main
from cli.moments import Duration, UtcInstant, parse_utc
from cli.tenants import told
from registry.limits import NAMES

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Headgate:
    """The command in this very process, which is much quicker, on a platform that is up."""

    flags: list[str]

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(main, [*self.flags, *words])

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert done.exit_code == 0, done.output
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "--json"))


@pytest.fixture(scope="module")
def laptop() -> Iterator[Headgate]:
    with platform("laptop.toml", "environments.engine.python=/bin/sh", "environments.training.python=/bin/sh") as made:
        made.ok("up")
        yield Headgate(made.argv[made.argv.index("cli.main") + 1 :])


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-12", datetime(2026, 12, 1, tzinfo=UTC)),
        ("2026-12-05", datetime(2026, 12, 5, tzinfo=UTC)),
        ("2026-12-05T10:00", datetime(2026, 12, 5, 10, tzinfo=UTC)),
        ("2026-12-05T10:00+02:00", datetime(2026, 12, 5, 8, tzinfo=UTC)),
        ("90d", NOW + timedelta(days=90)),
        ("1h30m", NOW + timedelta(hours=1.5)),
        ("90", None),
        ("soon", None),
        ("99999999w", None),
    ],
)
def test_an_instant_to_come_is_a_utc_date_or_so_long_from_now(text: str, expected: datetime | None) -> None:
    assert parse_utc(text, NOW) == expected


def test_what_is_no_time_no_duration_and_no_amount_is_refused_with_what_is_allowed() -> None:
    for kind, text, words in (
        (UtcInstant(), "soon", "allowed: 2026-12, 2026-12-01"),
        (Duration(), "1x", "is not a duration; allowed:"),
        (Amount(True), "1.5", "is no whole number from 0, nor 'none'"),
        (Amount(False), "-1", "is no number from 0"),
        (Amount(False), "nan", "is no number from 0"),
    ):
        with pytest.raises(click.BadParameter, match=words):
            kind.convert(text, None, None)
    assert (Duration().convert("24h", None, None), Amount(True).convert("1_000", None, None)) == (86400, 1000)


def test_limits_are_told_in_words_and_none_takes_one_away() -> None:
    options = dict.fromkeys(NAMES) | {"tokens_per_day": 5, "burst": "none", "credits_per_day": 2.5}
    assert amounts_of(options) == {"tokens_per_day": 5, "burst": None, "credits_per_day": 2.5}
    limits = dict.fromkeys(NAMES) | {"requests_per_minute": 600, "burst": 50, "spend_ceiling": 2.5}
    assert in_words(limits) == "600 requests a minute, 50 of them at once, 2.5 credits in all"
    assert in_words(dict.fromkeys(NAMES)) == "no limit"


def test_a_key_is_live_until_it_is_revoked_expired_or_rotated() -> None:
    key: dict[str, Any] = {"revoked_at": None, "expires_at": None, "replaced_by": None, "models": None}
    past, ahead = "2026-11-29T11:00:00.000000Z", "2026-11-29T13:00:00.000000Z"
    for changes, state in (
        ({}, "live"),
        ({"expires_at": ahead}, "live"),
        ({"expires_at": past}, "expired"),
        ({"expires_at": ahead, "replaced_by": "key-2"}, "rotated to key-2"),
        ({"expires_at": past, "replaced_by": "key-2"}, "expired"),
        ({"expires_at": past, "revoked_at": past}, f"revoked {past}"),
    ):
        assert shown(key | changes, NOW)["state"] == state


def test_a_sync_says_each_thing_it_does_and_what_only_prune_would() -> None:
    changes: dict[str, Any] = {
        "create": [["physics", "phys"]],
        "add": [["physics", "ada"], ["physics", "bob"]],
        "gone": [["maths", "eve"]],
        "revoke": [{"id": "key-1", "tenant": "maths", "user": "eve"}],
        "skipped": [["Big", "its name"]],
        "prune": True,
    }
    assert list(told(changes)) == [
        "tenant physics: made for account phys",
        "tenant physics: added ada, bob",
        "tenant maths: removed eve",
        "tenant maths: revoked key-1 of eve",
        "account Big: skipped: its name",
    ]
    without = list(told(changes | {"prune": False}))
    assert without[2:] == [
        "tenant maths: Slurm no longer has eve; --prune removes them and revokes their keys",
        "account Big: skipped: its name",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("key create physics --user ada --app web", "--user or --app, not both"),
        ("key create physics --expires soon", "'soon' is no time; allowed: 2026-12"),
        ("key create physics --scope root", "'root' is not one of 'inference', 'control', 'admin'"),
        ("key rotate key-1 --grace 1", "'1' is not a duration"),
        ("limit set tenant physics", "name a limit: --requests-per-minute, --burst"),
        ("limit set tenant physics --burst some", "'some' is no whole number from 0, nor 'none'"),
        ("limit set group physics --burst 1", "'group' is not one of 'key', 'user', 'tenant', 'model'"),
        ("tenant limits physics", "name a limit: --requests-per-minute, --burst"),
        ("price set --hour 1", "name a MODEL, or a type of GPU with --gpu"),
        ("price set m --gpu h100 --hour 1", "name a MODEL, or a type of GPU with --gpu"),
        ("price set m --prompt 1", "the price of a model needs --prompt and --completion"),
        ("price set --gpu h100", "the price of a type of GPU needs --hour"),
        ("price set m --prompt x", "'x' is not a valid float"),
    ],
)
def test_what_is_typed_wrongly_is_refused_before_anybody_is_asked(words: str, expected: str) -> None:
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 2 and expected in done.output


# -- against a controller ---------------------------------------------------------------------------------------------


def test_a_tenant_is_made_shown_limited_and_given_members(laptop: Headgate) -> None:
    said = laptop.ok("tenant", "create", "physics", "--account", "phys", "--token-budget", "1000", "--burst", "9")
    assert said == "tenant physics created: 600 requests a minute, 9 of them at once, 1,000 tokens in all\n"
    assert "ada is a member" in laptop.ok("tenant", "member", "add", "physics", "ada")
    assert re.search(r"ada +manual", laptop.ok("tenant", "member", "list", "physics"))
    said = laptop.ok("tenant", "limits", "physics", "--token-budget", "none", "--tokens-per-day", "50")
    assert said == "tenant physics: 600 requests a minute, 9 of them at once, 50 tokens a day\n"
    listed = laptop.ok("tenant", "list")
    assert re.search(r"physics +phys +1 +600 requests a minute, 9 of them at once, 50 tokens a day", listed)
    assert laptop.ok("tenant", "account", "physics") == "tenant physics stands for account phys\n"
    for asked in (["none"], []):
        assert laptop.ok("tenant", "account", "physics", *asked) == "tenant physics stands for no account\n"
    made = laptop.json("key", "create", "physics", "--user", "ada")
    screen = laptop.ok("tenant", "show", "physics")
    assert all(word in screen for word in ("account  -", "50 tokens a day", "ada", made["key"]["id"]))
    whole = laptop.json("tenant", "show", "physics")
    assert (whole["tenant"]["account"], [m["user"] for m in whole["members"]]) == (None, ["ada"])
    gone = laptop.ok("tenant", "member", "remove", "physics", "ada")
    assert gone == f"ada is no longer a member of tenant physics; revoked: {made['key']['id']}\n"


def test_keys_are_made_rotated_listed_and_revoked(laptop: Headgate) -> None:
    laptop.ok("tenant", "create", "maths")
    made = laptop.run(
        "key", "create", "maths", "--app", "web", "--model", "m", "--scope", "inference", "--expires", "90d", "--json"
    )
    key = json.loads(made.stdout)["key"]
    assert made.stderr == "warning: nothing is called 'm' yet; there are: none\n"
    assert (key["user"], key["models"]) == ("app:web", ["m"])
    rotated = laptop.run("key", "rotate", key["id"], "--grace", "1h", "--expires", "2099-01-01")
    assert re.fullmatch(r"sk-hg-\S+\n", rotated.stdout) and f"{key['id']} works until 2" in rotated.stderr
    old, new = laptop.json("key", "list", "--tenant", "maths")
    assert (old["replaced_by"], new["expires_at"]) == (new["id"], "2099-01-01T00:00:00.000000Z")
    assert f"rotated to {new['id']}" in laptop.ok("key", "list")
    assert laptop.json("key", "revoke", new["id"])["revoked_at"]
    assert re.search(rf"{new['id']} .* revoked 2", laptop.ok("key", "list", "--tenant", "maths"))
    mine = laptop.json("key", "create", "maths")["key"]
    assert [k["id"] for k in laptop.json("key", "list", "--mine") if k["tenant"] == "maths"] == [mine["id"]]


def test_limits_of_whatever_is_limited_are_set_and_listed(laptop: Headgate) -> None:
    assert laptop.ok("limit", "set", "user", "ada", "--credits-per-month", "2.5") == "user ada: 2.5 credits a month\n"
    done = laptop.run("limit", "set", "model", "m", "--concurrent-requests", "4")
    assert (done.stdout, "nothing is called 'm' yet" in done.stderr) == ("model m: 4 requests in flight\n", True)
    assert re.search(r"model +m +4 requests in flight", laptop.ok("limit", "list"))
    assert [(q["of"], q["name"]) for q in laptop.json("limit", "list", "--of", "user")] == [("user", "ada")]
    assert laptop.ok("limit", "set", "user", "ada", "--credits-per-month", "none") == "user ada: no limit\n"
    assert laptop.ok("limit", "list", "--of", "user") == "nothing is limited\n"


def test_prices_are_set_from_now_and_from_a_day_on_and_listed_with_the_site_files(laptop: Headgate) -> None:
    laptop.ok("price", "set", "chat", "--prompt", "1", "--cached", "0.1", "--completion", "3")
    laptop.ok("price", "set", "chat", "--prompt", "2", "--completion", "6", "--from", "2099-12-01")
    laptop.ok("price", "set", "--gpu", "h100", "--hour", "2.5")
    screen = laptop.ok("price", "list")
    assert re.search(r"model +default +- +- .* site file", screen) and re.search(r"gpu +h100 .* 2.5 ", screen)
    (then,) = [p for p in laptop.json("price", "list", "--at", "2099-12") if p["name"] == "chat"]
    assert (then["prompt"], then["cached"], then["valid_from"]) == (2.0, None, "2099-12-01T00:00:00.000000Z")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tenant show nobody", "no tenant is called 'nobody'"),
        ("tenant sync", "this site has no Slurm (scheduler.kind is local)"),
        ("key create nobody", "no tenant is called 'nobody'"),
        ("key revoke key-0", "no key has the id 'key-0'"),
        ("limit set tenant nobody --burst 1", "no tenant is called 'nobody'"),
        ("limit set user ada --burst 1", "burst is of requests_per_minute, which has no limit"),
        ("tenant show a/b", "no tenant is called 'a/b'"),
        ("tenant show a%2Fb", "no tenant is called 'a%2Fb'"),
        ("price set m --prompt 1 --completion 1 --from 2020-01-01", "which is past; what was billed stays as it was"),
    ],
)
def test_what_the_controller_refuses_is_said_in_its_words(laptop: Headgate, words: str, expected: str) -> None:
    done = laptop.run(*words.split())
    assert (done.exit_code, done.stdout) == (1, "") and expected in done.stderr


def test_a_key_that_would_be_over_before_it_begins_is_refused(laptop: Headgate) -> None:
    laptop.ok("tenant", "create", "late")
    done = laptop.run("key", "create", "late", "--expires", "2020-01-01")
    assert done.exit_code == 1 and "a key cannot expire at 2020-01-01T00:00:00.000000Z, which is past" in done.stderr
    assert laptop.json("key", "list", "--tenant", "late") == []
