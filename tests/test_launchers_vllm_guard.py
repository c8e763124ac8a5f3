"""The engine answers its gateway only: every route, http and websocket, is closed without the replica's key."""

from __future__ import annotations

from typing import Any

import pytest

from launchers.vllm.guard import KEY_VARIABLE, REFUSAL, Guard

KEY = "a-replica-key"


class Engine:
    """The application behind the guard: notes what reached it."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append(scope["type"])
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"tokens"})


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    return Engine()


async def call(engine: Engine, kind: str, *headers: tuple[bytes, bytes], path: str = "/v1/models") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing of a refused request is read")

    await Guard(engine)({"type": kind, "path": path, "headers": list(headers)}, receive, send)
    return sent


WRONG = [
    [],
    [(b"authorization", b"")],
    [(b"authorization", KEY.encode())],
    [(b"authorization", b"Bearer ")],
    [(b"authorization", b"Bearer another-key")],
    [(b"authorization", f"Bearer {KEY}x".encode())],
    [(b"authorization", f"bearer {KEY}".encode())],
    [(b"x-api-key", KEY.encode())],
    [(b"authorization", f"Bearer {KEY}".encode()), (b"authorization", b"Bearer other")],
    [(b"authorization", b"Bearer other"), (b"authorization", f"Bearer {KEY}".encode())],
    [(b"authorization", f"Bearer {KEY}".encode())] * 2,
    [(b"authorization", b"Bearer \xff\xfe")],
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/health", "/metrics", "/docs", "/tokenize", "/"])
@pytest.mark.parametrize("headers", WRONG)
async def test_no_route_answers_without_the_key(engine: Engine, path: str, headers: list[tuple[bytes, bytes]]) -> None:
    start, body = await call(engine, "http", *headers, path=path)
    assert (start["status"], body["body"]) == (401, REFUSAL)
    assert dict(start["headers"])[b"content-length"] == str(len(REFUSAL)).encode()
    assert engine.reached == []


@pytest.mark.parametrize("headers", WRONG)
async def test_a_websocket_without_the_key_is_closed(engine: Engine, headers: list[tuple[bytes, bytes]]) -> None:
    assert await call(engine, "websocket", *headers) == [{"type": "websocket.close", "code": 1008}]
    assert engine.reached == []


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_the_key_opens_every_route(engine: Engine, kind: str) -> None:
    await call(engine, kind, (b"host", b"g1"), (b"authorization", f"Bearer {KEY}".encode()))
    assert engine.reached == [kind]


async def test_the_engines_own_start_and_stop_pass(engine: Engine) -> None:
    await call(engine, "lifespan")
    assert engine.reached == ["lifespan"]


@pytest.mark.parametrize("key", [None, ""])
def test_without_a_key_the_engine_does_not_start(monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    if key is None:
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ValueError, match=f"{KEY_VARIABLE} is not set"):
        Guard(Engine())
