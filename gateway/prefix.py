"""Which prompt blocks each replica has seen, so that a prompt goes where its beginning is in the engine's cache.

A hint, never a promise: the engine has its own cache and its own idea of what to drop. No I/O here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

BLOCK_BYTES = 2048  # about 512 tokens of English: with blocks half as long a choice takes half as long again
MAX_BLOCKS = 512  # of a prompt; what follows (after about 256,000 tokens) counts as never seen
BLOCKS_PER_REPLICA = 2048  # about a million tokens, what an engine on one large GPU caches; 0.15 KB of memory a block


def blocks(prompt: bytes, salt: bytes) -> list[int]:
    """A hash for each whole block of a prompt; each covers everything before it, and the salt.

    `salt` is whatever else decides whether cached blocks may be shared: model, LoRA adapter, cache salt. The hash is
    Python's keyed one (SipHash): nobody outside this process can make two prompts collide, and it means nothing in
    another process.
    """
    ends = min(len(prompt) // BLOCK_BYTES, MAX_BLOCKS) * BLOCK_BYTES
    if not ends:
        return []
    chained = hash(salt)
    return [chained := hash((chained, prompt[start : start + BLOCK_BYTES])) for start in range(0, ends, BLOCK_BYTES)]


class Prefixes:
    """The blocks that each replica of one deployment has seen: the most recent ones, at most `capacity` of each.

    Of a prompt, the last block is always dropped first: a block is never known without all of those before it.
    """

    def __init__(self, capacity: int = BLOCKS_PER_REPLICA) -> None:
        self._capacity = max(capacity, 1)
        self._kept = (
            self._capacity - self._capacity // 32
        )  # when some are dropped: a dict is slow to tell its first keys
        self._seen: dict[str, dict[int, bool]] = {}  # replica -> its blocks, the least recent first
        self._bits: dict[str, int] = {}  # replica -> its bit in the masks
        self._replicas: dict[int, str] = {}  # and back
        self._masks: dict[int | None, int] = {}  # block -> the replicas that have it

    def matched(self, hashes: Sequence[int]) -> Mapping[str, int]:
        """Replica -> how many leading blocks it has; those with none are absent. One walk for all replicas."""
        found: dict[str, int] = {}
        masks, replicas = self._masks, self._replicas
        left = -1  # the replicas that have every block so far; -1: whichever there may be
        for count, block in enumerate((*hashes, None)):  # nobody has None: it ends the walk
            have = masks.get(block, 0) & left
            if have != left:
                lost = left ^ have if count else 0
                while lost:
                    bit = lost & -lost
                    found[replicas[bit]] = count
                    lost ^= bit
                if not have:
                    break
                left = have
        return found

    def note(self, replica: str, hashes: Sequence[int]) -> None:
        """The replica was sent a prompt of these blocks."""
        if not hashes:
            return
        seen = self._seen.get(replica)
        if seen is None:
            seen = self._join(replica)
        bit, masks = self._bits[replica], self._masks
        for block in reversed(hashes):  # so that the first block is the most recent, and the last to be dropped
            if not seen.pop(block, False):
                masks[block] = masks.get(block, 0) | bit
            seen[block] = True
        if len(seen) > self._capacity:
            for block in list(islice(seen, len(seen) - self._kept)):
                del seen[block]
                self._clear(block, bit)

    def forget(self, replica: str) -> None:
        """The replica is gone, or has lost its cache."""
        seen = self._seen.pop(replica, None)
        if seen is not None:
            bit = self._bits.pop(replica)
            del self._replicas[bit]
            for block in seen:
                self._clear(block, bit)

    def __len__(self) -> int:
        """How many replicas have seen anything."""
        return len(self._seen)

    def _join(self, replica: str) -> dict[int, bool]:
        bit = 1
        while bit in self._replicas:  # the lowest free one: masks stay short while replicas come and go
            bit <<= 1
        self._bits[replica], self._replicas[bit] = bit, replica
        self._seen[replica] = {}
        return self._seen[replica]

    def _clear(self, block: int, bit: int) -> None:
        if mask := self._masks[block] ^ bit:
            self._masks[block] = mask
        else:
            del self._masks[block]
