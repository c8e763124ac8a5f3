"""Kinds of training run: what one differs from another in. Standard library only, the control plane reads it too.

Everything else is the same for all: the loop, checkpoints, schedules, layouts. Supervised fine-tuning, LoRA and DPO get
an entry here, each with the field in which it differs: other samples (samples.py), another loss (training.py), or
parameters that stand still (model.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Kind:
    weights: Literal["random", "given"]  # what the first iteration works on; given: [init] says whose


KINDS = {
    "pretrain": Kind(weights="random"),
    "continue": Kind(weights="given"),
}
