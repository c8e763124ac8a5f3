"""Where an engine answers, and how its own supervisor asks it. Standard library only."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass

MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Endpoint:
    host: str  # where others reach it
    port: int
    key: str
    certificate: str | None = None  # PEM: the only one it may show; None: it speaks plain HTTP
    near: str | None = None  # where its own supervisor reaches it, without a name service; None: as others do


def call(endpoint: Endpoint, method: str, path: str, body: object, timeout_s: float) -> tuple[int, bytes]:
    """(status, body) of an answer; status 0 where there was none. `body` is sent as JSON; None: nothing is."""
    connection = _connection(endpoint, timeout_s)
    headers = {"Authorization": f"Bearer {endpoint.key}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException):
        return 0, b""  # not listening yet, or gone: the supervisor sees which
    finally:
        connection.close()


def _connection(endpoint: Endpoint, timeout_s: float) -> http.client.HTTPConnection:
    host = endpoint.near or endpoint.host
    if endpoint.certificate is None:
        return http.client.HTTPConnection(host, endpoint.port, timeout=timeout_s)
    only_its_own = ssl.create_default_context(cadata=endpoint.certificate)
    only_its_own.check_hostname = False  # the certificate is known as a whole, which says more than a name in it
    return http.client.HTTPSConnection(host, endpoint.port, timeout=timeout_s, context=only_its_own)
