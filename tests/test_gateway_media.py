"""What engines may be made to fetch: nothing but what the site allows, however it is asked for."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway import media
from gateway.calls import Call
from gateway.errors import BadRequest
from gateway.surfaces.table import SURFACES

HELLO = [{"role": "user", "content": "What is gravity?"}]
PICTURE = "https://pictures.example.org/a.png"
BASIC: dict[str, dict[str, Any]] = {
    "/v1/messages": {"messages": HELLO, "max_tokens": 5},
    "/v1/rerank": {"query": "q"},
    "/v1/score": {"documents": ["a"]},
}


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


IMAGE = {"type": "image", "source": {"type": "url", "url": "URL"}}  # Anthropic's
INPUT_IMAGE = {"type": "input_image", "image_url": "URL"}  # of the Responses API
PARTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": user({"type": "image_url", "image_url": {"url": "URL"}})}),
    ("/v1/chat/completions", {"messages": user({"image_url": "URL"})}),
    ("/v1/chat/completions", {"messages": [{"role": "tool", "content": [{"video_url": {"url": "URL"}}]}, *HELLO]}),
    ("/v1/chat/completions", {"messages": user({"type": "audio_url", "audio_url": {"url": "URL"}})}),
    ("/tokenize", {"messages": user({"image_url": "URL"})}),
    ("/v1/responses", {"input": user(INPUT_IMAGE)}),
    ("/v1/responses", {"input": [{"type": "function_call_output", "output": [INPUT_IMAGE]}]}),
    ("/v1/responses", {"input": [{"type": "input_file", "file_url": "URL"}]}),
    ("/v1/messages", {"messages": user(IMAGE)}),
    ("/v1/messages", {"messages": user({"type": "tool_result", "content": [IMAGE]})}),
    ("/v1/messages", {"system": [IMAGE]}),
    ("/v1/messages/count_tokens", {"messages": user({"type": "image", "source": {"url": "URL"}})}),
    ("/v1/embeddings", {"input": user({"image_url": {"url": "URL"}})}),
    ("/v1/embeddings", {"messages": [user({"image_url": {"url": "URL"}})]}),
    ("/v1/rerank", {"documents": {"content": [{"image_url": {"url": "URL"}}]}}),
    ("/v1/rerank", {"documents": ["text", {"content": [{"image_url": {"url": "URL"}}]}]}),
    ("/v1/score", {"queries": {"content": [{"image_url": {"url": "URL"}}]}}),
]


def read(path: str, **fields: Any) -> Call:
    return SURFACES[path].read(orjson.dumps({"model": "tiny", **BASIC.get(path, {}), **fields}))


def with_url(path: str, fields: dict[str, Any], url: str) -> Call:
    return read(path, **orjson.loads(orjson.dumps(fields).replace(b"URL", url.encode())))


@pytest.mark.parametrize(("path", "fields"), PARTS)
def test_engines_fetch_from_allowed_hosts_only_wherever_the_link_stands(path: str, fields: dict[str, Any]) -> None:
    linked = with_url(path, fields, PICTURE)
    assert linked.links == (PICTURE,)
    media.check(linked, ["*.example.org"])
    with pytest.raises(BadRequest, match=r"'pictures.example.org'; .* gateway.media_hosts: images.example.org") as e:
        media.check(linked, ["images.example.org"])
    assert PICTURE in str(e.value)
    with pytest.raises(BadRequest, match="media_hosts: none"):
        media.check(linked, [])
    for inside in ("data:image/png;base64,AAAA", "DATA:image/png;base64,AAAA"):
        media.check(with_url(path, fields, inside), [])


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/a",
        "//example.org/a",
        "http://example.org@10.0.0.1/a",
        "http://10.0.0.1#@example.org/a",
        "http://10.0.0.1/example.org",
        "http:\\\\\\\\example.org",
        "http://example.org\\\\@10.0.0.1/",
        "http://example.org\\t.evil.net/",
        " http://example.org/",
        "http://evil-example.org/",
        "http://example.org.evil.net/",
        "http://127.0.0.1:8000/metrics",
        "http://[::1]/",
        "http\u017f://example.org/",
        "http://example.or\uff47/",
        "example.org/a.png",
        "",
    ],
)
def test_no_spelling_of_a_url_leads_elsewhere(url: str) -> None:
    linked = with_url(*PARTS[0], url)
    with pytest.raises(BadRequest, match="engines may not fetch from"):
        media.check(linked, ["example.org", "*.example.org"])


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("HTTP://Example.ORG/a b?c", "example.org"),
        ("https://a.b.example.org:8443", "*.Example.org"),
        ("https://example.org?x", "example.org"),
        ("http://[fd00::1]:80/", "[fd00::1]"),
    ],
)
def test_hosts_are_known_by_any_spelling_of_their_name(url: str, pattern: str) -> None:
    media.check(with_url(*PARTS[0], url), [pattern])


def test_a_host_is_not_below_itself() -> None:
    with pytest.raises(BadRequest):
        media.check(with_url(*PARTS[0], "http://example.org/"), ["*.example.org"])


def test_what_a_tool_was_given_is_not_fetched() -> None:
    used = {"type": "tool_use", "id": "1", "name": "get", "input": {"image_url": "http://10.0.0.1/"}}
    assert read("/v1/messages", messages=[{"role": "assistant", "content": [used]}]).links == ()
    cited = {"type": "output_text", "text": "x", "annotations": [{"type": "url_citation", "url": "http://10.0.0.1"}]}
    assert read("/v1/responses", input=[{"role": "assistant", "content": [cited]}]).links == ()


def test_a_picture_cannot_be_named_after_another_tenants() -> None:
    for kind in ("image_url", "text"):  # whatever it says it is: vLLM goes by what it has once there is a uuid
        named = user({"type": kind, "text": "x", "image_url": None, "uuid": "theirs"})
        with pytest.raises(BadRequest, match="'uuid' would name what other tenants sent"):
            read("/v1/chat/completions", messages=named)
