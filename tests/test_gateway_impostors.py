"""Whoever took the port of a replica hears neither its key nor a prompt, and costs nobody an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from certificates import minted
from engine import Engine, running
from gateway_fixtures import HELLO, gateway, prepared, site_at, started


@pytest.mark.parametrize("tls", [True, False])
async def test_an_engine_is_asked_as_it_announced_it_may_be(tmp_path: Path, tls: bool) -> None:
    async with gateway(tmp_path, Engine(tls=tls)) as platform, platform.openai() as client:
        for _ in range(2):  # the second time on the same connection
            stream = await client.chat.completions.create(**HELLO, stream=True)
            assert "".join([c.choices[0].delta.content or "" async for c in stream if c.choices]) == "Gravity is round."
            whole = await client.chat.completions.create(**HELLO)
            assert whole.choices[0].message.content == "Gravity is round."
        await platform.settled(4)


@pytest.mark.parametrize("tls", [True, False], ids=["with another certificate", "in plain HTTP"])
async def test_an_impostor_hears_nothing_and_the_other_replica_answers(tmp_path: Path, tls: bool) -> None:
    replica, impostor = Engine(tls=True), Engine(tls=tls)
    platform = prepared(site_at(tmp_path))
    async with running(replica), running(impostor):
        impostor.certificate = minted(impostor.host).certificate  # what the replica that was there announced
        platform.ready(impostor, "replica-1")
        platform.ready(replica, "replica-2")
        async with started(platform), platform.openai() as client:
            for _ in range(4):
                whole = await client.chat.completions.create(**HELLO)
                assert whole.choices[0].message.content == "Gravity is round."
    assert impostor.requests == [] and len(replica.requests) == 4
    platform.registry.close()


async def test_a_replica_whose_port_was_taken_is_an_error_that_names_no_secret(tmp_path: Path) -> None:
    impostor = Engine(tls=True)
    platform = prepared(site_at(tmp_path))
    async with running(impostor):
        impostor.certificate = minted(impostor.host).certificate
        platform.ready(impostor)
        async with started(platform), platform.http() as http:
            response = await http.post("/v1/chat/completions", json=HELLO)
            text = await response.text()
            assert response.status in (502, 503) and "does not have the replica's certificate" in text
    assert impostor.requests == [] and impostor.key not in text and "BEGIN" not in text
    platform.registry.close()
