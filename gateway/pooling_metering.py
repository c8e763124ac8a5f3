"""What an answer without generated text used: its prompt, or nothing.

Such answers can be megabytes of numbers, so that only the count is parsed. The bytes `"usage":{` cannot occur inside
a JSON string, because quotes are escaped there, and nothing before the count has members of a client's naming: an
embedding's and a score's count is the last of its members, a ranking's stands before the documents.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.calls import Kind
from gateway.errors import UpstreamFailed
from gateway.metering import Meter, Usage, closing_brace, parsed

USAGE = b'"usage":{'


class PoolingMeter(Meter):
    def whole(self, body: bytes) -> bytes:
        """Raises UpstreamFailed when it is no JSON object, or when its count cannot be read."""
        _require_object(body)
        start = body.find(USAGE) if self._call.kind is Kind.RERANK else body.rfind(USAGE)
        if start >= 0:
            members = start + len(USAGE)
            usage = parsed(body[members - 1 : closing_brace(body, members) + 1])
            self.count(replace(usage, completion_tokens=0, reasoning_tokens=0))
        return body


class FreeMeter(Meter):
    """For what no model runs."""

    def whole(self, body: bytes) -> bytes:
        """Raises UpstreamFailed when it is no JSON object."""
        _require_object(body)
        self.count(Usage(0, 0))
        return body


def _require_object(body: bytes) -> None:
    if not body.startswith(b"{") or not body.endswith(b"}"):
        raise UpstreamFailed("the replica's answer is not a JSON object")
