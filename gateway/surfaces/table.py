"""Every POST route of the API, by path."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.surface import Surface
from gateway.surfaces import anthropic, openai, pooling, responses, tokens

SURFACES: Mapping[str, Surface] = {
    surface.path: surface
    for surface in (
        *openai.SURFACES,
        *responses.SURFACES,
        *anthropic.SURFACES,
        *pooling.SURFACES,
        *tokens.SURFACES,
    )
}
