"""OpenAI's Responses, without those that the engine would keep: nothing here could fetch one later."""

from __future__ import annotations

from gateway import calls, media
from gateway.calls import Call, Kind
from gateway.dialects import RESPONSES
from gateway.errors import BadRequest
from gateway.responses_metering import ResponseMeter, ResponseStreamMeter
from gateway.surface import Surface


def read(body: bytes) -> Call:
    """Raises BadRequest."""
    fields = calls.parsed(body)
    said = fields.get("input")
    if not isinstance(said, str | list) or said == []:
        raise BadRequest("'input' must be a string, or a list of at least one item", "input")
    # It would run on after its answer, uncounted; and another tenant's response is nobody's context.
    if fields.get("background"):
        raise BadRequest("'background' is not served: the answer could not be fetched; leave it out", "background")
    if fields.get("previous_response_id") is not None:
        raise BadRequest(
            "'previous_response_id' is not served, as no response is kept: send the earlier items in 'input'",
            "previous_response_id",
        )
    return calls.generating(Kind.RESPONSE, body, fields, media.links(said))


SURFACES = (Surface(Kind.RESPONSE, "/v1/responses", read, ResponseMeter, ResponseStreamMeter, RESPONSES),)
