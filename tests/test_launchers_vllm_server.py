"""The engine's command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from specs import serve

from launchers.spec import Environment
from launchers.vllm.server import argv


@pytest.mark.parametrize(
    ("start", "begins"),
    [
        (("vllm", "serve"), ["vllm", "serve", "/models/m"]),
        (("{python}", "-m", "api_server"), ["/env/python", "-m", "api_server", "--model", "/models/m"]),
        ((), ["/env/python", "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/m"]),
    ],
)
def test_the_model_stands_where_the_sites_command_wants_it(start: tuple[str, ...], begins: list[str]) -> None:
    environment = Environment(kind="venv", python="/env/python", command=start)
    command = argv(serve(environment=environment, model_path="/models/m"), 8000, Path("/code"), None)
    assert command[: len(begins)] == begins


def test_what_is_ours_comes_after_what_was_asked_for_and_so_wins() -> None:
    spec = serve(engine_args=("--port", "1", "--host", "0.0.0.0"))
    command = argv(spec, 8000, Path("/code"), None)
    last = {option: command[len(command) - 1 - command[::-1].index(option) + 1] for option in ("--port", "--host")}
    assert last == {"--port": "8000", "--host": spec.listen}
    assert command[command.index("--middleware") + 1] == "launchers.vllm.guard.Guard"
