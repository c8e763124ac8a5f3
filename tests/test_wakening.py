"""From zero: the first call of a sleeping deployment starts its replica, through two processes and their two files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from platform_fixtures import Platform, platform
from waiting import wait_for

ENGINE = str(Path(__file__).with_name("stand_in_engine.py"))


@pytest.fixture
def laptop() -> Iterator[Platform]:
    command = json.dumps([sys.executable, ENGINE])
    with platform(
        "laptop.toml",
        f"environments.engine.python={json.dumps(sys.executable)}",
        f"environments.engine.command={command}",
        "environments.engine.args=[]",
        "environments.engine.env={}",
    ) as made:
        yield made


def ask(laptop: Platform, key: str, **asked: object) -> HTTPResponse:
    connection = HTTPConnection("127.0.0.1", laptop.port, timeout=60)
    body = json.dumps({"model": "chat", "prompt": "hello", "max_tokens": 3, **asked})
    connection.request("POST", "/v1/completions", body, {"Authorization": f"Bearer {key}"})
    return connection.getresponse()


def test_the_first_call_wakes_a_deployment_of_no_replicas_and_is_answered(laptop: Platform, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    laptop.ok("up")
    laptop.ok("tenant", "create", "acme")
    key = laptop.ok("key", "create", "acme").strip()
    assert laptop.ok("serve", str(tmp_path), "--name", "chat", "--replicas", "0") == "deployment chat is asleep\n"
    (deployment,) = laptop.json("status")["deployments"]
    assert (deployment["deployment"]["state"], deployment["replicas"]) == ("asleep", [])

    stream = ask(laptop, key, stream=True)
    assert (stream.status, stream.getheader("Content-Type")) == (200, "text/event-stream; charset=utf-8")
    assert stream.readline() == b": waiting for deployment chat: a replica is about to be submitted\n"
    stream.close()  # whoever woke it does not wait for it

    answer = ask(laptop, key)
    assert (answer.status, json.loads(answer.read())) == (200, {"usage": {"prompt_tokens": 2, "completion_tokens": 3}})

    def ready() -> bool:
        (deployment,) = laptop.json("status")["deployments"]
        return [r["replica"]["state"] for r in deployment["replicas"]] == ["ready"]

    wait_for(ready)
