"""Which documents a recipe means, and the names under which their prepared forms are kept. Standard library only.

(Arrow and parquet are read by arrow.py, where a source has any.)
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers.megatron.hugging_face import TOKENIZER_FILES
from launchers.megatron.recipe import Data, Source

FORMAT = 5  # raise it when the same text would be prepared differently: the tokenizer, its markers, the template
STDLIB = "{stdlib}"
# What is taken from a directory; a pattern takes what it matches.
SUFFIXES = {"text": (".txt", ".md", ".py", ".rst"), "jsonl": (".jsonl",), "dataset": (".parquet",)}
STATE, SPLITS = "state.json", "dataset_dict.json"  # what `save_to_disk` leaves in a dataset, and above several


class DataError(ValueError):
    """Documents that cannot be used; the message names the pattern or the file."""


@dataclass(frozen=True, slots=True)
class DataFile:
    path: str
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """A source, and the files that it means now."""

    source: Source
    kind: str  # text, jsonl or dataset
    files: tuple[DataFile, ...]  # in path order, none twice


def resolve(source: Source) -> Corpus:
    """The files that a source's patterns mean. Raises DataError for a pattern that means none."""
    kind = "jsonl" if source.jsonl else "dataset" if source.dataset else "text"
    found: dict[str, DataFile] = {}
    for pattern in getattr(source, kind):
        matched = list(_match(pattern, kind))
        if not matched:
            raise DataError(f"data.{kind}: {pattern!r} matches no {_WORDS[kind]} file{_looked_for(pattern, kind)}")
        for path in matched:
            try:
                status = os.stat(path)
            except OSError as e:
                raise DataError(f"data.{kind}: {path}: {e.strerror}") from e
            found[path] = DataFile(path, status.st_size, status.st_mtime_ns)
    return Corpus(source, kind, tuple(found[path] for path in sorted(found)))


def tokenizer_key(corpora: Sequence[Corpus], data: Data) -> str:
    """A name for the tokenizer that this text and vocabulary size are made into, or for the one that is given."""
    if data.tokenizer is None:
        return _digest([FORMAT, data.vocab_size, [_inputs(c) for c in corpora]])
    parts = [data.tokenizer / name for name in TOKENIZER_FILES if (data.tokenizer / name).exists()]
    return _digest([FORMAT, [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in parts]])


def key(corpus: Corpus, tokenizer: str) -> str:
    """A name for what these documents are made into: any change to text, amount or tokenizer is another dataset.

    The split and the weight are no part of it: those count when samples are drawn, from the same tokens.
    """
    return _digest([FORMAT, tokenizer, _inputs(corpus)])


def documents(corpus: Corpus) -> Iterator[str]:
    """The texts, until `max_mb` megabytes of them are reached.

    Of plain text a document is a file; what is not UTF-8 is not text and is left out. Files come in a shuffled order,
    always the same for the same number of files: neighbours in a directory are alike, so in path order the first
    megabytes, and the last documents that validation gets, would be unlike the rest. Raises DataError.
    """
    shuffled = random.Random(0).sample(corpus.files, len(corpus.files))
    left = int(corpus.source.max_mb * 1e6)
    for file in shuffled:
        for text in _READERS[corpus.kind](file.path, corpus.source.field):
            if not text.strip():
                continue
            if corpus.source.max_mb:
                left -= len(text.encode())
                if left < 0:
                    return
            yield text


def _text(path: str, _field: str) -> Iterator[str]:
    try:
        yield Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return
    except OSError as e:
        raise DataError(f"data.text: {path}: {e.strerror}") from e


def _jsonl(path: str, field: str) -> Iterator[str]:
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _of_object(line, field, f"data.jsonl: {path}:{number}")
    except OSError as e:
        raise DataError(f"data.jsonl: {path}: {e.strerror}") from e


def _of_object(line: bytes, field: str, where: str) -> str:
    try:
        said: Any = json.loads(line)
    except ValueError as e:
        raise DataError(f"{where}: not JSON: {e}") from e
    if not isinstance(said, dict) or not isinstance(said.get(field), str):
        has = f"has {', '.join(map(repr, said))}" if isinstance(said, dict) else "is no object"
        raise DataError(f"{where}: no text in field {field!r}; the line {has}")
    text = str(said[field])
    try:
        text.encode()
    except UnicodeEncodeError as e:  # JSON can say it, UTF-8 and the tokenizer cannot
        raise DataError(
            f"{where}: field {field!r} is no text: character {e.start} is half of a surrogate pair, {text[e.start]!r}"
        ) from e
    return text


def _dataset(path: str, field: str) -> Iterator[str]:
    from launchers.megatron import arrow  # the control plane has no pyarrow, and reads no documents

    return arrow.column(path, field)


_WORDS = {"text": "text", "jsonl": "JSONL", "dataset": "dataset"}
_READERS = {"text": _text, "jsonl": _jsonl, "dataset": _dataset}


def _match(pattern: str, kind: str) -> Iterator[str]:
    if pattern.startswith(STDLIB):
        root, rest = sysconfig.get_paths()["stdlib"], pattern[len(STDLIB) :].lstrip("/")
        # Installed packages stand inside the standard library's directory, but are not part of it.
        for path in _match(os.path.join(glob.escape(root), rest or "**/*.py"), kind):
            if not {"site-packages", "dist-packages"} & set(Path(path).relative_to(root).parts):
                yield path
        return
    pattern = os.path.expanduser(pattern)
    if not os.path.isdir(pattern):
        yield from (os.path.abspath(p) for p in glob.iglob(pattern, recursive=True) if os.path.isfile(p))
    elif kind == "dataset":
        yield from _saved(Path(os.path.abspath(pattern)))
    else:
        for folder, _folders, names in os.walk(pattern):
            yield from (os.path.abspath(os.path.join(folder, n)) for n in names if n.endswith(SUFFIXES[kind]))


def _saved(directory: Path) -> Iterator[str]:
    """The Arrow files of a `save_to_disk` directory, which its state.json lists; else the parquet files in it."""
    try:
        if (directory / SPLITS).exists():
            splits = json.loads((directory / SPLITS).read_text(encoding="utf-8"))["splits"]
            raise DataError(
                f"data.dataset: {directory} holds several splits; name one: "
                + ", ".join(str(directory / split) for split in splits)
            )
        if not (directory / STATE).exists():
            yield from (str(p) for p in directory.rglob("*") if p.suffix in SUFFIXES["dataset"])
            return
        state = json.loads((directory / STATE).read_text(encoding="utf-8"))
        if state.get("_indices_data_files"):
            raise DataError(f"data.dataset: {directory} is a selection of other rows: flatten_indices() before saving")
        yield from (str(directory / Path(part["filename"]).name) for part in state["_data_files"])
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as e:
        raise DataError(f"data.dataset: {directory}: not a saved dataset: {type(e).__name__}: {e}") from e


def _looked_for(pattern: str, kind: str) -> str:
    if os.path.isdir(os.path.expanduser(pattern)):
        return f" (in a directory, files ending in {', '.join(SUFFIXES[kind])} are taken)"
    return "" if os.path.isabs(pattern) or pattern.startswith(STDLIB) else f" (looked in {os.getcwd()})"


def _inputs(corpus: Corpus) -> list[Any]:
    source, files = corpus.source, [(f.path, f.size, f.mtime_ns) for f in corpus.files]
    return [corpus.kind, source.field if corpus.kind != "text" else "", source.max_mb, files]


def _digest(inputs: list[Any]) -> str:
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
