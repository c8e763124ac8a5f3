"""Text to tokens and back, as vLLM serves it. No model runs: nothing is billed."""

from __future__ import annotations

from gateway import calls, media
from gateway.calls import Call, Kind
from gateway.dialects import OPENAI
from gateway.errors import BadRequest
from gateway.pooling_metering import FreeMeter
from gateway.surface import Surface


def read_tokenize(body: bytes) -> Call:
    """Raises BadRequest."""
    fields = calls.parsed(body)
    if fields.get("messages") is None:
        if not isinstance(fields.get("prompt"), str):
            raise BadRequest("'prompt' must be a string; or 'messages' a list of messages", "prompt")
        return calls.reading(Kind.TOKENIZE, body, fields)
    return calls.reading(Kind.TOKENIZE, body, fields, media.links(calls.messages_of(fields)))


def read_detokenize(body: bytes) -> Call:
    """Raises BadRequest."""
    fields = calls.parsed(body)
    if not isinstance(fields.get("tokens"), list):
        raise BadRequest("'tokens' must be a list of token numbers", "tokens")
    return calls.reading(Kind.DETOKENIZE, body, fields)


SURFACES = (
    Surface(Kind.TOKENIZE, "/tokenize", read_tokenize, FreeMeter, None, OPENAI),
    Surface(Kind.DETOKENIZE, "/detokenize", read_detokenize, FreeMeter, None, OPENAI),
)
