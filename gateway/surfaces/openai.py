"""OpenAI's chat completions and completions."""

from __future__ import annotations

from gateway import calls
from gateway.calls import Call, Kind
from gateway.dialects import OPENAI
from gateway.metering import Meter, StreamMeter
from gateway.surface import Surface


def read_chat(body: bytes) -> Call:
    """Raises BadRequest."""
    return calls.read(Kind.CHAT, body)


def read_completion(body: bytes) -> Call:
    """Raises BadRequest."""
    return calls.read(Kind.COMPLETION, body)


SURFACES = (
    Surface(Kind.CHAT, "/v1/chat/completions", read_chat, Meter, StreamMeter, OPENAI),
    Surface(Kind.COMPLETION, "/v1/completions", read_completion, Meter, StreamMeter, OPENAI),
)
