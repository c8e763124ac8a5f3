"""Text out of Hugging Face datasets on disk: the Arrow files of `save_to_disk`, and parquet.

Read with pyarrow alone: `datasets` would bring pandas, aiohttp and more, to do the same through a cache of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow
from pyarrow import parquet

from launchers.megatron.corpus import DataError

_ROWS = 1024  # of a parquet file held in memory at a time


def column(path: str, name: str) -> Iterator[str]:
    """The strings of one column, in order; rows without one are left out. Raises DataError."""
    if not path.endswith((".parquet", ".arrow")):
        raise DataError(f"data.dataset: {path} is neither parquet nor Arrow; text has data.text, JSON lines data.jsonl")
    try:
        for batch in _parquet(path, name) if path.endswith(".parquet") else _arrow(path, name):
            yield from (str(value) for value in batch.to_pylist() if value is not None)
    except (pyarrow.ArrowException, OSError) as e:
        raise DataError(f"data.dataset: {path}: {e}") from e


def _parquet(path: str, name: str) -> Iterator[Any]:
    with parquet.ParquetFile(path) as file:
        _text_column(path, name, file.schema_arrow)
        for batch in file.iter_batches(batch_size=_ROWS, columns=[name]):
            yield batch.column(0)


def _arrow(path: str, name: str) -> Iterator[Any]:
    with pyarrow.memory_map(path) as file, pyarrow.ipc.open_stream(file) as stream:
        _text_column(path, name, stream.schema)
        for batch in stream:
            yield batch.column(batch.schema.get_field_index(name))


def _text_column(path: str, name: str, schema: Any) -> None:
    text = [f.name for f in schema if pyarrow.types.is_string(f.type) or pyarrow.types.is_large_string(f.type)]
    if name not in text:
        raise DataError(
            f"data.dataset: {path}: no text in column {name!r}; its text columns: {', '.join(text) or 'none'}"
        )
