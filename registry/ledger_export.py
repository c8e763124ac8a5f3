"""A month of the ledger as a file for other programs: CSV, JSON lines or Parquet.

Rows stream from one read of the file, some thousands at a time, so that memory does not grow with the month; its writer
is not held up. Amounts are integers, times UTC. pyarrow is imported here alone, and only for Parquet: it takes a
quarter of a second and 60 MiB that nobody else should pay.
"""

from __future__ import annotations

import contextlib
import csv
import enum
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from registry.db import Conflict, Database, NotFound, row, rows

ROWS = 10_000  # read and written at a time


class Format(enum.StrEnum):
    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


class Type(enum.Enum):
    TEXT = "text"
    INTEGER = "integer"  # of 64 bits
    TIME = "time"  # as registry.clock writes it


@dataclass(frozen=True, slots=True)
class Table:
    """`name` is SQLite's, `when` the column that says in which month a row is, `gone` what roll-ups that month lost."""

    name: str
    when: str
    order: str
    columns: dict[str, Type]
    gone: str = "0"  # a condition on its row in `rollups`
    rows: str = "1"  # a condition on rows

    def query(self, tenant: str | None) -> str:
        whose = " AND tenant = ?" if tenant is not None else ""
        columns = ", ".join(self.columns)
        which = f"substr({self.when}, 1, 7) = ? AND {self.rows}{whose}"
        return f"SELECT {columns} FROM {self.name} WHERE {which} ORDER BY {self.order}"


def _columns(**groups: str) -> dict[str, Type]:
    return {column: Type[group.upper()] for group, names in groups.items() for column in names.split()}


_ATTEMPT = _columns(text="event_id tenant user key_id model replica kind")
_TOKENS = "prompt_tokens cached_tokens completion_tokens reasoning_tokens microcredits"
TABLES = {
    "events": Table(
        "usage_events",
        "ended_at",
        "event_id",
        {
            **_ATTEMPT,
            **_columns(time="started_at ended_at"),
            **_columns(text="outcome"),
            **_columns(integer=_TOKENS),
        },
        gone="events > 0",
    ),
    "entries": Table(
        "entries",
        "at",
        "seq",
        {
            **_columns(integer="seq"),
            **_columns(text="event_id step tenant"),
            **_columns(integer="available held consumed"),
            **_columns(time="at"),
        },
        gone="1",
        rows="step != 'carried'",  # what stands for another month's
    ),
    "daily": Table(
        "daily",
        "day",
        "day, tenant, user, key_id, model, replica, kind",
        {
            **_columns(text="day tenant user key_id model replica kind"),
            **_columns(integer=f"requests cut {_TOKENS}"),
        },
    ),
}

Batch = Sequence[Sequence[Any]]


def export(db: Database, table: str, month: str, tenant: str | None, form: Format, to: BinaryIO) -> int:
    """Write the rows of a month ("2026-11") of one tenant or all; how many there were.

    Raises Conflict when some of the month's single rows are gone: rolled up into sums, which `daily` has. NotFound for
    a tenant of whom the ledger knows nothing. OSError.
    """
    wanted = TABLES[table]
    if row(db, f"SELECT 1 FROM rollups WHERE month = ? AND {wanted.gone}", month) is not None:
        raise Conflict(f"{month} is rolled up: its {table} are gone, or some are; 'daily' has their sums")
    if tenant is not None:
        _check_tenant(db, tenant)
    arguments = (month,) if tenant is None else (month, tenant)
    cursor = db.conn.execute(wanted.query(tenant), arguments)
    count = 0
    with _WRITERS[form](wanted, to) as write:
        while batch := [tuple(r) for r in cursor.fetchmany(ROWS)]:
            write(batch)
            count += len(batch)
    return count


def _check_tenant(db: Database, tenant: str) -> None:
    if row(db, "SELECT 1 FROM entries WHERE tenant = ? LIMIT 1", tenant) is None:
        there_are = ", ".join(r[0] for r in rows(db, "SELECT DISTINCT tenant FROM entries ORDER BY 1")) or "none yet"
        raise NotFound(f"the ledger has nothing of a tenant {tenant!r}; there are: {there_are}")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name once it is whole, for its owner alone. Raises OSError."""
    fd, whole = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(whole, path)
    except BaseException:
        os.unlink(whole)
        raise


Writer = Callable[[Batch], None]


@contextlib.contextmanager
def _csv(table: Table, to: BinaryIO) -> Iterator[Writer]:
    text = io.TextIOWrapper(to, encoding="utf-8", newline="", write_through=True)
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(table.columns)
    yield lines.writerows
    text.detach()  # the file stays its owner's


@contextlib.contextmanager
def _jsonl(table: Table, to: BinaryIO) -> Iterator[Writer]:
    names = list(table.columns)

    def write(batch: Batch) -> None:
        to.write(b"".join(orjson.dumps(dict(zip(names, r, strict=True))) + b"\n" for r in batch))

    yield write


@contextlib.contextmanager
def _parquet(table: Table, to: BinaryIO) -> Iterator[Writer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {Type.TEXT: pa.string(), Type.INTEGER: pa.int64(), Type.TIME: pa.timestamp("us", tz="UTC")}
    schema = pa.schema([(name, types[kind]) for name, kind in table.columns.items()])

    with pq.ParquetWriter(to, schema, compression="zstd") as file:

        def write(batch: Batch) -> None:
            # Times come as text with a Z, which the cast understands.
            columns = [
                pa.array(values).cast(field.type)
                for field, values in zip(schema, zip(*batch, strict=True), strict=True)
            ]
            file.write_table(pa.table(columns, schema=schema))

        yield write


_WRITERS = {Format.CSV: _csv, Format.JSONL: _jsonl, Format.PARQUET: _parquet}
