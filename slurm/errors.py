"""What can go wrong between us and Slurm.

SlurmError              Slurm refused; the message is what it said
  SlurmUnavailable      Slurm did not answer, or not in time: nothing is known, and nothing may be concluded
"""

from __future__ import annotations


class SlurmError(RuntimeError):
    """Slurm refused a request. The message is what it said."""


class SlurmUnavailable(SlurmError):
    """Slurm did not answer. For `submit` that means that the job may exist: look for it by its comment."""
