"""What an answer used, from the engine's own count; and the answer without the counts its client did not ask for.

Cached tokens are part of the prompt's, reasoning tokens of the completion's. vLLM (0.32) states the cached ones when
its answer is complete, not in running counts, and of several prompts in one request only those of one: what it does
not state is billed as not cached.

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
END = b"data: [DONE]\n\n"
STOPPING = "the replica is stopping and gave up on the request"
DEAD = "EngineCore encountered an issue"  # vLLM's words for every request it has when its core died; then it ends
EVENT_LIMIT = 16 << 20  # bytes of one event; prompt log-probabilities come in one


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt's: what the engine had in its cache
    reasoning_tokens: int = 0  # of the completion's

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


class Meter:
    """One attempt's running count. `usage` is None until the engine has said something."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._sent = False
        self._total: Usage | None = None

    @property
    def usage(self) -> Usage | None:
        return self._total

    @property
    def repeated_tokens(self) -> int:
        """Tokens that the engine's own counters have beyond `usage`: it reads a prompt once for each choice."""
        usage = self.usage if self._call.choices > 1 else None
        return usage.prompt_tokens * (self._call.choices - 1) if usage is not None else 0

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

    def whole(self, body: bytes) -> bytes:
        """Count an answer that did not stream; what the client gets. Raises UpstreamFailed when it is none."""
        if ABORT in body:
            raise UpstreamFailed(STOPPING)
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError as e:
            raise UpstreamFailed("the replica's answer is not JSON") from e
        if isinstance(answer, dict) and isinstance(answer.get("usage"), dict):
            self.count(_usage(answer["usage"]))
        return body


class StreamMeter(Meter):
    """Feed it what the engine sends; it returns whole events, less what the client did not ask for.

    `generated`: an event with output has passed. `ended`: the last one has, after which many clients hang up.
    `failure`: the engine gave up, and nothing more is returned.
    """

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.generated = False
        self.ended = False
        self.failure: str | None = None
        self._partial = b""
        # The engine counts each choice of each prompt for itself, until its last event counts them all. As bytes:
        # they are read only when somebody asks.
        self._running: dict[int, bytes] = {}
        self._one = call.choices * call.prompts == 1
        self._strip = not call.wants_running_usage

    @property
    def usage(self) -> Usage | None:
        if self._total is not None or not self._running:
            return self._total
        prompts: dict[int, Usage] = {}
        completion = reasoning = 0
        for index, raw in self._running.items():
            try:
                usage = parsed(raw)
            except UpstreamFailed as e:
                if self.failure is None:  # found only now, as nobody asked before: the stream ends with its next event
                    self.failure = str(e)
                continue
            prompts[index // self._call.choices] = usage
            completion += usage.completion_tokens
            reasoning += usage.reasoning_tokens
        prompt, cached = sum(p.prompt_tokens for p in prompts.values()), sum(p.cached_tokens for p in prompts.values())
        return Usage(prompt, completion, cached, reasoning)

    def feed(self, data: bytes) -> bytes:
        """Raises UpstreamFailed when an event does not end, or when its count cannot be read."""
        data = self._whole_events(data)
        if data.endswith(END):
            self.ended = True
        if self.generated and USAGE not in data and ABORT not in data and ERROR not in data:
            return data
        return b"".join([self._event(event) for event in data.split(b"\n\n")[:-1]])

    def _whole_events(self, data: bytes) -> bytes:
        """Those that are complete by now; the beginning of the next one is kept. Raises UpstreamFailed."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        if data.endswith(b"\n\n"):
            return data
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            end = 0
        self._partial = data[end:]
        if len(self._partial) > EVENT_LIMIT:
            raise UpstreamFailed(f"the replica sent an event of more than {EVENT_LIMIT} bytes")
        return data[:end]

    def rest(self) -> bytes:
        """What came after the last whole event, at the end of the stream."""
        rest, self._partial = self._partial, b""
        return self._event(rest) if rest else b""

    def _event(self, event: bytes) -> bytes:
        if self.failure is not None:
            return b""
        if ABORT in event:
            self.failure = STOPPING
            return b""
        if event.startswith(ERROR):
            self.failure = _message(event)
            return b""
        if not self.generated:
            self.generated = generated(event)
        start = event.find(USAGE)
        if start < 0:
            return event + b"\n\n"
        end = closing_brace(event, start + len(USAGE)) + 1
        raw = event[start + len(USAGE) - 1 : end]
        if NO_CHOICES in event:
            self.count(parsed(raw))
            return event + b"\n\n" if self._call.wants_usage else b""
        if self._one:
            self._running[0] = raw
        else:
            found = INDEX.search(event)
            self._running[int(found[1]) if found else 0] = raw
        return event[:start] + event[end:] + b"\n\n" if self._strip else event + b"\n\n"


def generated(event: bytes) -> bool:
    """Whether an event carries output: not a comment, nor the one that only opens the assistant's turn."""
    if not event.startswith(b"data:"):
        return False
    try:
        fields = orjson.loads(event[5:])
    except orjson.JSONDecodeError:
        return True  # [DONE], or nothing we know: it is the client's
    choices = fields.get("choices") if isinstance(fields, dict) else None
    if not isinstance(choices, list):
        return True
    for choice in choices:
        said = choice.get("delta") or {}
        if choice.get("finish_reason") or choice.get("text") or any(v for k, v in said.items() if k != "role"):
            return True
    return False


def _message(event: bytes) -> str:
    try:
        return str(orjson.loads(event[5:])["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return event[5:505].decode(errors="replace")


def parsed(raw: bytes) -> Usage:
    """Raises UpstreamFailed for what is no usage object of OpenAI's."""
    try:
        return _usage(orjson.loads(raw))
    except orjson.JSONDecodeError as e:
        raise UpstreamFailed("the replica sent an event with a broken usage object") from e


def closing_brace(data: bytes, start: int) -> int:
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


def _usage(counts: object) -> Usage:
    return checked(
        number(counts, "prompt_tokens"),
        number(counts, "completion_tokens"),
        number(counts, "prompt_tokens_details", "cached_tokens"),
        number(counts, "completion_tokens_details", "reasoning_tokens"),
    )


def number(counts: object, *path: str) -> int:
    """A member of a usage object, or of an object in it; 0 where it is not stated.

    Raises UpstreamFailed for what is no count: engines are run by many.
    """
    value = counts
    for name in path:
        if value is None:
            return 0
        if not isinstance(value, dict):
            raise UpstreamFailed("the replica's usage is not an object")
        value = value.get(name)
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise UpstreamFailed("the replica's usage is not in numbers")
    return value


def checked(prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> Usage:
    """Raises UpstreamFailed where a part is more than the whole."""
    if cached > prompt or reasoning > completion:
        raise UpstreamFailed(
            f"the replica's usage does not add up: {cached} cached of {prompt} prompt tokens, "
            f"{reasoning} reasoning of {completion} completion tokens"
        )
    return Usage(prompt, completion, cached, reasoning)
