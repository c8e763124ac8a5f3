"""Which pictures, videos and sounds an engine may fetch for a client: engines stand inside the cluster's network.

vLLM fetches what `image_url`, `audio_url` and `video_url` link to, and what an Anthropic `source` does. Linking to an
allowed host is the client's right; what that host then redirects to is for the engine to refuse
(VLLM_MEDIA_URL_ALLOW_REDIRECTS=0).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gateway.errors import BadRequest

if TYPE_CHECKING:
    from gateway.calls import Call

LINKS = frozenset({"image_url", "audio_url", "video_url", "file_url"})
DATA = frozenset({"input", "arguments", "metadata"})  # a tool's own: nothing in it is fetched
# Strict, so that every parser of URLs sees the same host: no user, no backslash, nothing odd before the path.
URL = re.compile(
    r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?(?:[/?#].*)?", re.ASCII | re.IGNORECASE | re.DOTALL
)
SHOWN = 100  # characters of a URL in an error


def links(messages: Any) -> tuple[str, ...]:
    """Every URL in messages, items or documents that is not itself the data. Raises BadRequest for a part's `uuid`."""
    if type(messages) is not list:
        return tuple(_walk([messages])) if type(messages) is dict else ()
    others = [
        item
        for item in messages
        if (type(item) is dict and not (len(item) == 2 and type(item.get("content")) is str)) or type(item) is list
    ]
    return tuple(_walk(others)) if others else ()


def check(call: Call, hosts: Sequence[str]) -> None:
    """Raises BadRequest unless every link is http(s) to one of `hosts`, of which "*.x" means every host below x."""
    for url in call.links:
        found = URL.fullmatch(url)
        host = found[1].lower() if found else ""
        if found is None or not any(_matches(host, pattern.lower()) for pattern in hosts):
            allowed = ", ".join(hosts) or "none"
            what = f"the host {host!r}" if found else "that"
            raise BadRequest(
                f"the request links to {url[:SHOWN]!r}, and engines may not fetch from {what}; allowed are data: URLs "
                f"and http(s) from the hosts of the site's gateway.media_hosts: {allowed}"
            )


def _matches(host: str, pattern: str) -> bool:
    return host.endswith(pattern[1:]) and len(host) >= len(pattern) if pattern.startswith("*.") else host == pattern


def _walk(nodes: list[Any]) -> list[str]:
    """With a stack of its own: JSON nests deeper than Python may recurse."""
    found: list[str] = []
    while nodes:
        node = nodes.pop()
        if type(node) is list:
            nodes.extend(item for item in node if type(item) is dict or type(item) is list)
            continue
        if node.get("uuid") is not None:
            # An engine's cache of media is keyed by it, whoever filled it; and a part that has one is read by other
            # rules, whatever its type says.
            raise BadRequest("a content part's 'uuid' would name what other tenants sent: leave it out", "uuid")
        for name, value in node.items():
            if name in LINKS:
                found += _external(value.get("url") if type(value) is dict else value)
            elif name in DATA:
                continue
            elif type(value) is dict:
                if name == "source":
                    found += _external(value.get("url"))
                nodes.append(value)
            elif type(value) is list:
                nodes.append(value)
    return found


def _external(url: Any) -> list[str]:
    return [url] if isinstance(url, str) and url[:5].lower() != "data:" else []
