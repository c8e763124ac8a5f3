"""Which models a shared control plane serves for anybody: those that cannot run code where they are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launchers.vllm import weights


@pytest.fixture
def published(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def test_published_safetensors_are_served(published: Path) -> None:
    (published / "tokenizer_config.json").write_text("{}")
    (published / "pytorch_model.bin").write_bytes(b"")  # the engine is told to leave it alone
    weights.check(published)
    assert weights.ENGINE_ARGS == ("--load-format", "safetensors")


@pytest.mark.parametrize("name", weights.CONFIGS)
def test_a_model_that_brings_code_along_is_for_administrators(name: str, published: Path) -> None:
    (published / name).write_text(json.dumps({"auto_map": {"AutoModel": "modeling.Evil"}}))
    with pytest.raises(ValueError, match=f"its {name} has auto_map"):
        weights.check(published)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("speculators_config", {"verifier": {"name_or_path": "/models/bobs"}}),
        ("speculators_model_type", "eagle3"),
        ("configuration_files", ["config.4.0.0.json"]),
    ],
)
def test_a_model_that_has_the_engine_read_another_is_for_administrators(
    key: str, value: object, published: Path
) -> None:
    (published / "config.json").write_text(json.dumps({key: value}))
    with pytest.raises(ValueError, match=rf"its config\.json has {key}: it has the engine"):
        weights.check(published)


def test_other_formats_than_safetensors_are_for_administrators(published: Path) -> None:
    (published / "model.safetensors").rename(published / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no weights in safetensors"):
        weights.check(published)


def test_a_directory_without_a_config_is_no_model(published: Path) -> None:
    (published / "config.json").unlink()
    with pytest.raises(ValueError, match=r"there is no config\.json"):
        weights.check(published)


def test_links_are_not_followed_out_of_a_directory_that_may_be_anybodys(published: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (published / "config.json").unlink()
    (published / "config.json").symlink_to(secret)
    with pytest.raises(ValueError, match=r"its config\.json cannot be read"):
        weights.check(published)
    (published / "model.safetensors").unlink()
    (published / "model.safetensors").symlink_to(secret)
    with pytest.raises(ValueError, match="no weights in safetensors"):
        weights.check(published)


def test_a_config_that_is_no_json_object_is_refused_by_name(published: Path) -> None:
    (published / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"its tokenizer_config\.json cannot be read: not a JSON object"):
        weights.check(published)
