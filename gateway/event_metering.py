"""Streams whose events have names (`event: NAME`), as Anthropic's Messages and OpenAI's Responses write them.

They are handed on as they came, and only the one event that states the count is parsed. A name cannot be mistaken for
text: inside JSON a line feed is escaped, so that `NAME` with a line feed behind it is the event's own line.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import orjson

from gateway.calls import Call
from gateway.errors import UpstreamFailed
from gateway.metering import StreamMeter, Usage

ERROR = b"event: error\n"


class EventMeter(StreamMeter):
    """`ended` is true once the event that says that all went well has passed."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._deltas = 0  # events with output; an engine puts a token in each, or more

    @property
    def usage(self) -> Usage | None:
        if self._total is not None:
            return self._total
        prompt = self._prompt_used()
        return None if prompt is None else replace(prompt, completion_tokens=self._deltas)

    def feed(self, data: bytes) -> bytes:
        """Raises UpstreamFailed when an event does not end, or cannot be read."""
        if self.failure is not None:
            return b""
        data = self._whole_events(data)
        return self._passed(data) if data else b""

    def rest(self) -> bytes:
        """What came after the last whole event, at the end of the stream."""
        data, self._partial = self._partial, b""
        out = self._passed(data + b"\n\n") if data and self.failure is None else b""
        if not self.ended and self.failure is None:
            self.failure = "the replica ended the stream before its answer was complete"
        return out

    def _passed(self, events: bytes) -> bytes:
        """The events up to the one in which the engine gave up, which is not for the client."""
        if ERROR in events:
            start = events.index(ERROR)
            self.failure = _message(data_of(events, ERROR))
            events = events[:start]
        end = self._read(events)
        return events if end is None else events[:end]

    @abstractmethod
    def _prompt_used(self) -> Usage | None:
        """As long as the stream's count is not known, what its prompt used; None while nothing is to be billed."""

    @abstractmethod
    def _read(self, events: bytes) -> int | None:
        """Whole events, one or several. Where the one begins in which the engine gave up, if it did."""


def _message(data: dict[str, object]) -> str:
    error = data.get("error")
    said = error.get("message") if isinstance(error, dict) else data.get("message")
    return said if isinstance(said, str) else "the replica gave up on the request"


def data_of(events: bytes, name: bytes) -> dict[str, object]:
    """The JSON of the first event whose line is `name`, which is there. Raises UpstreamFailed."""
    start = events.index(name) + len(name)
    line = events[start : events.index(b"\n", start)]
    try:
        data = orjson.loads(line.removeprefix(b"data:"))
    except orjson.JSONDecodeError as e:
        raise UpstreamFailed("the replica sent an event that is not JSON") from e
    if not isinstance(data, dict):
        raise UpstreamFailed("the replica sent an event that is not a JSON object")
    return data


def object_of(answer: bytes) -> dict[str, object]:
    """A whole answer. Raises UpstreamFailed when it is no JSON object."""
    try:
        data = orjson.loads(answer)
    except orjson.JSONDecodeError as e:
        raise UpstreamFailed("the replica's answer is not JSON") from e
    if not isinstance(data, dict):
        raise UpstreamFailed("the replica's answer is not a JSON object")
    return data
