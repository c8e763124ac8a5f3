"""What an answer used, from the engine's own count; and the answer without the counts its client did not ask for.

A stream is read event by event at the level of bytes, and of each event's JSON only the count is parsed: the bytes
`,"usage":{` cannot occur inside a JSON string, because quotes are escaped there. Events end with an empty line in
"\\n", as vLLM writes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson

from gateway import calls
from gateway.calls import Call
from gateway.errors import UpstreamFailed

USAGE = b',"usage":{'
NO_CHOICES = b'"choices":[]'
INDEX = re.compile(rb'"choices":\[\{"index":(\d+)')
ABORT = b'"finish_reason":"abort"'
ERROR = b'data: {"error":'
EVENT_LIMIT = 16 << 20  # bytes of one event; prompt log-probabilities come in one


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Meter:
    """One attempt's running count. `usage` is None until the engine has said something."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._sent = False
        self._total: Usage | None = None

    @property
    def usage(self) -> Usage | None:
        return self._total

    def count(self, usage: Usage) -> None:
        self._total = usage

    def sent(self) -> None:
        """The request is on its way: from here on it costs something."""
        self._sent = True

    def left(self) -> None:
        """The client is gone. What was not counted by then is billed as its prompt, estimated, and no completion.

        Only streams are counted as they come. How much of a whole answer was generated when its client left is known
        to nobody, so that part stays unbilled: to guess it could bill what was never made.
        """
        if self._sent and self.usage is None:
            self.count(Usage(calls.prompt_billed(self._call), 0))

    def whole(self, body: bytes) -> None:
        """Count an answer that did not stream. Raises UpstreamFailed when it is not JSON."""
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError as e:
            raise UpstreamFailed("the replica's answer is not JSON") from e
        if isinstance(answer, dict) and isinstance(answer.get("usage"), dict):
            self.count(_usage(answer["usage"]))


class StreamMeter(Meter):
    """Feed it what the engine sends; it returns whole events, less what the client did not ask for."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._partial = b""
        # The engine counts each choice of each prompt for itself, until its last event counts them all.
        self._running: dict[int, Usage] = {}

    @property
    def usage(self) -> Usage | None:
        if self._total is not None or not self._running:
            return self._total
        prompts: dict[int, int] = {}
        completion = 0
        for index, usage in self._running.items():
            prompts[index // self._call.choices] = usage.prompt_tokens
            completion += usage.completion_tokens
        return Usage(sum(prompts.values()), completion)

    def feed(self, data: bytes) -> bytes:
        """Raises UpstreamFailed when an event does not end."""
        data = self._partial + data
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            end = 0
        self._partial = data[end:]
        if len(self._partial) > EVENT_LIMIT:
            raise UpstreamFailed(f"the replica sent an event of more than {EVENT_LIMIT} bytes")
        out = [self._event(event) for event in data[:end].split(b"\n\n")[:-1]]
        return b"".join(out)

    def rest(self) -> bytes:
        """What came after the last whole event, at the end of the stream."""
        rest, self._partial = self._partial, b""
        return self._event(rest) if rest else b""

    def _event(self, event: bytes) -> bytes:
        start = event.find(USAGE)
        if start < 0:
            return event + b"\n\n"
        end = _closing_brace(event, start + len(USAGE)) + 1
        try:
            usage = _usage(orjson.loads(event[start + len(USAGE) - 1 : end]))
        except orjson.JSONDecodeError as e:
            raise UpstreamFailed("the replica sent an event with a broken usage object") from e
        if NO_CHOICES in event:
            self.count(usage)
            return event + b"\n\n" if self._call.wants_usage else b""
        found = INDEX.search(event)
        self._running[int(found[1]) if found else 0] = usage
        if self._call.wants_running_usage:
            return event + b"\n\n"
        return event[:start] + event[end:] + b"\n\n"


def aborted(answer: bytes) -> bool:
    """Whether the engine gave up on it, as vLLM does with HTTP 200 when it is told to stop."""
    return ABORT in answer


def broken(event: bytes) -> bool:
    """Whether a stream that carries this has not ended well."""
    return ABORT in event or ERROR in event


def _closing_brace(data: bytes, start: int) -> int:
    """The position of the brace that closes the object whose first member is at `start`.

    A usage object holds numbers, nulls and further such objects: no string in it contains a brace.
    """
    depth = 1
    position = start
    while depth:
        closing = data.find(b"}", position)
        if closing < 0:
            raise UpstreamFailed("the replica sent an event with a broken usage object")
        depth += data.count(b"{", position, closing) - 1
        position = closing + 1
    return position - 1


def _usage(count: object) -> Usage:
    assert isinstance(count, dict)
    return Usage(int(count.get("prompt_tokens") or 0), int(count.get("completion_tokens") or 0))
