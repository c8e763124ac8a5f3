"""Speaks to the control API over its Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.parse
from pathlib import Path
from typing import Any

import click


class Unreachable(click.ClickException):
    """Nothing listens on the control socket."""


class Refused(click.ClickException):
    """The control API said no; the message is what it said."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Control:
    def __init__(self, path: Path, timeout_s: float = 60.0) -> None:
        self.path, self.timeout_s = path, timeout_s

    def get(self, path: str, **query: str | None) -> Any:
        """Parameters that are None are left out."""
        asked = urllib.parse.urlencode({k: v for k, v in query.items() if v is not None})
        return self._call("GET", urllib.parse.quote(path) + (f"?{asked}" if asked else ""), None)

    def find(self, path: str) -> Any | None:
        """The same; None where no controller answers, or it knows of no such thing."""
        try:
            return self.get(path)
        except Unreachable:
            return None
        except Refused as e:
            if e.status != 404:
                raise
            return None

    def post(self, path: str, **body: Any) -> Any:
        return self._call("POST", urllib.parse.quote(path), {k: v for k, v in body.items() if v is not None})

    def poke(self) -> bool:
        """Tell the controller to look now. False when there is none: it will look when it is back."""
        try:
            self.post("/v1/poke")
        except Unreachable:
            return False
        return True

    def _call(self, method: str, target: str, body: object) -> Any:
        connection = _Connection(self.path, self.timeout_s)
        try:
            connection.request(method, target, None if body is None else json.dumps(body))
            response = connection.getresponse()
            raw = response.read()
        except (FileNotFoundError, ConnectionRefusedError) as e:
            raise Unreachable(f"no controller listens on {self.path}; `headgate up` starts one") from e
        except (OSError, http.client.HTTPException) as e:
            raise Unreachable(f"the controller at {self.path} does not answer: {e or type(e).__name__}") from e
        finally:
            connection.close()
        try:
            data = json.loads(raw)
        except ValueError:
            data = {"error": {"message": raw.decode(errors="replace")[:500]}}
        if response.status >= 400:
            raise Refused(str(data["error"]["message"]), response.status)
        return data
