"""How megatron-core 0.16's checkpoint writer puts bytes on disk: here, in the process that asked for it.

Its own way forks one process per file from a process full of threads, and waits for ever when one of them dies; it
also wants psutil for a debug message. Ours raises what went wrong.
"""

from __future__ import annotations

import queue
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

_own_write = FileSystemWriterAsync.write_preloaded_data


def install(*, asynchronous: bool) -> None:
    """Replace the writer. An asynchronous save runs it in the one process that megatron forks for that save."""
    filesystem_async._process_memory = lambda: 0
    FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(_write)
    if not asynchronous:  # the results stay in this process; megatron starts a server process to carry them
        filesystem_async._results_queue = queue.SimpleQueue()


def _write(transforms: list, use_msc: bool, rank: int, buckets: list, results: Any) -> None:
    """Write the buckets, one file each, and put {bucket number: write results}, or an exception, in `results`."""
    written: dict[int, Any] = {}
    finished: queue.SimpleQueue = queue.SimpleQueue()
    for number, bucket in enumerate(buckets):
        _own_write(transforms, number, bucket, finished, _Unused(), use_fsync=True, use_msc=use_msc)
        _number, outcome = finished.get()
        if isinstance(outcome, Exception):  # megatron's reader raises it on every rank
            results.put(outcome)
            return
        written[number] = outcome
    results.put(written)


class _Unused:
    """Stands for the queue that counts busy processes."""

    def get(self) -> None: ...

    def task_done(self) -> None: ...
