"""Which documents a source means, and when prepared ones may be used again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launchers.megatron.corpus import Corpus, DataError, documents, key, resolve, tokenizer_key
from launchers.megatron.recipe import Data, Source


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "deep" / "b.md").write_text("second")
    (tmp_path / "deep" / "c.bin").write_bytes(b"\xff\xfe\x00")
    return tmp_path


def text(*patterns: str, max_mb: float = 0.0) -> Corpus:
    return resolve(Source(text=patterns, max_mb=max_mb))


def names(corpus: Corpus) -> list[str]:
    return [Path(f.path).name for f in corpus.files]


def test_directories_patterns_and_files_are_joined_without_repetition(texts: Path) -> None:
    assert names(text(str(texts))) == ["a.txt", "b.md"]
    assert names(text(str(texts / "**" / "*.md"), str(texts))) == ["a.txt", "b.md"]
    assert names(text(str(texts / "a.txt"))) == ["a.txt"]


def test_the_standard_library_is_python_and_not_what_was_installed_into_it() -> None:
    found = [f.path for f in text("{stdlib}").files]
    assert any(p.endswith("/json/decoder.py") for p in found)
    assert not any("site-packages" in p for p in found)
    assert names(text("{stdlib}/json/d*.py")) == ["decoder.py"]


def test_a_pattern_without_text_is_named(texts: Path) -> None:
    with pytest.raises(DataError, match=r"'/nowhere/\*\.txt' matches no text file"):
        text(str(texts), "/nowhere/*.txt")
    (texts / "empty").mkdir()
    with pytest.raises(DataError, match=r"in a directory, files ending in \.txt"):
        text(str(texts / "empty"))
    with pytest.raises(DataError, match=r"data\.jsonl: .* matches no JSONL file \(in a directory, .* \.jsonl are"):
        resolve(Source(jsonl=(str(texts),)))


def test_documents_stop_at_the_asked_amount_and_leave_out_what_is_no_text(texts: Path) -> None:
    both = (str(texts), str(texts / "deep" / "c.bin"))
    assert sorted(documents(text(*both))) == ["first", "second"]
    assert list(documents(text(*both))) == list(documents(text(*both)))
    assert len(list(documents(text(*both, max_mb=10e-6)))) == 1


def test_each_line_of_a_jsonl_file_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "n": 1}\n\n{"text": "  "}\n{"text": "two\\nlines"}\n')
    assert list(documents(resolve(Source(jsonl=(str(tmp_path),))))) == ["one", "two\nlines"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"body": "x"}', r"a\.jsonl:2: no text in field 'text'; the line has 'body'"),
        ('{"text": 3}', r"a\.jsonl:2: no text in field 'text'"),
        ('["x"]', r"a\.jsonl:2: no text in field 'text'; the line is no object"),
        ("{", r"a\.jsonl:2: not JSON"),
        ('{"text": "half: \\ud83d."}', r"a\.jsonl:2: .* character 6 is half of a surrogate pair, '\\ud83d'"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' + line + "\n")
    with pytest.raises(DataError, match=told):
        list(documents(resolve(Source(jsonl=(str(tmp_path / "a.jsonl"),)))))


def test_a_saved_dataset_means_the_files_that_its_state_lists(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    for name in ("data-00000-of-00001.arrow", "cache-1.arrow"):
        (tmp_path / name).touch()
    assert names(resolve(Source(dataset=(str(tmp_path),)))) == ["data-00000-of-00001.arrow"]


@pytest.mark.parametrize("said", ['{"_data_files": [{"fil', "[]", '{"_data_files": ["a.arrow"]}', "{}"])
def test_a_saved_dataset_whose_state_cannot_be_read_is_named(tmp_path: Path, said: str) -> None:
    (tmp_path / "state.json").write_text(said)
    with pytest.raises(DataError, match=rf"data\.dataset: {tmp_path}: not a saved dataset"):
        resolve(Source(dataset=(str(tmp_path),)))


def test_a_dataset_of_several_splits_asks_for_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=rf"name one: {tmp_path}/train, {tmp_path}/test"):
        resolve(Source(dataset=(str(tmp_path),)))


def test_a_dataset_whose_rows_are_a_selection_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}')
    with pytest.raises(DataError, match="flatten_indices"):
        resolve(Source(dataset=(str(tmp_path),)))


def test_parquet_files_are_found_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-0.parquet").touch()
    (tmp_path / "README.md").touch()
    assert names(resolve(Source(dataset=(str(tmp_path),)))) == ["train-0.parquet"]


def test_the_name_of_prepared_text_changes_with_every_input_and_with_nothing_else(texts: Path) -> None:
    corpus = text(str(texts))
    before = key(corpus, "t")
    assert key(resolve(Source(text=(str(texts),), weight=3.0, field="body")), "t") == before
    assert key(corpus, "another tokenizer") != before
    assert key(text(str(texts), max_mb=1), "t") != before
    os.utime(texts / "a.txt", ns=(1, 1))
    assert key(text(str(texts)), "t") != before


def test_the_name_of_a_tokenizer_is_that_of_its_text_or_of_its_files(texts: Path, tmp_path: Path) -> None:
    corpora = [text(str(texts))]
    learned = tokenizer_key(corpora, Data(text=(str(texts),), vocab_size=512))
    assert tokenizer_key(corpora, Data(text=(str(texts),), vocab_size=512, split="50,50,0")) == learned
    assert tokenizer_key(corpora, Data(text=(str(texts),), vocab_size=513)) != learned

    (tmp_path / "tokenizer.json").write_text("{}")
    given = tokenizer_key(corpora, Data(tokenizer=tmp_path))
    assert tokenizer_key([], Data(tokenizer=tmp_path)) == given
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert tokenizer_key(corpora, Data(tokenizer=tmp_path)) != given
