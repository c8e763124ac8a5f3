"""Which prompt blocks each replica has seen, so that a prompt goes where its beginning is in the engine's cache.

A hint, never a promise: the engine has its own cache and its own idea of what to drop. No I/O here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

BLOCK_BYTES = 2048  # about 512 tokens of English: half of it would make a choice take half as long again
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
    """The blocks that each replica of one deployment has seen: the most recent ones, about `capacity` of each.

    They are kept in two generations, because a list in the order of use takes three times as long to keep: of the older
    one, what was not seen again while the younger one filled up is dropped at once. So a block is never known without
    those before it.
    """

    def __init__(self, capacity: int = BLOCKS_PER_REPLICA) -> None:
        self._generation = max(capacity * 3 // 4, 1)  # blocks: so three to six quarters of the capacity are known
        self._seen: dict[str, _Seen] = {}
        self._replicas: dict[int, str] = {}  # bit -> replica
        self._masks: dict[int | None, int] = {}  # block -> the bits of those that have it

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
        bit, masks = seen.bit, self._masks
        for block in reversed(hashes):
            mask = masks.get(block, 0)
            if mask & bit:
                break  # then it has those before, too
            masks[block] = mask | bit
        seen.young.update(hashes)
        if len(seen.young) >= self._generation:
            self._clear(seen.old - seen.young, bit)
            seen.old, seen.young = seen.young, set()

    def forget(self, replica: str) -> None:
        """The replica is gone, or has lost its cache."""
        seen = self._seen.pop(replica, None)
        if seen is not None:
            del self._replicas[seen.bit]
            self._clear(seen.old | seen.young, seen.bit)

    def __len__(self) -> int:
        """How many replicas have seen anything."""
        return len(self._seen)

    def _join(self, replica: str) -> _Seen:
        bit = 1
        while bit in self._replicas:  # the lowest free one: masks stay short while replicas come and go
            bit <<= 1
        self._replicas[bit] = replica
        seen = self._seen[replica] = _Seen(bit)
        return seen

    def _clear(self, some: set[int], bit: int) -> None:
        masks = self._masks
        for block in some:
            if mask := masks.get(block, 0) & ~bit:
                masks[block] = mask
            else:
                masks.pop(block, None)  # one that is not there: two prompts whose hashes were the same by accident


class _Seen:
    """By one replica. `young` is the generation that grows."""

    __slots__ = ("bit", "old", "young")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.old: set[int] = set()
        self.young: set[int] = set()
