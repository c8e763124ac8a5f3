"""TLS towards replicas: the certificate that each must show."""

from __future__ import annotations

import ssl


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
