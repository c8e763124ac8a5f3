"""TLS as a service of ours ends it, with the site's own certificate."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

from registry.settings import Tls


def server_context(tls: Tls, section: str) -> ssl.SSLContext:
    """A server's side of TLS 1.2 or later, HTTP/1.1 only. ValueError names `section`'s setting and the file."""
    for setting, path in (("certificate", tls.certificate), ("key", tls.key)):
        try:
            path.read_bytes()  # ssl itself would not say which of the two it could not read
        except OSError as e:
            raise ValueError(f"{section}.{setting}: {path}: {e.strerror}") from e
    if tls.key.stat().st_mode & stat.S_IROTH:
        raise ValueError(f"{section}.key: {tls.key} is readable by everybody on this host: chmod o-r it")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(tls.certificate)
    except ssl.SSLError as e:
        raise ValueError(f"{section}.certificate: {tls.certificate} holds no certificate in PEM") from e
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def locked() -> str:  # instead of asking a terminal
        raise ValueError(f"{section}.key: {tls.key} is locked with a passphrase, which nobody is there to type")

    try:
        context.load_cert_chain(tls.certificate, tls.key, locked)
    except ssl.SSLError as e:
        raise ValueError(_why(section, tls.certificate, tls.key, e)) from e
    return context


def _why(section: str, certificate: Path, key: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{section}.key: {key} is not the key of the first certificate in {certificate}"
    return f"{section}.key: {key} holds no private key in PEM: {error.reason or error}"
