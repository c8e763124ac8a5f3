"""Which text a recipe means, and the name under which its prepared form is kept. Standard library only."""

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

from launchers.megatron.recipe import Data

FORMAT = 2  # raise it when the same text would be prepared differently: the tokenizer, its markers, the template
STDLIB = "{stdlib}"
TEXT_SUFFIXES = (".txt", ".md", ".py", ".rst")  # what is taken from a directory; a pattern takes what it matches


class DataError(ValueError):
    """Text that cannot be used; the message names the pattern or the file."""


@dataclass(frozen=True, slots=True)
class TextFile:
    path: str
    size: int  # bytes
    mtime_ns: int


def resolve(patterns: Sequence[str]) -> list[TextFile]:
    """The files that the patterns mean, without repetition, in path order. Raises DataError for one that means none."""
    found: dict[str, TextFile] = {}
    for pattern in patterns:
        matched = list(_match(pattern))
        if not matched:
            raise DataError(f"data.text: {pattern!r} matches no text file{_looked_for(pattern)}")
        for path in matched:
            status = os.stat(path)
            found[path] = TextFile(path, status.st_size, status.st_mtime_ns)
    return [found[path] for path in sorted(found)]


def key(files: Sequence[TextFile], data: Data) -> str:
    """A name for what these inputs are made into: any change to text, amount or vocabulary is another dataset.

    The split is not part of it: that is drawn when samples are, from the same tokens.
    """
    inputs = [FORMAT, data.vocab_size, data.max_mb, [(f.path, f.size, f.mtime_ns) for f in files]]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def documents(files: Sequence[TextFile], max_mb: float) -> Iterator[str]:
    """The texts, one per file, until `max_mb` megabytes are reached. What is not UTF-8 is not text and is left out.

    In a shuffled order, always the same for the same number of files: neighbours in a directory are alike, so in path
    order the first megabytes, and the last documents that validation gets, would be unlike the rest.
    """
    shuffled = random.Random(0).sample(files, len(files))
    left = int(max_mb * 1e6)
    for file in shuffled:
        try:
            text = Path(file.path).read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        except OSError as e:
            raise DataError(f"data.text: {file.path}: {e.strerror}") from e
        if not text.strip():
            continue
        left -= file.size
        if left < 0:
            return
        yield text


def _match(pattern: str) -> Iterator[str]:
    if pattern.startswith(STDLIB):
        root, rest = sysconfig.get_paths()["stdlib"], pattern[len(STDLIB) :].lstrip("/")
        # Installed packages stand inside the standard library's directory, but are not part of it.
        for path in _match(os.path.join(glob.escape(root), rest or "**/*.py")):
            if not {"site-packages", "dist-packages"} & set(Path(path).relative_to(root).parts):
                yield path
        return
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        for folder, _folders, names in os.walk(pattern):
            yield from (os.path.abspath(os.path.join(folder, n)) for n in names if n.endswith(TEXT_SUFFIXES))
        return
    yield from (os.path.abspath(p) for p in glob.iglob(pattern, recursive=True) if os.path.isfile(p))


def _looked_for(pattern: str) -> str:
    if os.path.isdir(os.path.expanduser(pattern)):
        return f" (in a directory, files ending in {', '.join(TEXT_SUFFIXES)} are taken)"
    return "" if os.path.isabs(pattern) or pattern.startswith(STDLIB) else f" (looked in {os.getcwd()})"
