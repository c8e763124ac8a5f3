"""What an answer in Anthropic's dialect used.

vLLM states the prompt's tokens in `message_start` and all of them in `message_delta`, the last event but one; in
between, an event with output counts as one token. `input_tokens` leaves out those read from a cache or written to it:
both are prompt tokens here, and only those that were read are cached ones. Tokens that are written to a cache cost what
others of a prompt do.
A `stop_reason` of null is how its Messages API says that the engine gave up (`finish_reason: "abort"`).
"""

from __future__ import annotations

from gateway.errors import UpstreamFailed
from gateway.event_metering import EventMeter, data_of, object_of
from gateway.metering import STOPPING, Meter, Usage, checked, number

START = b"event: message_start\n"
BLOCK = b"event: content_block_start\n"
DELTA = b"event: content_block_delta\n"
SIGNATURE = b'"type":"signature_delta"'  # of what was thought: no token
COUNT = b"event: message_delta\n"
STOP = b"event: message_stop\n"


class MessageMeter(Meter):
    def whole(self, body: bytes) -> bytes:
        """Raises UpstreamFailed when it is not JSON, or when the engine gave up on it."""
        answer = object_of(body)
        if answer.get("stop_reason") is None:
            raise UpstreamFailed(STOPPING)
        if isinstance(answer.get("usage"), dict):
            self.count(_usage(answer["usage"]))
        return body


class MessageStreamMeter(EventMeter):
    _prompt: Usage | None = None

    def _prompt_used(self) -> Usage | None:
        return self._prompt

    def _read(self, events: bytes) -> int | None:
        if self._prompt is None and START in events:
            message = data_of(events, START).get("message")
            self._prompt = _usage(message.get("usage") if isinstance(message, dict) else None)
        deltas = events.count(DELTA) - events.count(SIGNATURE)
        self._deltas += deltas
        if deltas or (not self.generated and BLOCK in events):
            self.generated = True
        if COUNT in events:
            data = data_of(events, COUNT)
            if isinstance(data.get("usage"), dict):
                self.count(_usage(data["usage"]))
            delta = data.get("delta")
            if not isinstance(delta, dict) or delta.get("stop_reason") is None:
                self.failure = STOPPING
                return events.index(COUNT)
            self.generated = True  # an answer may be empty
        if STOP in events:
            self.ended = True
        return None


def _usage(counts: object) -> Usage:
    read, written = number(counts, "cache_read_input_tokens"), number(counts, "cache_creation_input_tokens")
    return checked(number(counts, "input_tokens") + read + written, number(counts, "output_tokens"), read)
