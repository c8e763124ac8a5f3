"""Speaks to the control API: over its Unix socket on the service host, elsewhere over HTTPS with a key."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import urllib.parse
from pathlib import Path
from typing import Any

import click

from cli import credentials
from cli.credentials import Credentials

POKE_S = 5.0  # nobody waits longer for the controller to hear what it would find out anyway


class Unreachable(click.ClickException):
    """Nothing listens there."""


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
    """Over the Unix socket at `path` where there is one; else, unless it must be `here`, with what login stored.

    `remote`: with these credentials, whatever there is on this host.
    """

    def __init__(
        self, path: Path, timeout_s: float = 60.0, *, here: bool = False, remote: Credentials | None = None
    ) -> None:
        self.path, self.timeout_s, self.here, self.remote = path, timeout_s, here, remote

    def get(self, path: str, *names: str, **query: str | None) -> Any:
        """`names` fill the gaps ({}) of the path, whatever is in them. Parameters that are None are left out."""
        asked = urllib.parse.urlencode({k: v for k, v in query.items() if v is not None})
        return self._call("GET", _filled(path, names) + (f"?{asked}" if asked else ""), None)

    def find(self, path: str, *names: str) -> Any | None:
        """The same; None where no controller answers, or it knows of no such thing."""
        try:
            return self.get(path, *names)
        except Unreachable:
            return None
        except Refused as e:
            if e.status != 404:
                raise
            return None

    def post(self, path: str, *names: str, **body: Any) -> Any:
        return self._call("POST", _filled(path, names), {k: v for k, v in body.items() if v is not None})

    def poke(self) -> bool:
        """Tell the controller to look now. False when none listens to us: it will look by itself."""
        self.timeout_s = min(self.timeout_s, POKE_S)
        try:
            self.post("/v1/poke")
        except click.ClickException:  # what was submitted is submitted, whether or not our key is still good
            return False
        return True

    def _call(self, method: str, target: str, body: object) -> Any:
        connection, where, headers = self._connection()
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            raw = response.read()
        except (FileNotFoundError, ConnectionRefusedError) as e:
            elsewhere = "" if headers else " (on another host: `headgate login --url https://HOST:PORT`)"
            raise Unreachable(f"no controller listens on {where}; `headgate up` starts one{elsewhere}") from e
        except ssl.SSLCertVerificationError as e:
            raise Unreachable(f"{where}: its certificate is not trusted: {e.verify_message} (--cacert FILE)") from e
        except (OSError, http.client.HTTPException) as e:
            raise Unreachable(f"the controller at {where} does not answer: {e or type(e).__name__}") from e
        finally:
            connection.close()
        try:
            data = json.loads(raw)
        except ValueError:
            data = {"error": {"message": raw.decode(errors="replace")[:500]}}
        if response.status >= 400:
            raise Refused(str(data["error"]["message"]), response.status)
        return data

    def _connection(self) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """One that is not yet open, where it goes in words, and the headers it needs."""
        remote = self.remote
        if remote is None and not self.here and not self.path.exists():
            remote = credentials.load(os.environ)
        if remote is None or remote.url is None:
            return _Connection(self.path, self.timeout_s), str(self.path), {}
        url = urllib.parse.urlsplit(remote.url)
        headers = {"Authorization": f"Bearer {remote.key}"}
        host = url.hostname or ""
        if url.scheme == "http":
            return http.client.HTTPConnection(host, url.port, timeout=self.timeout_s), remote.url, headers
        trusted = credentials.trusting(remote.cacert)
        secure = http.client.HTTPSConnection(host, url.port, timeout=self.timeout_s, context=trusted)
        return secure, remote.url, headers


def _filled(path: str, names: tuple[str, ...]) -> str:
    return path.format(*(urllib.parse.quote(name, safe="") for name in names))
