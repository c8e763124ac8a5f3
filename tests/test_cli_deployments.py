"""Deployments from the command line, on a laptop's real controller and gateway, with stand-in engines."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from platform_fixtures import Platform, platform
from waiting import wait_for

from cli.main import main
from launchers.deployment_file import read

ENGINE = str(Path(__file__).with_name("stand_in_engine.py"))


@pytest.fixture(scope="module")
def laptop() -> Iterator[Platform]:
    with platform(
        "laptop.toml",
        f"environments.engine.python={json.dumps(sys.executable)}",
        f"environments.engine.command={json.dumps([sys.executable, ENGINE])}",
        "environments.engine.args=[]",
        "environments.engine.env={}",
        "deployments.bake=1s",
        "deployments.bake_requests=0",
    ) as made:
        made.ok("up")
        yield made


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Model directories as far as anybody looks into them here."""
    made = [tmp_path / "one", tmp_path / "two"]
    for directory in made:
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").touch()
    return made


def invoke(laptop: Platform, *words: str) -> Result:
    return CliRunner().invoke(main, [*laptop.argv[3:], *words], catch_exceptions=False)


def ok(laptop: Platform, *words: str) -> str:
    done = invoke(laptop, *words)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("serve", "~nosuch/x", "--name", "x"), 1),
        (("serve", "x", "--adapter", "a=~nosuch/x"), 2),
        (("rollout", "x", "--to", "~nosuch/x"), 1),
        (("apply", "-f", "~nosuch/x"), 1),
        (("diff", "-f", "~nosuch/x"), 2),
        (("--site", "~nosuch/x", "get"), 1),
    ],
)
def test_what_is_in_the_home_directory_of_nobody_is_refused_by_name(words: tuple[str, ...], status: int) -> None:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == status and "~nosuch/x: no home directory is known for ~nosuch" in done.stderr


def described(laptop: Platform, name: str) -> Any:
    (found,) = json.loads(ok(laptop, "get", name, "--json"))
    return found


def states(laptop: Platform, name: str) -> list[tuple[int, str]]:
    return [(r["revision"], r["state"]) for r in json.loads(ok(laptop, "history", name, "--json"))]


def test_serving_the_same_name_again_changes_it_and_says_what(laptop: Platform, models: list[Path]) -> None:
    serve = ("serve", str(models[0]), "--name", "again")
    assert ok(laptop, *serve, "--max", "2", "--target-tokens", "1000") == "deployment again is ready\n"
    done = invoke(laptop, *serve, "--max", "3", "--target-tokens", "1000")
    assert (done.exit_code, done.stdout) == (0, "deployment again is ready\n")
    assert "deployment again: max: 2 -> 3" in done.stderr
    assert states(laptop, "again") == [(1, "good")]  # more of the same is no other revision
    done = invoke(laptop, *serve, "--max", "3", "--target-tokens", "1000", "--engine-args", "--leave-when '/no where'")
    assert (done.exit_code, done.stdout) == (0, "deployment again is ready\n"), done.output
    assert 'engine_args: [] -> ["--leave-when", "/no where"]' in done.stderr
    assert states(laptop, "again") == [(1, "good"), (2, "good")]
    assert ok(laptop, "delete", "again") == "deployment again: stopped\n"


def test_what_is_said_in_options_is_what_is_wanted(laptop: Platform, models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    sizes = ("--min", "0", "--max", "3", "--target-tokens", "500", "--idle", "20m", "--pack", "2", "--canary", "10")
    options = ("-t", "2:00:00", "--time-min=30", "--overflow-qos", "low", "--routing", "round-robin")
    made = ok(laptop, "serve", str(models[0]), "--name", "said", *sizes, *options, "--json")
    assert json.loads(made)["deployment"]["state"] == "asleep"
    (spec,) = read_text(tmp_path, ok(laptop, "get", "said", "-o", "toml"))
    assert (spec.min, spec.max, spec.target_tokens, spec.idle_timeout_s, spec.pack) == (0, 3, 500, 1200, 2)
    assert spec.resources == {"time_limit_s": 7200, "options": ["--time-min=30"]}
    assert spec.overflow == {"qos": "low"}
    assert spec.routing == "round-robin"
    ok(laptop, "delete", "said", "--no-wait")
    packed = ok(laptop, "serve", str(models[0]), "--name", "packed", "--replicas", "0", "--pack", "4", "--json")
    made = json.loads(packed)["deployment"]
    assert (made["state"], made["min_replicas"], made["max_replicas"]) == ("asleep", 0, 4)
    ok(laptop, "delete", "packed", "--no-wait")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("serve", "./nowhere"), "say under which one clients are to call it (--name)"),
        (("serve", "nothing", "--replicas", "2", "--max", "3"), "--replicas is short for --min and --max"),
        (("serve", "nothing", "--min", "3", "--max", "2"), "max: must be at least min (3), not 2"),
        (("serve", "nothing", "--adapter", "a"), "'a' is not NAME=DIRECTORY"),
        (("serve", "nothing", "--adapter", "a=/a", "--adapter", "a=/b"), "names an adapter twice"),
        (("serve", "nothing", "--engine-args", "'a"), "cannot be split into words"),
        (("scale", "nothing"), "say how many"),
        (("scale", "nothing", "2", "--max", "3"), "say how many"),
        (("scale", "nothing", "2"), "no deployment is called 'nothing'"),
        (("rollout", "nothing"), "say one of --to MODEL, --restart and --status"),
        (("rollout", "nothing", "--restart", "--to", "m"), "say one of --to MODEL, --restart and --status"),
        (("rollout", "nothing", "--restart"), "no deployment is called 'nothing'"),
        (("rollback", "nothing"), "no deployment is called 'nothing'"),
        (("pause", "nothing"), "no deployment is called 'nothing'"),
        (("delete", "nothing"), "no deployment is called 'nothing'"),
        (("history", "nothing"), "no deployment is called 'nothing'"),
        (("explain", "nothing"), "no deployment is called 'nothing'"),
        (("get", "nothing"), "no deployment is called 'nothing'"),
        (("alias", "set", "nothing", "1"), "'nothing' is not MODEL@ALIAS"),
        (("alias", "set", "nothing@prod", "1"), "nothing"),
        (("alias", "rollback", "nothing@prod"), "nothing"),
        (("diff", "-f", "nowhere.toml"), "nowhere.toml: cannot be read"),
        (("diff", "-f", "nowhere.toml", "run", "run"), "two runs are compared (RUN RUN), or the deployments"),
        (("diff", "run"), "two runs are compared (RUN RUN), or the deployments"),
    ],
)
def test_what_cannot_be_is_refused_in_words(laptop: Platform, words: tuple[str, ...], expected: str) -> None:
    done = invoke(laptop, *words)
    assert done.exit_code in (1, 2)
    assert expected in done.output
    assert invoke(laptop, "get", "nothing").exit_code == 1


def test_a_file_is_applied_once_and_then_says_the_same(laptop: Platform, models: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "all.toml"
    file.write_text(
        f"[deployments.first]\nmodel = '{models[0]}'\nmin = 0\n[deployments.second]\nmodel = './two'\nmin = 0\n"
    )
    assert invoke(laptop, "diff", "-f", str(file)).exit_code == 1
    assert ok(laptop, "apply", "-f", str(file), "--dry-run").splitlines() == [
        "deployment first: would be created",
        "deployment second: would be created",
    ]
    assert "first" not in ok(laptop, "get")
    created = ["deployment first: created", "deployment second: created"]
    assert ok(laptop, "apply", "-f", str(file), "--wait").splitlines() == created
    unchanged = ["deployment first: unchanged", "deployment second: unchanged"]
    assert ok(laptop, "apply", "-f", str(file)).splitlines() == unchanged
    same = invoke(laptop, "diff", "-f", str(file))
    assert (same.exit_code, same.output) == (0, "")

    file.write_text(file.read_text() + "max = 4\n")
    differs = invoke(laptop, "diff", "-f", str(file))
    assert (differs.exit_code, differs.output.splitlines()) == (
        1,
        ["--- deployed", f"+++ {file}", "second.max: 1 -> 4"],
    )
    assert ok(laptop, "apply", "-f", str(file)).splitlines() == [
        *unchanged[:1],
        "deployment second: scaled",
        "  max: 1 -> 4",
    ]

    file.write_text(
        file.read_text() + "[deployments.third]\nmodel = 'nothing'\nmin = 9\n[deployments.fourth]\nmodle = 'x'\n"
    )
    refused = invoke(laptop, "apply", "-f", str(file))
    assert refused.exit_code == 1
    assert f"{file}:12: deployments.fourth.modle: unknown key; did you mean 'model'?" in refused.output
    assert "third" not in ok(laptop, "get", "--all")
    for name in ("first", "second"):
        ok(laptop, "delete", name, "--no-wait")


def test_nothing_of_a_file_is_applied_when_the_controller_refuses_any(
    laptop: Platform, models: list[Path], tmp_path: Path
) -> None:
    file = tmp_path / "some.toml"
    file.write_text(f"[deployments.fine]\nmodel = '{models[0]}'\n[deployments.wrong]\nmodel = 'nothing'\n")
    refused = invoke(laptop, "apply", "-f", str(file))
    whose = f"Error: {file}: deployments.wrong: no model is called 'nothing'"
    assert refused.exit_code == 1 and whose in refused.output
    differs = invoke(laptop, "diff", "-f", str(file))
    assert differs.exit_code == 2 and whose in differs.output
    assert invoke(laptop, "get", "fine").exit_code == 1


def test_what_get_writes_is_what_apply_takes(laptop: Platform, models: list[Path], tmp_path: Path) -> None:
    ok(laptop, "serve", str(models[0]), "--name", "written", "--replicas", "0", "--engine-arg=--seed=1")
    file = tmp_path / "written.toml"
    file.write_text(ok(laptop, "get", "written", "-o", "toml"))
    assert ok(laptop, "apply", "-f", str(file)) == "deployment written: unchanged\n"
    (row,) = [line for line in ok(laptop, "get").splitlines() if line.startswith("written ")]
    assert re.match(r"written +asleep +written@1 +revision 1 +0/0 \(0\.\.1\)", row), row
    ok(laptop, "delete", "written")
    assert "written" not in ok(laptop, "get")
    assert "written" in ok(laptop, "get", "--all")


def test_replicas_are_scaled_by_hand(laptop: Platform, models: list[Path]) -> None:
    ok(laptop, "serve", str(models[0]), "--name", "scaled")
    assert ok(laptop, "scale", "scaled", "2", "--wait") == "deployment scaled: 2 of 2 replicas ready\n"
    assert " 2/2 (2..2)" in ok(laptop, "get", "scaled")
    assert ok(laptop, "scale", "scaled", "--min", "1", "--max", "3").endswith(", 1 to 3 as the load asks\n")
    assert states(laptop, "scaled") == [(1, "good")]
    ok(laptop, "delete", "scaled", "--no-wait")


def test_a_version_is_rolled_out_proves_itself_and_is_rolled_back(laptop: Platform, models: list[Path]) -> None:
    ok(laptop, "serve", str(models[0]), "--name", "rolled")
    said = ok(laptop, "rollout", "rolled", "--to", str(models[1]), "--why", "better", "--wait")
    assert said.splitlines() == ["deployment rolled: revision 2 (rolled@2) is wanted", "deployment rolled is ready"]
    assert states(laptop, "rolled") == [(1, "good"), (2, "good")]
    assert "better" in ok(laptop, "history", "rolled")
    assert ok(laptop, "rollout", "rolled", "--status").startswith("revision 2 (rolled@2) is good, asked for ")
    said = ok(laptop, "rollback", "rolled", "--wait")
    assert said.splitlines() == ["deployment rolled: revision 3 (rolled@1) is wanted", "deployment rolled is ready"]
    said = ok(laptop, "rollout", "rolled", "--restart", "--wait")
    assert said.splitlines() == ["deployment rolled: revision 4 (rolled@1) is wanted", "deployment rolled is ready"]
    ok(laptop, "delete", "rolled", "--no-wait")


def test_a_revision_that_fails_is_given_up_and_says_why(laptop: Platform, models: list[Path]) -> None:
    serve = ("serve", str(models[0]), "--name", "spoilt")
    ok(laptop, *serve)
    done = invoke(laptop, *serve, "--engine-arg=--no-such-argument")
    assert done.exit_code == 1
    assert "revision 2 was given up, and 1 is served again: " in done.stderr
    assert "no-such-argument" in done.stderr
    assert states(laptop, "spoilt") == [(1, "good"), (2, "bad")]
    assert "revision 2 (spoilt@1) is bad: " in ok(laptop, "rollout", "spoilt", "--status")
    ok(laptop, "delete", "spoilt", "--no-wait")


def test_a_paused_deployment_rolls_nothing_out_until_it_goes_on(laptop: Platform, models: list[Path]) -> None:
    ok(laptop, "serve", str(models[0]), "--name", "paused")
    assert "`headgate pause paused --off` goes on" in ok(laptop, "pause", "paused")
    ok(laptop, "rollout", "paused", "--to", str(models[1]))
    assert "it is paused" in ok(laptop, "rollout", "paused", "--status")
    again = invoke(laptop, "serve", "paused@2", "--name", "paused")
    assert again.exit_code == 1 and "`headgate pause paused --off` goes on" in again.stderr
    assert ok(laptop, "explain", "paused").splitlines()[0].endswith(", paused")
    assert {r["replica"]["revision"] for r in described(laptop, "paused")["replicas"]} == {1}
    assert ok(laptop, "pause", "paused", "--off") == "deployment paused goes on\n"
    wait_for(lambda: states(laptop, "paused") == [(1, "good"), (2, "good")], 60)
    ok(laptop, "delete", "paused", "--no-wait")


def test_a_deployment_is_explained_in_words(laptop: Platform, models: list[Path]) -> None:
    ok(laptop, "serve", str(models[0]), "--name", "explained")
    wait_for(lambda: json.loads(ok(laptop, "explain", "explained", "--json"))["why"], 30)
    first, *more = ok(laptop, "explain", "explained").splitlines()
    assert first == "explained  ready  explained@1, revision 1"
    assert more and all(line.startswith(("  ", "next:", "as of ")) for line in more)
    ok(laptop, "delete", "explained", "--no-wait")


def test_moves_of_an_alias_are_kept_taken_back_and_followed(laptop: Platform, models: list[Path]) -> None:
    for directory in models:
        ok(laptop, "serve", str(directory), "--name", "moved", "--replicas", "0")
    ok(laptop, "delete", "moved")
    assert ok(laptop, "alias", "set", "moved@prod", "1", "--why", "first") == "moved@prod is version 1\n"
    ok(laptop, "serve", "moved@prod", "--replicas", "0")
    ok(laptop, "alias", "set", "moved@prod", "2", "--why", "better")
    wait_for(lambda: described(laptop, "moved")["deployment"]["version"] == 2, 30)
    assert ok(laptop, "alias", "rollback", "moved@prod") == "moved@prod is version 1 again\n"
    wait_for(lambda: described(laptop, "moved")["deployment"]["version"] == 1, 30)
    moves = json.loads(ok(laptop, "alias", "history", "moved@prod", "--json"))
    assert [(m["from_version"], m["to_version"]) for m in moves] == [(2, 1), (1, 2), (None, 1)]
    assert [m["why"] for m in moves][1:] == ["better", "first"]
    assert "better" in ok(laptop, "alias", "history", "moved@prod")
    assert "moved" in ok(laptop, "alias", "list")
    ok(laptop, "delete", "moved")


def read_text(tmp_path: Path, text: str) -> list[Any]:
    (tmp_path / "read.toml").write_text(text)
    return list(read(tmp_path / "read.toml"))
