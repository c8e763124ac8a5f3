"""A file of deployments: what is read, what is refused and in which words, and that what is written reads the same."""

from pathlib import Path

import pytest

from launchers.deployment_file import read, write
from launchers.deployment_spec import DeploymentSpec
from registry.strict_toml import ConfigError
from tests.test_launchers_deployment_spec import FULL

EXAMPLE = Path(__file__).parents[1] / "cli/deployments.toml"


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "deployments.toml"
    path.write_text(text)
    return path


def test_the_example_says_what_its_comments_say() -> None:
    chat, embeddings = read(EXAMPLE)
    assert (chat.name, chat.model, chat.min, chat.max, chat.canary) == ("chat", "llama@prod", 1, 8, 10)
    assert (chat.target_wait_s, chat.bake_s) == (5, 600)
    assert chat.resources == {
        "partition": "gpu",
        "gpus_per_node": 1,
        "time_limit_s": 8 * 3600,
        "options": ["--time-min=2:00:00"],
    }
    assert chat.overflow == {"qos": "preemptible"}
    assert chat.adapters == {"support": str(EXAMPLE.parent / "adapters/support")}
    assert (embeddings.runner, embeddings.min, embeddings.idle_timeout_s, embeddings.pack) == ("embed", 0, 900, 4)


def test_a_model_that_begins_with_a_dot_is_a_directory_beside_the_file(tmp_path: Path) -> None:
    models = '[deployments]\na.model = "./tiny"\nb.model = "run-1/200"\n'
    assert [spec.model for spec in read(file(tmp_path, models))] == [str(tmp_path / "tiny"), "run-1/200"]


def test_relative_paths_of_standard_input_start_where_they_are_told_to(tmp_path: Path) -> None:
    models = '[deployments.a]\nmodel = "./tiny"\nadapters.s = "adapters/s"\n'
    (spec,) = read(file(tmp_path, models), Path("/here"))
    assert (spec.model, spec.adapters) == ("/here/tiny", {"s": "/here/adapters/s"})


ODD = DeploymentSpec(name="chat", model="llama", engine_args=("\U0001f642", "\x7f\x01", 'a"\\\n'))


@pytest.mark.parametrize("spec", [DeploymentSpec(name="chat", model="llama"), FULL, ODD, *read(EXAMPLE)])
def test_what_is_written_reads_the_same(tmp_path: Path, spec: DeploymentSpec) -> None:
    assert read(file(tmp_path, write(spec))) == [spec]


def test_several_that_are_written_are_one_file(tmp_path: Path) -> None:
    assert read(file(tmp_path, "\n".join(map(write, read(EXAMPLE))))) == read(EXAMPLE)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "target_token = 3",
            "deployments.toml:3: deployments.chat.target_token: unknown key; did you mean 'target_tokens'?",
        ),
        ("idle_timeout = 900", "deployments.toml:3: deployments.chat.idle_timeout: expects a duration with its unit"),
        ("name = 'talk'", "deployments.toml:3: deployments.chat.name: unknown key"),
        ("min = 300", "deployments.toml:3: deployments.chat.min: must be at most 256"),
        ("canary = 0", "deployments.toml:3: deployments.chat.canary: must be at least 1"),
        ("runner = 'embeds'", "'embeds' is not a choice; did you mean 'embed'? allowed: generate, embed, score"),
        ("engine_args = '--seed=1'", "deployments.toml:3: deployments.chat.engine_args: expects a list"),
        ("resources.partitions = 'gpu'", "deployments.toml:3: deployments.chat.resources.partitions: unknown key"),
        ("resources.nodes = 0", "deployments.chat: resources.nodes: 0 is not a whole number of at least 1"),
        ("resources.options = ['--array=1-9']", "deployments.chat: --array is not for a deployment's jobs"),
        ("adapters.a = '~nosuch/a'", ":3: deployments.chat.adapters.a: ~nosuch/a: no home directory is known"),
        ("min = 3\nmax = 2", "deployments.chat: max: must be at least min (3), not 2"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(file(tmp_path, f"[deployments.chat]\nmodel = 'llama'\n{line}\n"))
    assert words in str(refused.value)


def test_a_model_in_the_home_directory_of_nobody_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r":1: deployments\.chat: ~nosuch/x: no home directory is known for ~nosuch"):
        read(file(tmp_path, "[deployments.chat]\nmodel = '~nosuch/x'\n"))


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read(
            file(
                tmp_path,
                "[deployments.Chat]\nmodel = 'a'\n[deployments.talk]\nmodel = 'b'\npack = 2\nresources.qos = '?'\n",
            )
        )
    first, second = str(refused.value).splitlines()
    assert ":1: deployments.Chat: deployment name 'Chat' is not allowed" in first
    assert ":3: deployments.talk: resources.qos" in second


def test_deployments_and_adapters_that_clients_could_not_tell_apart_are_refused(tmp_path: Path) -> None:
    tables = (
        "[deployments.a]\nmodel = 'x'\nadapters.poet = '/p'\nadapters.b = '/p'\n",
        "[deployments.b]\nmodel = 'x'\nadapters.poet = '/q'\n",
        "[deployments.c]\nmodel = 'x'\nengine_args = ['--lora-modules', 'poet=/r', 'c=/r', 'mine=/r']\n",
        "[deployments.d]\nmodel = 'x'\nadapters.twice = '/s'\nengine_args = ['--lora-modules=twice=/s']\n",
    )
    path = file(tmp_path, "".join(tables))
    own = "the LoRA adapter needs a name of its own"
    with pytest.raises(ConfigError) as refused:
        read(path)
    assert str(refused.value).splitlines() == [
        f"{path}:4: deployments.a.adapters.b: b is a deployment; {own}",
        f"{path}:7: deployments.b.adapters.poet: poet is a LoRA adapter of deployment a; {own}",
        f"{path}:10: deployments.c.engine_args: poet is a LoRA adapter of deployment a; {own}",
        f"{path}:10: deployments.c.engine_args: c is a deployment; {own}",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no deployment; each is a table [deployments.NAME]"), ("[deployment.chat]\n", "did you mean 'deployments'?")],
)
def test_a_file_without_a_deployment_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(file(tmp_path, text))
    assert words in str(refused.value)
