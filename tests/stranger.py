"""What another user of a node can get from an engine at work on it: its routes, its files, its command lines."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from certificates import minted

from launchers import announce
from launchers.run_folder import RunFolder

NOBODY = 65534
BESIDES = ("/", "/docs", "/redoc", "/openapi.json", "/metrics", "/metrics/", "/v1", "/nowhere", "//health", "/%68ealth")


@dataclass(frozen=True)
class Closed:
    """A ready replica, with what its run folder says to those who may read it."""

    folder: RunFolder
    host: str
    port: int
    attempt: str
    certificate: str
    key: str

    @property
    def secrets(self) -> list[str]:
        """The replica's key, and a line of its certificate's private key."""
        return [self.key, self.folder.tls_key(self.attempt).read_text().splitlines()[1]]

    def connect(self, pin: str | None = None) -> http.client.HTTPSConnection:
        pinned = ssl.create_default_context(cadata=pin or self.certificate)
        return http.client.HTTPSConnection(self.host, self.port, context=pinned, timeout=30)

    def ask(self, connection: http.client.HTTPSConnection, method: str, path: str, **headers: str) -> tuple[int, bytes]:
        body = b"{}" if method in ("POST", "PUT", "PATCH") else None
        connection.request(method, path, body, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()


def closed(folder: RunFolder) -> Closed:
    said = [announce.read(folder.announcements / n, os.getuid()) for n in announce.names(folder.announcements)]
    facts = {a.kind: a.facts for a in said}
    ready = facts["replica-ready"]
    return Closed(
        folder,
        ready["host"],
        ready["port"],
        facts["attempt-started"]["attempt"],
        ready["certificate"],
        folder.secret.read_text(),
    )


def routes(replica: Closed) -> list[tuple[str, str]]:
    """(method, path) of all that the engine says it has, and of what it does not list."""
    connection = replica.connect()
    status, described = replica.ask(connection, "GET", "/openapi.json", authorization=f"Bearer {replica.key}")
    connection.close()
    assert status == 200, described
    listed = [(method.upper(), path) for path, does in json.loads(described)["paths"].items() for method in does]
    return listed + [(method, path) for path in BESIDES for method in ("GET", "POST", "OPTIONS")]


def answers(replica: Closed, asked: list[tuple[str, str]], **headers: str) -> Iterator[tuple[str, int, bytes]]:
    """What each route answers: ("METHOD path", status, body)."""
    connection = replica.connect()
    for method, path in asked:
        yield (f"{method} {path}", *replica.ask(connection, method, path, **headers))
    connection.close()


def upgraded(replica: Closed, path: str) -> bytes:
    """What the engine answers to a websocket's opening without the key."""
    context = ssl.create_default_context(cadata=replica.certificate)
    with (
        socket.create_connection((replica.host, replica.port), 30) as plain,
        context.wrap_socket(plain, server_hostname=replica.host) as tls,
    ):
        tls.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {replica.host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        return tls.recv(4096)


def in_the_clear(replica: Closed) -> bytes:
    """What the engine answers to plain HTTP, though it comes with the key."""
    with socket.create_connection((replica.host, replica.port), 30) as plain:
        plain.sendall(f"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {replica.key}\r\n\r\n".encode())
        try:
            return plain.recv(4096)
        except ConnectionError:
            return b""


def refuses_another_pin(replica: Closed) -> bool:
    try:
        replica.connect(minted(replica.host).certificate).connect()
    except ssl.SSLCertVerificationError:
        return True
    return False


def command_lines() -> list[str]:
    """What `ps` shows to everybody."""
    lines = []
    for process in psutil.process_iter():
        try:
            lines.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue  # it has ended
    return lines


def holders(root: Path, secrets: list[str]) -> dict[Path, int]:
    """The files below `root` that hold a secret, and who else may do what with them (a mode)."""
    wanted = [secret.encode() for secret in secrets]
    found = {}
    for place, _, names in os.walk(root):
        for path in (Path(place, name) for name in names):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and any(secret in path.read_bytes() for secret in wanted):
                found[path] = stat.S_IMODE(status.st_mode) & 0o077
    return found


def found_by(uid: int, gid: int, root: Path, secrets: list[str]) -> tuple[str, str]:
    """What `grep` finds below `root` as another user, and a file that it can read there. Needs to be root."""
    grep = ["grep", "-rlsF", "-f", "-", str(root)]
    as_other: dict[str, int | list[int]] = {"user": uid, "group": gid, "extra_groups": []}
    done = [
        subprocess.run(grep, input=text, text=True, capture_output=True, check=False, cwd="/", **as_other).stdout  # type: ignore[call-overload]
        for text in ("\n".join(secrets), "replica-ready")
    ]
    return done[0], done[1]
