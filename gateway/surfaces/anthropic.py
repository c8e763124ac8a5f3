"""Anthropic's Messages, as vLLM serves them."""

from __future__ import annotations

from gateway import calls, media
from gateway.anthropic_metering import MessageMeter, MessageStreamMeter
from gateway.calls import Call, Kind
from gateway.dialects import ANTHROPIC
from gateway.pooling_metering import FreeMeter
from gateway.surface import Surface


def read(body: bytes) -> Call:
    """Raises BadRequest."""
    fields = calls.parsed(body)
    return calls.generating(Kind.MESSAGE, body, fields, _links(fields))


def read_count(body: bytes) -> Call:
    """Raises BadRequest."""
    fields = calls.parsed(body)
    return calls.reading(Kind.COUNT_TOKENS, body, fields, _links(fields))


def _links(fields: dict[str, object]) -> tuple[str, ...]:
    return media.links(calls.messages_of(fields)) + media.links(fields.get("system"))


SURFACES = (
    Surface(Kind.MESSAGE, "/v1/messages", read, MessageMeter, MessageStreamMeter, ANTHROPIC),
    Surface(Kind.COUNT_TOKENS, "/v1/messages/count_tokens", read_count, FreeMeter, None, ANTHROPIC),
)
