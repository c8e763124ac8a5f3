"""Which text a pattern means, and when prepared text may be used again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launchers.megatron.corpus import DataError, documents, key, resolve
from launchers.megatron.recipe import Data


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "deep" / "b.md").write_text("second")
    (tmp_path / "deep" / "c.bin").write_bytes(b"\xff\xfe\x00")
    return tmp_path


def names(*patterns: str) -> list[str]:
    return [Path(f.path).name for f in resolve(patterns)]


def test_directories_patterns_and_files_are_joined_without_repetition(texts: Path) -> None:
    assert names(str(texts)) == ["a.txt", "b.md"]
    assert names(str(texts / "**" / "*.md"), str(texts)) == ["a.txt", "b.md"]
    assert names(str(texts / "a.txt")) == ["a.txt"]


def test_the_standard_library_is_python_and_not_what_was_installed_into_it() -> None:
    found = [f.path for f in resolve(["{stdlib}"])]
    assert any(p.endswith("/json/decoder.py") for p in found)
    assert not any("site-packages" in p for p in found)
    assert names("{stdlib}/json/d*.py") == ["decoder.py"]


def test_a_pattern_without_text_is_named(texts: Path) -> None:
    with pytest.raises(DataError, match=r"'/nowhere/\*\.txt' matches no text file"):
        resolve([str(texts), "/nowhere/*.txt"])
    (texts / "empty").mkdir()
    with pytest.raises(DataError, match=r"in a directory, files ending in \.txt"):
        resolve([str(texts / "empty")])


def test_documents_stop_at_the_asked_amount_and_leave_out_what_is_no_text(texts: Path) -> None:
    files = resolve([str(texts), str(texts / "deep" / "c.bin")])
    assert sorted(documents(files, 1.0)) == ["first", "second"]
    assert list(documents(files, 1.0)) == list(documents(files, 1.0))
    assert len(list(documents(files, 10e-6))) == 1


def test_the_name_of_prepared_text_changes_with_every_input_and_with_nothing_else(texts: Path) -> None:
    data = Data(text=(str(texts),), vocab_size=512)
    before = key(resolve(data.text), data)
    assert key(resolve(data.text), Data(text=(str(texts),), vocab_size=512, split="50,50,0")) == before
    assert key(resolve(data.text), Data(text=(str(texts),), vocab_size=513)) != before
    os.utime(texts / "a.txt", ns=(1, 1))
    assert key(resolve(data.text), data) != before
