"""One request of a client, as it was parsed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import BadRequest, BodyTooLarge, GatewayError

# Headers about the body, and about the connection, which another reader of the request must not see.
OF_BODIES = frozenset({"content-encoding", "content-length", "te", "trailer", "transfer-encoding"})
OF_UPGRADES = frozenset({"expect", "http2-settings", "keep-alive", "proxy-connection", "upgrade"})
# As clients spell them: those of nearly every request.
KNOWN = {
    spelled.encode(): name
    for name in ("accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host",
                 "user-agent", "x-api-key", "x-request-id")
    for spelled in (name, name.title())
}  # fmt: skip

Headers = list[tuple[str, str]]


@dataclass(slots=True)
class Request:
    """As parsed; `wrong` says why it cannot be answered. Header names are lower-case."""

    method: str = ""
    path: str = ""
    target: bytes = b""  # path and query, as sent
    headers: dict[str, str] = field(default_factory=dict)
    keep_alive: bool = True
    chunks_allowed: bool = True  # HTTP/1.1
    body: bytes = b""
    hot: bool = False
    wrong: GatewayError | None = None
    context: Any = None  # what `admit` found out from the head: who is calling

    @property
    def expects_continue(self) -> bool:
        return self.chunks_allowed and self.headers["expect"].lower() == "100-continue"

    def head(self, without: frozenset[str], connection: str) -> bytes:
        """Written anew, in one unambiguous way, for another reader; `connection`: what becomes of that."""
        kept = [f"{n}: {v}\r\n" for n, v in self.headers.items() if n not in without and n != "connection"]
        line = b"%b %b HTTP/1.%d\r\n" % (self.method.encode(), self.target, self.chunks_allowed)
        return line + "".join([*kept, f"connection: {connection}\r\n\r\n"]).encode("latin-1")


def origin_form(target: bytes) -> bytes:
    """Path and query of an absolute URL; empty for what has none: `*`, or another host and port to connect to."""
    scheme, found, rest = target.partition(b"://")
    if not found or scheme.lower() not in (b"http", b"https"):
        return b""
    return b"/" + rest.partition(b"/")[2]


def unpacked(encoding: str, body: bytes, limit: int) -> bytes:
    """Raises BadRequest, or BodyTooLarge for one that grows above `limit` bytes."""
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise BadRequest(f"the body is encoded as {encoding!r}; allowed: gzip, deflate, identity")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error as e:
        raise BadRequest(f"the body cannot be read: it is not {encoding}: {e}") from None
    if len(unpacked) <= limit and (not unpacker.eof or unpacker.unused_data):
        raise BadRequest(f"the body cannot be read: it does not end where its {encoding} ends")
    if len(unpacked) > limit:
        raise BodyTooLarge(f"the body has more than {limit} bytes (the site's gateway.max_body_mb) once unpacked")
    return unpacked
