"""A revision on trial: which calls it gets while the replicas of the stable one are ready, too. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from registry.deployments import Deployment, Replica


@dataclass(frozen=True, slots=True)
class Trial:
    deployment: str
    revision: int  # on trial
    stable: int
    percent: int | None  # of the calls, for the one on trial; None: its share of the replicas


def on_trial(deployment: Deployment, ready: Sequence[Replica]) -> Trial | None:
    """None unless replicas of more than one revision are ready."""
    if len({replica.revision for replica in ready}) < 2:
        return None
    stable = deployment.revision if deployment.stable is None else deployment.stable
    return Trial(deployment.name, deployment.revision, stable, deployment.canary)


def share(ready: Sequence[Replica], trial: Trial, session: str | None, draw: Callable[[], float]) -> Sequence[Replica]:
    """Of these replicas, those that a call may go to. `draw`: uniform in [0, 1), for a call without a session.

    Those of neither revision only where there is no other.
    """
    new = [replica for replica in ready if replica.revision == trial.revision]
    if trial.stable == trial.revision:
        # Those of one that was given up serve, too, while they are the most: the others would drown.
        return new if 2 * len(new) >= len(ready) else ready
    old = [replica for replica in ready if replica.revision == trial.stable]
    if not new or not old:
        return new or old or ready
    if trial.percent is None:
        return [*new, *old]
    drawn = draw() if session is None else _hashed(f"{trial.deployment}\0{trial.revision}\0{session}")
    return new if drawn * 100 < trial.percent else old


def with_adapter(ready: Sequence[Replica], adapter: str, deployment: Deployment) -> list[Replica]:
    """Those that have loaded a LoRA adapter, of those that load it as they run; the others began with it."""
    if adapter not in (deployment.request.get("adapters") or ()):
        return list(ready)
    return [replica for replica in ready if adapter in replica.adapters]


def _hashed(words: str) -> float:
    digest = hashlib.blake2b(words.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
