"""Progress that a person enjoys on a terminal, and plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self

import click


class Display(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: Any) -> None: ...

    def stage(self, title: str) -> None:
        """A new stage begins; the one before is over."""

    def note(self, text: str) -> None:
        """Something worth keeping on the screen."""

    def update(self, text: str, done: float | None = None, total: float | None = None) -> None:
        """Where the stage stands now; replaced by the next update."""


def display(total_stages: int) -> Display:
    return Terminal(total_stages) if sys.stdout.isatty() else Plain(total_stages)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Plain:
    """One line a fact; an update at most every ten seconds, and the last one of a stage."""

    EVERY_S = 10.0

    def __init__(self, total_stages: int) -> None:
        self.total, self.number = total_stages, 0
        self.began = self.last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None: ...

    def stage(self, title: str) -> None:
        self.number += 1
        self.last = time.monotonic()
        click.echo(f"[{clock(self.last - self.began)}] {self.number}/{self.total} {title}")

    def note(self, text: str) -> None:
        click.echo("\n".join(f"    {line}" for line in text.splitlines()))

    def update(self, text: str, done: float | None = None, total: float | None = None) -> None:
        now = time.monotonic()
        if now - self.last >= self.EVERY_S or (done is not None and done == total):
            self.last = now
            self.note(text)


class Terminal:
    """A line that moves: spinner or bar, what the stage says of itself, the time it has taken."""

    def __init__(self, total_stages: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.total, self.number, self.title = total_stages, 0, ""
        self.console = Console(highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
        self.progress = Progress(*columns, console=self.console, transient=True)
        self.task: Any = None

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()

    def stage(self, title: str) -> None:
        self.number += 1
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.console.print(f"[bold cyan]{self.number}/{self.total}[/] [bold]{title}[/]")
        self.task = self.progress.add_task("", total=None)

    def note(self, text: str) -> None:
        for line in text.splitlines():
            self.console.print(f"    {line}", markup=False, soft_wrap=True)  # long lines can be copied whole

    def update(self, text: str, done: float | None = None, total: float | None = None) -> None:
        if self.task is not None:
            self.progress.update(self.task, description=text, completed=done or 0, total=total)
