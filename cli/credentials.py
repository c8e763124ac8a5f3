"""Where `headgate login` keeps what it got, and what commands on other hosts speak to the control API with."""

from __future__ import annotations

import dataclasses
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Credentials:
    url: str | None  # of the control API; None: of the Unix socket on this host
    key: str
    tenant: str | None = None
    expires: str | None = None  # as registry.clock writes it
    cacert: str | None = None  # PEM file of a private authority that vouches for the URL


def path_of(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "headgate" / "credentials.json"


def load(environ: Mapping[str, str]) -> Credentials | None:
    """HEADGATE_URL and HEADGATE_KEY, else what was stored; None without either."""
    url, key = environ.get("HEADGATE_URL"), environ.get("HEADGATE_KEY")
    if url and key:
        return Credentials(checked_url(url), key)
    path = path_of(environ)
    try:
        return Credentials(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as e:
        raise click.ClickException(f"{path}: {e}; delete it, or `headgate login` again") from e


def stored(environ: Mapping[str, str]) -> Credentials | None:
    """What was stored; None where it is nothing, or cannot be read."""
    try:
        return Credentials(**json.loads(path_of(environ).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def store(credentials: Credentials, environ: Mapping[str, str]) -> Path:
    """Readable by its owner alone, and whole or as it was."""
    path = path_of(environ)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        hidden = path.with_name(f".{path.name}.{os.getpid()}")
        with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(credentials), file, indent=2)
        hidden.replace(path)
    except OSError as e:
        raise click.ClickException(f"{path}: {e.strerror or e}") from e
    return path


def checked_url(url: str) -> str:
    """https://HOST[:PORT], without an end; plain HTTP only to this machine, since a key would cross the network."""
    parts = urlsplit(url)
    try:
        usable = bool(parts.hostname) and parts.path in ("", "/") and not parts.query and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("http", "https"):
        raise click.ClickException(f"{url!r} is no URL of a control API; allowed: https://HOST[:PORT]")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise click.ClickException(f"{url}: a key would cross the network in the clear; use https://")
    return f"{parts.scheme}://{parts.netloc}"


def trusting(cacert: str | None) -> ssl.SSLContext:
    """Certificates are verified: by this file, else by SSL_CERT_FILE or the system's authorities."""
    try:
        return ssl.create_default_context(cafile=cacert)
    except (OSError, ssl.SSLError) as e:
        raise click.ClickException(f"--cacert {cacert}: {e.strerror or e}") from e
