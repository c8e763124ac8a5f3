"""Embeddings, rankings and scores: what models answer that generate nothing."""

from __future__ import annotations

import reprlib
from typing import Any

from gateway import calls, media
from gateway.calls import PROMPTS, Call, Kind
from gateway.dialects import OPENAI
from gateway.errors import BadRequest
from gateway.pooling_metering import PoolingMeter
from gateway.surface import Surface

FORMATS = ("float", "base64")  # as bytes (vLLM's own) an answer does not say in itself what it used


def read_embedding(body: bytes) -> Call:
    """Raises BadRequest."""
    fields = calls.parsed(body)
    asked = fields.get("encoding_format")
    if asked is not None and asked not in FORMATS:
        raise BadRequest(
            f"'encoding_format' is {reprlib.repr(asked)}; allowed: {', '.join(FORMATS)}", "encoding_format"
        )
    if not fields.get("input") and not fields.get("messages"):
        raise BadRequest("'input' must be a string, or a list of strings or of tokens", "input")
    return calls.reading(Kind.EMBEDDING, body, fields, _links(Kind.EMBEDDING, fields))


def read_rerank(body: bytes) -> Call:
    """Raises BadRequest."""
    fields = calls.parsed(body)
    documents = fields.get("documents")
    if not fields.get("query") or not documents:
        raise BadRequest("'query' and 'documents' are needed, both not empty", "documents")
    pairs = len(documents) if isinstance(documents, list) else 1
    query = fields["query"]
    repeated = (pairs - 1) * len(query) if isinstance(query, str) else 0
    return calls.reading(Kind.RERANK, body, fields, _links(Kind.RERANK, fields), repeated)


def read_score(body: bytes) -> Call:
    """Raises BadRequest. The engine reads one query against each of several texts."""
    fields = calls.parsed(body)
    sides = [fields[name] for name in PROMPTS[Kind.SCORE] if name in fields]
    single = max((len(side) for side in sides if isinstance(side, str)), default=0)
    pairs = max((len(side) for side in sides if isinstance(side, list)), default=1)
    return calls.reading(Kind.SCORE, body, fields, _links(Kind.SCORE, fields), (pairs - 1) * single)


def _links(kind: Kind, fields: dict[str, Any]) -> tuple[str, ...]:
    found: tuple[str, ...] = ()
    for name in PROMPTS[kind]:
        value = fields.get(name)
        # A list that begins with a token holds nothing else.
        if value is not None and not (isinstance(value, list) and value and isinstance(value[0], int)):
            found += media.links(value)
    return found


SURFACES = (
    Surface(Kind.EMBEDDING, "/v1/embeddings", read_embedding, PoolingMeter, None, OPENAI),
    *(
        Surface(Kind.RERANK, path, read_rerank, PoolingMeter, None, OPENAI)
        for path in ("/v1/rerank", "/rerank", "/v2/rerank")
    ),
    *(Surface(Kind.SCORE, path, read_score, PoolingMeter, None, OPENAI) for path in ("/v1/score", "/score")),
)
