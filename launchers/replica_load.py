"""What a replica says of its load, as its supervisor writes it into the run folder. Untrusted: a job wrote it."""

from __future__ import annotations

import math
from pathlib import Path

from launchers.untrusted import Unbelievable, read_object

NAME = "load.json"
MAX_BYTES = 16 << 10
MAX_FIGURES = 32


def read(folder: Path, owner_uid: int) -> dict[str, float] | None:
    """The figures in it, by name; None where there are none yet, or none that can be believed."""
    try:
        said = read_object(folder / NAME, MAX_BYTES, owner_uid)
    except (Unbelievable, OSError):
        return None
    figures = {
        name: value
        for name, value in said.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    return dict(list(figures.items())[:MAX_FIGURES])
