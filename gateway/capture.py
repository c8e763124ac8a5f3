"""The capture check: is every token that an engine worked on in the ledger?

vLLM counts `vllm:prompt_tokens_total` when a prompt has been read, and `vllm:generation_tokens_total` with each step.
What is comparable with the ledger, as vLLM 0.32 does it on CPU:

    a request that ended      the same to the token: chats, completions, messages, responses, streamed or not, tools
    a cached prompt           counted in full, as in the ledger
    several choices (n)       the prompt is counted once for each; the ledger has it once. The gateway knows how many
                              tokens that is, and takes them off the engine's; so it does with a replayed prompt
    several prompts           each once, as in the ledger
    a prompt that is scored   (max_tokens 0 with echo) one token is generated, and both have it
    embeddings, rankings      their prompts; nothing is generated
    a request that was cut    the engine has what it had generated when it noticed, the ledger what had arrived: the
                              ratio falls below 1 by the difference. One that was left before anything was counted
                              is billed an estimate of its prompt. Reports list all of these
    whoever asks directly     the engine has it, the ledger does not. Headgate books its own probes and copies

A request in flight is in the engine's counters first, so that a ratio is a little below 1 while there is work. Counters
are read every few seconds: what an engine does after the last look before its end is missing on its side.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from gateway.metrics import Labels
from registry import capture, clock
from registry.capture import Compared, Counters
from registry.db import Database
from registry.deployments import Replica

EVERY_S = 10.0

Errand = Callable[[Database], object]


class Capture:
    """`on_projector` runs something on the ledger's connection, in its thread; `ready` are the ready replicas."""

    def __init__(self, on_projector: Callable[[Errand], None], ready: Callable[[], Iterable[Replica]]) -> None:
        self._on_projector, self._ready = on_projector, ready
        self._read: dict[str, Counters] = {}  # the latest of each engine
        self._changed: set[str] = set()  # replicas whose counters are not written down
        self._repeated: Counter[str] = Counter()  # tokens, by replica, that are not written down
        self._told = 0  # how many times
        self._compared: Sequence[Compared] = ()

    def counted(self, replica: Replica, prompt_tokens: int, completion_tokens: int) -> None:
        """What an engine's page says."""
        before = self._read.get(replica.id)
        if before is None or (before.prompt_tokens, before.completion_tokens) != (prompt_tokens, completion_tokens):
            at = clock.now()
            self._read[replica.id] = Counters(replica.id, replica.deployment, prompt_tokens, completion_tokens, at)
            self._changed.add(replica.id)

    def repeated(self, replica: str, tokens: int) -> None:
        """Tokens that an engine counted and nobody is billed for: of a prompt that is read again, mostly."""
        self._repeated[replica] += tokens

    def ratios(self) -> dict[Labels, float]:
        """By deployment, replica and type of token, for /metrics: of ready replicas only."""
        ready = {replica.id for replica in self._ready()}
        return ratios(c for c in self._compared if c.replica in ready)

    def tell(self) -> None:
        """Write down what is new, and look at what the ledger has."""
        self._told += 1
        number = self._told
        ready = {replica.id: replica.created_at for replica in self._ready()}
        new = [self._read[replica_id] for replica_id in self._changed]
        unread = ready.keys() - self._read.keys()
        repeated = {replica: self._repeated.pop(replica) for replica in self._repeated.keys() - unread}
        self._changed.clear()
        self._read = {replica: read for replica, read in self._read.items() if replica in ready}
        since = min(ready.values(), default="")[:10]

        def errand(db: Database) -> None:
            if new or repeated:
                capture.note_counters(db, new, repeated)
            if number == self._told:  # many may have waited, while another gateway had the ledger
                self._compared = capture.tokens(db, ready.keys(), since)

        self._on_projector(errand)

    async def watch(self) -> None:
        """Runs until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            self.tell()


def ratios(compared: Iterable[Compared]) -> dict[Labels, float]:
    """Pure. The ledger's tokens for each of the engine's; nothing where the engine has none."""
    found: dict[Labels, float] = {}
    for c in compared:
        for kind, ledger, engine in (
            ("prompt", c.ledger_prompt, c.engine_prompt),
            ("generation", c.ledger_completion, c.engine_completion),
        ):
            if engine > 0:
                found[c.deployment, c.replica, kind] = ledger / engine
    return found
