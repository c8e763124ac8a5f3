"""A replica's certificate is good for its own host only, and what a job announces is believed only if it is one."""

from __future__ import annotations

import base64
import ipaddress
import random
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from certificates import issued, minted, private_key
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.pins import pinned
from launchers.vllm.certificate import MAX_CHARACTERS, checked, mint

NOW = datetime(2026, 5, 1, tzinfo=UTC)
GOOD = minted()


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("gpu07.cluster", x509.DNSName("gpu07.cluster")),
        ("gpu_7", x509.DNSName("gpu_7")),
        ("10.1.2.3", x509.IPAddress(ipaddress.ip_address("10.1.2.3"))),
        ("fd00::7", x509.IPAddress(ipaddress.ip_address("fd00::7"))),
    ],
)
def test_it_names_the_host_that_is_announced_and_vouches_for_nothing_else(host: str, name: x509.GeneralName) -> None:
    made = mint(host, NOW)
    certificate = x509.load_pem_x509_certificate(made.certificate.encode())
    extensions = certificate.extensions
    assert list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == [name]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    key = private_key(made)
    assert isinstance(key.curve, ec.SECP256R1) and key.public_key() == certificate.public_key()
    certificate.verify_directly_issued_by(certificate)


def test_it_is_valid_for_a_clock_that_is_behind_and_for_a_job_of_any_length() -> None:
    certificate = x509.load_pem_x509_certificate(mint("g1", NOW).certificate.encode())
    assert certificate.not_valid_before_utc <= NOW - timedelta(hours=12)
    assert certificate.not_valid_after_utc >= NOW + timedelta(days=365)


def test_no_two_replicas_share_a_key_or_a_certificate() -> None:
    made = [mint("g1", NOW) for _ in range(3)]
    assert len({m.key for m in made}) == len({m.certificate for m in made}) == 3


def test_what_a_job_announces_is_kept_as_the_certificate_alone() -> None:
    assert checked(GOOD.certificate) == GOOD.certificate
    assert checked(f"\n{GOOD.certificate}\n") == GOOD.certificate


@pytest.mark.parametrize(
    ("announced", "why"),
    [
        (None, "no text"),
        (7, "no text"),
        ({"pem": GOOD.certificate}, "no text"),
        (GOOD.certificate + " " * MAX_CHARACTERS, "no text of at most"),
        ("", "not one certificate"),
        ("/etc/ssl/certs/ca.pem", "not one certificate"),
        (GOOD.certificate * 2, "not one certificate"),
        (GOOD.certificate + GOOD.key, "not one certificate"),
        (GOOD.key, "cannot be read"),
        (f"/etc/passwd\n{GOOD.certificate}", "cannot be read"),
        (GOOD.certificate.replace("M", "", 1), "cannot be read"),
        (GOOD.certificate.replace("-----END", "\udc80-----END"), "cannot be read"),
        (issued(GOOD, own=True, ca=True).certificate, "an authority's"),
    ],
)
def test_what_is_not_one_certificate_is_refused(announced: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        checked(announced)


def test_a_damaged_certificate_is_refused_or_still_one_that_the_gateway_can_pin() -> None:
    der = ssl.PEM_cert_to_DER_cert(GOOD.certificate)
    randomly = random.Random(7)
    refused = 0
    for _ in range(500):
        damaged = bytearray(der)
        damaged[randomly.randrange(len(der))] = randomly.randrange(256)
        text = base64.encodebytes(bytes(damaged)).decode()
        try:
            kept = checked(f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n")
        except ValueError:
            refused += 1
        else:
            pinned(kept)
    assert refused > 50
