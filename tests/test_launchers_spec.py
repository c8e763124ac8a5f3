"""Specs survive the disk, and one that is wrong is refused by its file, field and what is allowed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from specs import convert, serve, train

from launchers import spec as specs
from launchers.spec import Environment, Resources, Spec, SpecError

EVERYTHING = Environment(
    kind="apptainer", python="python3", image="/i.sif", mounts=("/a:/b",), command=("x", "y"), env={"A": "1"}
)


@pytest.mark.parametrize(
    "spec",
    [
        train(),
        train(resources=Resources(partition="gpu", nodes=2, mem_gb=1.5, time_limit_s=60), environment=EVERYTHING),
        convert(),
        convert(alias="prod"),
        convert(direction="from-hf", checkpoint="/models/x", checkpoint_id="", model=""),
        serve(),
        serve(engine_args=("--dtype", "bfloat16"), listen="0.0.0.0", environment=EVERYTHING, start_timeout_s=5),
    ],
)
def test_a_spec_is_read_back_as_it_was_written(tmp_path: Path, spec: Spec) -> None:
    path = tmp_path / "spec.json"
    path.write_text(specs.dump(spec))
    assert specs.load(path) == spec


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


def put(value: object, *keys: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (put(2, "schema"), "schema 2 is not known here; this Headgate reads schema 1"),
        (drop("schema"), "schema None is not known here"),
        (put("bake", "kind"), "kind 'bake' is none of convert, evaluate, script, serve, smoke, train"),
        (put([], "kind"), "kind [] is none of convert, evaluate, script, serve, smoke, train"),
        (
            put(1, "modle_path"),
            "unknown field 'modle_path'; allowed: adapters, created_at, engine_args, environment, ",
        ),
        (put(1, "resources", "gpus"), "unknown field 'resources.gpus'; allowed: account, cpus_per_task, "),
        (put(1, "environment", "pythn"), "unknown field 'environment.pythn'; allowed: command, env, "),
        (drop("model_path"), "model_path is missing"),
        (drop("environment"), "environment is missing"),
        (drop("environment", "python"), "environment.python is missing"),
        (put([], "resources"), "resources is not an object"),
        (put("2", "resources", "nodes"), "resources.nodes: '2' is not of type int"),
        (put(True, "resources", "nodes"), "resources.nodes: True is not of type int"),
        (put({"a": 1}, "name"), "name: {'a': 1} is not of type str"),
        (put(7, "owner"), "owner: 7 is not of type str"),
        (put("--x", "engine_args"), "engine_args: '--x' is not of type tuple[str, ...]"),
        (put([1], "engine_args"), "engine_args: [1] is not of type tuple[str, ...]"),
        (put({"A": 1}, "environment", "env"), "environment.env: {'A': 1} is not of type dict[str, str]"),
        (put("yesterday", "created_at"), "Invalid isoformat string: 'yesterday'"),
        (put("2026-01-01T00:00:00", "created_at"), "created_at: '2026-01-01T00:00:00' names no time zone"),
        (put("\ud800", "name"), "not a readable spec: not JSON"),
    ],
)
def test_a_spec_that_is_wrong_is_refused_by_file_and_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    data = json.loads(specs.dump(serve()))
    change(data)
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(data))
    with pytest.raises(SpecError) as e:
        specs.load(path)
    assert str(e.value).startswith(f"{path}: ") and problem in str(e.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '"x"' + " " * specs.MAX_BYTES])
def test_what_is_no_json_object_of_a_sane_size_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(SpecError, match=r"spec\.json: not a readable spec: "):
        specs.load(tmp_path / "spec.json")


def test_a_link_or_a_pipe_in_its_place_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(specs.dump(serve()))
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(SpecError, match=f"{name}: not a readable spec"):
            specs.load(tmp_path / name)


def test_a_spec_that_is_not_there_may_be_there_later(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        specs.load(tmp_path / "spec.json")
