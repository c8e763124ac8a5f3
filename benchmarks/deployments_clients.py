"""Clients of the deployments' benchmark: constant streams, each checked token by token; a client asks only once."""

from __future__ import annotations

import asyncio
import enum
import itertools
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import aiohttp

from benchmarks.deployments_engine import Asked

PATIENCE_S = 400.0
INTERVAL_MS = 40
CONTINUED, WAITS = b": continued on another replica", b": waiting for deployment"


class Saw(enum.StrEnum):
    """How a request ended for its client."""

    WHOLE = "whole"
    REFUSED = "refused"  # another status than 200
    CUT = "cut"  # an error, or the end of the connection, before the end of the answer
    WRONG = "wrong"  # a token missing, doubled, or of another request
    WAITED = "waited"  # longer than anything may take


@dataclass(slots=True)
class Seen:
    nonce: int
    model: str
    client: int
    tokens: int  # that were asked for
    began: float
    ended: float = 0.0
    saw: Saw = Saw.CUT
    came: int = 0  # tokens
    first_s: float | None = None  # until the first of them
    continued: int = 0  # times
    waited: bool = False  # for a replica to be ready
    text: str = ""  # of the error


class Clients:
    """`streams` at a time. `seen` grows with every request that is over; `models` may change meanwhile: whoever is next
    asks one of them. One in `long_every` takes `long_s`."""

    def __init__(self, url: str, key: str, rng: random.Random, long_s: float, long_every: int = 8) -> None:
        self.seen: list[Seen] = []
        self._now: dict[int, Seen] = {}  # that are not over
        self.models: Sequence[str] = ()
        self._url, self._key, self._rng = url, key, rng
        self._long_s, self._long_every = long_s, long_every
        self._nonces = itertools.count(1)
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, streams: int) -> None:
        self._tasks = [asyncio.create_task(self._one_by_one(n)) for n in range(streams)]

    async def stop(self) -> None:
        """Returns once the last has its answer."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    def running(self, model: str) -> int:
        """Streams of it that have begun and are not over. From any thread."""
        return sum(one.model == model and one.came > 0 for one in list(self._now.values()))

    async def ask(self, model: str, tokens: int, client: int = -1) -> Seen:
        """On a connection of its own: some of them end badly."""
        asked = Asked(next(self._nonces), tokens, INTERVAL_MS)
        self._now[asked.nonce] = seen = Seen(asked.nonce, model, client, tokens, time.time())
        body = {"model": model, "stream": True, "max_tokens": tokens}
        body["messages"] = [{"role": "user", "content": asked.prompt}]
        headers = {"Authorization": f"Bearer {self._key}"}
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        try:
            async with aiohttp.ClientSession(self._url, timeout=timeout, headers=headers) as session:
                while not seen.ended:
                    try:
                        async with session.post("/v1/chat/completions", json=body) as response:
                            await _answered(response, seen)
                    except aiohttp.ClientConnectorError:  # nobody was asked yet: no gateway is up
                        await asyncio.sleep(0.1)
        except TimeoutError:
            seen.saw, seen.ended = Saw.WAITED, time.time()
        except (aiohttp.ClientError, ConnectionError) as e:
            seen.text, seen.ended = f"{type(e).__name__}: {e}", time.time()
        finally:
            del self._now[asked.nonce]
        return seen

    async def _one_by_one(self, client: int) -> None:
        while not self._stop.is_set():
            if not self.models:
                await asyncio.sleep(0.1)
                continue
            long = self._rng.randrange(self._long_every) == 0
            seconds = self._long_s if long else self._rng.uniform(1.0, 8.0)
            seen = await self.ask(self._rng.choice(self.models), int(seconds * 1000 / INTERVAL_MS), client)
            self.seen.append(seen)
            if seen.saw is Saw.REFUSED:
                await asyncio.sleep(0.2)


async def _answered(response: aiohttp.ClientResponse, seen: Seen) -> None:
    if response.status == 200:
        seen.saw, seen.text = await _streamed(response, seen)
    else:
        seen.saw, seen.text = Saw.REFUSED, f"{response.status}: {(await response.text())[:300]}"
    seen.ended = time.time()


async def _streamed(response: aiohttp.ClientResponse, seen: Seen) -> tuple[Saw, str]:
    rest, text = b"", ""
    while data := await response.content.readany():
        *events, rest = (rest + data).split(b"\n\n")
        for event in events:
            if event.startswith(b":"):
                seen.continued += event.startswith(CONTINUED)
                seen.waited = seen.waited or event.startswith(WAITS)
                continue
            if event == b"data: [DONE]":
                return (Saw.WHOLE, "") if seen.came == seen.tokens else (Saw.WRONG, f"{seen.came} tokens, then the end")
            said = json.loads(event.removeprefix(b"data: "))
            if "error" in said:
                return Saw.CUT, str(said["error"])[:300]
            for choice in said["choices"]:
                text += choice["delta"].get("content") or ""
            *whole, text = text.split(" ")
            for piece in whole:
                if piece != f"{seen.nonce}.{seen.came + 1}":
                    return Saw.WRONG, f"after {seen.came} tokens came {piece[:40]!r}"
                seen.came += 1
                if seen.first_s is None:
                    seen.first_s = time.time() - seen.began
    return Saw.CUT, "the stream ended without [DONE]"


def table(seen: Iterable[Seen]) -> str:
    """What each client saw."""
    by_client: dict[int, list[Seen]] = {}
    for one in seen:
        by_client.setdefault(one.client, []).append(one)
    lines = ["client  streams  whole  failed  truncated  doubled  continued  waited  longest  slowest first token"]
    for client, some in sorted(by_client.items()):
        counts = [sum(one.saw is saw for one in some) for saw in Saw]
        whole, failed, cut, wrong = counts[0], counts[1] + counts[4], counts[2], counts[3]
        longest = max(one.ended - one.began for one in some)
        slowest = max((one.first_s or 0.0) for one in some)
        lines.append(
            f"{client:6}  {len(some):7}  {whole:5}  {failed:6}  {cut:9}  {wrong:7}  "
            f"{sum(one.continued > 0 for one in some):9}  {sum(one.waited for one in some):6}  "
            f"{longest:5.1f} s  {slowest:17.2f} s"
        )
    return "\n".join(lines)
