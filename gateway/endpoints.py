"""Which deployments a call to an endpoint goes to. Pure.

Every target draws a number that is exponential with its weight as the rate; the lowest is the choice, and the others
follow in order. With chance in the draws, each is chosen by its share. Where callers stick, a hash of caller and
deployment takes chance's place (weighted rendezvous hashing): the same caller gets the same order, and as each
target's number depends on its own weight alone, moving one moves only callers that come to it or leave it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from registry.endpoints import Endpoint, Shares

HEADER = "header:"


@dataclass(frozen=True, slots=True)
class Choice:
    chain: tuple[str, ...]  # deployments or external models to try in order, the chosen one first; never empty
    shadow: tuple[str, ...]  # deployments that get a copy
    missed: tuple[str, ...] = ()  # targets that cannot serve now, and nobody waits for: to be wakened for later calls


def choose(
    endpoint: Endpoint,
    key_id: str,
    headers: Mapping[str, str],
    draw: Callable[[], float],
    usable: Callable[[str], bool],
) -> Choice:
    """`headers` by lower-case name; `draw` gives numbers from 0 (may be) to 1 (never), as random.random does.

    The chain has the usable targets, then the usable fallbacks. Where nothing is usable, it is the one target for
    which to wait.
    """
    order = _order(endpoint.targets, _uniform(endpoint, key_id, headers, draw))
    chain = tuple(dict.fromkeys(name for name in (*order, *endpoint.fallbacks) if usable(name))) or order[:1]
    copied = (name for name, percent in endpoint.shadow if draw() * 100 < percent)
    shadow = tuple(name for name in copied if name != chain[0] and usable(name))
    return Choice(chain, shadow, tuple(name for name in order if name not in chain))


def _order(targets: Shares, uniform: Callable[[str], float]) -> tuple[str, ...]:
    if len(targets) == 1:
        return (targets[0][0],)
    drawn = {name: -math.log(uniform(name)) / weight for name, weight in targets}
    return tuple(sorted(drawn, key=drawn.__getitem__))


def _uniform(
    endpoint: Endpoint, key_id: str, headers: Mapping[str, str], draw: Callable[[], float]
) -> Callable[[str], float]:
    """A number above 0, at most 1, for each target. A caller without the header that sticks is drawn for each call."""
    if endpoint.sticky is None:
        return lambda name: 1 - draw()
    caller: str | None = key_id
    if endpoint.sticky.startswith(HEADER):
        caller = headers.get(endpoint.sticky.removeprefix(HEADER))
    if not caller:
        return lambda name: 1 - draw()
    # The endpoint counts too: otherwise the same few callers would be every endpoint's canaries.
    seed = f"{endpoint.name}\0{caller}\0".encode(errors="surrogateescape")

    def hashed(name: str) -> float:
        digest = hashlib.blake2b(seed + name.encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") + 1) / 2**64

    return hashed
