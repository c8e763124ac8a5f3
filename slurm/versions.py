"""What differs between Slurm's releases, 22.05 to 26.05, as far as we have to know it by name.

What else differs is taken as it comes: a column, a flag or a reason that is there in some releases only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# What slurmctld says, with PrivateData=users or usage, to somebody who has no association: 22.05 breaks its answer off.
UNKNOWN_TO_SLURM = r"Malformed RPC|Invalid user id"

OLDEST, NEWEST = (22, 5), (26, 5)  # what the tests have met; others may work

# sinfo's StateComplete: some words are not those of slurm.h, and some changed their names.
NODE_STATES = {"ALLOC": "ALLOCATED", "MIX": "MIXED", "UNK": "UNKNOWN"}
NODE_FLAGS = {
    "MAINT": "MAINTENANCE",
    "NO_RESPOND": "NOT_RESPONDING",
    "POWERING_DOWN": "POWERING_DOWN",
    "REBOOT": "REBOOT_REQUESTED",
    "RES": "RESERVED",
}


def release(text: str) -> tuple[int, int]:
    """ "22.05.8" (or "slurm 22.05.8", "26.05.0-0rc1") as (22, 5). Raises ValueError."""
    major, minor, *_ = text.rpartition(" ")[2].split(".")
    return int(major), int(minor)


def preempt_sends_signal(settings: Mapping[str, str]) -> bool:
    """Whether a preempted job gets the signal that it asked for with `sbatch --signal`.

    Until 22.05 SlurmctldParameters=preempt_send_user_signal; since 23.02 PreemptParameters=send_user_signal.
    """
    old = settings.get("SlurmctldParameters", "").split(",")
    new = settings.get("PreemptParameters", "").split(",")
    return "preempt_send_user_signal" in old or "send_user_signal" in new


def preempt_signal_setting(version: tuple[int, int]) -> str:
    """The line of slurm.conf that lets preempted jobs have their signal."""
    if version < (23, 2):
        return "SlurmctldParameters=preempt_send_user_signal"
    return "PreemptParameters=send_user_signal"


def user_name(text: str, names: Mapping[str, str]) -> str:
    """A user whose use of a QOS assoc_mgr tells: their uid ("1000", 22.05) or "ada(1000)" (26.05). `names`: by uid."""
    return names.get(text) or re.sub(r"\(\d+\)$", "", text)
