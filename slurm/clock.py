"""slurmctld's clock beside our own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

from slurm.errors import SlurmUnavailable
from slurm.process import Runner, clean_environment, run_process


def ahead_s(
    environment: Mapping[str, str],
    timeout_s: float,
    run: Runner = run_process,
    clock: Callable[[], float] = time.time,
) -> float:
    """How many seconds slurmctld's clock is ahead of ours, as far as its whole seconds tell: 0 where they may agree.

    `scontrol show config` begins with the time at which slurmctld answered, by its own clock (measured with a client
    whose clock was 1000 s off, on 22.05). Raises SlurmUnavailable.
    """
    before = clock()
    try:
        settings = {**clean_environment(environment), "SLURM_TIME_FORMAT": "%s"}
        said = run(("scontrol", "show", "config"), settings, timeout_s)
    except (OSError, TimeoutError) as e:
        raise SlurmUnavailable(f"scontrol did not say what time it is: {e or 'no answer in time'}") from e
    after = clock()
    match = re.match(r"Configuration data as of (\d+)$", said.stdout, re.MULTILINE)
    if said.returncode != 0 or match is None:
        raise SlurmUnavailable("scontrol did not say what time it is")
    return _distance(float(match[1]), before, after)


def _distance(theirs: float, before: float, after: float) -> float:
    """From [before, after] to the second that `theirs` names."""
    if theirs > after:
        return theirs - after
    return min(0.0, theirs + 1 - before)
