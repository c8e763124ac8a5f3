"""Certificates for tests, and servers that show them."""

from __future__ import annotations

import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from launchers.vllm.certificate import Minted, mint


def minted(host: str = "127.0.0.1", now: datetime | None = None) -> Minted:
    return mint(host, now or datetime.now(UTC))


def private_key(of: Minted) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(of.key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def issued(issuer: Minted, *, ca: bool = False, own: bool = False) -> Minted:
    """A certificate of the issuer's subject, signed with its key: for another key, or for its own."""
    signer = private_key(issuer)
    key = signer if own else ec.generate_private_key(ec.SECP256R1())
    name = x509.load_pem_x509_certificate(issuer.certificate.encode()).subject
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Minted(made.public_bytes(serialization.Encoding.PEM).decode(), private.decode())


def serving(shown: Minted) -> ssl.SSLContext:
    """A server's TLS that shows this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(shown.key + shown.certificate)
        file.flush()
        context.load_cert_chain(Path(file.name))
    return context
