"""The certificate that one replica shows: self-signed, minted in its job, and pinned by whoever asks the replica."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# It is worth no more than its private key, which goes with the job: the dates only have to be wide enough for clocks
# that differ, and for a job whose time limit somebody raises.
EARLIER, LATER = timedelta(days=1), timedelta(days=3650)
MAX_CHARACTERS = 16384  # of a certificate that a job announces; ours have about 800


@dataclass(frozen=True, slots=True)
class Minted:
    certificate: str  # PEM, for everybody
    key: str  # PEM, for the engine alone


def mint(host: str, now: datetime) -> Minted:
    """A new key (EC P-256), and its certificate for `host`, a name or an IP address."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "headgate replica")])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,  # nor may it vouch for another one
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + LATER)
        .add_extension(x509.SubjectAlternativeName([_name(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificate = made.public_bytes(serialization.Encoding.PEM)
    return Minted(certificate.decode("ascii"), private.decode("ascii"))


def checked(announced: object) -> str:
    """What a job announced, if it is one certificate in PEM that vouches for itself only.

    Raises ValueError, whose message says what is wrong.
    """
    if not isinstance(announced, str) or len(announced) > MAX_CHARACTERS:
        raise ValueError(f"the certificate is no text of at most {MAX_CHARACTERS} characters")
    if announced.count("-----BEGIN ") != 1:
        raise ValueError("the certificate is not one certificate in PEM")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        pem = ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(announced.strip()))
        trusting.load_verify_locations(cadata=pem)  # as the gateway will
    except (ssl.SSLError, ValueError) as e:
        raise ValueError(f"the certificate cannot be read: {e}") from e
    if trusting.cert_store_stats()["x509_ca"]:
        raise ValueError("the certificate is an authority's: others could be made in its name")
    return pem


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
