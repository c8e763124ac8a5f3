"""What an answer of OpenAI's Responses API used: stated in the whole answer, and in a stream's last event.

Until then an event with output counts as one token, and the prompt as nothing: no estimate is sure to be below the
engine's own count, and what is cut off by a failure or a killed gateway must not be billed above that. Only a client
that leaves pays for its prompt, as estimated: it has made the engine read it. vLLM says nothing when it gave up on a
response (only gpt-oss models say "cancelled"), so that such an answer reads as a short one.
"""

from __future__ import annotations

from gateway import calls
from gateway.errors import UpstreamFailed
from gateway.event_metering import EventMeter, data_of, object_of
from gateway.metering import STOPPING, Meter, Usage, checked, number

DELTA = b".delta\n"  # response.output_text.delta, response.function_call_arguments.delta and others
ITEM = b"event: response.output_item.added\n"
# vLLM ends with `completed` whatever the status is; the others are OpenAI's own.
LAST = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")
GAVE_UP = ("cancelled", "failed")


class ResponseMeter(Meter):
    def whole(self, body: bytes) -> bytes:
        """Raises UpstreamFailed when it is not JSON, or when the engine gave up on it."""
        answer = object_of(body)
        if answer.get("status") in GAVE_UP:
            raise UpstreamFailed(STOPPING)
        if isinstance(answer.get("usage"), dict):
            self.count(_usage(answer["usage"]))
        return body


class ResponseStreamMeter(EventMeter):
    def left(self) -> None:
        if self._sent and self._total is None:
            self.count(Usage(calls.prompt_billed(self._call), self._deltas))

    def _prompt_used(self) -> Usage | None:
        return Usage() if self.generated else None

    def _read(self, events: bytes) -> int | None:
        deltas = events.count(DELTA)
        self._deltas += deltas
        if deltas or (not self.generated and ITEM in events):
            self.generated = True
        for name in LAST:
            if name in events:
                return self._finish(data_of(events, name).get("response"), events.index(name))
        return None

    def _finish(self, response: object, start: int) -> int | None:
        fields = response if isinstance(response, dict) else {}
        if isinstance(fields.get("usage"), dict):
            self.count(_usage(fields["usage"]))
        if fields.get("status") in GAVE_UP:
            self.failure = STOPPING
            return start
        self.ended = self.generated = True  # an answer may be empty
        return None


def _usage(counts: object) -> Usage:
    return checked(
        number(counts, "input_tokens"),
        number(counts, "output_tokens"),
        number(counts, "input_tokens_details", "cached_tokens"),
        number(counts, "output_tokens_details", "reasoning_tokens"),
    )
