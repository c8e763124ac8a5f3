"""How megatron-core 0.16's checkpoint writer puts bytes on disk: here, in a thread of the process that asked for it.

Its own way forks processes from a process full of threads, waits for ever when one of them dies, and leaves them
writing when their parent was killed. A thread ends with its process, and says what went wrong.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from launchers.megatron import manifest

_own_write = FileSystemWriterAsync.write_preloaded_data


def install() -> None:
    """Replace the writer, and keep its results in this process: megatron starts a server process to carry them."""
    filesystem_async._process_memory = lambda: 0  # it wants psutil for a debug message
    filesystem_async._results_queue = queue.SimpleQueue()
    FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(_write)


class Writing:
    """This rank's part of one checkpoint, from the copy of its tensors to the sums of the files they are in.

    Copying is done when the constructor returns. `beside`: what else this rank writes; it returns the files it made.
    When it is `done`, there are `files`, or there is an `error`.
    """

    def __init__(self, request: Any, directory: Path, beside: Callable[[], list[Path]], *, background: bool) -> None:
        self.request = request
        self.files: list[manifest.File] = []
        self.error = ""
        self._directory, self._beside = directory, beside
        self._buckets = _copied(request.async_fn_args[1], background) if request.async_fn else []
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._run, name=f"writing {directory.name}")
            self._thread.start()
        else:
            self._run()

    @property
    def done(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            made = self._beside()
            if self._buckets:
                rank, _buckets, results = self.request.async_fn_args
                self.request.async_fn(rank, self._buckets, results)
                made += [Path(path) for path, _key, _data in self._buckets]
            self._buckets = []  # the copy is as large as the model and its optimizer
            self.files = [manifest.seal(self._directory, path) for path in made]
        except (OSError, RuntimeError, manifest.CheckpointError) as e:  # torch calls a full disk a RuntimeError
            self.error = f"{self._directory}: {_first_cause(e)}"


def _first_cause(error: BaseException) -> BaseException:
    """torch raises what it stumbled over last; a person can act on what came first: no space left on device."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _copied(buckets: list, always: bool) -> list:
    """The tensors in host memory; copied there too, where training would go on to change them.

    `buckets` keeps its length, which megatron looks at in the end, and nothing of what was gathered for it.
    """
    copied = []
    for number, (path, key, (objects, tensors)) in enumerate(buckets):
        held = [(item, t.to("cpu", non_blocking=True, copy=always)) for item, t in tensors]
        copied.append((path, key, (objects, held)))
        buckets[number] = (path, key, ([], []))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return copied


def _write(transforms: list, use_msc: bool, rank: int, buckets: list, results: Any) -> None:
    """Write the buckets, one file each. {bucket number: write results} goes to `results`, for megatron's metadata."""
    written: dict[int, Any] = {}
    finished: queue.SimpleQueue = queue.SimpleQueue()
    for number, bucket in enumerate(buckets):
        _own_write(transforms, number, bucket, finished, _Unused(), use_fsync=True, use_msc=use_msc)
        _number, outcome = finished.get()
        if isinstance(outcome, Exception):
            raise outcome
        written[number] = outcome
    results.put(written)


class _Unused:
    """Stands for the queue that counts busy processes."""

    def get(self) -> None: ...

    def task_done(self) -> None: ...
