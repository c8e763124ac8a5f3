"""What is left of a caller's limits, in the headers that SDKs read. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from time import gmtime, strftime

Headers = list[tuple[str, str]]


@dataclass(slots=True)  # not frozen: one is made for every answer
class Left:
    """Of requests a minute, or of tokens: of the limit of which there is least."""

    limit: int
    remaining: int
    reset_s: float  # seconds until all of it is there again; 0 where waiting brings nothing back, as with a budget


def openai(requests: Left | None, tokens: Left | None = None) -> Headers:
    headers: Headers = []
    if requests is not None:
        headers += (
            ("x-ratelimit-limit-requests", str(requests.limit)),
            ("x-ratelimit-remaining-requests", str(requests.remaining)),
            ("x-ratelimit-reset-requests", go_duration(requests.reset_s)),
        )
    if tokens is not None:
        headers += (
            ("x-ratelimit-limit-tokens", str(tokens.limit)),
            ("x-ratelimit-remaining-tokens", str(tokens.remaining)),
            ("x-ratelimit-reset-tokens", go_duration(tokens.reset_s)),
        )
    return headers


def anthropic(requests: Left | None, tokens: Left | None, now: float) -> Headers:
    """`now` is the wall clock, in Unix seconds."""
    headers: Headers = []
    if requests is not None:
        headers += (
            ("anthropic-ratelimit-requests-limit", str(requests.limit)),
            ("anthropic-ratelimit-requests-remaining", str(requests.remaining)),
            ("anthropic-ratelimit-requests-reset", _rfc3339(int(now + requests.reset_s + 0.999))),
        )
    if tokens is not None:
        headers += (
            ("anthropic-ratelimit-tokens-limit", str(tokens.limit)),
            ("anthropic-ratelimit-tokens-remaining", str(tokens.remaining)),
            ("anthropic-ratelimit-tokens-reset", _rfc3339(int(now + tokens.reset_s + 0.999))),
        )
    return headers


def go_duration(seconds: float) -> str:
    """As Go writes it: "12ms", "1s", "6m0s", "1h0m5s". Never less than there is to wait."""
    if seconds < 1:
        milliseconds = -int(-seconds * 1000 // 1)
        return f"{milliseconds}ms" if 0 < milliseconds < 1000 else "1s" if milliseconds else "0s"
    whole = -int(-seconds // 1)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest}s"
    return f"{minutes // 60}h{minutes % 60}m{rest}s"


@lru_cache(maxsize=256)
def _rfc3339(second: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(second))
