"""The gateway's own certificate: served to clients, or refused at the start with the file's name."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from certificates import minted
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from engine import Engine, running, served
from gateway_fixtures import HELLO, gateway_process, prepared, site_at

from registry.server_tls import server_context
from registry.site import Tls

OURS = minted()


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    made = Tls(certificate=tmp_path / "chain.pem", key=tmp_path / "key.pem")
    made.certificate.write_text(OURS.certificate + minted().certificate)
    made.key.touch(0o600)
    made.key.write_text(OURS.key)
    return made


async def test_clients_are_shown_the_sites_certificate(tls: Tls) -> None:
    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    client = ssl.create_default_context(cadata=OURS.certificate)
    client.set_alpn_protocols(["h2", "http/1.1"])
    async with served(app, tls=server_context(tls, "gateway.tls")) as port, aiohttp.ClientSession() as session:
        async with session.get(f"https://127.0.0.1:{port}/", ssl=client) as response:
            assert await response.text() == "hello"
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        chosen = writer.get_extra_info("ssl_object")
        assert (chosen.selected_alpn_protocol(), chosen.version()) == ("http/1.1", "TLSv1.3")
        writer.close()
        with warnings.catch_warnings(action="ignore"):  # naming it is deprecated
            client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=client)


async def test_a_gateway_with_a_certificate_speaks_tls_and_nothing_else_to_its_clients(
    tls: Tls, tmp_path: Path
) -> None:
    platform = prepared(site_at(tmp_path))
    engine = Engine(tls=True)
    settings = f'[gateway.tls]\ncertificate = "{tls.certificate}"\nkey = "{tls.key}"\n'
    async with running(engine), gateway_process(platform, settings) as process:
        assert platform.url.startswith("https://"), platform.said
        platform.ready(engine)
        async with platform.http() as http:
            trusting = ssl.create_default_context(cadata=OURS.certificate)
            for stream in (False, True):
                body = HELLO | {"stream": stream}
                async with http.post("/v1/chat/completions", json=body, ssl=trusting) as response:
                    assert response.status == 200 and "round." in await response.text()
            async with http.get("/health", ssl=trusting) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await http.get("/health")
            with pytest.raises(aiohttp.ClientError):
                await http.get(platform.url.replace("https", "http") + "/health")
        process.terminate()
        assert await process.wait() == 0
    platform.registry.close()


async def test_a_gateway_whose_certificate_cannot_be_loaded_does_not_start(tls: Tls, tmp_path: Path) -> None:
    platform = prepared(site_at(tmp_path))
    tls.key.write_text(minted().key)
    settings = f'[gateway.tls]\ncertificate = "{tls.certificate}"\nkey = "{tls.key}"\n'
    async with gateway_process(platform, settings) as process:
        assert await process.wait() == 1
    assert "key.pem is not the key of the first certificate" in platform.said[-1]
    platform.registry.close()


def locked(tls: Tls) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    tls.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda tls: tls.key.unlink(), r"gateway.tls.key: .*key\.pem: No such file"),
        (lambda tls: tls.certificate.unlink(), r"gateway.tls.certificate: .*chain\.pem: No such file"),
        (lambda tls: tls.certificate.write_text("no"), r"chain\.pem holds no certificate in PEM"),
        (lambda tls: tls.key.write_text("no"), r"key\.pem holds no private key in PEM"),
        (lambda tls: tls.key.write_text(OURS.certificate), r"key\.pem holds no private key in PEM"),
        (lambda tls: tls.key.write_text(minted().key), r"key\.pem is not the key of the first certificate in .*chain"),
        (locked, r"key\.pem is locked with a passphrase"),
        (lambda tls: tls.key.chmod(0o644), r"key\.pem is readable by everybody on this host"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_files_name(
    tls: Tls, spoil: Callable[[Tls], object], why: str
) -> None:
    spoil(tls)
    with pytest.raises(ValueError, match=why):
        server_context(tls, "gateway.tls")
