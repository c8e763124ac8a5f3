"""The engine's command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from specs import serve

from launchers.run_folder import RunFolder
from launchers.spec import Environment
from launchers.task import Task
from launchers.vllm.server import argv

FOLDER = RunFolder(Path("/runs/chat-1"))
TASK = Task(rank=0, tasks=1, local_rank=0, job_id="7", restart=0, node="g1")
KEY, CERTIFICATE = FOLDER.tls_key("7.0"), FOLDER.tls_certificate("7.0")


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
    command = argv(serve(environment=environment, model_path="/models/m"), 8000, FOLDER, TASK)
    assert command[: len(begins)] == begins


def last(command: list[str], option: str) -> str:
    """What counts for vLLM."""
    return command[len(command) - command[::-1].index(option)]


def test_cached_tokens_are_told_apart_unless_somebody_says_otherwise() -> None:
    ours, theirs = "--enable-prompt-tokens-details", "--no-enable-prompt-tokens-details"
    command = argv(serve(engine_args=(theirs,)), 8000, FOLDER, TASK)
    assert command.index(ours) < command.index(theirs)


def test_what_is_ours_comes_after_what_was_asked_for_and_so_wins() -> None:
    theirs = ("--port", "1", "--host", "0.0.0.0", "--ssl-keyfile", "/theirs", "--ssl-certfile", "/theirs")
    spec = serve(engine_args=theirs)
    command = argv(spec, 8000, FOLDER, TASK)
    assert (last(command, "--port"), last(command, "--host")) == ("8000", spec.listen)
    assert (last(command, "--ssl-keyfile"), last(command, "--ssl-certfile")) == (str(KEY), str(CERTIFICATE))
    assert command[command.index("--middleware") + 1] == "launchers.vllm.guard.Guard"


def test_without_tls_nothing_is_said_of_it() -> None:
    assert not [w for w in argv(serve(tls=False), 8000, FOLDER, TASK) if "ssl" in w or "tls" in w]


@pytest.mark.parametrize("kind", ["apptainer", "pyxis"])
def test_a_container_sees_the_certificate_where_it_is_outside(kind: str) -> None:
    environment = Environment(kind=kind, python="python3", image="vllm.sif")
    mount = f"{KEY.parent}:{KEY.parent}"
    assert mount in ",".join(argv(serve(environment=environment), 8000, FOLDER, TASK))
    assert mount not in ",".join(argv(serve(environment=environment, tls=False), 8000, FOLDER, TASK))


@pytest.mark.parametrize("kind", ["apptainer", "pyxis"])
def test_a_container_sees_adapters_and_those_beside_them(kind: str, tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (tmp_path / "v1" / "adapter_model.safetensors").write_bytes(b"")
    environment = Environment(kind=kind, python="python3", image="vllm.sif")
    command = argv(serve(environment=environment, adapters={"a": str(tmp_path / "v1")}), 8000, FOLDER, TASK)
    assert f"{tmp_path}:{tmp_path}" in ",".join(command)
    assert "--enable-lora" in command


def test_a_member_of_a_pack_keeps_its_gpus_in_a_step_of_slurms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    environment = Environment(kind="pyxis", python="python3", image="vllm.sif")
    command = argv(serve(environment=environment, pack=("chat-1", "chat-2")), 8000, FOLDER, TASK)
    assert command[command.index("python3") - 2 : command.index("python3")] == ["env", "CUDA_VISIBLE_DEVICES=2,3"]
    assert "env" not in argv(serve(environment=environment), 8000, FOLDER, TASK)


@pytest.mark.parametrize(
    ("runner", "words"),
    [("generate", []), ("embed", ["--runner", "pooling", "--convert", "embed"]), ("score", ["--runner", "pooling"])],
)
def test_an_engine_generates_embeds_or_scores_unless_an_argument_says_otherwise(runner: str, words: list[str]) -> None:
    command = argv(serve(runner=runner, engine_args=("--convert", "none")), 8000, FOLDER, TASK)
    assert [w for w in command if w in ("--runner", "--convert", "pooling", "embed")] == [*words, "--convert"]
    assert last(command, "--convert") == "none"


def test_weights_are_safetensors_unless_an_administrator_says_otherwise() -> None:
    assert last(argv(serve(), 8000, FOLDER, TASK), "--load-format") == "safetensors"
    assert last(argv(serve(engine_args=("--load-format", "auto")), 8000, FOLDER, TASK), "--load-format") == "auto"
