"""What a client asks for, read from its request body; and how much that may use.

A body that needs no change is sent on byte for byte. Parameters that the gateway does not know are the engine's
business, except the RESERVED ones: those reach into other tenants' requests or into the cluster.
"""

from __future__ import annotations

import enum
import reprlib
from dataclasses import dataclass, replace
from typing import Any

import orjson

from gateway import media
from gateway.errors import BadRequest

COMPLETION_CAP = 1024  # tokens held per choice at most (see bounded), and where the client states no bound
CHOICES_LIMIT = 1024  # `n` and `best_of`; far above what engines take, so that sums stay small numbers
TOKENS_LIMIT = 2**31 - 1  # `max_tokens`: what clients write who mean "no limit" is still served
BYTES_PER_TOKEN = 3  # of the JSON body; English prose has 4 to 5, source code and small vocabularies fewer
PREFIX_BYTES = 256 << 10  # of a prompt, which is as much as routing looks at
COUNTING = b',"stream_options":{"include_usage":true,"continuous_usage_stats":true}}'

# Ours to set. `request_id` names a request to the engine, where another tenant's may have the same name.
RESERVED = frozenset({"priority", "cache_salt", "kv_transfer_params", "ec_transfer_params", "request_id"})
OBJECTS = {dict}
XARGS = "vllm_xargs"  # ends up in the same place as the transfer parameters, under the names its author chose


class Kind(enum.StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"
    RESPONSE = "response"  # OpenAI's Responses
    MESSAGE = "message"  # Anthropic's Messages
    EMBEDDING = "embedding"
    RERANK = "rerank"
    SCORE = "score"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    COUNT_TOKENS = "count_tokens"


PATHS = {  # where engines serve it
    Kind.CHAT: "/v1/chat/completions",
    Kind.COMPLETION: "/v1/completions",
    Kind.RESPONSE: "/v1/responses",
    Kind.MESSAGE: "/v1/messages",
    Kind.EMBEDDING: "/v1/embeddings",
    Kind.RERANK: "/v1/rerank",
    Kind.SCORE: "/v1/score",
    Kind.TOKENIZE: "/tokenize",
    Kind.DETOKENIZE: "/detokenize",
    Kind.COUNT_TOKENS: "/v1/messages/count_tokens",
}
FREE = frozenset({Kind.TOKENIZE, Kind.DETOKENIZE, Kind.COUNT_TOKENS})  # no model runs, so that nothing is billed
BOUNDS: dict[Kind, tuple[str, ...]] = {  # fields that bound an answer, the first counts; other kinds generate nothing
    Kind.CHAT: ("max_completion_tokens", "max_tokens"),
    Kind.COMPLETION: ("max_tokens",),
    Kind.RESPONSE: ("max_output_tokens",),
    Kind.MESSAGE: ("max_tokens",),
}
# Allowed of a budget where the client states no bound.
UNBOUNDED = {
    Kind.CHAT: COMPLETION_CAP,
    Kind.COMPLETION: 16,
    Kind.RESPONSE: COMPLETION_CAP,
    Kind.MESSAGE: COMPLETION_CAP,
}
# Fields with the prompt, in the order in which chat templates write them.
PROMPTS: dict[Kind, tuple[str, ...]] = {
    Kind.CHAT: ("tools", "messages"),
    Kind.COMPLETION: ("prompt",),
    Kind.RESPONSE: ("tools", "instructions", "input"),
    Kind.MESSAGE: ("tools", "system", "messages"),
    Kind.EMBEDDING: ("input", "messages"),
    Kind.RERANK: ("query", "documents"),
    Kind.SCORE: ("data_1", "data_2", "queries", "documents", "items", "text_1", "text_2"),
}


@dataclass(slots=True)  # not frozen, which costs 1.6 us of the 2.5 that reading a chat takes; nothing changes one
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
    links: tuple[str, ...] = ()  # URLs the engine would fetch; see media.check

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def read(kind: Kind, body: bytes) -> Call:
    """A chat's or a completion's call. Raises BadRequest.

    Only what the gateway itself needs is checked: the engine knows its own parameters.
    """
    fields = parsed(body)
    links: tuple[str, ...] = ()
    prompts = 1
    if kind is Kind.CHAT:
        links = media.links(messages_of(fields))
    else:
        prompts = _prompts(fields)
    wants_usage = running = False
    if (options := fields.get("stream_options")) is not None:
        if not isinstance(options, dict):
            raise BadRequest(f"'stream_options' is {reprlib.repr(options)}, not an object", "stream_options")
        wants_usage = options.get("include_usage") is True
        running = wants_usage and options.get("continuous_usage_stats") is True
    choices = 1
    if "n" in fields or "best_of" in fields:
        choices = max(count(fields, "n", 1, CHOICES_LIMIT) or 1, count(fields, "best_of", 1, CHOICES_LIMIT) or 1)
    # With 0 the prompt is scored: a completion of no tokens, with echo and logprobs.
    longest = count(fields, "max_completion_tokens", 1, TOKENS_LIMIT)
    older = count(fields, "max_tokens", 0, TOKENS_LIMIT)
    bound: str | None = None
    asked = COMPLETION_CAP
    if longest is not None and kind is Kind.CHAT:
        bound, asked = "max_completion_tokens", longest
    elif older is not None:
        bound, asked = "max_tokens", older
    return Call(
        kind=kind,
        model=fields["model"],
        stream=streams(fields),
        wants_usage=wants_usage,
        wants_running_usage=running,
        prompts=prompts,
        choices=choices,
        bound=bound,
        prompt_tokens=len(body) // BYTES_PER_TOKEN,
        completion_tokens=min(asked, COMPLETION_CAP) * choices * prompts,
        fields=fields,
        links=links,
    )


def generating(kind: Kind, body: bytes, fields: dict[str, Any], links: tuple[str, ...]) -> Call:
    """The call of a kind with one prompt, one answer and one bound. Raises BadRequest."""
    (name,) = BOUNDS[kind]
    asked = count(fields, name, 1, TOKENS_LIMIT)
    held = COMPLETION_CAP if asked is None else min(asked, COMPLETION_CAP)
    bound = None if asked is None else name
    prompt = len(body) // BYTES_PER_TOKEN
    model = fields["model"]
    return Call(kind, model, streams(fields), True, False, 1, 1, bound, prompt, held, fields, links=links)


def reading(kind: Kind, body: bytes, fields: dict[str, Any], links: tuple[str, ...] = (), repeated: int = 0) -> Call:
    """The call of a kind that generates nothing. `repeated` bytes of its prompt are read once more by the engine."""
    prompt = 0 if kind in FREE else (len(body) + repeated) // BYTES_PER_TOKEN
    return Call(kind, fields["model"], False, False, False, 1, 1, None, prompt, 0, fields, links=links)


def parsed(body: bytes) -> dict[str, Any]:
    """The body's fields, with a model and none that are ours to set. Raises BadRequest."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise BadRequest(f"the body is not JSON: {e}") from None
    if not isinstance(fields, dict):
        raise BadRequest(f"the body is a JSON {type(fields).__name__}, not an object")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("'model' is missing or not a string: it names the deployment to call", "model")
    if not RESERVED.isdisjoint(fields):
        _refuse_reserved(fields)
    if XARGS in fields and isinstance(xargs := fields[XARGS], dict):
        _refuse_reserved(xargs, f"{XARGS}.")
    return fields


def messages_of(fields: dict[str, Any]) -> list[Any]:
    """Raises BadRequest."""
    messages = fields.get("messages")
    if type(messages) is list and set(map(type, messages)) == OBJECTS:
        return messages
    raise BadRequest("'messages' must be a list of at least one message, each an object", "messages")


def streams(fields: dict[str, Any]) -> bool:
    """Raises BadRequest."""
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest(f"'stream' is {reprlib.repr(stream)}, not true or false", "stream")
    return bool(stream)


def count(fields: dict[str, Any], name: str, least: int, most: int) -> int | None:
    """Raises BadRequest."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        given = reprlib.repr(value)  # which does not follow what is nested deeply
        raise BadRequest(f"{name!r} is {given}, not a whole number from {least} to {most}", name)
    return value


def bounded(call: Call, context_tokens: int | None = None) -> Call:
    """The call of one whose tokens or credits are limited: its answers can use no more than is held for them.

    All that the client allows is held, without a cap; where it states no bound, the engine or provider is sent one,
    within `context_tokens`: an engine refuses a bound above the longest sequence it takes.
    Other tenants' holds only keep their credit honest, so that their calls go on as they came. What stays an estimate
    is the prompt: a budget may be overshot by as much as that was too low.
    """
    if call.kind not in BOUNDS:
        return call
    if call.bound is None:
        bound = "max_tokens" if call.kind is Kind.CHAT else BOUNDS[call.kind][0]
        each = min(UNBOUNDED[call.kind], context_tokens or UNBOUNDED[call.kind])
    else:
        bound, each = call.bound, call.fields[call.bound]
    held = each * call.choices * call.prompts
    others = {name for name in BOUNDS[call.kind] if name != bound}  # engines differ in which of two they heed
    if call.bound is not None and held == call.completion_tokens and others.isdisjoint(call.fields):
        return call
    fields = {**{name: value for name, value in call.fields.items() if name not in others}, bound: each}
    changed = fields != call.fields
    return replace(call, completion_tokens=held, fields=fields, rewritten=call.rewritten or changed)


def longest(call: Call) -> int:
    """Tokens that one answer may have: several are made side by side. 0 where none is made."""
    if call.bound is not None:
        return int(call.fields[call.bound])
    return UNBOUNDED.get(call.kind, 0)


def renamed(call: Call, model: str) -> Call:
    """The same call of another model, as its engine knows it."""
    return replace(call, model=model, fields={**call.fields, "model": model}, rewritten=True)


def written(value: Any) -> bytes:
    """As JSON. Raises BadRequest: what is read may be nested four times as deep as what can be written."""
    try:
        return orjson.dumps(value)
    except TypeError:
        raise BadRequest("the body is nested too deeply: 250 levels are allowed") from None


def upstream_body(call: Call, body: bytes) -> bytes:
    """What the engine is sent: of a chat's or a completion's stream, it is always asked to count aloud.

    Raises BadRequest.
    """
    if not call.stream or call.kind not in (Kind.CHAT, Kind.COMPLETION):
        return written(call.fields) if call.rewritten else body
    options = call.fields.get("stream_options")
    if not call.rewritten:
        if "stream_options" not in call.fields:
            return body[: body.rindex(b"}")] + COUNTING  # the object has a model at least
        if call.wants_running_usage:
            return body
    options = {**(options or {}), "include_usage": True, "continuous_usage_stats": True}
    return written({**call.fields, "stream_options": options})


def prompt_billed(call: Call) -> int:
    """Tokens of the prompt's text, about: what a client pays that left before the engine had counted.

    Never more than was held. Pictures and sound are not counted, as their bytes say nothing about their tokens.
    """
    text = sum(_text_bytes(call.fields.get(name)) for name in PROMPTS.get(call.kind, ()) if name != "tools")
    return min(call.prompt_tokens, text // BYTES_PER_TOKEN)


def prompt_bytes(call: Call) -> bytes:
    """The beginning of what the engine reads, for routing: two calls whose prompts begin alike begin alike here.

    Empty for kinds that leave nothing in a prefix cache. Raises BadRequest.
    """
    if call.kind not in BOUNDS:
        return b""
    parts = []
    for name in PROMPTS[call.kind]:
        value = call.fields.get(name)
        if value:
            parts.append(value.encode() if isinstance(value, str) else written(value))
    return b"".join(parts)[:PREFIX_BYTES]


def _text_bytes(value: Any) -> int:
    """With a stack of its own: JSON nests deeper than Python may recurse."""
    found = 0
    nodes = [value]
    while nodes:
        match nodes.pop():
            case str(text):
                found += len(text.encode())
            case int():  # a token
                found += BYTES_PER_TOKEN
            case list(parts):
                nodes.extend(parts)
            case dict(part):  # a message, or a part of one
                nodes.extend(part[name] for name in ("content", "text") if name in part)
    return found


def _prompts(fields: dict[str, Any]) -> int:
    prompt = fields.get("prompt")
    if not isinstance(prompt, str | list) or prompt == []:
        raise BadRequest("'prompt' must be a string, or a list of strings or of tokens", "prompt")
    # A list of numbers is one prompt in tokens; a list of strings or of lists is several.
    return len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1


def _refuse_reserved(fields: dict[str, Any], within: str = "") -> None:
    for name in sorted(RESERVED & fields.keys()):
        if fields[name] is not None:
            named = within + name
            raise BadRequest(f"{named!r} is set by the gateway, and cannot be sent by a client: leave it out", named)
