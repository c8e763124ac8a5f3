"""How an answer begins."""

from __future__ import annotations

from http import HTTPStatus


class _StatusLines(dict[int, bytes]):
    """An engine, or the proxy before it, may answer with a status that nobody registered."""

    def __missing__(self, status: int) -> bytes:
        return f"HTTP/1.1 {status} \r\n".encode()


STATUS_LINES = _StatusLines(
    {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
)
