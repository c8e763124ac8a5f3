"""What counts as a complete checkpoint, without any training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launchers.megatron.manifest import NAME, CheckpointError, newest_complete, read, verify, write


def directory(path: Path, **facts: int) -> Path:
    (path / "tokenizer").mkdir(parents=True)
    (path / "weights").write_bytes(b"w" * 1000)
    (path / "tokenizer" / "vocab.json").write_text("{}")
    write(path, "checkpoint", **facts)
    return path


def test_a_complete_directory_verifies_and_its_manifest_says_what_is_in_it(tmp_path: Path) -> None:
    manifest = verify(directory(tmp_path / "c", iteration=20))
    assert [(f.path, f.size) for f in manifest.files] == [("tokenizer/vocab.json", 2), ("weights", 1000)]
    assert (manifest.kind, manifest.facts, manifest.bytes) == ("checkpoint", {"iteration": 20}, 1002)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda d: (d / "weights").unlink(), "weights: missing"),
        (lambda d: (d / "weights").write_bytes(b"w" * 999), "weights: 999 bytes, the manifest promises 1000"),
        (lambda d: (d / "weights").write_bytes(b"v" + b"w" * 999), "weights: damaged"),
        (lambda d: (d / NAME).unlink(), "not complete, it has no manifest.json"),
        (lambda d: (d / NAME).write_text("{"), "not a manifest"),
        (lambda d: ((d / "weights").unlink(), (d / "weights").symlink_to("/etc/passwd")), "weights: not a regular"),
    ],
)
def test_damage_is_named_by_file(tmp_path: Path, damage, told: str) -> None:
    path = directory(tmp_path / "c")
    damage(path)
    with pytest.raises(CheckpointError, match=told):
        verify(path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "", "w\0", "\ud800", "\udcff"])
def test_a_manifest_cannot_point_outside_its_directory(tmp_path: Path, name: str) -> None:
    path = directory(tmp_path / "c")
    body = json.loads((path / NAME).read_text())
    body["files"][0]["path"] = name
    (path / NAME).write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match="is not a relative path"):
        read(path)


@pytest.mark.parametrize("size", ["Infinity", "NaN", "-1", "9007199254740992", "[]", '"many"'])
def test_a_size_that_no_file_has_is_refused(tmp_path: Path, size: str) -> None:
    path = directory(tmp_path / "c")
    (path / NAME).write_text((path / NAME).read_text().replace('"size": 1000', f'"size": {size}'))
    with pytest.raises(CheckpointError, match=r"not a manifest|with a size"):
        read(path)


@pytest.mark.parametrize("created_at", ["2026-01-01T00:00:00", "yesterday", ""])
def test_a_manifest_says_when_it_was_written_and_in_which_zone(tmp_path: Path, created_at: str) -> None:
    path = directory(tmp_path / "c")
    body = json.loads((path / NAME).read_text())
    (path / NAME).write_text(json.dumps({**body, "created_at": created_at}))
    with pytest.raises(CheckpointError, match=r"not a manifest|says no time zone"):
        read(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "7", ""])
def test_what_is_no_manifest_is_no_checkpoint(tmp_path: Path, text: str) -> None:
    path = directory(tmp_path / "c")
    (path / NAME).write_text(text)
    with pytest.raises(CheckpointError, match="not a manifest"):
        read(path)


def test_a_manifest_of_another_schema_is_refused_by_number(tmp_path: Path) -> None:
    path = directory(tmp_path / "c")
    (path / NAME).write_text((path / NAME).read_text().replace('"schema": 1', '"schema": 7'))
    with pytest.raises(CheckpointError, match="schema 7 is not known here"):
        read(path)


def test_the_newest_complete_checkpoint_passes_over_what_is_half_written_or_damaged(tmp_path: Path) -> None:
    whole = directory(tmp_path / "iter_0000020")
    (directory(tmp_path / "iter_0000030") / "weights").write_bytes(b"x" * 1000)
    (tmp_path / "iter_0000040").mkdir()
    problems: list[CheckpointError] = []
    assert newest_complete(tmp_path, report=problems.append) == whole
    assert ["0000040" in str(problems[0]), "0000030" in str(problems[1])] == [True, True]
    assert newest_complete(tmp_path / "absent") is None
