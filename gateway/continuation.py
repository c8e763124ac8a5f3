"""A broken stream goes on at another replica, which is given the prompt and the text so far to continue.

    completion   its prompt ends with the text so far, exactly
    chat         its last message is the assistant's, the text so far, and left open (vLLM's continue_final_message)

Chat templates may trim a message, and vLLM then trims the open end of the prompt, too. So white space at the end of a
chat's text is not replayed: the engine writes it again, and as much of it as the client has is left out. Where a
template leaves out more of the text (a chain of thought, say), vLLM refuses, and the stream ends with an error.

The tokens are another replica's draw, as for any request that is made again. With a temperature of 0 they are those
that the first one would have sent, as far as the text's own tokens are those that were drawn, which no text can tell of
half a character, and penalties on what was generated begin anew. The replayed prompt is not the tenant's doing: only
the answer is billed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from gateway.calls import BOUNDS, BYTES_PER_TOKEN, UNBOUNDED, Call, Kind
from gateway.metering import END, NO_CHOICES, StreamMeter, Usage, generated

COMMENT = b": continued on another replica\n\n"
MARK = b',"headgate":{"continued":true}}'  # ends the first chunk of the other replica's
CHOICES = b'"choices":'  # what stands before it is the stream's: its id, its time, its model
DONE = b"data: [DONE]"

# All else changes what is generated, or how, in a way that the text so far does not carry: tools, a format, several
# answers, log-probabilities, the end of a prompt that is too long.
PLAIN = frozenset({
    "model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "min_tokens",
    "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output", "chat_template_kwargs",
    "n", "best_of", "user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls",
})  # fmt: skip
PLAIN_IF_FALSE = frozenset({"echo", "logprobs", "use_beam_search", "return_token_ids", "continue_final_message"})


def may_continue(call: Call) -> bool:
    """Whether a stream of this call may go on at another replica: plain text, one answer to one prompt."""
    return (
        call.stream
        and call.kind in (Kind.CHAT, Kind.COMPLETION)
        and call.choices == call.prompts == 1
        and not call.wants_running_usage
        and (call.kind is Kind.CHAT or isinstance(call.fields["prompt"], str))
        and all(
            value is None or name in PLAIN or (value is False and name in PLAIN_IF_FALSE)
            for name, value in call.fields.items()
        )
    )


class Said:
    """What the client of one stream has been told so far, by however many replicas, and what that used."""

    def __init__(self, call: Call) -> None:
        self.call = call  # as the client made it
        self.used = Usage()  # by the attempts that are over and were billed
        self.head = b""  # of the stream's chunks, up to their choices
        self._parts: list[str] = []
        self._open = True  # nothing but text was said, and no end
        self.again = 0  # tokens that the next attempt is to generate once more
        self._finished = self._counted = False  # the last token was said, and what all of them are

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def pieces(self) -> int:
        return len(self._parts)

    def meter(self, call: Call) -> StreamMeter:
        """For the next attempt, with the call that is made there."""
        if self._parts:
            return ContinuingMeter(call, self)
        self.head = b""  # of an attempt that did not get as far as output
        return SpokenMeter(call, self)

    def over(self, used: Usage | None) -> None:
        """An attempt that was billed has ended."""
        if used is not None:
            self.used = self.used.plus(used)

    def hear(self, events: bytes) -> None:
        """Whole events, on their way to the client."""
        for event in events.split(b"\n\n"):
            if event.startswith(DONE):
                self._open = False
            elif event.startswith(b"data:"):
                self._hear(event)

    def ending(self) -> bytes | None:
        """What a stream lacks that broke off after its last token; None where it lacks more than its end."""
        if not self._finished or not self.used.completion_tokens:
            return None
        counts = b"" if self._counted or not self.call.wants_usage else self.counts(self.used) + b"\n\n"
        return counts + END

    def counts(self, used: Usage) -> bytes:
        """The event of what the answer used as a whole."""
        total = {
            "prompt_tokens": used.prompt_tokens,
            "total_tokens": used.tokens,
            "completion_tokens": used.completion_tokens,
        }
        return b'%b"choices":[],"usage":%b}' % (self.head, orjson.dumps(total))

    def continued(self) -> Call | None:
        """The call that asks for the rest; None where there is none, or no way to ask for it."""
        text, spoken = self.text, self.used.completion_tokens
        self.again = self._white_tokens(spoken)
        used = spoken - self.again
        fields = self.call.fields
        bounds = {name: fields[name] for name in BOUNDS[self.call.kind] if fields.get(name) is not None}
        if not bounds and self.call.kind is Kind.COMPLETION:
            bounds = {"max_tokens": UNBOUNDED[Kind.COMPLETION]}  # what engines allow who are told nothing
        if not text or not spoken or not self._open or any(bound <= spoken for bound in bounds.values()):
            return None  # what was not counted cannot be taken off the bound
        rest: dict[str, Any] = {name: bound - used for name, bound in bounds.items()}
        if isinstance(least := fields.get("min_tokens"), int):
            rest["min_tokens"] = max(0, least - used)
        if self.call.kind is Kind.COMPLETION:
            rest["prompt"] = fields["prompt"] + text
        elif said := text.rstrip():
            rest["messages"] = [*fields["messages"], {"role": "assistant", "content": said}]
            rest |= {"add_generation_prompt": False, "continue_final_message": True}
        return replace(
            self.call,
            prompt_tokens=self.call.prompt_tokens + len(text.encode()) // BYTES_PER_TOKEN,
            completion_tokens=max(1, self.call.completion_tokens - used),
            fields={**fields, **rest},
            rewritten=True,
        )

    def _white_tokens(self, spoken: int) -> int:
        """How many of the tokens the next engine is to generate once more: the white space at the end of a chat."""
        if self.call.kind is not Kind.CHAT:
            return 0
        text = self.text
        if text.isspace():
            return spoken
        white, tokens = len(text) - len(text.rstrip()), 0
        for part in reversed(self._parts):
            if white <= 0:
                break
            white -= len(part)
            tokens += 1
        return tokens

    def _hear(self, event: bytes) -> None:
        try:
            choices: list[dict[str, Any]] = orjson.loads(event[5:])["choices"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            self._open = False  # nothing we know
            return
        if not self.head:
            self.head = event.partition(CHOICES)[0]
        self._counted = self._counted or not choices
        choice = choices[0] if choices else {}
        self._finished = self._finished or bool(choice.get("finish_reason"))
        if text := text_of(choice):
            self._parts.append(text)
        delta = choice.get("delta") or {}
        if choice.get("finish_reason") or any(v for k, v in delta.items() if k not in ("role", "content")):
            self._open = False


class SpokenMeter(StreamMeter):
    """Remembers what it lets pass."""

    def __init__(self, call: Call, said: Said) -> None:
        super().__init__(call)
        self._said = said

    def feed(self, data: bytes) -> bytes:
        return self._passed(super().feed(data))

    def rest(self) -> bytes:
        return self._passed(super().rest())

    def _passed(self, events: bytes) -> bytes:
        self._said.hear(events)
        return events


class ContinuingMeter(SpokenMeter):
    """Of the stream that goes on: to its client it is the same one. Its prompt is counted nowhere, and nor is the white
    space that the engine writes again."""

    def __init__(self, call: Call, said: Said) -> None:
        super().__init__(call, said)
        self._marked = False
        self._repeats = said.again
        text = said.text
        self._again = text[len(text.rstrip()) :] if call.kind is Kind.CHAT else ""  # what the engine writes once more

    @property
    def usage(self) -> Usage | None:
        used = super().usage
        if used is None:
            return None
        new = max(used.completion_tokens - self._repeats, 0)
        return replace(used, prompt_tokens=0, cached_tokens=0, completion_tokens=new)

    @property
    def repeated_tokens(self) -> int:
        used = super().usage
        return used.prompt_tokens + min(used.completion_tokens, self._repeats) if used is not None else 0

    def left(self) -> None:
        """What was not counted by then costs nothing."""

    def _passed(self, events: bytes) -> bytes:
        return super()._passed(b"".join([self._rewritten(event) for event in events.split(b"\n\n")[:-1]]))

    def _rewritten(self, event: bytes) -> bytes:
        """An event as the client gets it; empty for one that it has had."""
        if not event.startswith(b"data:") or event.startswith(DONE):
            return event + b"\n\n"
        if NO_CHOICES in event:
            return self._counted() + b"\n\n"
        if not self._marked:
            event = self._unheard(event)
            if not event:
                return b""
        _, choices, rest = event.partition(CHOICES)
        if choices:
            event = self._said.head + choices + rest
        if self._marked:
            return event + b"\n\n"
        self._marked = True
        return COMMENT + event[: event.rindex(b"}")] + MARK + b"\n\n"

    def _unheard(self, event: bytes) -> bytes:
        """Less the white space that was said before; empty where nothing is left."""
        if not generated(event):
            return b""
        if not self._again:
            return event
        fields = orjson.loads(event[5:])
        choice = fields["choices"][0]
        text = text_of(choice)
        same = 0
        while same < min(len(text), len(self._again)) and text[same] == self._again[same]:
            same += 1
        self._again = self._again[same:] if same == len(text) else ""
        if same:
            choice["delta"]["content"] = text[same:]
        event = b"data: " + orjson.dumps(fields)
        return event if generated(event) else b""

    def _counted(self) -> bytes:
        """The last event: what the answer used as a whole."""
        before, here = self._said.used, self.usage or Usage()
        completion = before.completion_tokens + here.completion_tokens
        return self._said.counts(Usage(before.prompt_tokens, completion))


def text_of(choice: dict[str, Any]) -> str:
    text = choice.get("text") or (choice.get("delta") or {}).get("content")
    return text if isinstance(text, str) else ""
