"""`headgate promote` and `headgate promotions`: what is refused before anything is submitted, and how one is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cli import promote as promoting
from cli.client import Control
from cli.main import main
from cli.promote import row, told
from launchers.evaluation.promote import StepOf
from launchers.launch import Launched
from launchers.run_folder import RunFolder
from launchers.scheduler import JobRef
from registry import clock
from registry.site import Site

STEP = {"run": "evaluate-1", "state": "failed", "cause": "the evaluation ended with exit code 78: x\nmore"}
RESULT = {"task": "piqa", "metric": "acc", "filter": "none", "value": 0.5, "stderr": 0.1, "examples": 4}
PROMOTION: dict[str, Any] = {
    "id": "chat-prod-1",
    "owner": "ada",
    "source": "tiny-1/20",
    "model": "chat",
    "alias": "prod",
    "canary": 10,
    "state": "failed",
    "cause": "the evaluation: piqa.acc is 0.5",
    "version": 3,
    "created_at": "2026-01-01T00:00:00.000000Z",
    "ended_at": None,
    "steps": [
        {"run": "convert-1", "state": "completed", "cause": None, "said": {}},
        {
            "run": "smoke-1",
            "state": "completed",
            "cause": None,
            "said": {"start_s": 45.52, "prompts": 3, "completion_tokens": 48},
        },
        {
            **STEP,
            "said": {
                "results": [{**RESULT, "higher_is_better": True}],
                "unmet": ["piqa.acc is 0.5, and >0.6 is required"],
                "tasks_sha256": "ab",
            },
        },
    ],
}


def test_one_promotion_is_shown_with_its_steps_and_what_they_measured() -> None:
    lines = [line.split() for line in told(PROMOTION).splitlines()]
    assert lines[0][:6] == ["chat-prod-1:", "tiny-1/20", "->", "chat@prod,", "canary", "10%,"]
    assert lines[1] == "failed (version 3): the evaluation: piqa.acc is 0.5".split()
    assert ["piqa", "acc", "↑", "0.5", "0.1", "4"] in lines
    assert "the engine started in 45.5 s and generated 48 tokens for 3 prompts".split() in lines
    assert "not met: piqa.acc is 0.5, and >0.6 is required".split() in lines


def test_what_a_job_wrote_does_not_steer_the_terminal() -> None:
    assert "\x1b" not in told({**PROMOTION, "cause": "\x1b[2J"})


def test_a_promotion_in_the_list_names_both_ends() -> None:
    assert {k: row(PROMOTION)[k] for k in ("to", "from", "canary")} == {
        "to": "chat@prod",
        "from": "tiny-1/20",
        "canary": "10%",
    }


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("tiny", "--to", "chat"), "say which alias of chat moves"),
        (("tiny", "--to", "chat@prod", "--canary", "0"), "0 is not in the range 1<=x<=99"),
        (("tiny", "--to", "chat@prod", "--tasks", "/nowhere"), "does not exist"),
        (("tiny", "--to", "chat@prod"), "no run called 'tiny' has left a folder"),
    ],
)
def test_a_mistake_ends_the_command_with_what_is_wrong(tmp_path: Path, words: tuple[str, ...], why: str) -> None:
    done = promote(tmp_path, *words)
    assert done.exit_code != 0
    assert why in done.output


@pytest.fixture
def checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that there is, to say nothing of what is in it."""
    monkeypatch.setattr(promoting, "find_checkpoint", lambda site, said: {"id": "tiny-1/20", "path": "/runs/tiny-1/20"})


@pytest.mark.usefixtures("checkpoint")
def test_tasks_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "a.yaml").symlink_to("/proc/self/mem")  # cannot be read by root either
    done = promote(tmp_path, "tiny", "--to", "chat@prod", "--tasks", str(tasks))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"Error: {tasks}: Input/output error\n"


@pytest.mark.usefixtures("checkpoint")
def test_time_and_memory_are_asked_for_the_conversion_by_options_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[StepOf] = []

    def submit(site: Site, specs: list[StepOf]) -> list[Launched]:
        asked.extend(specs)
        raise click.ClickException("enough")

    monkeypatch.setattr(promoting, "submit", submit)
    promote(tmp_path, "tiny", "--to", "chat@prod", "-t", "30", "--convert-time", "4:00:00", "--convert-mem=64G")
    conversion, smoke = (spec.resources for spec in asked)
    assert (conversion.time_limit_s, conversion.mem_gb, smoke.time_limit_s) == (4 * 3600, 64.0, 1800)


@pytest.mark.usefixtures("checkpoint")
def test_one_that_is_waited_for_is_one_json_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Launched(RunFolder(tmp_path / "convert-1"), JobRef("c", "1", clock.parse(PROMOTION["created_at"])))
    promoted = {**PROMOTION, "state": "promoted", "cause": None}
    monkeypatch.setattr(promoting, "submit", lambda site, specs: [job for _ in specs])
    monkeypatch.setattr(Control, "find", lambda self, path, *names: promoted if "promotions" in path else None)
    words = ("tiny", "--to", "chat@prod", "--wait")
    done = promote(tmp_path, *words, "--json")
    assert len(json.loads(done.stdout)["steps"]) == 2
    assert promote(tmp_path, *words).stdout.splitlines()[-1] == "chat@prod is version 3 now"


def promote(tmp_path: Path, *words: str) -> Result:
    site = [w for s in (f"state_dir={tmp_path}", f"shared_dir={tmp_path}") for w in ("--set", s)]
    env = {"HEADGATE_URL": None, "HEADGATE_KEY": None, "XDG_CONFIG_HOME": str(tmp_path)}
    return CliRunner(env=env).invoke(main, [*site, "promote", *words])
