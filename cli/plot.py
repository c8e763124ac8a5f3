"""`headgate show --plot`: the losses of a run as a picture. The only module that imports matplotlib, when it draws."""

from __future__ import annotations

from pathlib import Path

import click

from cli.metrics import Training


def draw(path: Path, title: str, training: Training) -> None:
    """Into a file of the kind that its name's end says. Ends the command when there is nothing, or nowhere, to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without a screen
    from matplotlib.figure import Figure

    losses = training.losses
    if not losses:
        raise click.ClickException(f"{title} has no loss yet: there is nothing to draw")
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    kinds = canvas.get_supported_filetypes()
    if (kind := path.suffix.removeprefix(".").lower()) not in kinds:
        allowed = ", ".join(sorted(kinds))
        raise click.ClickException(f"{path}: {kind or 'no ending'!r} is no kind of picture; allowed: {allowed}")
    axes = figure.add_subplot()
    axes.plot(*zip(*losses, strict=True), linewidth=1, label="training")
    if training.validation:
        axes.plot(*zip(*training.validation, strict=True), "o-", markersize=4, linewidth=1, label="validation")
    for number, life in enumerate(training.lives[1:]):
        axes.axvline(life.begun_after, color="grey", linestyle=":", linewidth=1, label=None if number else "restart")
    axes.set(title=title, xlabel="iteration", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path)
    except OSError as e:
        raise click.ClickException(f"{path}: {e.strerror or e}") from e
