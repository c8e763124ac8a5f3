"""What a client asks for, read from its request body; and how much that may use."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any

import orjson

from gateway.errors import BadRequest

COMPLETION_CAP = 1024  # tokens held per choice at most (see bounded), and where the client states no bound
CHOICES_LIMIT = 1024  # `n` and `best_of`; far above what engines take, so that sums stay small numbers
TOKENS_LIMIT = 2**31 - 1  # `max_tokens`: what clients write who mean "no limit" is still served
BYTES_PER_TOKEN = 3  # of the JSON body; English prose has 4 to 5, source code and small vocabularies fewer


class Kind(enum.StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"


PATHS = {Kind.CHAT: "/v1/chat/completions", Kind.COMPLETION: "/v1/completions"}
BOUNDS = {Kind.CHAT: ("max_completion_tokens", "max_tokens"), Kind.COMPLETION: ("max_tokens",)}  # the first counts
UNBOUNDED = {Kind.CHAT: COMPLETION_CAP, Kind.COMPLETION: 16}  # allowed of a budget where the client states no bound
PROMPTS = {Kind.CHAT: "messages", Kind.COMPLETION: "prompt"}


@dataclass(frozen=True, slots=True)
class Call:
    kind: Kind
    model: str
    stream: bool
    wants_usage: bool  # stream_options.include_usage
    wants_running_usage: bool  # stream_options.continuous_usage_stats, which is vLLM's own
    prompts: int
    choices: int  # `n` answers to each prompt
    bound: str | None  # the field in which the client bounds an answer
    prompt_tokens: int  # estimated
    completion_tokens: int  # what is held for the answers
    fields: dict[str, Any]  # as sent by the client, unless `rewritten`
    rewritten: bool = False

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def read(kind: Kind, body: bytes) -> Call:
    """Raises BadRequest. Only what the gateway itself needs is checked: the engine knows its own parameters."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise BadRequest(f"the body is not JSON: {e}") from None
    if not isinstance(fields, dict):
        raise BadRequest(f"the body is a JSON {type(fields).__name__}, not an object")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("'model' is missing or not a string: it names the deployment to call", "model")
    prompts = _prompts(kind, fields)
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest(f"'stream' is {stream!r}, not true or false", "stream")
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequest(f"'stream_options' is {options!r}, not an object", "stream_options")
    wants_usage = options.get("include_usage") is True
    choices = max(_count(fields, name, 1, CHOICES_LIMIT) or 1 for name in ("n", "best_of"))
    # With 0 the prompt is scored: a completion of no tokens, with echo and logprobs.
    least = {"max_completion_tokens": 1, "max_tokens": 0}
    bounds = {name: _count(fields, name, least[name], TOKENS_LIMIT) for name in least}
    bound = next((name for name in BOUNDS[kind] if bounds[name] is not None), None)
    asked = COMPLETION_CAP if bound is None else fields[bound]
    return Call(
        kind=kind,
        model=model,
        stream=bool(stream),
        wants_usage=wants_usage,
        wants_running_usage=wants_usage and options.get("continuous_usage_stats") is True,
        prompts=prompts,
        choices=choices,
        bound=bound,
        prompt_tokens=len(body) // BYTES_PER_TOKEN,
        completion_tokens=min(asked, COMPLETION_CAP) * choices * prompts,
        fields=fields,
    )


def bounded(call: Call, context_tokens: int | None = None) -> Call:
    """The call of a tenant with a token budget, whose answers can use no more than is held for them.

    All that the client allows is held, without a cap; where it states no bound, the engine or provider is sent one,
    within `context_tokens`: an engine refuses a bound above the longest sequence it takes.
    Other tenants' holds only keep their credit honest, so that their calls go on as they came. What stays an estimate
    is the prompt: a budget may be overshot by as much as that was too low.
    """
    if call.bound is None:
        bound, each = "max_tokens", min(UNBOUNDED[call.kind], context_tokens or UNBOUNDED[call.kind])
    else:
        bound, each = call.bound, call.fields[call.bound]
    others = {name for name in BOUNDS[call.kind] if name != bound}  # engines differ in which of two they heed
    fields = {**{name: value for name, value in call.fields.items() if name not in others}, bound: each}
    return replace(call, completion_tokens=each * call.choices * call.prompts, fields=fields, rewritten=True)


def upstream_body(call: Call, body: bytes) -> bytes:
    """What the engine is sent: of a stream, it is always asked to count aloud."""
    if not call.stream:
        return orjson.dumps(call.fields) if call.rewritten else body
    options = {**(call.fields.get("stream_options") or {}), "include_usage": True, "continuous_usage_stats": True}
    return orjson.dumps({**call.fields, "stream_options": options})


def prompt_billed(call: Call) -> int:
    """Tokens of the prompt's text, about: what a client pays that left before the engine had counted.

    Never more than was held. Pictures and sound are not counted, as their bytes say nothing about their tokens.
    """
    return min(call.prompt_tokens, _text_bytes(call.fields[PROMPTS[call.kind]]) // BYTES_PER_TOKEN)


def _text_bytes(value: Any) -> int:
    match value:
        case str():
            return len(value.encode())
        case int():  # a token
            return BYTES_PER_TOKEN
        case list():
            return sum(map(_text_bytes, value))
        case dict():  # a message, or a part of one
            return sum(_text_bytes(value[name]) for name in ("content", "text") if name in value)
    return 0


def _prompts(kind: Kind, fields: dict[str, Any]) -> int:
    name = PROMPTS[kind]
    prompt = fields.get(name)
    if kind is Kind.CHAT:
        if not isinstance(prompt, list) or not prompt or not all(isinstance(m, dict) for m in prompt):
            raise BadRequest("'messages' must be a list of at least one message, each an object", name)
        return 1
    if not isinstance(prompt, str | list) or prompt == []:
        raise BadRequest("'prompt' must be a string, or a list of strings or of tokens", name)
    # A list of numbers is one prompt in tokens; a list of strings or of lists is several.
    return len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1


def _count(fields: dict[str, Any], name: str, least: int, most: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(f"{name!r} is {value!r}, not a whole number from {least} to {most}", name)
    return value
