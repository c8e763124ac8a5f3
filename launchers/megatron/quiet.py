"""Keep a run's log free of messages about what is intended, so that a person sees the others."""

from __future__ import annotations

import logging
import warnings

INTENDED = (
    ".*(Apex|apex)",  # megatron, at import: it falls back to torch's optimizers and norms
    "full scope is deprecated",  # megatron, for each configuration: a default of its own
    ".*is deprecated. Please use `torch.distributed",  # torch, about how megatron calls it
)


def known_messages() -> None:
    """Call it before megatron is imported."""
    for message in INTENDED:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("megatron.core.rerun_state_machine").setLevel(logging.ERROR)  # it says that it is off
