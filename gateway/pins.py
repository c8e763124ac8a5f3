"""TLS on both sides: the certificate that each replica must show, and the one that the site shows its clients."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

from registry.site import Tls


def pinned(certificate_pem: str) -> ssl.SSLContext:
    """A client's TLS that accepts whoever holds the key of this one certificate, under any name; TLS 1.2 or later.

    Making one costs about a millisecond: keep it with the replica. Raises ValueError for what is not one certificate
    that vouches for itself only.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody yet, and asks for a certificate
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # the certificate is known as a whole, which says more than a name in it
    try:
        context.load_verify_locations(cadata=certificate_pem)
    except (ssl.SSLError, TypeError, ValueError) as e:
        raise ValueError(f"the replica's certificate cannot be read: {e}") from e
    trusted = context.cert_store_stats()
    if (trusted["x509"], trusted["x509_ca"]) != (1, 0):
        raise ValueError("the replica's certificate is not one certificate, or one that vouches for others")
    return context


def server_context(tls: Tls) -> ssl.SSLContext:
    """The gateway's side of TLS 1.2 or later, HTTP/1.1 only. Raises ValueError, naming the setting and the file."""
    for setting, path in (("certificate", tls.certificate), ("key", tls.key)):
        try:
            path.read_bytes()  # ssl itself would not say which of the two it could not read
        except OSError as e:
            raise ValueError(f"gateway.tls.{setting}: {path}: {e.strerror}") from e
    if tls.key.stat().st_mode & stat.S_IROTH:
        raise ValueError(f"gateway.tls.key: {tls.key} is readable by everybody on this host: chmod o-r it")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(tls.certificate)
    except ssl.SSLError as e:
        raise ValueError(f"gateway.tls.certificate: {tls.certificate} holds no certificate in PEM") from e
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def locked() -> str:  # instead of asking a terminal
        raise ValueError(f"gateway.tls.key: {tls.key} is locked with a passphrase, which nobody is there to type")

    try:
        context.load_cert_chain(tls.certificate, tls.key, locked)
    except ssl.SSLError as e:
        raise ValueError(_why(tls.certificate, tls.key, e)) from e
    return context


def _why(certificate: Path, key: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"gateway.tls.key: {key} is not the key of the first certificate in {certificate}"
    return f"gateway.tls.key: {key} holds no private key in PEM: {error.reason or error}"
